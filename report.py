"""What came of training runs, from the files that they have written.

    python report.py out/arithmetic                       # also of a run that is not finished
    python report.py out/arithmetic out/arithmetic_grpo   # several runs, and one picture of all

For each run it writes <out>/report.md with curves.png: accuracy before and after, stage 1, the time
it took, five prompts with their responses, and what was run. A finished run's model gets its card,
<out>/model/README.md. Of several runs it draws compare.png in the last one's folder. Training ends
with this report; run it again after evaluate.py, whose results it includes.
"""
import json
import os
import re
import sys
from html import escape
from itertools import cycle

from lib.cli import check, one_line_errors
from lib.files import atomic_file, files_in, read_json, read_jsonl
from lib.samples import describe, load_values
from lib.tables import as_markdown, cell, results_folder, results_table

import matplotlib.pyplot as plt
import numpy as np

plt.switch_backend("Agg")  # files only, no window

LONGEST_TEXT = 1500  # characters of a response that are shown
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PHASES = ("generate", "reference", "grade", "train", "sync", "rest")
PANELS = {"reward": "training reward", "steps": "held-out accuracy (dashed: greedy)",
          "seconds": "held-out accuracy (dashed: greedy)", "kl": "KL, nats/token",
          "response_length": "response length, tokens", "entropy": "entropy, nats/token",
          "truncated": "truncated responses", "phases": "seconds of a step, median",
          "logp_diff_mean": "vLLM against trainer, mean |Δ ln p|"}


# ---- pictures ------------------------------------------------------------------------------------

def plot_runs(runs, png):
    """Draw runs over each other. runs: {name: lines of its metrics.jsonl}; png: the picture."""
    figure, grid = plt.subplots(3, 3, figsize=(12, 9), layout="constrained")
    axes = dict(zip(PANELS, grid.flat, strict=True))
    for (name, metrics), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        for key in PANELS.keys() & metrics[0].keys():
            draw_metric(axes[key], metrics, key, colour, name)
        for suffix, style in (("_sampled", "-"), ("", "--")):
            steps, seconds, accuracy = accuracies(metrics, suffix)
            for key, x in (("steps", steps), ("seconds", seconds)):
                axes[key].plot(x, accuracy, style, color=colour, marker="o", markersize=3)
    draw_phases(axes["phases"], runs)
    axes["logp_diff_mean"].set_yscale("log")
    for key, ax in axes.items():
        ax.set_title(PANELS[key])
        ax.set_xlabel({"seconds": "seconds of training steps", "phases": ""}.get(key, "step"))
        ax.grid(alpha=0.3)
        if key in ("reward", "steps", "seconds", "truncated"):
            ax.set_ylim(0, 1.02)
        if key in ("kl", "response_length", "entropy"):
            ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    if len(runs) > 1:
        axes["reward"].legend(loc="lower right")
    figure.suptitle(", ".join(runs))
    figure.savefig(png, dpi=100)
    plt.close(figure)


def draw_metric(ax, metrics, key, colour, label):
    """One metric against the steps. Over 200 steps it is smoothed, with the metric itself pale."""
    x, y = np.array([(m["step"], m[key]) for m in metrics]).T
    if key == "logp_diff_mean":
        y = np.maximum(y, 1e-9)  # a logarithmic axis has no 0
    if len(x) > 200:
        ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        width = len(x) // 50
        y = np.convolve(np.pad(y, width, mode="edge"), np.ones(2 * width + 1) / (2 * width + 1),
                        mode="valid")
    ax.plot(x, y, color=colour, label=label)


def accuracies(metrics, suffix):
    """(steps, seconds of training steps so far, held-out accuracy) of each evaluation."""
    seconds = np.cumsum([m["seconds_step"] for m in metrics])
    points = [(0, 0, metrics[0].get(f"accuracy_start{suffix}"))]
    points += [(m["step"] + 1, s, m.get(f"accuracy{suffix}"))
               for m, s in zip(metrics, seconds, strict=True)]
    return np.array([point for point in points if point[2] is not None]).reshape(-1, 3).T


