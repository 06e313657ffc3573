"""Two processes do what one does, in every stage and by every algorithm, also if they share an
engine (--tp=2) and offload; and a run that is killed, or meets a full disk, does in the end what it
would have done undisturbed. `python tests/kill.py` kills one 20 times.
"""
import json
import os
import shutil
import subprocess

from lib.samples import load_values
from model import Qwen2
from prepare import byte_tokenizer

import pytest
import torch
from conftest import MODEL, cpu_only, metrics_of, run, what_counts
from kill import APO, assert_equal_runs, disturb, output_of, steps_of, torchrun, wait_until

pytestmark = [cpu_only, pytest.mark.slow]
STAGE_1 = ("estimate_value.py", "--max_prompts=256", "--out=out/new")
EVALUATE = ("evaluate.py", f"--model={MODEL}", "--max_prompts=33",
            "--samples_per_prompt=3", "--kl_to=other")
KILLED = (*APO, "--out=out/killed")
LORA = ("train_apo.py", "--out=out/lora", "--lora_rank=2", "--lr=4e-3", "--batch_size=32",
        "--mini_batch_size=16", "--eval_prompts=16", "--max_steps=2",
        "--checkpoint_activations=True")
TRAIN = [APO, LORA, *(
    (f"baselines.{name}", f"--batch_size={size}", f"--mini_batch_size={size // 2}",
     "--eval_prompts=16", "--max_steps=2")
    for name, size in (("grpo", 8), ("oapl", 8), ("rebel", 16), ("ppo", 32)))]


def copy_of(base, folder):
    """A folder with the base's data, model and stage 1, also in out/lora and out/killed, and with
    another model."""
    shutil.copytree(base / "data", folder / "data")
    for name in ("arithmetic", "lora", "killed"):
        shutil.copytree(base / "out/arithmetic", folder / "out" / name)
    other = Qwen2.from_pretrained(folder / MODEL)
    torch.nn.init.zeros_(other.model.layers[0].mlp.down_proj.weight)
    other.save_pretrained(folder / "other")
    byte_tokenizer().save_pretrained(folder / "other")
    return folder


@pytest.fixture(scope="module")
def one(base, tmp_path_factory):
    """A folder in which one process has evaluated the base model, and trained."""
    folder = copy_of(base, tmp_path_factory.mktemp("one"))
    for stage in (EVALUATE, *TRAIN):
        run(*stage, cwd=folder)
    return folder


def assert_same_training(a, b, rel=2e-5):
    """The same samples in both runs, and all else within rounding."""
    for m, n in zip(metrics_of(a), metrics_of(b), strict=True):
        assert m["tokens"] == n["tokens"] and set(m) == set(n)
        for key in ("loss", "kl", "grad_norm", "entropy", "reward"):
            assert m[key] == pytest.approx(n[key], rel=rel, abs=rel / 10), (m["step"], key)
        for key in ("accuracy", "accuracy_sampled"):
            assert m.get(key) == n.get(key), m["step"]


def assert_same_evaluation(a, b):
    """Of the base model in both folders, but for the rounding of the KL: the micro-batches
    differ."""
    a, b = (json.loads((folder / MODEL / "eval.json").read_text())["arithmetic"]
            for folder in (a, b))
    kl = [(results.pop("kl_per_response")["value"], results.pop("kl_per_token"))
          for results in (a, b)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-3) and a == b


def start(folder, *stages):
    """A job of two processes."""
    return torchrun("tests/stages.py", json.dumps(stages), cwd=folder)


