"""Pictures of training runs, from their metrics.jsonl."""
import os

from lib.files import read_jsonl

import matplotlib.pyplot as plt
import numpy as np

plt.switch_backend("Agg")  # files only, no window

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PHASES = ("generate", "reference", "grade", "train", "sync", "rest")
# Metrics that are drawn against the steps: (key, title).
CURVES = (("reward", "training reward"), ("kl", "KL to the reference, nats per token"),
          ("response_length", "response length, tokens"), ("entropy", "entropy, nats per token"),
          ("truncated", "truncated responses"),
          ("logp_diff_mean", "vLLM against trainer, mean |Δ ln p|"))


def read_runs(folders):
    """{folder: its metrics}. Raises FileNotFoundError or ValueError."""
    return {folder: read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
            for folder in folders}


def plot_runs(runs, png):
    """Draw runs over each other. runs: as of read_runs; png: the picture's path.

    Of one run greedy and sampled held-out accuracy are shown, of several only the sampled one.
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
