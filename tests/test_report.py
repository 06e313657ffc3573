"""report.py: pictures, report and model card, from a run's files that are written here by hand."""
import json
import re

import report
from evaluate import wilson
from lib.files import write_jsonl

import matplotlib.pyplot as plt
import pytest
import torch

STEPS = 12


def metrics(steps=STEPS, **more):
    rows = [{"step": i, "reward": 0.3 + 0.05 * i, "kl": 0.01 * i, "entropy": 1.0 - 0.05 * i,
             "response_length": 20.0 + i, "truncated": 0.1, "logp_diff_mean": 1e-6 * min(i, 1),
             "seconds_generate": 2.0 + i, "seconds_reference": 0.5, "seconds_grade": 0.25,
             "seconds_train": 3.0, "seconds_sync": 0.125, "seconds_step": 6.0 + i, **more}
            for i in range(steps)]
    for row, accuracies in ((rows[0], {"accuracy_start": 0.25, "accuracy_start_sampled": 0.125}),
                            (rows[-1], {"accuracy": 0.75, "accuracy_sampled": 0.5})):
        row |= accuracies | {f"{key}_ci95": wilson(p, 8) for key, p in accuracies.items()}
    return rows


def record(i, reward, text, answer=None):
    return {"id": f"q{i}", "task": "math", "prompt": f"prompt {i}", "answer": answer or str(i),
            "greedy": [{"text": text, "reward": reward, "truncated": False, "tokens": 3}]}


def result(value):
    return {"prompts": 8, "greedy": {"value": value, "ci95": [value - 0.1, value + 0.1]},
            "settings": {"seed": 0}}


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
    files = {"out/a/model/training.json":
             {"steps": STEPS, "processes": 4, "hardware": "4 x NVIDIA H100 80GB HBM3",
              "versions": {"python": "3.11.1", "torch": "2.13.0"},
              "constants": {"algorithm": "GRPO", "model": "Qwen/Qwen2.5-1.5B", "task": "math",
                            "batch_size": 256, "lr": 1e-6, "chat_template": False,
                            "max_response_tokens": 64}},
             "out/a/model/config.json": {"hidden_size": 1536, "num_hidden_layers": 28},
             "out/a/model/eval.json": {"math500": result(0.5)},
             "out/eval/Qwen/Qwen2.5-1.5B/eval.json":
             {"gsm8k": result(0.75), "math500": result(0.25)}}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / "out/a"


def interval(p):
    low, high = wilson(p, 8)
    return f"{p:.1%} [{low:.1%}, {high:.1%}]"


def test_every_number_of_a_report_and_a_card(folder):
    """Both have what was run and its results; the report has stage 1, the time, and the responses,
    which stay inside their fences."""
    assert report.write_report("out/a") == "out/a/report.md"
    text, card = (re.sub(" +", " ", (folder / name).read_text())
                  for name in ("report.md", "model/README.md"))
    for line in ("model = 'Qwen/Qwen2.5-1.5B'", "steps = 12", "processes = 4", "lr = 1e-06",
                 "hardware = '4 x NVIDIA H100 80GB HBM3'", "torch = '2.13.0'",
                 "## Accuracy on held-out prompts, with 95% intervals",
                 f"| greedy | {interval(0.25)} | {interval(0.75)} |",
                 f"| one sample at temperature 1 | {interval(0.125)} | {interval(0.5)} |",
                 "| math500, greedy | 25.0% [15.0%, 35.0%] | 50.0% [40.0%, 60.0%] |"):
        assert f"{line}\n" in text and f"{line}\n" in card, line
    hours = sum(6 + i for i in range(STEPS)) / 3600
    for line in ("## Stage 1: 4 prompts, 4 samples each", "- mean reward: 0.375",
                 "- mean V*: 0.375", "- prompts with 0 to 4 right: 1, 2, 0, 0, 1",
                 "- pass@4: 75.0%", "- response length: 7.0 tokens",
                 "- truncated: 25.0%", "| generate | 7.50 | 65% |",
                 "| train | 3.00 | 26% |", "| rest | 0.12 | 1% |",
                 "Greedy after 0 steps, reward 0:\n\n```text\nold 2\n```",
                 "Greedy after 12 steps, reward 1:\n\n````text\nnew ``` 2\n```\n# no title\n````"):
        assert f"{line}\n" in text, line
    assert f"took {hours:.2f} hours" in text
    # Four prompts became right, and one is still wrong.
    assert re.findall(r"### (q\d), answer", text) == [f"q{i}" for i in (2, 3, 4, 5, 6)]
    assert "neither" not in text and report.fenced("x" * 5000).count("x") == 1501  # and one in text
    assert "base_model: Qwen/Qwen2.5-1.5B\n" in card
    assert "Qwen/Qwen2.5-1.5B, trained on the task math with GRPO.\n" in card
    assert "llm.generate(['prompt 0'], params)" in card
    assert "gsm8k" not in text  # another run's task, on which the base model was measured, too
    assert "(curves.png)" in text and (folder / "curves.png").stat().st_size > 5000


def test_a_report_of_less(folder):
    """A run that is not finished, without stage 1 and without evaluations, has a report, too. The
    model in its folder is an earlier run's."""
    for name in ("values.pt", *(f"eval-{i:06d}.jsonl" for i in (0, 4, 12))):
        (folder / name).unlink()
    write_jsonl(folder / "metrics.jsonl", [{"step": 0, "reward": 0.5, "seconds_step": 2.0}])
    report.write_report("out/a")
    text = (folder / "report.md").read_text()
    assert "The run is not finished: 1 steps are done" in text
    for title in ("## Stage 1", "## Accuracy", "## Measured", "## Five", "## What"):
        assert title not in text
    assert not (folder / "model/README.md").exists()


def test_runs_over_each_other(folder, monkeypatch, capsys):
    """Every panel has a line per run, or one of each accuracy, which says what the metrics say,
    and its name is what differs between their folders. A long run is smoothed. A folder
    without a run is an error in one line."""
    write_jsonl("out/long/a/metrics.jsonl", metrics(5, v_star=0.5))
    write_jsonl("out/long/metrics.jsonl", metrics(400))
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    report.main(["out/a/", "out/long", "out/long/a"])
    assert capsys.readouterr().out.splitlines() == [
        *(f"wrote out/{name}/report.md" for name in ("a", "long", "long/a")),
        "wrote out/long/a/compare.png"]
    axes = {ax.get_title(): ax for ax in figures[-1].axes}
    assert len(axes) == 8 and [text.get_text() for text in axes["training reward"].get_legend()
                               .get_texts()] == ["a", "long", "long/a"]
    reward = axes["training reward"].get_lines()
    assert len(reward) == 4 and reward[0].get_ydata() == pytest.approx(
        [m["reward"] for m in metrics()])
    assert reward[2].get_ydata()[200] == pytest.approx(0.3 + 0.05 * 200)  # of a straight line
    steps, seconds = (ax.get_lines() for ax in figures[-1].axes[1:3])
    assert list(steps[4].get_xdata()) == [0, 5] and list(steps[4].get_ydata()) == [0.125, 0.5]
    assert list(seconds[4].get_xdata()) == pytest.approx([0, 6 + 7 + 8 + 9 + 10])
    assert report.median_seconds(metrics(5)) == {"generate": 4, "reference": 0.5, "grade": 0.25,
                                                 "train": 3, "sync": 0.125, "rest": 0.125}
    assert plt.imread("out/long/a/compare.png").shape[:2] == (900, 1200)
    with pytest.raises(SystemExit, match="out/c/metrics.jsonl: no such file"):
        report.main(["out/c"])
