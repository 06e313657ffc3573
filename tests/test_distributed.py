"""Many processes: equal numbers in every layout, runs that continue, and how a job ends."""
import json
import os
import shutil
import signal
import subprocess
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

from lib.samples import load_values
from model import Qwen2

import pytest
import torch
from conftest import cpu_only, metrics_of, run, what_counts
from kill import SMALL, assert_equal_runs, disturb, output_of, steps_of, torchrun, wait_until

pytestmark = [cpu_only, pytest.mark.slow, pytest.mark.xdist_group("distributed")]  # its fixtures
APO = ("train_apo", *SMALL, "--max_steps=6", "--gpu_memory_utilization=0.5")
EVALUATE = ("evaluate", "--model=data/arithmetic/model", "--max_prompts=33",
            "--samples_per_prompt=3", "--kl_to=other")
BASELINES = [(f"baselines.{name}", f"--batch_size={size}", f"--mini_batch_size={size // 2}",
              "--eval_prompts=16", "--max_steps=3")
             for name, size in (("grpo", 8), ("rebel", 16), ("ppo", 32))]
ROUNDED = ("loss", "kl", "grad_norm", "entropy", "reward", "accuracy", "accuracy_sampled")

# Several stages one after the other in one job. They share an engine, because to import vLLM and to
# build an engine takes longer than a few steps. Stage 1 and the evaluation sample from the weights
# that it was built with; training sends its own.
STAGES = """
    import importlib, json, sys

    import rollout
    import train_apo
    from lib.cli import configure
    from lib.distributed import run_stage

    engines, build = [], rollout.Engine

    def one_engine(path, dtype, max_len, gpu_memory_utilization, tp):
        engines[:] = engines or [build(path, dtype, 64, 0.5, tp)]
        return engines[0]

    def main(stages):
        for name, *sys.argv[1:] in stages:
            module = importlib.import_module(name)
            base = train_apo.__file__ if name.startswith("baselines") else None
            module.main(configure(module.__file__, base))

    rollout.Engine = one_engine
    run_stage(main, json.loads(sys.argv[1]), timeout_minutes=5.0)
"""


def script(folder, text):
    """The path of a new script."""
    (folder / "script.py").write_text(textwrap.dedent(text))
    return str(folder / "script.py")


@pytest.fixture(scope="module")
def new_folder(base, tmp_path_factory):
    """A function that makes a folder with the data, stage 1 and another model to compare with."""
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        for part in ("data", "out"):
            shutil.copytree(base / part, folder / part)
        other = Qwen2.from_pretrained(folder / "data/arithmetic/model")
        torch.nn.init.zeros_(other.model.layers[0].mlp.down_proj.weight)
        other.save_pretrained(folder / "other")
        return folder
    return make


