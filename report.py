"""What came of training runs, from the files that they have written.

    python report.py out/arithmetic                       # also of a run that is not finished
    python report.py out/arithmetic out/arithmetic_grpo   # several runs, and one picture of all

For each run it writes <out>/report.md, with curves.png and values.png beside it: what was run,
accuracy before and after, stage 1, the time it took, and five prompts with their responses. A
finished run's model gets its card, <out>/model/README.md. Of several runs it draws compare.png in
the last one's folder. Training ends with this report; run it again after evaluate.py, whose results
it includes.
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
# Metrics that are drawn against the steps: (key, title).
CURVES = (("reward", "training reward"), ("kl", "KL to the reference, nats per token"),
          ("response_length", "response length, tokens"), ("entropy", "entropy, nats per token"),
          ("truncated", "truncated responses"),
          ("logp_diff_mean", "vLLM against trainer, mean |Δ ln p|"))


# ---- pictures ------------------------------------------------------------------------------------

def plot_runs(runs, png):
    """Draw runs over each other. runs: {folder: lines of its metrics.jsonl}; png: the picture.

    Of one run it shows greedy and sampled held-out accuracy, of several only the sampled one.
    """
    figure, axes = plt.subplots(3, 3, figsize=(12, 9), layout="constrained")
    axes = dict(zip(("reward", "steps", "seconds", "kl", "response_length", "entropy", "truncated",
                     "phases", "logp_diff_mean"), axes.flat, strict=True))
    colours = dict(zip(runs, COLOURS * len(runs), strict=False))
    for folder, metrics in runs.items():
        for key, title in CURVES:
            draw(axes[key], metrics, key, colours[folder], os.path.basename(folder))
            axes[key].set_title(title)
        draw_accuracy(axes, metrics, colours[folder], both=len(runs) == 1)
    for key in ("steps", "seconds"):
        sampled = "" if len(runs) == 1 else ", temperature 1"
        axes[key].set_title(f"held-out accuracy{sampled}")
        axes[key].set_xlabel("step" if key == "steps" else "seconds of training steps")
    draw_phases(axes["phases"], runs)
    for key, ax in axes.items():
        ax.grid(alpha=0.3)
        if key in ("reward", "steps", "seconds", "truncated"):
            ax.set_ylim(0, 1.02)
        elif key == "logp_diff_mean":
            ax.set_yscale("log")
        elif key != "phases":
            ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        if key not in ("steps", "seconds", "phases"):
            ax.set_xlabel("step")
    if len(runs) == 1:
        figure.suptitle(*runs)
        if axes["steps"].lines:
            axes["steps"].legend(loc="lower right")
    else:
        axes["reward"].legend(loc="lower right")
    figure.savefig(png, dpi=100)
    plt.close(figure)


def draw(ax, metrics, key, colour, label):
    """One metric against the steps; over 200 steps also smoothed, with the metric itself pale."""
    points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
    if not points:
        return
    x, y = np.array(points).T
    if key == "logp_diff_mean":
        y = np.maximum(y, 1e-9)  # a logarithmic axis has no 0
    if len(x) > 200:
        ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        width = len(x) // 50
        y = np.convolve(np.pad(y, width, mode="edge"), np.ones(2 * width + 1) / (2 * width + 1),
                        mode="valid")
    ax.plot(x, y, color=colour, label=label)


def draw_accuracy(axes, metrics, colour, both):
    """Held-out accuracy against the steps and against the seconds that the steps took."""
    seconds = np.cumsum([m["seconds_step"] for m in metrics])
    kinds = [("accuracy_sampled", "temperature 1", "-")]
    if both:
        kinds.append(("accuracy", "greedy", "--"))
    for key, label, style in kinds:
        start = metrics[0].get(key.replace("accuracy", "accuracy_start"))
        points = [(0, 0, start)] if start is not None else []
        points += [(m["step"] + 1, t, m[key]) for m, t in zip(metrics, seconds, strict=True)
                   if key in m]
        if points:
            x, t, y = zip(*points, strict=True)
            for ax, along in ((axes["steps"], x), (axes["seconds"], t)):
                ax.plot(along, y, style, color=colour, marker="o", markersize=3, label=label)


def draw_phases(ax, runs):
    """A bar per run: the median seconds of a step's phases."""
    ax.set_title("seconds of a step, median")
    names = [os.path.basename(folder) for folder in runs]
    bottom = np.zeros(len(runs))
    for phase, colour in zip(PHASES, COLOURS, strict=False):
        heights = np.array([median_seconds(metrics)[phase] for metrics in runs.values()])
        ax.bar(names, heights, bottom=bottom, color=colour, label=phase, width=0.5)
        bottom += heights
    ax.set_xlim(-0.6, len(runs) + 0.4)  # room for the legend
    ax.legend(loc="upper right", fontsize=8)


def median_seconds(metrics):
    """{phase: median seconds of a step}, with what is in no phase as "rest"."""
    seconds = np.array([[m.get(f"seconds_{phase}", 0) for phase in PHASES[:-1]] for m in metrics])
    rest = np.array([m["seconds_step"] for m in metrics]) - seconds.sum(1)
    medians = np.median(np.column_stack((seconds, rest)), axis=0)
    return dict(zip(PHASES, medians.tolist(), strict=True))


# ---- report.md -----------------------------------------------------------------------------------

