"""How a job ends: errors in one rank or in all, signals, and ranks that hang."""
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import REPO, cpu_only
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
TERM, INT, KILL, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP
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
    ("steps of .5", 0, (HUP,), 129, "stopped after ", 1),
    ("steps of .5", 2, (HUP,), 1, "stopped after ", 1),
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


@pytest.mark.parametrize("by", ["nohup", "nobody"])
def test_a_job_outlives_its_terminal(by, tmp_path):
    """nohup's job ignores SIGHUP. Nobody reads the output any more after the first step, and a
    request to stop still ends the job as it would otherwise."""
    job = tmp_path / "job.py"
    job.write_text(textwrap.dedent(JOB))
    command = [*["nohup"][:by == "nohup"], sys.executable, job, "steps of .1", "5"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT,
                               env={**os.environ, "PYTHONPATH": str(REPO)})
    while b"step" not in process.stdout.readline():
        pass
    process.stdout.close()
    time.sleep(0.5)
    process.send_signal(HUP if by == "nohup" else 0)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(TERM)
    assert process.wait(30) == 143


def test_variables_of_a_platform(tmp_path):
    """Without torchrun WORLD_SIZE starts no processes, so a job would wait for them for ever. One
    that needs no other process runs."""
    job = tmp_path / "job.py"
    for alone, status in ((False, 1), (True, 0)):
        job.write_text(textwrap.dedent(JOB).replace("float(sys.argv[2])", f"5, alone={alone}"))
        done = subprocess.run([sys.executable, job, "steps of 0"], capture_output=True, text=True,
                              timeout=60, env={**os.environ, "PYTHONPATH": str(REPO), "RANK": "1",
                                               "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
        assert done.returncode == status, done.stderr
        assert "step" in done.stdout if alone else done.stderr == (
            "error: WORLD_SIZE=2 is set, but torchrun has not started this process: start it with "
            "torchrun, or unset WORLD_SIZE\n")
