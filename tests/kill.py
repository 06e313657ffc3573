"""Kill a training run of two processes again and again, and compare it with an undisturbed run.

    python tests/kill.py --kills=20 --seed=0      # a quarter of an hour on two cores

Each time the run is started it is left alone for a random time, then gets one of: SIGKILL to one
rank, to both, to both and torchrun, to torchrun alone, or SIGTERM to torchrun, as a cluster sends
before it takes a machine. The last start runs to the end. Every other step is evaluated and saved,
so kills happen during evaluation, saving and generation, too. Exits with status 1 unless
metrics.jsonl is equal to the undisturbed run's, but for seconds and memory, and so are the trained
weights, bit for bit. test_distributed.py does this with a few kills.
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


def torchrun(script, *args, processes=2, cwd):
    """Start a stage under torchrun, in a session of its own, with its output in one pipe."""
    return subprocess.Popen(command(script, *args, processes=processes), cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True, env=environment(args))


def ranks(launcher):
    """{rank: process id} of what a torchrun has started."""
    found = {}
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    for pid in children.stdout.split():
        with suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_text().split("\0"):
                if variable.startswith("RANK="):
                    found[int(variable[5:])] = int(pid)
    return found


def steps_of(out):
    """The step numbers in a run's metrics so far."""
    return [m["step"] for m in metrics_of(out)] if (out / "metrics.jsonl").exists() else []


def output_of(launcher):
    """The output of a torchrun, once it has ended. A run that hangs is killed."""
    try:
        return launcher.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)
        raise


def wait_for_ranks(pids):
    """Until they have ended: after the death of torchrun they do so by themselves."""
    deadline = time.time() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.time() < deadline, f"still running: {pids}"
        time.sleep(0.1)


def disturb(launcher, how):
    """Send the signals. Returns whether a process got one."""
    if launcher.poll() is not None:
        return False
    pids = ranks(launcher)
    number = signal.SIGTERM if how == "terminate" else signal.SIGKILL
    chosen = {"rank 0": [pids.get(0)], "rank 1": [pids.get(1)], "both": [*pids.values()],
              "all": [launcher.pid, *pids.values()], "torchrun": [launcher.pid],
              "terminate": [launcher.pid]}[how]
    met = False
    for pid in filter(None, chosen):
        with suppress(ProcessLookupError):  # it was just about to end
            os.kill(pid, number)
            met = True
    wait_for_ranks(pids.values())
    return met


def kill_and_compare(folder, kills, seed, steps):
    """folder: with data/ and out/arithmetic/values.pt. Returns how many kills met a running job."""
    rng = random.Random(seed)
    out, undisturbed = folder / "out/killed", folder / "out/undisturbed"
    for path in (out, undisturbed):
        path.mkdir(parents=True)
        shutil.copy(folder / "out/arithmetic/values.pt", path)

    def start(path):
        return torchrun("train_apo.py", *SMALL, f"--max_steps={steps}", f"--out={path}", cwd=folder)

    def finish(path):
        launcher = start(path)
        output = output_of(launcher)
        assert launcher.returncode == 0, output

    finish(undisturbed)
    met = 0
    for kill in range(kills):
        launcher = start(out)
        how = rng.choice(["rank 0", "rank 1", "both", "all", "torchrun", "terminate"])
        # Most kills come soon after the first new step, so that the run continues slowly; the
        # others at any time, also while it starts.
        soon = rng.random() < 0.8
        begin, before = time.time(), steps_of(out)
        while len(ranks(launcher)) < 2 and launcher.poll() is None:
            time.sleep(0.1)
        while soon and steps_of(out) == before and launcher.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2.5 if soon else 20))
        running = disturb(launcher, how)
        output = output_of(launcher)
        assert running or launcher.returncode == 0, output
        met += running
        kept = sorted(os.listdir(out / "ckpt")) if (out / "ckpt").exists() else []
        print(f"kill {kill + 1}: {how} after {time.time() - begin:.1f} s, "
              f"{'running' if running else 'ended before'}; {len(steps_of(out))} steps, {kept}",
              flush=True)
    finish(out)
    for a, b in zip(what_counts(out), what_counts(undisturbed), strict=True):
        assert a == b, f"differs:\n{a}\n{b}"
    weights = [(path / "model/model.safetensors").read_bytes() for path in (out, undisturbed)]
    assert weights[0] == weights[1], "the trained weights differ"
    return met


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        run("prepare.py", cwd=path)
        run("estimate_value.py", "--max_prompts=256", cwd=path)
        met = kill_and_compare(Path(path), options.kills, options.seed, options.steps)
    print(f"{met} of {options.kills} kills met a running job; metrics and weights are equal to the "
          "undisturbed run's")
