"""How old may samples be? From 1 to 32 updates of the weights per sampling, with equally many
updates in all. docs/claims.md says what follows from it.

    python bench/lag.py              # about five hours on two cores
    python bench/lag.py --seeds=1 --rates=1 --tasks=facts
    python bench/lag.py --seeds=0    # only tables and picture, from bench/lag.jsonl
    python bench/lag.py --seeds=0 --rates=1

Every update has 32 responses: of 32 prompts, or of 4 prompts in groups of 8 (GRPO, OAPL).
With 8 updates per sampling 256 responses are sampled together, so those of the last update come
from a policy that is seven updates old. Runs, their cores and stage 1 are those of bench/claims.py.
The learning rate is constant, so that all updates of a run are equally large.
"""
import re
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.claims import PRESETS, run_missing, spread, stage_1, start
from lib.cli import configure, constants_of
from lib.data import versions
from lib.files import read_jsonl
from lib.tables import as_markdown
from report import COLOURS

import matplotlib.pyplot as plt
import torch

seeds = 3
tasks = "arithmetic,facts"
rates = "1,0.25"  # factors of the task's learning rate
algorithms = ""   # some of ALGORITHMS, separated by semicolons; empty: all
lags = "1,2,4,8,16,32"
jobs = 2          # runs at a time
# --------------------------------------------------------------------------------------------------

REPO = Path(__file__).resolve().parent.parent
RESULTS, PICTURE = REPO / "bench/lag.jsonl", REPO / "assets/lag.png"
UPDATES = 128
LAGS = (1, 2, 4, 8, 16, 32)
# By algorithm: its script, the constants of its stage 1 (None: it has none), responses per prompt,
# and more arguments.
AS_BEFORE = ["--beta1=0.5", "--drop_equal=False", "--grad_clip=1"]
ALGORITHMS = {"A*-PO": ("train_apo.py", [], 1, []),
              "A*-PO, mean reward": ("train_apo.py", ["--beta1=0"], 1, []),
              "A*-PO, mean - 0.1": ("train_apo.py", ["--beta1=0"], 1, []),
              "A*-PO, 0": ("train_apo.py", ["--beta1=-1"], 1, []),
              "A*-PO, token": ("train_apo.py", [], 1, ["--off_policy=True"]),
              **{f"A*-PO, {rule}": ("bench/forms.py", [], 1, [rule, "--off_policy=True"])
                 for rule in ("sequence", "veto", "mean")},
              "GRPO": ("baselines.grpo", None, 8, []),
              "GRPO, no clip": ("baselines.grpo", None, 8, ["--clip_ratio=1000"]),
              "OAPL": ("baselines.oapl", None, 8, AS_BEFORE),
              "OAPL, mean": ("baselines.oapl", None, 8, [*AS_BEFORE, "--beta1=0"]),
              "OAPL, its settings": ("baselines.oapl", None, 8, [])}  # 256 responses an update
CASE = ("task", "rate", "algorithm", "lag", "seed")  # what a line of the results is about


