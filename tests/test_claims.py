"""bench/claims.py: the numbers in its tables follow from the numbers of the runs."""
import math

from bench import claims
from lib.files import read_jsonl

from pytest import approx


def one_run(algorithm, seed, sampled, stage_1=None):
    """A run of facts by equal generations. The numbers that are not set here are a real run's."""
    n = range(len(sampled))
    return read_jsonl(claims.RESULTS, ())[0] | {
        "task": "facts", "algorithm": algorithm, "seed": seed, "prompts_per_step": 10,
        "responses_per_prompt": 2, "steps": [4 * k for k in n], "greedy": sampled,
        "sampled": sampled, "tokens": [100 * k for k in n], "seconds": [8.0 * k for k in n],
        "stage_1": stage_1 and {"generations": 80, "tokens": 400, "seconds": 30.0}}


def test_what_an_accuracy_costs():
    """The cost of the first time that an accuracy is reached, between two evaluations."""
    run = one_run("A*-PO", 0, [0.4, 0.6, 0.5, 0.9], stage_1=True)
    assert claims.costs(run, 1 / 10)["seconds"] == [3, 11, 19, 27]
    assert claims.costs(run, 1)["prompts"] == [0, 40, 80, 120]
    for level, cost in ((0.4, 0), (0.5, 40), (0.6, 80), (0.7, 200), (0.9, 240), (0.95, math.inf)):
        assert claims.first_time(run, claims.costs(run)["generations"], level) == approx(cost)
    assert claims.first_time(run, claims.costs(run, 1)["seconds"], 0.7) == approx(50)


def test_tables_and_picture(tmp_path, monkeypatch, capsys):
    """Median and range over the seeds, runs that never reach the level, and a missing algorithm."""
    monkeypatch.setattr(claims, "REPO", tmp_path)
    monkeypatch.setattr(claims, "PICTURE", tmp_path / "claims.png")
    claims.show([one_run("A*-PO", 0, [0.4, 0.8], True), one_run("A*-PO", 1, [0.4, 0.6], True),
                 one_run("A*-PO", 2, [0.5, 0.9], True), one_run("GRPO", 0, [0.4, 0.5])])
    by_name = {}
    for line in capsys.readouterr().out.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        by_name.setdefault(name, []).append(cells)
    accuracy, _, _, results, times, rates = by_name["A*-PO"]
    assert accuracy == ["80.0 (60.0 to 90.0)", ""] and rates == ["", "80.0", ""]
    assert results[:3] == ["10 x 2", "80.0 (60.0 to 90.0)", "80.0 (60.0 to 90.0)"]
    assert [times[0], *times[2:4]] == ["2 of 3", "60 (40 to never)", "140 (120 to never)"]
    assert len(by_name["GRPO"]) == 8 and by_name["GRPO"][4][:3] == ["0 of 1", "never", "never"]
    assert (tmp_path / "claims.png").stat().st_size > 10_000
