"""Two processes that share one engine (--tp=2), and offload."""
import json
import os
import shutil

import pytest
from conftest import assert_same_evaluation, assert_same_training, cpu_only, run
from kill import APO, disturb, output_of, torchrun, wait_until

pytestmark = [cpu_only, pytest.mark.slow]
EVALUATE = ("evaluate.py", "--model=data/arithmetic/model", "--max_prompts=33",
            "--samples_per_prompt=3", "--kl_to=data/arithmetic/model")


def test_two_that_share_an_engine(workdir):
    """They offload all they can, too. When one of them is killed, torchrun reports its rank, and no
    shared memory is left; one process continues from their checkpoint. The evaluation and the run
    are those of one process."""
    out = workdir / "out/arithmetic"
    shutil.copytree(workdir, workdir / "one")
    stages = [(*EVALUATE, "--tp=2"), (*APO, "--tp=2", "--offload=True")]
    launcher = torchrun("tests/stages.py", json.dumps(stages), cwd=workdir)
    wait_until(launcher, (out / "ckpt/step-000004").exists)
    assert disturb(launcher, "rank 1")
    cause = output_of(launcher).partition("Root Cause")[2]
    assert "rank      : 1" in cause and "SIGKILL" in cause
    assert not [name for name in os.listdir("/dev/shm") if "cpushm" in name or "psm_" in name]
    done = run(*APO, cwd=workdir)
    assert "continuing from out/arithmetic/ckpt/step-000004" in done.stdout
    for stage in (EVALUATE, APO):
        run(*stage, cwd=workdir / "one")
    assert_same_evaluation(workdir / "one", workdir)
    assert_same_training(workdir / "one/out/arithmetic", out)