def draw_phases(ax, runs):
    """A bar per run: the median seconds of a step's phases."""
    heights = np.array([[*median_seconds(metrics).values()] for metrics in runs.values()])
    bottoms = heights.cumsum(1) - heights                                          # (runs, phases)
    for phase, height, bottom, colour in zip(PHASES, heights.T, bottoms.T, COLOURS, strict=False):
        ax.bar([*runs], height, 0.5, bottom, color=colour, label=phase)
    ax.set_xlim(-0.6, len(runs) + 0.4)  # room for the legend
    ax.legend(loc="upper right", fontsize=8)


def median_seconds(metrics):
    """{phase: median seconds of a step}, with what is in no phase as "rest"."""
    seconds = np.array([[m.get(f"seconds_{phase}", 0) for phase in PHASES[:-1]] for m in metrics])
    rest = np.array([m["seconds_step"] for m in metrics]) - seconds.sum(1)
    medians = np.median(np.column_stack((seconds, rest)), axis=0)
    return dict(zip(PHASES, medians.tolist(), strict=True))


# ---- report.md and the model's card --------------------------------------------------------------

def write_report(folder):
    """Write <folder>/report.md and curves.png, and the model's card if there is a model.

    Returns the report's path. Raises OSError or ValueError.
    """
    metrics = read_jsonl(f"{folder}/metrics.jsonl", ("step",))
    plot_runs({folder: metrics}, f"{folder}/curves.png")
    training = read_json(f"{folder}/model/training.json")
    if training.get("steps") != metrics[-1]["step"] + 1:
        training = {}  # the model is an earlier run's
    files = files_in(folder, r"eval-\d{6}\.jsonl")
    evaluations = {int(f[-12:-6]): read_jsonl(f, ("id", "greedy")) for f in files[:1] + files[-1:]}
    measured = [accuracy(metrics), measured_afterwards(folder, training)]
    settings = what_was_run(metrics, training)
    write_page(f"{folder}/report.md", f"# {folder}\n\n![Metrics of the run](curves.png)\n",
               *measured, stage_1(folder), cost(metrics), examples(evaluations), settings)
    if training:
        row = next((records[0] for records in evaluations.values()), {"prompt": "..."})
        prompt = row.get("prompt_messages", row["prompt"])
        card = model_card(f"{folder}/model", training["constants"], prompt)
        write_page(f"{folder}/model/README.md", card, *measured, settings)
    return f"{folder}/report.md"


def write_page(path, *parts):
    with atomic_file(path) as f:
        f.write("\n".join(filter(None, parts)))


def accuracy(metrics):
    """Before and after, on the held-out prompts of training."""
    measured = [m for m in metrics if "accuracy" in m]
    if not measured or "accuracy_start" not in metrics[0]:
        return ""
    lines = [["", "before", f"after {measured[-1]['step'] + 1:,} steps"]]
    for suffix, label in (("", "greedy"), ("_sampled", "one sample at temperature 1")):
        lines.append([label, *(
            cell("accuracy", {"value": m[name], "ci95": m[f"{name}_ci95"]}) for m, name in (
                (metrics[0], f"accuracy_start{suffix}"), (measured[-1], f"accuracy{suffix}")))])
    return f"## Accuracy on held-out prompts, with 95% intervals\n\n{as_markdown(lines)}"


def measured_afterwards(folder, training):
    """The table of evaluate.py, if it has measured the model; beside it the initial model."""
    results = read_json(f"{folder}/model/eval.json")
    if not (training and results):
        return ""
    base = training["constants"]["model"]
    of_base = read_json(f"{results_folder(base)}/eval.json")

    def settings(found):
        return [found.get(task, {}).get("settings", {}) | {"model": ""} for task in results]

    both = {}
    if settings(of_base) == settings(results):
        both[base] = {task: of_base[task] for task in results}
    table = results_table({**both, f"{folder}/model": results})
    return f"## Measured by evaluate.py, with 95% intervals\n\n{table}"


def stage_1(folder):
    if not os.path.isfile(f"{folder}/values.pt"):
        return ""
    values = load_values(f"{folder}/values.pt")
    num_prompts, n = values["rewards"].shape
    return f"## Stage 1: {num_prompts:,} prompts, {n} samples each\n\n" + "".join(
        f"- {name}: {text}\n" for name, text in describe(values).items())