def train(task, rate, algorithm, lag, seed):
    """One run; returns its line of lag.jsonl."""
    from lib.run import hardware  # takes a second to import
    script, of_stage_1, n, more = ALGORITHMS[algorithm]
    name = re.sub(r"\W+", "_", algorithm.lower())
    folder = REPO / f"out/lag/{task}/{rate:g}/{name}/{lag}/{seed}"
    if of_stage_1 is not None:
        shutil.copytree(stage_1(task, seed)[0], folder, dirs_exist_ok=True)
    if of_stage_1:  # the same samples are graded again, which gives other values
        start("estimate_value.py", *PRESETS[task], f"--seed={seed}", f"--out={folder}",
              *of_stage_1, log=folder / "values.txt")
    if algorithm == "A*-PO, mean - 0.1":
        values = torch.load(folder / "values.pt")
        values["v_star"] -= 0.1
        torch.save(values, folder / "values.pt")
    defaults = constants_of(REPO / "train_apo.py")
    for preset in PRESETS[task]:
        defaults |= constants_of(REPO / preset, is_preset=True)
    steps, prompts = UPDATES // lag, 32 if algorithm == "OAPL, its settings" else 32 // n
    start(script, *more, *PRESETS[task], f"--seed={seed}", f"--out={folder}",
          f"--lr={rate * defaults['lr']}", "--lr_decay=False", f"--max_steps={steps}",
          f"--batch_size={prompts * lag}", f"--mini_batch_size={prompts}",
          f"--eval_every={steps // 2}", "--save_every=0", log=folder / "log.txt")
    metrics = read_jsonl(folder / "metrics.jsonl", ("seconds_step",))
    evaluated = [m for m in metrics if "accuracy" in m]
    late = metrics[-max(1, steps // 4):]  # the last quarter of the updates
    return {"task": task, "rate": rate, "algorithm": algorithm, "lag": lag, "seed": seed,
            "greedy": [metrics[0]["accuracy_start"], *(m["accuracy"] for m in evaluated)],
            "sampled": [metrics[0]["accuracy_start_sampled"],
                        *(m["accuracy_sampled"] for m in evaluated)],
            "kl": statistics.mean(m["kl"] for m in late),
            "entropy": statistics.mean(m["entropy"] for m in late),
            "tokens": sum(m["tokens"] for m in metrics),
            # Of 256 responses, which are 8 updates.
            "seconds": {phase: round(sum(m.get(f"seconds_{phase}", 0) for m in metrics)
                                     / UPDATES * 8, 3)
                        for phase in ("generate", "reference", "train", "sync", "step")},
            "hardware": hardware(), "versions": versions()}


def show(tasks, rates, results):
    """Print the tables, and draw the accuracy at the end against the updates per sampling."""
    cases = sorted({(r["task"], -r["rate"]) for r in results
                    if r["task"] in tasks and r["rate"] in rates})
    columns = len({rate for _, rate in cases})
    _, axes = plt.subplots(len({task for task, _ in cases}), columns, sharex=True, sharey=True,
                           figsize=(5 * columns, 7), squeeze=False)
    for (task, rate), axis in zip(cases, axes.flat, strict=False):
        its = [r for r in results if (r["task"], -r["rate"]) == (task, rate)]
        by_lag = {name: {lag: [r for r in its if (r["algorithm"], r["lag"]) == (name, lag)]
                         for lag in LAGS} for name in ALGORITHMS}
        counts = {len(runs) for lags in by_lag.values() for runs in lags.values()} - {0}
        count = " to ".join(map(str, sorted({min(counts), max(counts)})))
        print(f"\n### {task}, learning rate x {-rate:g}, {UPDATES} updates, seeds: {count}")
        for title, form, function in (
                ("accuracy at temperature 1, %", "{:.1f}", lambda r: 100 * r["sampled"][-1]),
                ("greedy accuracy, %", "{:.1f}", lambda r: 100 * r["greedy"][-1]),
                # OAPL's own metric is the KL from the policy that sampled.
                ("KL per token", "{:.3f}",
                 lambda r: None if r["algorithm"] == "OAPL" else r["kl"]),
                ("entropy per token", "{:.3f}", lambda r: r["entropy"]),
                ("seconds per 256 responses", "{:.2f}", lambda r: r["seconds"]["step"]),
                ("of them generate", "{:.2f}", lambda r: r["seconds"]["generate"])):
            lines = [[name, *(spread([x for x in map(function, runs) if x is not None], form)
                              for runs in lags.values())] for name, lags in by_lag.items()]
            print(f"\n{as_markdown([[title, *map(str, LAGS)], *lines])}")
        for (name, lags), colour in zip(by_lag.items(), COLOURS, strict=False):
            ends = {lag: [100 * r["sampled"][-1] for r in runs]
                    for lag, runs in lags.items() if runs}
            axis.plot(ends.keys(), [statistics.median(y) for y in ends.values()], color=colour,
                      marker="o", label=name)
            axis.fill_between(ends.keys(), [*map(min, ends.values())], [*map(max, ends.values())],
                              color=colour, alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(LAGS, map(str, LAGS))
        axis.set_title(f"{task}, learning rate x {-rate:g}")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("updates per sampling")
    for axis in axes[:, 0]:
        axis.set_ylabel("held-out accuracy at temperature 1, %")
    axes[0][-1].legend(fontsize="small")
    plt.tight_layout()
    plt.savefig(PICTURE, dpi=120)
    print(f"wrote {PICTURE.relative_to(REPO)}")


def main(args):
    tasks, rates = args.tasks.split(","), [*map(float, args.rates.split(","))]
    lags, algorithms = [*map(int, args.lags.split(","))], args.algorithms.split("; ")
    cases = [(task, rate, algorithm, lag, seed) for seed in range(args.seeds) for rate in rates
             for lag in lags for task in tasks for algorithm in ALGORITHMS
             if not args.algorithms or algorithm in algorithms]
    show(tasks, rates, run_missing(cases, CASE, train, RESULTS, args.jobs))


if __name__ == "__main__":
    main(configure(__file__))
