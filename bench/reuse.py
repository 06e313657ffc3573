"""Training on stage 1's own samples: the first steps of a run generate nothing (--stage_1_steps).
docs/claims.md says what follows from it.

    python bench/reuse.py              # three hours on two cores
    python bench/reuse.py --seeds=1 --tasks=facts
    python bench/reuse.py --seeds=0    # only the tables, from bench/reuse.jsonl

Every step has 256 responses and two updates. Runs, their cores and stage 1 are those of
bench/claims.py. "only" are runs that end when stage 1's samples do.
"""
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.claims import LEVEL, PRESETS, first_time, run_missing, spread, stage_1, start
from lib.cli import configure
from lib.data import versions
from lib.files import read_jsonl
from lib.tables import as_markdown

import shutil

seeds = 3
tasks = "arithmetic,facts"
first = "0,8,16,32,only"  # steps with stage 1's samples
jobs = 2                  # runs at a time
# --------------------------------------------------------------------------------------------------

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "bench/reuse.jsonl"
STEPS = {"arithmetic": 32, "facts": 64}
CASE = ("task", "first", "off_policy", "seed")  # what a line of the results is about


def train(task, first, off_policy, seed):
    """One run; returns its line of reuse.jsonl."""
    from lib.run import hardware  # takes a second to import
    folder = REPO / f"out/reuse/{task}/{first}/{off_policy}/{seed}"
    values, spent = stage_1(task, seed)
    shutil.copytree(values, folder, dirs_exist_ok=True)
    number, steps = (32, 32) if first == "only" else (int(first), STEPS[task])
    start("train_apo.py", *PRESETS[task], f"--seed={seed}", f"--out={folder}",
          f"--max_steps={steps}", f"--stage_1_steps={number}", f"--off_policy={off_policy}",
          f"--eval_every={steps // 8}", "--save_every=0", log=folder / "log.txt")
    metrics = read_jsonl(folder / "metrics.jsonl", ("seconds_step",))
    evaluated = [m["step"] + 1 for m in metrics if "accuracy" in m]
    line = {"task": task, "first": first, "off_policy": off_policy, "seed": seed,
            "steps": [0, *evaluated], "stage_1": spent, "hardware": hardware(),
            "versions": versions()}
    for kind, key in (("greedy", "accuracy"), ("sampled", "accuracy_sampled")):
        line[kind] = [metrics[0][key.replace("accuracy", "accuracy_start")],
                      *(m[key] for m in metrics if key in m)]
    line["seconds"] = [round(sum(m["seconds_step"] for m in metrics[:k]), 2) for k in line["steps"]]
    line["generations"] = [256 * max(0, k - number) for k in line["steps"]]
    for key in ("kl", "entropy"):
        line[key] = statistics.mean(m[key] for m in metrics[-8:])
    for name, its in (("stage 1", metrics[1:number]), ("policy", metrics[number + 1:])):
        if its:
            line[f"seconds_of_step, {name}"] = {
                phase: round(statistics.median(m[f"seconds_{phase}"] for m in its), 3)
                for phase in ("generate", "reference", "train", "sync", "step")}
    return line


def show(task, results):
    its = [r for r in results if r["task"] == task]
    level = LEVEL[task, "equal generations"]
    lines = [["first steps from stage 1, off_policy", "at temperature 1, %", "greedy, %",
              "KL per token", f"generations to {level:.0%}, stage 1 charged", "seconds, likewise"]]
    for first, off_policy in dict.fromkeys((r["first"], r["off_policy"]) for r in its):
        runs = [r for r in its if (r["first"], r["off_policy"]) == (first, off_policy)]
        lines.append([f"{first}, {off_policy}",
                      spread([100 * r["sampled"][-1] for r in runs], "{:.1f}"),
                      spread([100 * r["greedy"][-1] for r in runs], "{:.1f}"),
                      spread([r["kl"] for r in runs], "{:.3f}"),
                      *(spread([first_time(r, [x + r["stage_1"][key] for x in r[key]], level)
                                for r in runs], "{:.0f}") for key in ("generations", "seconds"))])
    print(f"\n### {task}\n\n{as_markdown(lines)}")


def main(args):
    cases = [(task, first, off_policy, seed) for seed in range(args.seeds)
             for first in args.first.split(",") for task in args.tasks.split(",")
             for off_policy in (True, False)]
    results = run_missing(cases, CASE, train, RESULTS, args.jobs)
    for task in args.tasks.split(","):
        show(task, results)


if __name__ == "__main__":
    main(configure(__file__))
