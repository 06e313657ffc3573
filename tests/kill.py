"""Kill a training run of two processes again and again, and compare it with an undisturbed run.

    python tests/kill.py --kills=20 --seed=0      # a quarter of an hour on two cores

Each time the run is started it is left alone for a random time, then gets one of: SIGKILL to one
rank, to both, to both and torchrun, to torchrun alone, or SIGTERM to torchrun, as a cluster sends
before it takes a machine. The last start runs to the end. Every other step is evaluated and saved,
so kills happen during evaluation, saving and generation, too. Exits with status 1 unless
metrics.jsonl is equal to the undisturbed run's, but for seconds and memory, and so are the trained
weights, bit for bit. test_distributed.py does this with two kills.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from conftest import command, environment, metrics_of, run, what_counts

SMALL = ("--batch_size=32", "--mini_batch_size=16", "--eval_prompts=16", "--eval_every=2",
         "--save_every=2")
APO = ("train_apo.py", *SMALL, "--max_steps=6")


def torchrun(script, *args, processes=2, cwd):
    """Start a stage, in a session of its own, with its output in one pipe, which holds a MB."""
    return subprocess.Popen(command(script, *args, processes=processes), cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pipesize=1 << 20,
                            start_new_session=True, env=environment(args))


def ranks(launcher):
    """{rank: process id} of what a torchrun has started."""
    found = {}
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    for pid in children.stdout.split():
        with suppress(OSError, KeyError):
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
            found[int(dict(v.partition("=")[::2] for v in variables)["RANK"])] = int(pid)
    return found


def wait_until(launcher, ready):
    """Returns the launcher's ranks, once ready() is true or it has ended."""
    while launcher.poll() is None and not ready():
        time.sleep(0.01)
    return ranks(launcher)


def output_of(launcher):
    """The output of a job, once it has ended. A job that hangs is killed."""
    try:
        return launcher.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)
        raise


def steps_of(out):
    """The number of steps in a run's metrics so far."""
    return len(metrics_of(out)) if (out / "metrics.jsonl").exists() else 0


def disturb(launcher, how):
    """Send the signals, and wait until all ranks have ended. Returns whether a process got one."""
    pids = ranks(launcher)
    chosen = {"rank 0": [pids.get(0)], "rank 1": [pids.get(1)], "both": [*pids.values()],
              "all": [launcher.pid, *pids.values()]}.get(how, [launcher.pid])
    met = False
    if launcher.poll() is None:
        for pid in filter(None, chosen):
            with suppress(ProcessLookupError):  # it was just about to end
                os.kill(pid, signal.SIGTERM if how == "terminate" else signal.SIGKILL)
                met = True
    deadline = time.time() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids.values()):
        assert time.time() < deadline, f"still running: {pids}"
        time.sleep(0.1)
    return met


def assert_equal_runs(a, b):
    """Both runs have the same metrics, and the same trained weights."""
    for m, n in zip(what_counts(a), what_counts(b), strict=True):
        assert m == n, f"differs:\n{m}\n{n}"
    weights = [(out / "model/model.safetensors").read_bytes() for out in (a, b)]
    assert weights[0] == weights[1], "the trained weights differ"


def main(folder, kills, seed, steps):
    """Returns how many kills met a running job."""
    run("prepare.py", cwd=folder)
    run("estimate_value.py", "--max_prompts=256", cwd=folder)
    options, rng, met = ("train_apo.py", *SMALL, f"--max_steps={steps}"), random.Random(seed), 0
    shutil.copytree(folder / "out/arithmetic", folder / "out/killed")
    run(*options, cwd=folder, processes=2)
    out = folder / "out/killed"
    for kill in range(kills):
        launcher = torchrun(*options, "--out=out/killed", cwd=folder)
        how = rng.choice(["rank 0", "rank 1", "both", "all", "torchrun", "terminate"])
        # Most kills come soon after the first new step, so that the run continues slowly; the
        # others at any time, also while it starts.
        soon, begin, before = rng.random() < 0.8, time.time(), steps_of(out)
        wait_until(launcher, lambda job=launcher: len(ranks(job)) == 2)
        if soon:
            wait_until(launcher, lambda before=before: steps_of(out) != before)
        time.sleep(rng.uniform(0, 2.5 if soon else 20))
        running = disturb(launcher, how)
        output = output_of(launcher)
        assert running or launcher.returncode == 0, output
        met += running
        kept = sorted(os.listdir(out / "ckpt")) if (out / "ckpt").exists() else []
        print(f"kill {kill + 1}: {how} after {time.time() - begin:.1f} s, "
              f"{'running' if running else 'ended before'}; {steps_of(out)} steps, {kept}",
              flush=True)
    run(*options, "--out=out/killed", cwd=folder, processes=2)
    assert_equal_runs(out, folder / "out/arithmetic")
    return met


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--kills", 20), ("--seed", 0), ("--steps", 160)):
        parser.add_argument(option, type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        met = main(Path(path), **vars(options))
    print(f"{met} of {options.kills} kills met a running job; metrics and weights are equal to the "
          "undisturbed run's")