def test_two_processes_agree_with_one(one, base, tmp_path):
    """Stage 1 bit for bit, though one process was killed while it sampled; all else within
    rounding. After SIGTERM to torchrun, when the step ends and is saved, and after SIGKILL to all,
    a run continues as if nothing had happened."""
    two, killed = copy_of(base, tmp_path), tmp_path / "out/killed"

    def parts():
        return sorted((two / "out/new").glob("responses.part.*.jsonl"))

    job = start(two, STAGE_1)
    wait_until(job, lambda: [p.read_bytes().count(b"\n") > 20 for p in parts()] == [True, True])
    assert disturb(job, "rank 1")
    output_of(job)
    assert sum(p.read_bytes().count(b"\n") - 1 for p in parts()) >= 40

    job = start(two, STAGE_1, EVALUATE, *TRAIN, (*KILLED, "--save_every=0"))
    wait_until(job, lambda: steps_of(killed) >= 2)
    assert disturb(job, "terminate")
    output, steps = output_of(job), steps_of(killed)
    assert f"stopped after {steps} steps, which are saved" in output
    assert "make a model of them: python export.py out/killed" in output
    assert os.listdir(killed / "ckpt") == [f"step-{steps:06d}"] and steps < 5
    job = start(two, (*KILLED, "--save_every=1"))
    wait_until(job, (killed / f"ckpt/step-{steps + 1:06d}").exists)
    assert disturb(job, "all")
    assert f"continuing from out/killed/ckpt/step-{steps:06d}" in output_of(job)
    run("tests/stages.py", json.dumps([KILLED]), cwd=two, processes=2)
    assert_equal_runs(killed, two / "out/arithmetic")

    assert not parts()
    a, b = (load_values(path / "values.pt") for path in (two / "out/new", base / "out/arithmetic"))
    assert a["ids"] == b["ids"]
    assert all(torch.equal(a[k], b[k]) for k in ("rewards", "lengths", "finished", "v_star"))
    assert_same_evaluation(one, two)
    for name, rel in (("arithmetic", 2e-5), ("lora", 2e-4), ("arithmetic_grpo", 2e-4),
                      ("arithmetic_oapl", 2e-4), ("arithmetic_rebel", 2e-4),
                      ("arithmetic_ppo", 2e-4)):
        assert_same_training(*(folder / f"out/{name}" for folder in (one, two)), rel)


def test_two_that_share_an_engine(one, base, tmp_path):
    """They offload all they can, too. When one of them is killed, torchrun reports its rank, and no
    shared memory is left; one process continues from their checkpoint."""
    out = copy_of(base, tmp_path) / "out/arithmetic"
    job = start(tmp_path, (*EVALUATE, "--tp=2"), (*APO, "--tp=2", "--offload=True"))
    wait_until(job, (out / "ckpt/step-000004").exists)
    assert disturb(job, "rank 1")
    cause = output_of(job).partition("Root Cause")[2]
    assert "rank      : 1" in cause and "SIGKILL" in cause
    assert not [name for name in os.listdir("/dev/shm") if "cpushm" in name or "psm_" in name]
    done = run(*APO, cwd=tmp_path)
    assert "continuing from out/arithmetic/ckpt/step-000004" in done.stdout
    assert_same_evaluation(one, tmp_path)
    assert_same_training(one / "out/arithmetic", out)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_full_disk(one, workdir):
    """One line says so, also in stage 1. What was saved before is intact, and with more room the
    run continues to the same metrics."""
    whole, out = one / "out/arithmetic", workdir / "out/small"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", out]).returncode:
        pytest.skip("no permission to mount")

    def fails(*stage):
        done = run(*stage, "--out=out/small", cwd=workdir, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stdout
        return done.stdout.strip().splitlines()[-1]

    try:
        line = fails("estimate_value.py", "--max_prompts=64")
        assert line.startswith("error: sampling: no space left on the disk")
        size = sum(p.stat().st_size for p in (whole / "ckpt/step-000006").iterdir())
        subprocess.run(["mount", "-o", f"remount,size={int(1.6 * size)}", out], check=True)
        shutil.copy(whole / "values.pt", out)
        line = fails(*APO)
        assert line.startswith("error: out/small/ckpt/step-000004 could not be written: it takes ")
        assert "step-000002 is intact: make room" in line
        subprocess.run(["mount", "-o", "remount,size=60m", out], check=True)
        done = run(*APO, "--out=out/small", cwd=workdir)
        assert "continuing from out/small/ckpt/step-000002" in done.stdout
        assert what_counts(out) == what_counts(whole)
    finally:
        subprocess.run(["umount", out], check=True)
