"""What came of training runs, from the files that they have written.

    python report.py out/arithmetic                       # also of a run that is not finished
    python report.py out/arithmetic out/arithmetic_grpo   # several runs, and one picture of all

For each run it writes <out>/report.md with curves.png: what was run, accuracy before and after,
stage 1, the time it took, and five prompts with their responses. A finished run's model gets its
card, <out>/model/README.md. Of several runs it draws compare.png in the last one's folder. Training
ends with this report; run it again after evaluate.py, whose results it includes.
"""
import json
import os
import re
import sys
from glob import glob

from lib.cli import check, one_line_errors
from lib.files import atomic_file, read_jsonl
from lib.samples import load_values
from lib.tables import as_markdown, cell, results_folder, summary, table

import matplotlib.pyplot as plt
import numpy as np

plt.switch_backend("Agg")  # files only, no window

LONGEST_TEXT = 1500  # characters of a response that are shown
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PHASES = ("generate", "reference", "grade", "train", "sync", "rest")
CURVES = {"reward": "training reward", "kl": "KL to the reference, nats per token",
          "response_length": "response length, tokens", "entropy": "entropy, nats per token",
          "truncated": "truncated responses",
          "logp_diff_mean": "vLLM against trainer, mean |Δ ln p|"}


# ---- pictures ------------------------------------------------------------------------------------

def plot_runs(runs, png):
    """Draw runs over each other. runs: {folder: lines of its metrics.jsonl}; png: the picture.

    Of one run it shows greedy and sampled held-out accuracy, of several only the sampled one.
    """
    figure, grid = plt.subplots(3, 3, figsize=(12, 9), layout="constrained")
    axes = dict(zip(("reward", "steps", "seconds", "kl", "response_length", "entropy", "truncated",
                     "phases", "logp_diff_mean"), grid.flat, strict=True))
    kinds = {"_sampled": ("temperature 1", "-"), "": ("greedy", "--")}
    if len(runs) > 1:
        del kinds[""]
    for (folder, metrics), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        for key in CURVES:
            draw_metric(axes[key], metrics, key, colour, os.path.basename(folder))
        for suffix, (label, style) in kinds.items():
            steps, seconds, accuracy = accuracies(metrics, suffix)
            for key, x in (("steps", steps), ("seconds", seconds)):
                axes[key].plot(x, accuracy, style, color=colour, marker="o", markersize=3,
                               label=label)
    draw_phases(axes["phases"], runs)
    for key, ax in axes.items():
        ax.grid(alpha=0.3)
        if key in CURVES:
            ax.set_title(CURVES[key])
        if key in ("reward", "steps", "seconds", "truncated"):
            ax.set_ylim(0, 1.02)
        if key in ("kl", "response_length", "entropy"):
            ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        if key != "phases":
            ax.set_xlabel("seconds of training steps" if key == "seconds" else "step")
    axes["logp_diff_mean"].set_yscale("log")
    for key in ("steps", "seconds"):
        axes[key].set_title("held-out accuracy" + ", temperature 1" * (len(runs) > 1))
    axes["steps" if len(runs) == 1 else "reward"].legend(loc="lower right")
    figure.suptitle(", ".join(runs))
    figure.savefig(png, dpi=100)
    plt.close(figure)


def draw_metric(ax, metrics, key, colour, label):
    """One metric against the steps. Over 200 steps it is smoothed, with the metric itself pale."""
    x, y = np.array([(m["step"], m[key]) for m in metrics if key in m]).reshape(-1, 2).T
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
    points, seconds = [], 0.0
    if f"accuracy_start{suffix}" in metrics[0]:
        points.append((0, 0.0, metrics[0][f"accuracy_start{suffix}"]))
    for m in metrics:
        seconds += m["seconds_step"]
        if f"accuracy{suffix}" in m:
            points.append((m["step"] + 1, seconds, m[f"accuracy{suffix}"]))
    return np.array(points).reshape(-1, 3).T


def draw_phases(ax, runs):
    """A bar per run: the median seconds of a step's phases."""
    ax.set_title("seconds of a step, median")
    seconds = [median_seconds(metrics) for metrics in runs.values()]
    bottom = np.zeros(len(runs))
    for phase, colour in zip(PHASES, COLOURS, strict=False):
        heights = np.array([of_run[phase] for of_run in seconds])
        ax.bar([os.path.basename(folder) for folder in runs], heights, bottom=bottom, color=colour,
               label=phase, width=0.5)
        bottom += heights
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
    metrics = read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
    plot_runs({folder: metrics}, os.path.join(folder, "curves.png"))
    training = read_json(os.path.join(folder, "model", "training.json"))
    evaluations = read_evaluations(folder)
    results = [what_was_run(metrics, training), accuracy(metrics, evaluations),
               measured_afterwards(folder, training)]
    parts = [f"# {folder}\n", *results, "## Curves\n\n![Metrics of the run](curves.png)\n",
             stage_1(folder), cost(metrics, training), examples(evaluations), constants(training)]
    path = os.path.join(folder, "report.md")
    with atomic_file(path) as f:
        f.write("\n".join(filter(None, parts)))
    if training:
        prompt = evaluations[-1][1][0]["prompt"] if evaluations else "..."
        with atomic_file(os.path.join(folder, "model", "README.md")) as f:
            f.write(model_card(os.path.join(folder, "model"), training["constants"], prompt)
                    + "\n".join(filter(None, [*results, constants(training)])))
    return path


def read_json(path):
    if not os.path.isfile(path):
        return {}
    with open(path) as f:
        return json.load(f)


