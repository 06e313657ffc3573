"""Two processes are killed, and the run continues. `python tests/kill.py` does it 20 times."""
import os
import shutil

import pytest
from conftest import cpu_only, run
from kill import APO, assert_equal_runs, disturb, output_of, steps_of, torchrun, wait_until

pytestmark = [cpu_only, pytest.mark.slow]


def test_killed_and_continued(workdir):
    """After SIGTERM to torchrun, when the step ends and is saved, and after SIGKILL to all, a run
    continues as if nothing had happened."""
    out, whole = workdir / "out/arithmetic", workdir / "out/whole"
    shutil.copytree(out, whole)
    run(*APO, "--out=out/whole", cwd=workdir, processes=2)
    launcher = torchrun(*APO, "--save_every=0", cwd=workdir)
    wait_until(launcher, lambda: steps_of(out) >= 2)
    assert disturb(launcher, "terminate")
    output, steps = output_of(launcher), steps_of(out)
    assert f"stopped after {steps} steps, which are saved" in output
    assert "make a model of them: python export.py out/arithmetic" in output
    assert os.listdir(out / "ckpt") == [f"step-{steps:06d}"] and steps < 5
    launcher = torchrun(*APO, "--save_every=1", cwd=workdir)
    wait_until(launcher, (out / f"ckpt/step-{steps + 1:06d}").exists)
    assert disturb(launcher, "all")
    assert f"continuing from out/arithmetic/ckpt/step-{steps:06d}" in output_of(launcher)
    run(*APO, cwd=workdir, processes=2)
    assert_equal_runs(out, whole)