def write_report(folder):
    """Write <folder>/report.md, its pictures, and the model's card if there is a model.

    Returns the report's path. Raises OSError or ValueError.
    """
    metrics = read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
    plot_runs({folder: metrics}, os.path.join(folder, "curves.png"))
    training = read_json(os.path.join(folder, "model", "training.json"))
    evaluations = read_evaluations(folder)
    results = [accuracy(metrics, evaluations), measured_afterwards(folder, training)]
    settings = [what_was_run(metrics, training), constants(training)]
    parts = [f"# {folder}\n", settings[0], *results,
             "## Curves\n\n![Metrics of the run](curves.png)\n",
             stage_1(folder), cost(metrics, training), examples(evaluations), settings[1]]
    path = os.path.join(folder, "report.md")
    with atomic_file(path) as f:
        f.write("\n".join(part for part in parts if part))
    if training:
        with atomic_file(os.path.join(folder, "model", "README.md")) as f:
            f.write(model_card(folder, metrics, training, evaluations, results, settings))
    return path


def read_json(path):
    if not os.path.isfile(path):
        return {}
    with open(path) as f:
        return json.load(f)


def read_evaluations(folder):
    """The responses of the first and of the newest evaluation: [(step, records), ...]."""
    files = sorted(f for f in glob(os.path.join(folder, "eval-*.jsonl"))
                   if re.fullmatch(r"eval-\d{6}\.jsonl", os.path.basename(f)))
    files = files if len(files) < 2 else [files[0], files[-1]]
    return [(int(os.path.basename(f)[5:11]), read_jsonl(f, ("id", "greedy"))) for f in files]


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
        values = [(m[name], m[f"{name}_ci95"]) for m, name in (
            (metrics[0], f"accuracy_start{suffix}"), (measured[-1], f"accuracy{suffix}"))]
        lines.append([label, *(cell("accuracy", {"value": p, "ci95": ci}) for p, ci in values)])
    return (f"## Accuracy on {len(evaluations[-1][1]):,} held-out prompts, with 95% intervals\n\n"
            + as_markdown(lines))


def measured_afterwards(folder, training):
    """The tables of evaluate.py, if it has measured the model; beside it the initial model."""
    own = os.path.join(folder, "model")
    results = read_json(os.path.join(own, "eval.json"))
    if not results:
        return ""
    base = training["constants"]["model"]
    of_base = read_json(os.path.join(results_folder(base), "eval.json"))
    both = all(task in of_base for task in results)
    names = [base, own] if both else [own]
    by_task = {task: [of_base[task], result] if both else [result]
               for task, result in results.items()}
    config = read_json(os.path.join(own, "config.json"))
    tables = [table(task, names, entries) for task, entries in by_task.items()]
    tables.append(summary(names, by_task, (config["hidden_size"], config["num_hidden_layers"])))
    return "\n".join(["## Measured by evaluate.py\n", *filter(None, tables)])


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
    hours = sum(m["seconds_step"] for m in metrics) / 3600
    phases = median_seconds(metrics)
    whole = sum(phases.values())
    lines = [["phase", "median seconds of a step", "share"],
             *([name, f"{s:.2f}", f"{s / whole:.0%}"] for name, s in phases.items())]
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
    return "## Constants\n\n" + fenced("\n".join(
        f"{name} = {value!r}" for name, value in training["constants"].items())) if training else ""


# ---- the model's card ----------------------------------------------------------------------------

PLAIN = {"format": "Prompts are plain text, as in training: a base model knows no chat template.",
         "transformers": '''input_ids = tokenizer(prompt, return_tensors="pt").input_ids''',
         "vllm": "[output] = llm.generate([prompt], params)"}
CHAT = {"format": "Prompts are user messages in the model's chat template.",
        "transformers": '''messages = [{"role": "user", "content": prompt}]
input_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                          return_tensors="pt", return_dict=True).input_ids''',
        "vllm": 'messages = [{"role": "user", "content": prompt}]\n'
                "[output] = llm.chat(messages, params)"}


def model_card(folder, metrics, training, evaluations, results, settings):
    """The text of the model's README.md, with the YAML header that the Hugging Face hub reads."""
    c, name = training["constants"], os.path.join(folder, "model")
    prompt = evaluations[-1][1][0]["prompt"] if evaluations else "..."
    how = CHAT if c["chat_template"] else PLAIN
    base = "" if os.path.isdir(c["model"]) else f"base_model: {c['model']}\n"
    results, settings = map("\n".join, (results, settings))
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- reinforcement-learning
- reasoning
---

# {name}

{c["model"]}, trained by reinforcement learning on the task {c["task"]}.

{results}
## How to use it

{how["format"]} With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
prompt = {prompt!r}
{how["transformers"]}
output = model.generate(input_ids, max_new_tokens={c["max_response_tokens"]}, do_sample=False)
print(tokenizer.decode(output[0, input_ids.shape[1]:], skip_special_tokens=True))
```

With vLLM:

```python
from vllm import LLM, SamplingParams

llm = LLM("{name}", generation_config="vllm")
prompt = {prompt!r}
params = SamplingParams(temperature=0, max_tokens={c["max_response_tokens"]})
{how["vllm"]}
print(output.outputs[0].text)
```

## How it was made

With A\\*-PO ([arXiv 2505.20686](https://arxiv.org/abs/2505.20686)), or the baseline whose constants
these are. {sum(m["seconds_step"] for m in metrics) / 3600:.2f} hours of training steps.

{settings}"""


@one_line_errors()
def main(folders):
    folders = [os.path.normpath(folder) for folder in folders]
    check(folders, "name the folders of runs: python report.py out/arithmetic")
    for folder in folders:
        print(f"wrote {write_report(folder)}")
    if len(folders) > 1:
        png = os.path.join(folders[-1], "compare.png")
        plot_runs({folder: read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
                   for folder in folders}, png)
        print(f"wrote {png}")


if __name__ == "__main__":
    main(sys.argv[1:])