@pytest.fixture(scope="module")
def one(new_folder):
    """The folder of one process that has evaluated a model and trained by every algorithm."""
    folder = new_folder("one")
    run(script(folder, STAGES), json.dumps([EVALUATE, APO, *BASELINES]), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def two(new_folder):
    """The same of two processes, after a stage 1 of which one process is killed once."""
    folder = new_folder("two")
    stage_1 = ("estimate_value.py", "--max_prompts=256", "--out=out/two")
    parts = [folder / f"out/two/responses.part.{i}.jsonl" for i in (0, 1)]
    launcher = torchrun(*stage_1, cwd=folder)
    wait_until(launcher, lambda: all(p.exists() and p.read_bytes().count(b"\n") > 20
                                     for p in parts))
    assert disturb(launcher, "rank 1")
    output_of(launcher)
    assert sum(p.read_bytes().count(b"\n") - 1 for p in parts) >= 40
    stages = [("estimate_value", *stage_1[1:]), EVALUATE, APO, *BASELINES]
    run(script(folder, STAGES), json.dumps(stages), cwd=folder, processes=2)
    assert not any(p.exists() for p in parts)
    return folder


# ---- equal numbers -------------------------------------------------------------------------------

def test_stage_1_of_two_processes(base, two):
    """The same values as of one process, bit for bit."""
    a, b = (load_values(out / "values.pt") for out in (two / "out/two", base / "out/arithmetic"))
    assert a["ids"] == b["ids"]
    assert all(torch.equal(a[k], b[k]) for k in ("rewards", "lengths", "finished", "v_star"))


def assert_same_evaluation(a, b):
    """But for the rounding of the KL, which is not 0: the micro-batches differ."""
    a, b = (json.loads((folder / "data/arithmetic/model/eval.json").read_text())["arithmetic"]
            for folder in (a, b))
    kl = [(results.pop("kl_per_response")["value"], results.pop("kl_per_token"))
          for results in (a, b)]
    assert 0 < kl[0][1] and kl[0] == pytest.approx(kl[1], rel=1e-3)
    assert a == b


def assert_same_training(a, b, rel=2e-5):
    """The same samples, and all else within rounding."""
    for m, n in zip(metrics_of(a), metrics_of(b), strict=True):
        assert m["tokens"] == n["tokens"] and set(m) == set(n)
        for key in set(m).intersection(ROUNDED):
            assert m[key] == pytest.approx(n[key], rel=rel, abs=rel / 10), (m["step"], key)


def test_two_processes_agree_with_one(one, two):
    assert_same_evaluation(one, two)
    assert_same_training(one / "out/arithmetic", two / "out/arithmetic")
    for name in ("grpo", "rebel", "ppo"):
        assert_same_training(*(folder / f"out/arithmetic_{name}" for folder in (one, two)),
                             rel=2e-4)


def test_two_that_share_an_engine_agree_with_one(one, new_folder):
    """They offload all they can, too. When one of them is killed, torchrun reports its rank, and no
    shared memory is left; one process continues from their checkpoint."""
    folder = new_folder("shared")
    out = folder / "out/arithmetic"
    stages = [(*EVALUATE, "--tp=2"), (*APO, "--tp=2", "--offload=True")]
    launcher = torchrun(script(folder, STAGES), json.dumps(stages), cwd=folder)
    wait_until(launcher, (out / "ckpt/step-000004").exists)
    assert disturb(launcher, "rank 1")
    cause = output_of(launcher).partition("Root Cause")[2]
    assert "rank      : 1" in cause and "SIGKILL" in cause
    assert not [name for name in os.listdir("/dev/shm") if "cpushm" in name or "psm_" in name]
    done = run("train_apo.py", *APO[1:], cwd=folder)
    assert "continuing from out/arithmetic/ckpt/step-000004" in done.stdout
    assert_same_evaluation(one, folder)
    assert_same_training(one / "out/arithmetic", out)


# ---- to continue ---------------------------------------------------------------------------------

def test_killed_and_continued(two, new_folder):
    """After SIGTERM to torchrun, when the step ends and is saved, and after SIGKILL to all, a run
    continues as if nothing had happened. `python tests/kill.py` does the same with 20 kills."""
    folder = new_folder("killed")
    out = folder / "out/arithmetic"
    launcher = torchrun("train_apo.py", *APO[1:], "--save_every=0", cwd=folder)
    wait_until(launcher, lambda: steps_of(out) >= 2)
    assert disturb(launcher, "terminate")
    output, steps = output_of(launcher), steps_of(out)
    assert f"stopped after {steps} steps, which are saved" in output
    assert os.listdir(out / "ckpt") == [f"step-{steps:06d}"] and steps < 5
    launcher = torchrun("train_apo.py", *APO[1:], "--save_every=1", cwd=folder)
    wait_until(launcher, (out / f"ckpt/step-{steps + 1:06d}").exists)
    assert disturb(launcher, "all")
    assert f"continuing from out/arithmetic/ckpt/step-{steps:06d}" in output_of(launcher)
    run("train_apo.py", *APO[1:], cwd=folder, processes=2)
    assert_equal_runs(out, two / "out/arithmetic")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_full_disk(one, new_folder):
    """One line says so, also in stage 1. What was saved before is intact, and with more room the
    run continues to the same metrics."""
    folder = new_folder("disk")
    out = folder / "out/small"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", out]).returncode:
        pytest.skip("no permission to mount")

    def fails(*stage):
        done = run(*stage, "--out=out/small", cwd=folder, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stdout
        return done.stdout.strip().splitlines()[-1]

    try:
        line = fails("estimate_value.py", "--max_prompts=64")
        assert line.startswith("error: sampling: no space left on the disk")
        size = sum(p.stat().st_size for p in (one / "out/arithmetic/ckpt/step-000006").iterdir())
        subprocess.run(["mount", "-o", f"remount,size={int(1.6 * size)}", out], check=True)
        shutil.copy(folder / "out/arithmetic/values.pt", out)
        line = fails("train_apo.py", *APO[1:])
        assert line.startswith("error: out/small/ckpt/step-000004 could not be written: it takes ")
        assert "step-000002 is intact: make room" in line
        subprocess.run(["mount", "-o", "remount,size=60m", out], check=True)
        done = run("train_apo.py", *APO[1:], "--out=out/small", cwd=folder)
        assert "continuing from out/small/ckpt/step-000002" in done.stdout
        assert what_counts(out) == what_counts(one / "out/arithmetic")
    finally:
        subprocess.run(["umount", out], check=True)


# ---- how a job ends ------------------------------------------------------------------------------

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
    ("steps of .5", 0, (INT,), 130, "stopped after ", 1),
    ("steps of .5", 2, (TERM,), 1, "stopped after ", 1),
    ("steps of .5", 2, (INT,), 1, "stopped after ", 1),
    ("steps of .5", 2, (KILL,), -9, "stopped after ", 1),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{the first three of ENDS: (status, output)}, after all these jobs, five at a time."""
    folder = tmp_path_factory.mktemp("jobs")
    job = script(folder, JOB)

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
        assert 'script.py", line' not in output  # no traceback of ours
    if processes and not signals:
        cause = output.partition("Root Cause")[2]
        reported = {"SIGSTOP": 0, "foreseen": 0}.get(what, 1)
        assert f"rank      : {reported}" in cause, output
        assert said in cause or what != "raise"
    if what != "SIGSTOP":
        assert "Timed out waiting" not in output
