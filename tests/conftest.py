"""Shared parts of the tests. Those in test_cuda.py skip without a GPU, those that are exact on the CPU alone with one.

    bash runs/test.sh                # everything
    bash runs/test.sh -k reward      # a part
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
import common  # noqa: E402, F401  before torch

import pytest  # noqa: E402
import torch  # noqa: E402

REAL_DATA = REPO.parent / "shared" / "data"  # GSM8K, MATH and the Qwen2.5 tokenizer; tests that need them skip without
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no {REAL_DATA}")


def run(script, *args, cwd, check=True):
    """Run a stage as a user does, from the folder `cwd`. Returns the finished process with its text output."""
    done = subprocess.run([sys.executable, str(REPO / script), *map(str, args)], cwd=cwd, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done


def own_words(output):
    """What a job under torchrun said before torchrun's report of it, whose lines begin with E and the date."""
    return re.split(r"(?m)^E\d{4} ", output)[0]


def metrics_of(out):
    return [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]


def tiny_config(**changes):
    from model import Config
    return Config(**{**dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
                            rope_theta=10000.0, initializer_range=0.2), **changes})


def random_model(config, seed=0):
    """A model in which every parameter matters: norms and biases are random too."""
    from model import Qwen2
    torch.manual_seed(seed)
    model = Qwen2(config)
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=0.5, std=0.3)
    return model


def packed(lengths, vocab_size, seed=0):
    """Random (input_ids (T,), cu_seqlens (B + 1,))."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(vocab_size, (sum(lengths),), generator=g),
            torch.tensor([0, *lengths]).cumsum(0).to(torch.int32))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder with the arithmetic data, its base model, and stage 1 of 256 prompts in out/arithmetic."""
    folder = tmp_path_factory.mktemp("base")
    run("prepare.py", cwd=folder)
    run("estimate_value.py", "--max_prompts=256", cwd=folder)
    return folder


@pytest.fixture
def workdir(base, tmp_path, monkeypatch):
    """A fresh current folder with that data and model, to read or to spoil; `out` is empty."""
    import shutil
    shutil.copytree(base / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path
