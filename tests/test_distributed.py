"""Two processes do what one does, in every stage and by every algorithm."""
import json
import shutil

from lib.samples import load_values
from model import Qwen2

import pytest
import torch
from conftest import assert_same_evaluation, assert_same_training, cpu_only, run
from kill import APO, disturb, output_of, torchrun, wait_until

pytestmark = [cpu_only, pytest.mark.slow]
STAGE_1 = ("estimate_value.py", "--max_prompts=256", "--out=out/new")
EVALUATE = ("evaluate.py", "--model=data/arithmetic/model", "--max_prompts=33",
            "--samples_per_prompt=3", "--kl_to=other")
LORA = ("train_apo.py", "--out=out/new", "--lora_rank=2", "--lr=4e-3", "--batch_size=32",
        "--mini_batch_size=16", "--eval_prompts=16", "--max_steps=3",
        "--checkpoint_activations=True")
TRAIN = [APO, LORA, *(
    (f"baselines.{name}", f"--batch_size={size}", f"--mini_batch_size={size // 2}",
     "--eval_prompts=16", "--max_steps=3")
    for name, size in (("grpo", 8), ("oapl", 8), ("rebel", 16), ("ppo", 32)))]


def test_two_processes_agree_with_one(base, tmp_path):
    """Stage 1 bit for bit, though one of two processes was killed once while it sampled; all else
    within rounding."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        for part in ("data", "out"):
            shutil.copytree(base / part, folder / part)
        other = Qwen2.from_pretrained(folder / "data/arithmetic/model")
        torch.nn.init.zeros_(other.model.layers[0].mlp.down_proj.weight)
        other.save_pretrained(folder / "other")
    parts = [two / f"out/new/responses.part.{i}.jsonl" for i in (0, 1)]
    launcher = torchrun(*STAGE_1, cwd=two)
    wait_until(launcher, lambda: all(p.exists() and p.read_bytes().count(b"\n") > 20
                                     for p in parts))
    assert disturb(launcher, "rank 1")
    output_of(launcher)
    assert sum(p.read_bytes().count(b"\n") - 1 for p in parts) >= 40
    run("tests/stages.py", json.dumps([STAGE_1, EVALUATE, *TRAIN]), cwd=two, processes=2)
    assert not any(p.exists() for p in parts)
    shutil.copytree(base / "out/arithmetic", one / "out/new")
    for stage in (EVALUATE, *TRAIN):
        run(*stage, cwd=one)

    a, b = (load_values(path / "values.pt") for path in (two / "out/new", base / "out/arithmetic"))
    assert a["ids"] == b["ids"]
    assert all(torch.equal(a[k], b[k]) for k in ("rewards", "lengths", "finished", "v_star"))
    assert_same_evaluation(one, two)
    for name, rel in (("arithmetic", 2e-5), ("new", 2e-4), ("arithmetic_grpo", 2e-4),
                      ("arithmetic_oapl", 2e-4), ("arithmetic_rebel", 2e-4),
                      ("arithmetic_ppo", 2e-4)):
        assert_same_training(*(folder / f"out/{name}" for folder in (one, two)), rel)
