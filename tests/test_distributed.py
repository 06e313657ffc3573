"""Many processes: equal numbers in every layout, and runs that continue after kills."""
import json
import os
import shutil

from lib.samples import load_values
from model import Qwen2

import pytest
import torch
from conftest import cpu_only, metrics_of, run
from kill import SMALL, assert_equal_runs, disturb, output_of, steps_of, torchrun, wait_until

pytestmark = [cpu_only, pytest.mark.slow]
APO = ("train_apo.py", *SMALL, "--max_steps=6")
EVALUATE = ("evaluate.py", "--model=data/arithmetic/model", "--max_prompts=33",
            "--samples_per_prompt=3", "--kl_to=other")
BASELINES = [(f"baselines.{name}", f"--batch_size={size}", f"--mini_batch_size={size // 2}",
              "--eval_prompts=16", "--max_steps=3")
             for name, size in (("grpo", 8), ("rebel", 16), ("ppo", 32))]
ROUNDED = ("loss", "kl", "grad_norm", "entropy", "reward", "accuracy", "accuracy_sampled")


@pytest.fixture(scope="module")
def new_folder(base, tmp_path_factory):
    """A function that makes a folder with the data, stage 1 and another model to compare with."""
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        for part in ("data", "out"):
            shutil.copytree(base / part, folder / part)
        other = Qwen2.from_pretrained(folder / "data/arithmetic/model")
        torch.nn.init.zeros_(other.model.layers[0].mlp.down_proj.weight)
        other.save_pretrained(folder / "other")
        return folder
    return make


@pytest.fixture(scope="module")
def one(new_folder):
    """The folder of one process that has evaluated a model and trained by every algorithm."""
    folder = new_folder("one")
    for stage in (EVALUATE, APO, *BASELINES):
        run(*stage, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def two(new_folder):
    """The same of two processes, after a stage 1 of which one process is killed once."""
    folder = new_folder("two")
    stage_1 = ("estimate_value.py", "--max_prompts=256", "--out=out/two")
    parts = [folder / f"out/two/responses.part.{i}.jsonl" for i in (0, 1)]
    launcher = torchrun(*stage_1, cwd=folder)
    wait_until(launcher, lambda: all(p.exists() and p.read_bytes().count(b"\n") > 20
                                     for p in parts))
    assert disturb(launcher, "rank 1")
    output_of(launcher)
    assert sum(p.read_bytes().count(b"\n") - 1 for p in parts) >= 40
    run("tests/stages.py", json.dumps([stage_1, EVALUATE, APO, *BASELINES]), cwd=folder,
        processes=2)
    assert not any(p.exists() for p in parts)
    return folder


def test_stage_1_of_two_processes(base, two):
    """The same values as of one process, bit for bit."""
    a, b = (load_values(out / "values.pt") for out in (two / "out/two", base / "out/arithmetic"))
    assert a["ids"] == b["ids"]
    assert all(torch.equal(a[k], b[k]) for k in ("rewards", "lengths", "finished", "v_star"))


def assert_same_evaluation(a, b):
    """But for the rounding of the KL, which is not 0: the micro-batches differ."""
    a, b = (json.loads((folder / "data/arithmetic/model/eval.json").read_text())["arithmetic"]
            for folder in (a, b))
    kl = [(results.pop("kl_per_response")["value"], results.pop("kl_per_token"))
          for results in (a, b)]
    assert 0 < kl[0][1] and kl[0] == pytest.approx(kl[1], rel=1e-3)
    assert a == b


def assert_same_training(a, b, rel=2e-5):
    """The same samples, and all else within rounding."""
    for m, n in zip(metrics_of(a), metrics_of(b), strict=True):
        assert m["tokens"] == n["tokens"] and set(m) == set(n)
        for key in set(m).intersection(ROUNDED):
            assert m[key] == pytest.approx(n[key], rel=rel, abs=rel / 10), (m["step"], key)


def test_two_processes_agree_with_one(one, two):
    assert_same_evaluation(one, two)
    assert_same_training(one / "out/arithmetic", two / "out/arithmetic")
    for name in ("grpo", "rebel", "ppo"):
        assert_same_training(*(folder / f"out/arithmetic_{name}" for folder in (one, two)),
                             rel=2e-4)


def test_two_that_share_an_engine_agree_with_one(one, new_folder):
    """They offload all they can, too. When one of them is killed, torchrun reports its rank, and no
    shared memory is left; one process continues from their checkpoint."""
    folder = new_folder("shared")
    out = folder / "out/arithmetic"
    stages = [(*EVALUATE, "--tp=2"), (*APO, "--tp=2", "--offload=True")]
    launcher = torchrun("tests/stages.py", json.dumps(stages), cwd=folder)
    wait_until(launcher, (out / "ckpt/step-000004").exists)
    assert disturb(launcher, "rank 1")
    cause = output_of(launcher).partition("Root Cause")[2]
    assert "rank      : 1" in cause and "SIGKILL" in cause
    assert not [name for name in os.listdir("/dev/shm") if "cpushm" in name or "psm_" in name]
    done = run(*APO, cwd=folder)
    assert "continuing from out/arithmetic/ckpt/step-000004" in done.stdout
    assert_same_evaluation(one, folder)
    assert_same_training(one / "out/arithmetic", out)


def test_killed_and_continued(two, new_folder):
    """After SIGTERM to torchrun, when the step ends and is saved, and after SIGKILL to all, a run
    continues as if nothing had happened. `python tests/kill.py` does the same with 20 kills."""
    folder = new_folder("killed")
    out = folder / "out/arithmetic"
    launcher = torchrun(*APO, "--save_every=0", cwd=folder)
    wait_until(launcher, lambda: steps_of(out) >= 2)
    assert disturb(launcher, "terminate")
    output, steps = output_of(launcher), steps_of(out)
    assert f"stopped after {steps} steps, which are saved" in output
    assert os.listdir(out / "ckpt") == [f"step-{steps:06d}"] and steps < 5
    launcher = torchrun(*APO, "--save_every=1", cwd=folder)
    wait_until(launcher, (out / f"ckpt/step-{steps + 1:06d}").exists)
    assert disturb(launcher, "all")
    assert f"continuing from out/arithmetic/ckpt/step-{steps:06d}" in output_of(launcher)
    run(*APO, cwd=folder, processes=2)
    assert_equal_runs(out, two / "out/arithmetic")
