"""What checkpoints and safety checks cost, as shares of a training step.

    torchrun --standalone --nproc_per_node=2 bench/overhead.py  # arithmetic, after stage 1
    torchrun --standalone --nproc_per_node=8 bench/overhead.py config/gsm8k.py     # on eight GPUs

Runs train_apo.py as it is, with a stopwatch around each of these functions, and prints the seconds
that rank 0 spent in them. Constants are passed on.

    save_checkpoint     once, against one step
    stop_requested      after generation and between steps; waits for the slowest rank
    restart_timer       the timer of Python's that ends a process without progress
    check_update        the check of the sampler and that of finite numbers, with their reductions
                        over all ranks; comparing probes is part of the sync
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
from lib.data import task_name
from lib.files import read_jsonl

seconds, calls = Counter(), Counter()  # of each function, by name


def measure(name, *owners):
    """Replace the function `name` of these modules or classes, the same in all, by a timed one."""
    function = getattr(owners[0], name)

    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - begin
            calls[name] += 1

    for owner in owners:
        setattr(owner, name, timed)


def main(args):
    begin = time.perf_counter()
    train_apo.main(args)
    total = time.perf_counter() - begin
    folder = args.out or os.path.join("out", task_name(args.task))
    metrics = read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
    step = statistics.median(m["seconds_step"] for m in metrics)
    print(f"\n{lib.distributed.world_size} processes, {len(metrics)} steps, median {step:.3f} s; "
          f"{total:.1f} s in all")
    if calls["save_checkpoint"]:
        save = seconds["save_checkpoint"] / calls["save_checkpoint"]
        print(f"{'one checkpoint':<18}{save:9.4f} s  {save / step:7.2%} of a step; with "
              f"--save_every={args.save_every} {save / step / args.save_every:.2%}")
    for name in ("stop_requested", "restart_timer", "check_update"):
        per_step = seconds[name] / len(metrics)
        print(f"{name:<18}{per_step:9.4f} s  {per_step / step:7.2%} of a step, {calls[name]} calls")


if __name__ == "__main__":
    measure("save_checkpoint", lib.checkpoint)
    measure("stop_requested", lib.run, train_apo, evaluate)
    measure("restart_timer", lib.distributed)
    measure("check_update", lib.run.Run)
    args = configure(train_apo.__file__)
    lib.distributed.run_stage(main, args)
