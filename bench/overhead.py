"""What checkpoints and safety checks cost, as shares of a training step.

    python bench/overhead.py                       # the arithmetic task on two processes
    python bench/overhead.py --processes=8 config/gsm8k_qwen2.5_1.5b.py      # after its stage 1, on eight GPUs

Runs train_apo.py as it is, with a stopwatch around each part, and prints the shares that rank 0 saw. Constants are passed on.
  a checkpoint     checkpoint.save, once, against one step
  stop requests    job.stopping, after generation and after the step, as it waits for the slowest rank
  beats            the watcher's thread, in seconds of processor time
  checks           check_sampler and check_finite, once their numbers are there; comparing probes is part of sync
"""
import os
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))


def main():
    """One rank: train with stopwatches."""
    import common
    import job
    import train_apo
    spent, calls, watched = {}, {}, [0.0]

    def timed(module, name):
        function = getattr(module, name)

        def stopwatch(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
                calls[name] = calls.get(name, 0) + 1
        setattr(module, name, stopwatch)

    def watch(hang_limit, watch=job.watch):
        try:
            watch(hang_limit)
        finally:
            watched[0] = time.thread_time()

    for name in ("check_finite", "check_sampler"):
        timed(train_apo, name)
    timed(train_apo.checkpoint, "save")
    timed(job, "stopping")
    job.watch = watch
    constants = common.configure(vars(train_apo))
    folder = train_apo.out or os.path.join("out", train_apo.task)

    def trained():
        begin = time.perf_counter()
        train_apo.main(constants)
        total = time.perf_counter() - begin
        steps = [m["seconds_step"] for m in common.read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))][1:]
        step = sorted(steps)[len(steps) // 2]
        print(f"\n{job.world} processes, {len(steps) + 1} steps, median {step:.3f} s; {total:.1f} s in all")
        saving = spent["save"] / calls["save"]
        print(f"a checkpoint            {saving:8.4f} s  {saving / step:7.2%} of a step; with --save_every="
              f"{train_apo.save_every} {saving / step / train_apo.save_every:.2%}")
        for name in ("stopping", "check_sampler", "check_finite"):
            a_step = spent[name] / (len(steps) + 1)
            print(f"{name:<24}{a_step:8.4f} s  {a_step / step:7.2%} of a step, {calls[name]} calls")
        print(f"the watcher             {watched[0] / total:8.4f} s of processor time a second, {watched[0] / total:.2%}")

    job.run(trained, hang_limit=train_apo.hang_limit)


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        processes = next((a.partition("=")[2] for a in sys.argv[1:] if a.startswith("--processes=")), "2")
        rest = [a for a in sys.argv[1:] if not a.startswith("--processes=")]
        sys.exit(subprocess.run([sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", __file__,
                                 *rest]).returncode)
