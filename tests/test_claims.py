"""bench/claims.py: what its tables say follows from the runs' numbers."""
import importlib.util
import sys

import pytest
from conftest import REPO


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # which the script changes
    spec = importlib.util.spec_from_file_location("claims", REPO / "bench/claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_run(algorithm, seed, sampled, stage_1=None):
    n = len(sampled)
    return {"task": "facts", "accounting": "equal generations", "algorithm": algorithm,
            "seed": seed, "rate": 1, "prompts_per_step": 10, "responses_per_prompt": 2,
            "steps": [4 * k for k in range(n)], "greedy": sampled, "sampled": sampled,
            "tokens": [100 * k for k in range(n)], "seconds": [8.0 * k for k in range(n)],
            "kl": 0.01, "memory_gb": 0.5, "stage_1": stage_1, "seconds_of_step": dict.fromkeys(
                ("generate", "reference", "grade", "train", "sync", "step"), 0.5)}


STAGE_1 = {"generations": 80, "tokens": 400, "seconds": 30.0}


def test_what_an_accuracy_costs(claims):
    """The first time that it is reached, between two evaluations, with a share of stage 1."""
    run = one_run("A*-PO", 0, [0.4, 0.6, 0.5, 0.9], STAGE_1)
    assert claims.costs(run)["generations"] == [0, 80, 160, 240]
    assert claims.costs(run, 1 / 10)["seconds"] == [3, 11, 19, 27]
    assert claims.costs(run, 1)["prompts"] == [0, 40, 80, 120]
    for level, cost in ((0.5, 40), (0.6, 80), (0.7, 200), (0.95, None)):
        assert claims.first_time(run, claims.costs(run)["generations"], level) == (
            cost and pytest.approx(cost))
    assert claims.first_time(run, claims.costs(run, 1)["seconds"], 0.7) == pytest.approx(50)


def test_tables_and_picture(claims, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "REPO", tmp_path)
    monkeypatch.setattr(claims, "PICTURE", tmp_path / "claims.png")
    claims.show([one_run("A*-PO", 0, [0.4, 0.8], STAGE_1), one_run("A*-PO", 1, [0.4, 0.6], STAGE_1),
                 one_run("A*-PO", 2, [0.5, 0.9], STAGE_1), one_run("GRPO", 0, [0.4, 0.5])])
    lines = capsys.readouterr().out.splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    by_name = {}
    for row in cells:
        by_name.setdefault(row[0], []).append(row[1:])
    accuracy, _, _, results, times, rates = by_name["A*-PO"]
    assert accuracy == ["80.0 (60.0 to 90.0)", ""]
    assert results[:3] == ["10 x 2", "80.0 (60.0 to 90.0)", "80.0 (60.0 to 90.0)"]
    assert times[0] == "2 of 3" and times[2] == "50 (40 to 60)" and times[3] == "130 (120 to 140)"
    # in GRPO's table of equal prompts there is no other algorithm yet
    assert rates == ["", "80.0", ""]
    assert len(by_name["GRPO"]) == 8 and by_name["GRPO"][4][:3] == ["0 of 1", "", ""]
    assert (tmp_path / "claims.png").stat().st_size > 10_000
