"""report.md: what was run, what came of it, what it cost. For one training run, from its files."""
import json
import os
import re
from glob import glob

from lib.files import atomic_file, read_jsonl
from lib.plot import COLOURS, median_seconds, plot_runs, read_runs
from lib.statistics import wilson
from lib.values import load_values

import matplotlib.pyplot as plt

LONGEST_TEXT = 1500  # characters of a response that are shown


def write_report(folder):
    """Write <folder>/report.md, with curves.png and values.png beside it. Returns its path.

    Of an unfinished run it says what there is. Raises OSError or ValueError.
    """
    runs = read_runs([folder])
    metrics = runs[folder]
    plot_runs(runs, os.path.join(folder, "curves.png"))
    path = os.path.join(folder, "model", "training.json")
    training = {}
    if os.path.isfile(path):
        with open(path) as f:
            training = json.load(f)
    evaluations = read_evaluations(folder)
    parts = [f"# {folder}\n", what_was_run(metrics, training), accuracy(metrics, evaluations),
             evaluated_afterwards(folder), "## Curves\n\n![Metrics of the run](curves.png)\n",
             stage_1(folder), cost(metrics, training), examples(evaluations), constants(training)]
    report = os.path.join(folder, "report.md")
    with atomic_file(report) as f:
        f.write("\n".join(part for part in parts if part))
    return report


def what_was_run(metrics, training):
    c = training.get("constants", {})
    if not c:
        return (f"The run is not finished: {len(metrics):,} steps are done. Its settings are "
                "written with the model at the end.\n")
    lines = [f"- **model** {c['model']}", f"- **task** {c['task']}",
             f"- **steps** {training['steps']:,}, of {c['batch_size']} prompts each"]
    if "versions" in training:
        packages = ", ".join(f"{k} {v}" for k, v in training["versions"].items())
        lines += [f"- **processes** {training['processes']}",
                  f"- **hardware** {training['hardware']}", f"- **versions** {packages}"]
    return "\n".join(lines) + "\n"


def read_evaluations(folder):
    """The responses of the first and of the newest evaluation: [(step, records), ...]."""
    files = sorted(f for f in glob(os.path.join(folder, "eval-*.jsonl"))
                   if re.fullmatch(r"eval-\d{6}\.jsonl", os.path.basename(f)))
    files = files if len(files) < 2 else [files[0], files[-1]]
    return [(int(os.path.basename(f)[5:11]), read_jsonl(f, ("id", "greedy"))) for f in files]


def accuracy(metrics, evaluations):
    """Before against after, on the held-out prompts."""
    start = {k.replace("_start", ""): v for k, v in metrics[0].items() if "accuracy_start" in k}
    measured = [m for m in metrics if "accuracy" in m]
    if not (start and measured and evaluations):
        return ""
    n, last = len(evaluations[-1][1]), measured[-1]
    lines = [f"## Accuracy on {n:,} held-out prompts, with 95% intervals\n",
             f"| | before | after {last['step'] + 1:,} steps |", "|---|---:|---:|"]
    for key, label in (("accuracy", "greedy"), ("accuracy_sampled", "one sample at temperature 1")):
        lines.append(f"| {label} | {share(start[key], n)} | {share(last[key], n)} |")
    return "\n".join(lines) + "\n"


def share(p, n):
    low, high = wilson(p, n)
    return f"{p:.1%} [{low:.1%}, {high:.1%}]"


def evaluated_afterwards(folder):
    """The tables of evaluate.py, if it has measured the model."""
    path = os.path.join(folder, "model", "eval.md")
    if not os.path.isfile(path):
        return ""
    with open(path) as f:
        return f"## Measured by evaluate.py\n\n{f.read()}"


def stage_1(folder):
    path = os.path.join(folder, "values.pt")
    if not os.path.isfile(path):
        return ""
    values = load_values(path)
    rewards = values["rewards"]
    num_prompts, n = rewards.shape
    right = (rewards == 1).sum(1)                                                          # (P,)
    figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    ax.bar(range(n + 1), right.bincount(minlength=n + 1).tolist(), color=COLOURS[0])
    ax.set_xlabel(f"right samples out of {n}")
    ax.set_ylabel("prompts")
    figure.savefig(os.path.join(folder, "values.png"), dpi=100)
    plt.close(figure)
    return "\n".join([
        f"## Stage 1: {num_prompts:,} prompts, {n} samples each\n",
        "![Prompts by their number of right samples](values.png)\n",
        f"- mean reward {rewards.mean():.3f}, mean V* {values['v_star'].mean():.3f}",
        f"- prompts that were never solved {(right == 0).float().mean():.1%}, always solved "
        f"{(right == n).float().mean():.1%}",
        f"- response length {values['lengths'].float().mean():.1f} tokens; truncated "
        f"{1 - values['finished'].float().mean():.1%}"]) + "\n"


def cost(metrics, training):
    seconds = sum(m["seconds_step"] for m in metrics)
    phases = median_seconds(metrics)
    lines = ["## Time\n", "| phase | median seconds of a step | share |", "|---|---:|---:|"]
    whole = sum(phases.values())
    lines += [f"| {name} | {s:.2f} | {s / whole:.0%} |" for name, s in phases.items()]
    lines.append(f"\nAll {len(metrics):,} steps took {seconds / 3600:.2f} hours, without "
                 "evaluation, checkpoints and start")
    if "processes" in training:
        kind = "GPU" if "NVIDIA" in training["hardware"] else "process"
        lines[-1] += f": {seconds / 3600 * training['processes']:.2f} {kind}-hours"
    return "\n".join(lines) + ".\n"


def examples(evaluations):
    """Five prompts with the greedy responses before and after: one that is still wrong, if there
    is any, and before it those that became right."""
    if len(evaluations) < 2:
        return ""
    (first, before), (last, after) = evaluations
    before = {record["id"]: record for record in before}
    pairs = [(before[record["id"]], record) for record in after if record["id"] in before]
    rewards = [(a["greedy"][0]["reward"], b["greedy"][0]["reward"]) for a, b in pairs]
    order = sorted(range(len(pairs)), key=lambda i: rewards[i][0] - rewards[i][1])
    wrong = [i for i in order if rewards[i][1] < 1][:1]
    chosen = [i for i in order if i not in wrong][:5 - len(wrong)] + wrong
    text = "## Five held-out prompts\n"
    for a, b in (pairs[i] for i in chosen):
        text += f"\n### {a['id']}, answer {a['answer']}\n\n{fenced(a['prompt'])}"
        for step, record in ((first, a), (last, b)):
            response = record["greedy"][0]
            text += (f"\nGreedy after {step:,} steps, reward {response['reward']:g}:\n\n"
                     f"{fenced(response['text'])}")
    return text


def fenced(text):
    """Text as a code block, which no backticks in it can end."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... ({len(text):,} characters)"
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"


def constants(training):
    if not training:
        return ""
    return "## Constants\n\n" + fenced("\n".join(
        f"{name} = {value!r}" for name, value in training["constants"].items()))
