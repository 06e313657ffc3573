"""A*-PO against PPO, GRPO and REBEL, and against itself with other baselines than V*: five seeds of
each on two tasks that need no GPU. docs/claims.md says what follows from it.

    python bench/claims.py              # 112 minutes on two cores
    python bench/claims.py --seeds=1 --tasks=facts
    python bench/claims.py --seeds=0    # only tables and picture, from bench/claims.jsonl

Every finished run is a line of bench/claims.jsonl and is not repeated; an interrupted one continues
from its checkpoint. Two run at a time, each on a core of its own, and nothing else should run on
the machine meanwhile. The accountings:

equal generations   256 responses per step, whatever the number of prompts
equal prompts       32 prompts per step, whatever the number of responses

GRPO, with 32 prompts and 8 responses to each, is the same run in both. All algorithms have the
same learning rate, number of steps, updates per step, temperature and held-out prompts. Half and
double the learning rate are tried with one task, one accounting and one seed.

The other baselines than V* are the mean reward of a prompt's samples in stage 1 (--beta1=0) and 0
(--beta1=-1), from the same samples. The lines of "A*-PO, running mean" were run with commit
4656bde, which had a running mean of the rewards as a third one; this script shows them only.
"""
import math
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.cli import configure, constants_of
from lib.data import versions
from lib.files import read_jsonl, write_jsonl
from lib.tables import as_markdown
from report import COLOURS

import matplotlib.pyplot as plt
import numpy as np

seeds = 5
tasks = "arithmetic,facts"
jobs = 2  # runs at a time
# --------------------------------------------------------------------------------------------------

REPO = Path(__file__).resolve().parent.parent
RESULTS, PICTURE = REPO / "bench/claims.jsonl", REPO / "assets/claims.png"
# The accuracy that is waited for: one that most runs reach.
LEVEL = {("arithmetic", "equal generations"): 0.8, ("arithmetic", "equal prompts"): 0.8,
         ("facts", "equal generations"): 0.7, ("facts", "equal prompts"): 0.6}
PRESETS = {"arithmetic": [], "facts": ["config/facts.py"]}
TRAIN = {"arithmetic": ["--max_steps=16", "--eval_every=2"], "facts": []}
# By algorithm: its script, the constants of its stage 1, responses per prompt.
ALGORITHMS = {
    "A*-PO": ("train_apo.py", [], 1),
    "PPO": ("baselines.ppo", None, 1),
    "REBEL": ("baselines.rebel", None, 2),
    "GRPO": ("baselines.grpo", None, 8),
    "A*-PO, mean reward": ("train_apo.py", ["--beta1=0"], 1),
    "A*-PO, running mean": (None, None, 1),
    "A*-PO, 0": ("train_apo.py", ["--beta1=-1"], 1)}
