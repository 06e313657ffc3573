"""Pictures and reports of runs, from a run's files that are written here by hand."""
import json
import math
import re

import evaluate
from lib.files import write_jsonl
from lib.plot import median_seconds, plot_runs, read_runs
from lib.report import fenced, write_report

import matplotlib.pyplot as plt
import pytest
import torch
from test_stages import error

STEPS = 12


def metrics(steps=STEPS, **more):
    rows = [{"step": i, "reward": 0.3 + 0.05 * i, "kl": 0.01 * i, "entropy": 1.0 - 0.05 * i,
             "response_length": 20.0 + i, "truncated": 0.1, "logp_diff_mean": 1e-6 * min(i, 1),
             "seconds_generate": 2.0 + i, "seconds_reference": 0.5, "seconds_grade": 0.25,
             "seconds_train": 3.0, "seconds_sync": 0.125, "seconds_step": 6.0 + i, **more}
            for i in range(steps)]
    rows[0] |= {"accuracy_start": 0.25, "accuracy_start_sampled": 0.125}
    rows[-1] |= {"accuracy": 0.75, "accuracy_sampled": 0.5}
    return rows


def record(i, before, text):
    return {"id": f"q{i}", "task": "math", "prompt": f"prompt {i}", "answer": str(i),
            "greedy": [{"text": text, "reward": before, "truncated": False, "tokens": 3}]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl("out/a/metrics.jsonl", metrics())
    write_jsonl("out/a/eval-000000.jsonl", [record(i, float(i < 2), f"old {i}") for i in range(8)])
    write_jsonl("out/a/eval-000004.jsonl", [record(i, 0.0, "neither") for i in range(8)])
    write_jsonl("out/a/eval-000012.jsonl",
                [record(i, float(i < 6), f"new ``` {i}\n```\n# no title") for i in range(8)])
    rewards = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    torch.save({"ids": list("abcd"), "rewards": rewards, "meta": {},
                "lengths": torch.full((4, 4), 7, dtype=torch.int32),
                "finished": torch.tensor([[True] * 4] * 3 + [[False] * 4]),
                "v_star": torch.tensor([0.0, 0.25, 1.0, 0.25])}, "out/a/values.pt")
    (tmp_path / "out/a/model").mkdir()
    (tmp_path / "out/a/model/training.json").write_text(json.dumps(
        {"steps": STEPS, "processes": 4, "hardware": "4 x NVIDIA H100 80GB HBM3",
         "versions": {"python": "3.11.1", "torch": "2.13.0"},
         "constants": {"model": "some/model", "task": "math", "batch_size": 256, "lr": 1e-6}}))
    return tmp_path / "out/a"


def test_every_number_of_a_report(folder):
    assert write_report("out/a") == "out/a/report.md"
    text = (folder / "report.md").read_text()
    for line in ("- **model** some/model", "- **task** math", "- **steps** 12, of 256 prompts each",
                 "- **processes** 4", "- **hardware** 4 x NVIDIA H100 80GB HBM3",
                 "- **versions** python 3.11.1, torch 2.13.0", "lr = 1e-06",
                 "## Accuracy on 8 held-out prompts, with 95% intervals",
                 "## Stage 1: 4 prompts, 4 samples each", "- mean reward 0.375, mean V* 0.375",
                 "- prompts that were never solved 25.0%, always solved 25.0%",
                 "- response length 7.0 tokens; truncated 25.0%",
                 "| generate | 7.50 | 65% |", "| train | 3.00 | 26% |", "| rest | 0.12 | 1% |"):
        assert f"{line}\n" in text, line

    def interval(p, n):  # the two solutions of (p - x)^2 = z^2 x (1 - x) / n
        a, b, c = 1 + 1.96 ** 2 / n, -(2 * p + 1.96 ** 2 / n), p * p
        root = math.sqrt(b * b - 4 * a * c)
        return f"{p:.1%} [{(-b - root) / 2 / a:.1%}, {(-b + root) / 2 / a:.1%}]"

    assert f"| greedy | {interval(0.25, 8)} | {interval(0.75, 8)} |" in text
    assert f"temperature 1 | {interval(0.125, 8)} | {interval(0.5, 8)} |" in text
    hours = sum(6 + i for i in range(STEPS)) / 3600
    assert f"All 12 steps took {hours:.2f} hours" in text and f"{4 * hours:.2f} GPU-hours" in text
    # Four prompts became right, and one is still wrong; responses stay inside their fences.
    assert re.findall(r"### (q\d), answer (\d)", text) == [
        (f"q{i}", str(i)) for i in (2, 3, 4, 5, 6)]
    assert "Greedy after 0 steps, reward 0:\n\n```text\nold 2\n```\n" in text
    assert "Greedy after 12 steps, reward 1:\n\n````text\nnew ``` 2\n```\n# no title\n````\n" in (
        text)
    assert "neither" not in text
    for name in ("curves.png", "values.png"):
        assert f"({name})" in text and (folder / name).stat().st_size > 5000


def test_a_report_of_less(folder):
    """Not finished, without stage 1, without evaluations."""
    for name in ("values.pt", "model/training.json", *(f"eval-{i:06d}.jsonl" for i in (0, 4, 12))):
        (folder / name).unlink()
    write_jsonl(folder / "metrics.jsonl", [{"step": 0, "reward": 0.5, "seconds_step": 2.0}])
    write_report("out/a")
    text = (folder / "report.md").read_text()
    assert "The run is not finished: 1 steps are done" in text
    for title in ("## Stage 1", "## Accuracy", "## Five", "## Constants", "hours:"):
        assert title not in text


def test_what_evaluate_measured_is_in_the_report(folder):
    (folder / "model/eval.md").write_text("| math | out/a/model |\n")
    write_report("out/a")
    assert "## Measured by evaluate.py\n\n| math | out/a/model |\n" in (
        folder / "report.md").read_text()


def test_long_responses_are_cut():
    assert fenced("x" * 5000) == f"```text\n{'x' * 1500} ... (5,000 characters)\n```\n"


def test_runs_over_each_other(folder, monkeypatch):
    """Every panel has a line per run, which says what the metrics say; GRPO's and a stopped run's
    metrics, too; a long run is smoothed."""
    write_jsonl("out/b/metrics.jsonl", metrics(5, v_star=0.5))
    write_jsonl("out/long/metrics.jsonl", metrics(400))
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    runs = read_runs(["out/a", "out/b", "out/long"])
    plot_runs(runs, "out/b/compare.png")
    axes = {ax.get_title(): ax for ax in figures[0].axes}
    assert len(axes) == 8 and [text.get_text() for text in axes["training reward"].get_legend()
                               .get_texts()] == ["a", "b", "long"]
    reward = axes["training reward"].get_lines()
    assert len(reward) == 4 and reward[0].get_ydata() == pytest.approx(
        [m["reward"] for m in metrics()])
    assert reward[3].get_ydata()[200] == pytest.approx(0.3 + 0.05 * 200)  # of a straight line
    steps, seconds = (ax.get_lines() for ax in figures[0].axes[1:3])
    assert list(steps[1].get_xdata()) == [0, 5] and list(steps[1].get_ydata()) == [0.125, 0.5]
    assert list(seconds[1].get_xdata()) == pytest.approx([0, 6 + 7 + 8 + 9 + 10])
    assert len(axes["seconds of a step, median"].patches) == 3 * 6
    assert median_seconds(runs["out/b"]) == {"generate": 4, "reference": 0.5, "grade": 0.25,
                                             "train": 3, "sync": 0.125, "rest": 0.125}
    assert plt.imread("out/b/compare.png").shape[:2] == (900, 1200)


def test_from_the_command_line(folder, monkeypatch, capsys):
    def said(**constants):
        with monkeypatch.context() as m:
            for name, value in constants.items():
                m.setattr(evaluate, name, value)
            evaluate.main()
        return capsys.readouterr().out

    write_jsonl("out/b/metrics.jsonl", metrics())
    assert said(plot="out/a,out/b") == "wrote out/b/compare.png\n"
    assert said(plot="out/a/") == "wrote out/a/curves.png\n"
    assert said(report="out/a/") == "wrote out/a/report.md\n"
    assert "out/c/metrics.jsonl: no such file" in error(evaluate, monkeypatch, plot="out/a,out/c")