def cost(metrics):
    hours, phases = sum(m["seconds_step"] for m in metrics) / 3600, median_seconds(metrics)
    lines = [["phase", "median seconds of a step", "share"],
             *([name, f"{s:.2f}", f"{s / sum(phases.values()):.0%}"] for name, s in phases.items())]
    return (f"## Time\n\n{as_markdown(lines)}\nAll {len(metrics):,} steps took {hours:.2f} hours, "
            "without evaluation, checkpoints and start.\n")


def examples(evaluations):
    """Five prompts with the greedy responses before and after. A response that is still wrong comes
    last, if there is one; before it come those that became right."""
    if len(evaluations) < 2:
        return ""
    first, last = evaluations.values()
    before = {record["id"]: record for record in first}
    pairs = [(before[record["id"]], record) for record in last if record["id"] in before]
    rewards = [[record["greedy"][0]["reward"] for record in pair] for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda i: rewards[i][0] - rewards[i][1])
    wrong = [i for i in order if rewards[i][1] < 1][:1]
    text = "## Five held-out prompts\n"
    for i in [i for i in order if i not in wrong][:5 - len(wrong)] + wrong:
        record = pairs[i][0]
        title = escape(" ".join(f"{record['id']}, answer {record['answer']}".split()))
        text += f"\n### {title}\n\n{fenced(record['prompt'])}"
        for step, record in zip(evaluations, pairs[i], strict=True):
            [r] = record["greedy"]
            text += f"\nGreedy after {step:,} steps, reward {r['reward']:g}:\n\n{fenced(r['text'])}"
    return text


def fenced(text):
    """Text as a code block, which no backticks in it can end."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... ({len(text):,} characters)"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"


def what_was_run(metrics, training):
    if not training:
        return (f"The run is not finished: {len(metrics):,} steps are done. Its settings are "
                "written with the model at the end.\n")
    settings = {**training, **training["versions"], **training["constants"]}
    return "## What was run\n\n" + fenced("\n".join(
        f"{name} = {value!r}" for name, value in settings.items() if not isinstance(value, dict)))


def model_card(name, c, prompt):
    """How the model's README.md begins, with the header that the Hugging Face hub reads.

    name: the model's folder; c: the run's constants; prompt: an example, a text or messages.
    """
    base = "" if os.path.isdir(c["model"]) else f"base_model: {c['model']}\n"
    call = f"llm.generate([{prompt!r}], params)"
    if c["chat_template"]:
        kwargs = json.loads(c.get("chat_template_kwargs") or "{}")
        chat = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        call = (f"llm.chat({chat!r}, params"
                + (f", chat_template_kwargs={kwargs!r})" if kwargs else ")"))
    algorithm = c.get("algorithm", "A*-PO")
    if algorithm == "A*-PO":
        algorithm = "A\\*-PO ([arXiv 2505.20686](https://arxiv.org/abs/2505.20686))"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- reinforcement-learning
- reasoning
---

# {name}

{c["model"]}, trained on the task {c["task"]} with {algorithm}.
A prompt as in training:

```python
from vllm import LLM, SamplingParams

llm = LLM("{name}", generation_config="vllm")  # or its name on the hub
params = SamplingParams(temperature=0, max_tokens={c["max_response_tokens"]})
[output] = {call}
print(output.outputs[0].text)
```
"""


@one_line_errors()
def main(folders):
    check(folders, "name the folders of runs: python report.py out/arithmetic")
    folders = [os.path.normpath(folder) for folder in folders]
    for folder in folders:
        print(f"wrote {write_report(folder)}")
    if len(folders) > 1:
        png = f"{folders[-1]}/compare.png"
        common = os.path.commonpath(folders)
        plot_runs({os.path.relpath(folder, common): read_jsonl(f"{folder}/metrics.jsonl", ("step",))
                   for folder in folders}, png)
        print(f"wrote {png}")


if __name__ == "__main__":
    main(sys.argv[1:])
