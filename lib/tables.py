"""Results of evaluations: where they are, and as tables in markdown, aligned for the screen."""
import os


def results_folder(model):
    """Where evaluate.py writes: a local model's folder, or out/eval if that can't be written."""
    if os.path.isdir(model) and os.access(model, os.W_OK):
        return model
    return os.path.join("out", "eval", model.lstrip("./"))


def results_table(by_model):
    """Models side by side, a line per task and measure. by_model: {name: contents of eval.json}."""
    keys = dict.fromkeys((task, key) for results in by_model.values()
                         for task in results for key in results[task] if key != "settings")
    return as_markdown([["", *by_model]] + [
        [f"{task}, {key.replace('_', ' ')}",
         *(cell(key, results[task].get(key, "")) for results in by_model.values())]
        for task, key in keys])


def as_markdown(lines):
    """A table. lines: lists of cells, the header first."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    text = ""
    for first, *rest in (lines[0], rule, *lines[1:]):
        cells = (f"{c:>{width}}" for c, width in zip(rest, widths[1:], strict=True))
        text += f"| {' | '.join((f'{first:<{widths[0]}}', *cells))} |\n"
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
