"""Tables of evaluation results, as markdown that is aligned for the screen, and the results that
the A*-PO paper (arXiv 2505.20686) reports."""
import os

# Accuracy in percent on these benchmarks after 25 epochs of MATH: greedy, but for AMC23, which is
# avg@32. By (hidden size, layers) of the model.
PAPER_TASKS = ("math500", "minerva_math", "olympiadbench", "amc23")
PAPER_RESULTS = {
    (1536, 28): {"Qwen2.5-1.5B": (45.8, 16.9, 17.7, 20.6), "GRPO": (58.0, 22.8, 21.1, 32.2),
                 "PPO": (57.0, 21.7, 20.9, 29.8), "REBEL": (57.8, 20.2, 23.2, 31.7),
                 "A*-PO": (57.8, 22.4, 22.3, 31.9)},
    (2048, 36): {"Qwen2.5-3B": (50.8, 23.2, 23.7, 29.8), "GRPO": (66.0, 25.0, 28.9, 34.6),
                 "PPO": (65.8, 23.9, 26.7, 34.7), "REBEL": (67.0, 27.6, 28.2, 36.3),
                 "A*-PO": (66.2, 25.7, 28.0, 35.5)},
    (3584, 28): {"Qwen2.5-7B": (62.8, 22.4, 30.6, 39.6), "GRPO": (73.2, 33.5, 34.0, 55.9),
                 "PPO": (74.4, 30.9, 34.0, 55.5), "REBEL": (74.6, 34.6, 34.7, 56.9),
                 "A*-PO": (76.2, 34.6, 34.3, 56.3)}}


def results_folder(model):
    """Where evaluate.py writes what it measures: a local model's own folder, or below out/eval."""
    return model if os.path.isdir(model) else os.path.join("out", "eval", model)


def table(title, names, all_results):
    """Models side by side on one task, a line per measure.

    names: the models; all_results: the entry of this task in each one's eval.json.
    """
    measures = [key for key in all_results[0] if key != "settings"]
    return as_markdown([[title, *names], *(
        [key.replace("_", " "), *(cell(key, r.get(key, "")) for r in all_results)]
        for key in measures)])


def summary(names, by_task, shape):
    """All tasks in one table: a line per model, and the paper's results for models of this shape.

    by_task: {task: [result of each model]}; shape: (hidden size, layers). Empty for one task that
    the paper has not measured.
    """
    paper = PAPER_RESULTS.get(shape, {}) if by_task.keys() & set(PAPER_TASKS) else {}
    if len(by_task) == 1 and not paper:
        return ""
    columns = {}
    for task, all_results in by_task.items():
        samples = [key for key in all_results[0] if key.startswith("avg@")]
        # On few prompts greedy accuracy is mostly chance.
        few = all_results[0]["prompts"] < 100 and samples
        columns[task] = samples[0] if few else "greedy"
    lines = [["", *(f"{task}, {measure}" for task, measure in columns.items())]]
    for k, name in enumerate(names):
        lines.append([name, *(cell(measure, by_task[task][k].get(measure, ""))
                              for task, measure in columns.items())])
    for name, percents in paper.items():
        of_task = dict(zip(PAPER_TASKS, percents, strict=True))
        lines.append([f"the paper's {name}",
                      *(f"{of_task[t]:.1f}%" if t in of_task else "" for t in columns)])
    return as_markdown(lines)


def as_markdown(lines):
    """A table as markdown. lines: lists of cells, the header first."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    text = ""
    for first, *rest in (lines[0], rule, *lines[1:]):
        cells = [f"{first:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(rest, widths[1:],
                                                                     strict=True))]
        text += f"| {' | '.join(cells)} |\n"
    return text


def cell(key, value):
    """A result as text. key: its name."""
    if isinstance(value, dict):
        low, high = value["ci95"]
        if key.startswith(("kl", "reward")):
            return f"{value['value']:.3f} [{low:.3f}, {high:.3f}]"
        return f"{value['value']:.1%} [{max(low, 0):.1%}, {min(high, 1):.1%}]"
    formats = {"truncated": "{:.1%}", "grade_timed_out": "{:.1%}", "response_length": "{:.1f}",
               "kl_per_token": "{:.4f}"}
    return formats.get(key, "{}").format(value)
