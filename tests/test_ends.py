"""How a job ends: errors in one rank or in all, signals, and ranks that hang."""
import signal
import subprocess
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import cpu_only
from kill import output_of, torchrun

pytestmark = [cpu_only, pytest.mark.slow]


JOB = """
    import os, signal, sys, time

    from lib.distributed import barrier, rank, run_stage, set_activity, stop_requested, world_size

    import torch

    def main(what):
        set_activity("the work")
        barrier()
        if what == "foreseen":
            sys.exit("error: all ranks find this")
        for step in range(100 * what.startswith("steps of")):
            if stop_requested():
                raise KeyboardInterrupt(f"stopped after {step} steps")
            print("step", flush=True)
            time.sleep(float(what.split()[-1]))
        if rank == world_size - 1:
            if what == "raise":
                raise KeyError("no such token")
            if what == "allocate":
                torch.empty(1 << 50, dtype=torch.uint8)
            if what in ("SIGKILL", "SIGSTOP"):
                os.kill(os.getpid(), getattr(signal, what))
            while what == "loop":
                time.sleep(0.1)
        barrier()

    run_stage(main, sys.argv[1], timeout_minutes=float(sys.argv[2]))
"""
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
# What the last rank does, processes, signals to torchrun or to the only process, the job's status,
# what is said, how often. Those that have to wait come first: all run at the same time.
ENDS = [
    ("loop", 0, (), 1, "in main", 1),
    ("SIGSTOP", 2, (), 1, "Timed out waiting 12000ms", None),
    ("steps of 60", 0, (INT, INT), 130, "stopped by SIGINT", 1),
    ("SIGKILL", 2, (), 1, "Signal 9 (SIGKILL)", None),
    ("raise", 0, (), 1, "KeyError: 'no such token'", 1),
    ("raise", 2, (), 1, "KeyError: 'no such token'", None),
    ("foreseen", 0, (), 1, "error: all ranks find this", 1),
    ("foreseen", 2, (), 1, "error: all ranks find this", 1),
    ("allocate", 2, (), 1, "error: rank 1, the work: out of memory", 1),
    ("steps of .5", 0, (TERM,), 143, "stopped after ", 1),
    ("steps of .5", 2, (TERM,), 1, "stopped after ", 1),
    ("steps of .5", 2, (KILL,), -9, "stopped after ", 1),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{the first three of ENDS: (status, output)}, after all these jobs, five at a time."""
    folder = tmp_path_factory.mktemp("jobs")
    job = str(folder / "job.py")
    Path(job).write_text(textwrap.dedent(JOB))

    def end(row):
        what, processes, signals, *_ = row
        # Only those that wait in vain need the timeout.
        timeout = {"loop": 0.02, "SIGSTOP": 0.2}.get(what, 5)
        launcher = torchrun(job, what, timeout, processes=processes, cwd=folder)
        if signals:
            while launcher.stdout.readline() not in ("step\n", ""):
                pass
        for number in signals:
            launcher.send_signal(number)
            time.sleep(0.5)
        return row[:3], (output_of(launcher), launcher.returncode)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(5) as pool:
        patch.setenv("PET_SHUTDOWN_TIMEOUT", "5")  # torchrun's --shutdown-timeout
        results = dict(pool.map(end, ENDS))
    assert not subprocess.run(["pgrep", "-f", job], capture_output=True, text=True).stdout
    return results


@pytest.mark.parametrize("row", ENDS, ids=lambda row: f"{row[0]}, {row[1]}, {len(row[2])}")
def test_how_a_job_ends(row, ended):
    """With one line for what can be foreseen and for a request to stop, and with torchrun's report
    of the rank for the rest; no process is left."""
    what, processes, signals, status, said, times = row
    output, returned = ended[row[:3]]
    assert returned == status and said in output and times in (None, output.count(said)), output
    if what in ("foreseen", "allocate"):
        assert 'job.py", line' not in output  # no traceback of ours
    if processes and not signals:
        cause = output.partition("Root Cause")[2]
        reported = {"SIGSTOP": 0, "foreseen": 0}.get(what, 1)
        assert f"rank      : {reported}" in cause, output
        assert said in cause or what != "raise"
    if what != "SIGSTOP":
        assert "Timed out waiting" not in output