# By accounting: its algorithms, and how many prompts per step with so many responses each.
ACCOUNTINGS = {"equal generations": (list(ALGORITHMS), lambda n: 256 // n),
               "equal prompts": (list(ALGORITHMS)[:4], lambda n: 32)}
RATES = (0.5, 2)  # factors of the learning rate that are tried besides
SHARED = {"free": 0, "shared by 10 runs": 1 / 10, "by 3": 1 / 3, "charged": 1}  # stage 1
CASE = ("task", "accounting", "algorithm", "seed", "rate")  # what a line of the results is about


# ---- runs ----------------------------------------------------------------------------------------

free_cores = queue.SimpleQueue()


def start(script, *arguments, log):
    """Run a script of the repository on one core; its output goes to the file `log`."""
    target = [script] if script.endswith(".py") else ["-m", script]
    log.parent.mkdir(parents=True, exist_ok=True)
    core = free_cores.get()
    with open(log, "w") as f:
        done = subprocess.run(["taskset", "--cpu-list", core, sys.executable, *target,
                               *map(str, arguments)], cwd=REPO, stdout=f, stderr=subprocess.STDOUT,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    free_cores.put(core)
    if done.returncode:
        sys.exit(f"error: {script} failed; see {log}")


def stage_1(task, seed):
    """Estimate the values with this seed, if they are not there. Returns the folder with values.pt,
    and what they took."""
    folder = REPO / f"out/claims/{task}/stage-1/{seed}"
    log = folder / "log.txt"
    if not (folder / "values.pt").exists():
        start("estimate_value.py", *PRESETS[task], f"--seed={seed}", f"--out={folder}", log=log)
    tokens, took = re.search(r"([\d,]+) tokens in ([\d.]+) s", log.read_text()).groups()
    rows = len(read_jsonl(folder / "responses.jsonl", ()))
    return folder, {"tokens": int(tokens.replace(",", "")), "seconds": float(took),
                    "generations": 8 * rows}


def cases(args):
    """Task, accounting, algorithm, seed and factor of the learning rate of every run."""
    for seed in range(args.seeds):
        for task in args.tasks.split(","):
            for accounting, (algorithms, _) in ACCOUNTINGS.items():
                for algorithm in algorithms:
                    if ALGORITHMS[algorithm][0] and (accounting, algorithm) != ("equal prompts",
                                                                                "GRPO"):
                        yield task, accounting, algorithm, seed, 1
    if args.seeds and "facts" in args.tasks:
        for rate in RATES:
            for algorithm in list(ALGORITHMS)[:4]:
                yield "facts", "equal generations", algorithm, 0, rate


def train(task, accounting, algorithm, seed, rate):
    """One run; returns its line of claims.jsonl."""
    from lib.run import hardware  # takes a second to import
    script, of_stage_1, n = ALGORITHMS[algorithm]
    prompts, constants, first = ACCOUNTINGS[accounting][1](n), TRAIN[task], None
    name = re.sub(r"\W+", "_", algorithm.lower())
    folder = REPO / f"out/claims/{task}/{accounting.replace(' ', '_')}/{name}/{seed}"
    if rate != 1:
        folder = folder.with_name(f"{seed}_rate_{rate}")
        preset = constants_of(REPO / PRESETS[task][0], is_preset=True)
        constants = [*constants, *(f"--{name}={rate * preset[name]}" for name in (
            ("lr", "critic_lr") if algorithm == "PPO" else ("lr",)))]
    if of_stage_1 is not None:
        values, first = stage_1(task, seed)
        shutil.copytree(values, folder, dirs_exist_ok=True)
    if of_stage_1:  # the same samples are graded again, which gives other values
        start("estimate_value.py", *PRESETS[task], f"--seed={seed}", f"--out={folder}",
              *of_stage_1, log=folder / "values.txt")
    start(script, *PRESETS[task], *constants, f"--seed={seed}", f"--out={folder}",
          f"--batch_size={prompts}", f"--mini_batch_size={prompts // 2}", log=folder / "log.txt")
    metrics = read_jsonl(folder / "metrics.jsonl", ("seconds_step",))
    evaluated = [m for m in metrics if "accuracy" in m]
    steps = [0, *(m["step"] + 1 for m in evaluated)]

    def so_far(key):
        return [round(sum(m[key] for m in metrics[:k]), 2) for k in steps]

    def accuracy(key):
        return [metrics[0][key.replace("accuracy", "accuracy_start")], *(m[key] for m in evaluated)]

    phases = ("generate", "reference", "grade", "train", "sync", "step")
    return {
        "task": task, "accounting": accounting, "algorithm": algorithm, "seed": seed, "rate": rate,
        "prompts_per_step": prompts, "responses_per_prompt": n, "steps": steps,
        "greedy": accuracy("accuracy"), "sampled": accuracy("accuracy_sampled"),
        "tokens": so_far("tokens"), "seconds": so_far("seconds_step"),
        "kl": statistics.mean(m["kl"] for m in metrics[-8:]),
        "seconds_of_step": {phase: round(statistics.median(m[f"seconds_{phase}"]
                                                           for m in metrics[1:]), 4)
                            for phase in phases},
        "memory_gb": metrics[-1]["memory_gb"], "stage_1": first, "hardware": hardware(),
        "versions": versions()}


def run_missing(cases, keys, train, path, jobs):
    """The lines of `path`, one for each case; those that it lacks are run and added, `jobs` at a
    time. A case is a tuple of the values of `keys` in its line; train(*case) returns the line."""
    results = read_jsonl(path, keys) if path.exists() else []
    done = {tuple(r[key] for key in keys) for r in results}
    missing = [case for case in cases if case not in done]
    for core in sorted(os.sched_getaffinity(0))[:jobs]:
        free_cores.put(str(core))
    task, seed = keys.index("task"), keys.index("seed")
    for name in {case[task] for case in missing}:
        if not (REPO / f"data/{name}/model/config.json").exists():
            start("prepare.py", f"--task={name}", log=REPO / f"out/claims/{name}/prepare.txt")
    pool = ThreadPoolExecutor(jobs)
    try:
        for first in [pool.submit(stage_1, *of)
                      for of in sorted({(case[task], case[seed]) for case in missing})]:
            first.result()
        for run in as_completed([pool.submit(train, *case) for case in missing]):
            results.append(run.result())
            write_jsonl(path, results)
            print(*(results[-1][key] for key in keys), flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return results


# ---- tables and picture --------------------------------------------------------------------------

def spread(values, form="{:.2f}"):
    """Median, and in brackets the smallest and largest of several. An infinite one is "never"."""
    if len(values) > 1:
        form = f"{form} ({form} to {form})"
        values = statistics.median(values), min(values), max(values)
    return form.format(*values).replace("inf", "never") if values else ""


def first_time(run, cost, level):
    """The cost, a value for each evaluation, at which the sampled accuracy first was `level`,
    interpolated linearly between evaluations; infinite if it never was."""
    y = run["sampled"]
    for i in range(1, len(y)):
        if y[i] >= level:
            share = max(0, (level - y[i - 1]) / (y[i] - y[i - 1])) if y[i] > y[i - 1] else 0
            return cost[i - 1] + share * (cost[i] - cost[i - 1])
    return math.inf


def costs(run, share=0):
    """{unit: cost up to each evaluation}, with a share of stage 1."""
    prompts = [run["prompts_per_step"] * k for k in run["steps"]]
    found = {"prompts": prompts, "generations": [run["responses_per_prompt"] * p for p in prompts],
             "tokens": run["tokens"], "seconds": run["seconds"]}
    first = (run["algorithm"] != "A*-PO, 0" and run["stage_1"]) or {}  # 0 needs no samples
    return {unit: [c + share * first.get(unit, 0) for c in cost] for unit, cost in found.items()}


def results_of(algorithm, its):
    """A line of results: what a training run reaches, and what it takes. its: a run of each seed.
    """
    def of(function, form="{:.2f}"):
        return spread([function(run) for run in its], form)

    def median(function, form="{:.2f}"):
        return form.format(statistics.median(function(run) for run in its))

    return {"": algorithm,
            "prompts x responses per step":
                f"{its[0]['prompts_per_step']} x {its[0]['responses_per_prompt']}",
            "greedy accuracy, %": of(lambda run: 100 * run["greedy"][-1], "{:.1f}"),
            "sampled accuracy, %": of(lambda run: 100 * run["sampled"][-1], "{:.1f}"),
            "KL per token": of(lambda run: run["kl"], "{:.4f}"),
            "generations": f"{costs(its[0])['generations'][-1]:,}",
            "tokens": median(lambda run: run["tokens"][-1], "{:,.0f}"),
            "GB": median(lambda run: run["memory_gb"]),
            "seconds of a step": of(lambda run: run["seconds_of_step"]["step"]),
            **{phase: median(lambda run, phase=phase: run["seconds_of_step"][phase])
               for phase in ("generate", "reference", "train")}}


def time_line(algorithm, its, level):
    """What it takes to reach the accuracy `level`, with none, a part or all of stage 1. A run that
    never reaches it counts as infinitely slow."""
    def of(unit, share=0, form="{:,.0f}"):
        return spread([first_time(run, costs(run, share)[unit], level) for run in its], form)

    reached = sum(max(run["sampled"][1:]) >= level for run in its)
    return [algorithm, f"{reached} of {len(its)}", of("prompts"), of("generations"),
            of("generations", 1), of("tokens"), of("tokens", 1),
            *(of("seconds", share, "{:.0f}") for share in SHARED.values())]


def rates_table(results):
    """The accuracy at the end of facts with other learning rates, first seed."""
    rates = sorted((*RATES, 1))
    lines = [["sampled accuracy, %", *(f"{rate:g} x the learning rate" for rate in rates)]]
    for algorithm in list(ALGORITHMS)[:4]:
        its = {r["rate"]: r for r in results
               if [r[key] for key in CASE[:4]] == ["facts", "equal generations", algorithm, 0]}
        lines.append([algorithm, *(f"{100 * its[rate]['sampled'][-1]:.1f}" if rate in its else ""
                                   for rate in rates)])
    return as_markdown(lines)


def draw(by_case):
    """Accuracy against seconds: a row per task, a column per accounting."""
    names = list(PRESETS)
    figure, axes = plt.subplots(len(names), 2, figsize=(11, 4 * len(names)), layout="constrained")
    for (task, accounting), runs in by_case.items():
        ax = axes[names.index(task), list(ACCOUNTINGS).index(accounting)]
        for (algorithm, its), colour in zip(list(runs.items())[:4], COLOURS, strict=False):
            y = 100 * np.array([run["sampled"] for run in its])
            plot = partial(ax.plot, color=colour, marker="o", markersize=3)
            x = np.median([run["seconds"] for run in its], axis=0)
            plot(x, np.median(y, axis=0), label=algorithm)
            ax.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)
            if its[0]["stage_1"]:
                first = statistics.median(run["stage_1"]["seconds"] for run in its)
                plot(x + first, np.median(y, axis=0), linestyle="--",
                     label=f"{algorithm}, stage 1 charged")
        size = "256 responses" if accounting == "equal generations" else "32 prompts"
        ax.set_title(f"{task}, {accounting} per step")
        ax.set_xlabel(f"seconds of training, steps of {size} each")
        ax.set_ylabel("held-out accuracy at temperature 1, %")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="lower right")
    figure.savefig(PICTURE, dpi=100)


def show(results):
    by_case = {}  # {(task, accounting): {algorithm: [a run of each seed]}}
    for case in LEVEL:
        for algorithm in ACCOUNTINGS[case[1]][0]:
            its = [r for r in results if (r["task"], r["algorithm"], r["rate"]) == (
                case[0], algorithm, 1) and (r["accounting"] == case[1] or algorithm == "GRPO")]
            if its:
                by_case.setdefault(case, {})[algorithm] = its
    for title, form, function in (
            ("Sampled accuracy at the end, %", "{:.1f}", lambda run: 100 * run["sampled"][-1]),
            ("KL per token", "{:.3f}", lambda run: run["kl"]),
            ("Seconds of a step", "{:.2f}", lambda run: run["seconds_of_step"]["step"])):
        lines = [[algorithm, *(spread([*map(function, runs.get(algorithm, []))], form)
                               for runs in by_case.values())] for algorithm in ALGORITHMS]
        print(f"\n### {title}\n\n{as_markdown([['', *map(', '.join, by_case)], *lines])}")
    for case, runs in by_case.items():
        reached = [results_of(*item) for item in runs.items()]
        times = [time_line(*item, LEVEL[case]) for item in runs.items()]
        print(f"\n### {', '.join(case)}\n\nMedian of {max(map(len, runs.values()))} seeds, and in "
              "brackets smallest and largest. The phases are medians.\n\n"
              f"{as_markdown([[*reached[0]], *([*line.values()] for line in reached)])}")
        header = ["", "reached by", "prompts", "generations", "with stage 1", "tokens",
                  "with stage 1", *(f"seconds, stage 1 {name}" for name in SHARED)]
        print(f"To {LEVEL[case]:.0%} sampled accuracy:\n\n{as_markdown([header, *times])}")
    print(f"\n### facts, equal generations, first seed\n\n{rates_table(results)}")
    draw(by_case)
    print(f"wrote {PICTURE.relative_to(REPO)}")


if __name__ == "__main__":
    args = configure(__file__)
    show(run_missing(cases(args), CASE, train, RESULTS, args.jobs))
