"""Kill a training run of two processes again and again, and compare what comes out with a run that nobody disturbed.

    python tests/kill.py --kills=20 --seed=0      # a quarter of an hour on two cores; test_job.py does a few

Each time the run is started it is left alone for a random while, then gets one of: SIGKILL to one rank, to both, to both and
torchrun at once, or SIGTERM to torchrun, as a cluster does before it takes a machine away. The last start runs to the end.
Every other step is evaluated and saved, so kills meet evaluation, saving and generation. Exits with status 1 unless
metrics.jsonl is equal, but for seconds and memory, to the undisturbed run's, and so are the trained weights.
"""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
SMALL = ("--batch_size=32", "--mini_batch_size=16", "--eval_prompts=16", "--eval_every=2", "--save_every=2")


def torchrun(script, *args, processes=2, **kwargs):
    """Start a stage under torchrun, in a process group of its own, its output in one pipe."""
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True, **kwargs}
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                             str(script if os.path.isabs(script) else REPO / script), *map(str, args)], **kwargs)


def ranks(launcher):
    """{rank: process id} of what a torchrun has started."""
    found = {}
    for pid in subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split():
        try:
            environment = dict(x.partition("=")[::2] for x in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        except OSError:
            continue
        if "RANK" in environment:
            found[int(environment["RANK"])] = int(pid)
    return found


def steps_of(out):
    """The step numbers in a run's metrics so far."""
    try:
        return [json.loads(line)["step"] for line in open(out / "metrics.jsonl")]
    except OSError:
        return []


def what_counts(out):
    """Metrics without what is measured in seconds and bytes."""
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k and "memory" not in k}
            for line in open(out / "metrics.jsonl")]


def ended(launcher):
    """The output of a torchrun, once it has ended. Raises subprocess.TimeoutExpired if it hangs, and kills it."""
    try:
        return launcher.communicate(timeout=900)[0]
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)
        raise


def disturb(launcher, how):
    """Do it. Returns whether a signal met a process."""
    if launcher.poll() is not None:
        return False
    if how == "terminate":
        os.kill(launcher.pid, signal.SIGTERM)
        return True
    pids = ranks(launcher)
    chosen = {"rank 0": [pids.get(0)], "rank 1": [pids.get(1)], "both": [*pids.values()],
              "all": [launcher.pid, *pids.values()]}[how]
    met = False
    for pid in filter(None, chosen):
        with suppress(ProcessLookupError):  # it was just about to end
            os.kill(pid, signal.SIGKILL)
            met = True
    return met


def kill_and_compare(folder, kills, seed, steps):
    """folder: with data/ and out/arithmetic/values.pt. Returns the number of kills that met a run at work."""
    rng, out, undisturbed = random.Random(seed), folder / "out/killed", folder / "out/undisturbed"
    for run in (out, undisturbed):
        run.mkdir(parents=True)
        shutil.copy(folder / "out/arithmetic/values.pt", run)
    first = torchrun("train_apo.py", *SMALL, f"--max_steps={steps}", "--out=out/undisturbed", cwd=folder)
    output = ended(first)
    assert first.returncode == 0, output
    met = 0
    for kill in range(kills):
        launcher = torchrun("train_apo.py", *SMALL, f"--max_steps={steps}", "--out=out/killed", cwd=folder)
        # Most of them soon after its first new step, so that it gets on slowly; the others at any time, set-up included.
        how, soon = rng.choice(["rank 0", "rank 1", "both", "all", "terminate"]), rng.random() < 0.8
        begin, before = time.time(), steps_of(out)
        while len(ranks(launcher)) < 2 and launcher.poll() is None:
            time.sleep(0.1)
        while soon and steps_of(out) == before and launcher.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2.5 if soon else 20))
        at_work = disturb(launcher, how)
        output = ended(launcher)
        assert at_work or launcher.returncode == 0, output
        met += at_work
        kept = sorted(os.listdir(out / "ckpt")) if (out / "ckpt").exists() else []
        print(f"kill {kill + 1}: {how} after {time.time() - begin:.1f} s, {'at work' if at_work else 'nobody was there'}; "
              f"{len(steps_of(out))} steps, {kept}", flush=True)
    last = torchrun("train_apo.py", *SMALL, f"--max_steps={steps}", "--out=out/killed", cwd=folder)
    output = ended(last)
    assert last.returncode == 0, output
    for a, b in zip(what_counts(out), what_counts(undisturbed), strict=True):
        assert a == b, f"differs:\n{a}\n{b}"
    weights = [(run / "model/model.safetensors").read_bytes() for run in (out, undisturbed)]
    assert weights[0] == weights[1], "the trained weights differ"
    return met


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=160)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        for stage, *arguments in (("prepare.py",), ("estimate_value.py", "--max_prompts=256")):
            subprocess.run([sys.executable, str(REPO / stage), *arguments], cwd=folder, check=True)
        met = kill_and_compare(folder, options.kills, options.seed, options.steps)
    print(f"{met} of {options.kills} kills met a run at work; metrics and weights are equal to the undisturbed run's")
