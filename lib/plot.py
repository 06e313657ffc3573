"""A picture of a training run, from its metrics.jsonl."""
import os

from lib.files import read_jsonl

import matplotlib.pyplot as plt

plt.switch_backend("Agg")  # files only, no window


def plot_run(metrics_path, png):
    """Draw a training run's reward, held-out accuracy, KL and response length over the steps."""
    rows = read_jsonl(metrics_path, ("step",))
    steps = [m["step"] for m in rows]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    titles = ("training reward", "held-out accuracy", "KL to the reference, nats per token",
              "response length, tokens")
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    axes[0, 0].plot(steps, [m["reward"] for m in rows])
    measured = [m for m in rows if "accuracy" in m]
    for key, label in (("accuracy", "greedy"), ("accuracy_sampled", "sampled, temperature 1")):
        first = key.replace("accuracy", "accuracy_start")
        points = [(0, rows[0][first])] if first in rows[0] else []
        points += [(m["step"] + 1, m[key]) for m in measured]
        axes[0, 1].plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes[0, 1].legend(fontsize=8, loc="lower right")
    axes[1, 0].plot(steps, [m["kl"] for m in rows])
    axes[1, 1].plot(steps, [m["response_length"] for m in rows])
    for ax in axes[0]:
        ax.set_ylim(0, 1.02)
    for ax in axes[1]:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_xlabel("step (one rollout batch each)")
    figure.suptitle(os.path.dirname(metrics_path), fontsize=11)
    figure.savefig(png, dpi=120)
    plt.close(figure)