def read_evaluations(folder):
    """The responses of the first and of the newest evaluation: [(step, records), ...]."""
    files = sorted(glob(os.path.join(folder, "eval-" + "[0-9]" * 6 + ".jsonl")))
    files = files if len(files) < 2 else [files[0], files[-1]]
    return [(int(f[-12:-6]), read_jsonl(f, ("id", "greedy"))) for f in files]


def what_was_run(metrics, training):
    if not training:
        return (f"The run is not finished: {len(metrics):,} steps are done. Its settings are "
                "written with the model at the end.\n")
    c, packages = training["constants"], training["versions"]
    return "\n".join([
        f"- **model** {c['model']}", f"- **task** {c['task']}",
        f"- **steps** {training['steps']:,}, of {c['batch_size']} prompts each",
        f"- **processes** {training['processes']}", f"- **hardware** {training['hardware']}",
        f"- **versions** {', '.join(f'{k} {v}' for k, v in packages.items())}"]) + "\n"


def accuracy(metrics, evaluations):
    """Before and after, on the held-out prompts."""
    measured = [m for m in metrics if "accuracy" in m]
    if not (measured and evaluations and "accuracy_start" in metrics[0]):
        return ""
    lines = [["", "before", f"after {measured[-1]['step'] + 1:,} steps"]]
    for suffix, label in (("", "greedy"), ("_sampled", "one sample at temperature 1")):
        lines.append([label, *(
            cell("accuracy", {"value": m[name], "ci95": m[f"{name}_ci95"]}) for m, name in (
                (metrics[0], f"accuracy_start{suffix}"), (measured[-1], f"accuracy{suffix}")))])
    return (f"## Accuracy on {len(evaluations[-1][1]):,} held-out prompts, with 95% intervals\n\n"
            + as_markdown(lines))


def measured_afterwards(folder, training):
    """The tables of evaluate.py, if it has measured the model; beside it the initial model."""
    model = os.path.join(folder, "model")
    results = read_json(os.path.join(model, "eval.json"))
    if not results:
        return ""
    base, config = training["constants"]["model"], read_json(os.path.join(model, "config.json"))
    of_base = read_json(os.path.join(results_folder(base), "eval.json"))
    both = of_base.keys() >= results.keys()
    names = [base, model] if both else [model]
    by_task = {task: [of_base[task], result] if both else [result]
               for task, result in results.items()}
    tables = [table(task, names, entries) for task, entries in by_task.items()]
    tables.append(summary(names, by_task, (config["hidden_size"], config["num_hidden_layers"])))
    return "\n".join(["## Measured by evaluate.py\n", *filter(None, tables)])


def stage_1(folder):
    path = os.path.join(folder, "values.pt")
    if not os.path.isfile(path):
        return ""
    values = load_values(path)
    rewards, (num_prompts, n) = values["rewards"], values["rewards"].shape
    counts = (rewards == 1).sum(1).bincount(minlength=n + 1).tolist()
    return "\n".join([
        f"## Stage 1: {num_prompts:,} prompts, {n} samples each\n",
        f"- prompts with 0, 1 ... {n} right samples: {', '.join(map(str, counts))}",
        f"- mean reward {rewards.mean():.3f}, mean V* {values['v_star'].mean():.3f}",
        f"- response length {values['lengths'].float().mean():.1f} tokens; truncated "
        f"{1 - values['finished'].float().mean():.1%}"]) + "\n"


def cost(metrics, training):
    hours, phases = sum(m["seconds_step"] for m in metrics) / 3600, median_seconds(metrics)
    lines = [["phase", "median seconds of a step", "share"],
             *([name, f"{s:.2f}", f"{s / sum(phases.values()):.0%}"] for name, s in phases.items())]
    job = f": {hours * training['processes']:.2f} process-hours" if training else ""
    return (f"## Time\n\n{as_markdown(lines)}\nAll {len(metrics):,} steps took {hours:.2f} hours, "
            f"without evaluation, checkpoints and start{job}.\n")


def examples(evaluations):
    """Five prompts with the greedy responses before and after. A response that is still wrong comes
    last, if there is one; before it come those that became right."""
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
        for step, response in ((first, a["greedy"][0]), (last, b["greedy"][0])):
            text += (f"\nGreedy after {step:,} steps, reward {response['reward']:g}:\n\n"
                     f"{fenced(response['text'])}")
    return text


def fenced(text):
    """Text as a code block, which no backticks in it can end."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... ({len(text):,} characters)"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text.rstrip()}\n{fence}\n"


def constants(training):
    return "## Constants\n\n" + fenced("\n".join(
        f"{name} = {value!r}" for name, value in training["constants"].items())) if training else ""


def model_card(name, c, prompt):
    """How the model's README.md begins, with the header that the Hugging Face hub reads.

    name: the model's folder; c: the run's constants; prompt: an example.
    """
    base = "" if os.path.isdir(c["model"]) else f"base_model: {c['model']}\n"
    call = (f"llm.chat([{{'role': 'user', 'content': {prompt!r}}}], params)" if c["chat_template"]
            else f"llm.generate([{prompt!r}], params)")
    kind = ("user messages in the model's chat template" if c["chat_template"] else
            "plain text, as in training: a base model knows no chat template")
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- reinforcement-learning
- reasoning
---

# {name}

{c["model"]}, trained on the task {c["task"]} by A\\*-PO
([arXiv 2505.20686](https://arxiv.org/abs/2505.20686)), or by the baseline that the constants below
belong to. Prompts are {kind}:

```python
from vllm import LLM, SamplingParams

llm = LLM("{name}", generation_config="vllm")
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
        png = os.path.join(folders[-1], "compare.png")
        plot_runs({folder: read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
                   for folder in folders}, png)
        print(f"wrote {png}")


if __name__ == "__main__":
    main(sys.argv[1:])
