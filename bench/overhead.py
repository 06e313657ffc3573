"""What checkpoints and safety checks cost, as shares of a training step.

    torchrun --nproc_per_node=2 bench/overhead.py                     # arithmetic, after stage 1
    torchrun --nproc_per_node=8 bench/overhead.py config/gsm8k.py     # on eight GPUs

Runs train_apo.py as it is, with a stopwatch around each of these functions, and prints the seconds
that rank 0 spent in them. Constants are passed on.

    save_checkpoint     once, against one step
    stop_requested      after generation and between steps; waits for the slowest rank
    restart_timer       the timer of Python's that ends a process without progress
    sampler_error       once its numbers are there; comparing probes is part of the sync
    check_finite        once its numbers are there
"""
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import evaluate
import lib.checkpoint
import lib.distributed
import lib.run
import train_apo
from lib.cli import configure
from lib.files import read_jsonl

seconds, calls = Counter(), Counter()  # of each function, by name


def measure(name, *modules):
    """Replace the function `name` of these modules, which is the same in all, by a timed one."""
    function = getattr(modules[0], name)

    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - begin
            calls[name] += 1

    for module in modules:
        setattr(module, name, timed)


def main(constants):
    begin = time.perf_counter()
    train_apo.main(constants)
    total = time.perf_counter() - begin
    folder = train_apo.out or os.path.join("out", train_apo.task)
    metrics = read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
    step = statistics.median(m["seconds_step"] for m in metrics)
    print(f"\n{lib.distributed.world_size} processes, {len(metrics)} steps, median {step:.3f} s; "
          f"{total:.1f} s in all")
    if calls["save_checkpoint"]:
        save = seconds["save_checkpoint"] / calls["save_checkpoint"]
        print(f"{'one checkpoint':<18}{save:9.4f} s  {save / step:7.2%} of a step; with "
              f"--save_every={train_apo.save_every} {save / step / train_apo.save_every:.2%}")
    for name in ("stop_requested", "restart_timer", "sampler_error", "check_finite"):
        per_step = seconds[name] / len(metrics)
        print(f"{name:<18}{per_step:9.4f} s  {per_step / step:7.2%} of a step, {calls[name]} calls")


if __name__ == "__main__":
    measure("save_checkpoint", lib.checkpoint)
    measure("stop_requested", lib.run, train_apo, evaluate)
    measure("restart_timer", lib.distributed)
    measure("sampler_error", lib.run)
    measure("check_finite", lib.run)
    lib.distributed.run_stage(main, configure(vars(train_apo)),
                              timeout_minutes=train_apo.timeout_minutes)
