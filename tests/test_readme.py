"""Every command in README.md and docs/ can be run: its files and constants exist. The script for
MATH runs from prompts to the report."""
import json
import os
import re
import shlex
import shutil
import subprocess

import baselines
import lib.cli
from prepare import byte_tokenizer

import pytest
from conftest import REAL_DATA, REPO, cpu_only, needs_real_data, random_model, tiny_config

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def commands():
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                found.append(" ".join(re.sub(r"\s+#.*", "", line).split()))
    return sorted({line for line in found if line})


@pytest.mark.parametrize("command", commands())
def test_files_and_constants_of_a_command_exist(command, monkeypatch):
    """A path may be the user's own if it begins with my_ or mine."""
    monkeypatch.chdir(REPO)
    words = shlex.split(command)
    for word in words:
        if word.endswith((".py", ".sh")) and not word.startswith(("--", "my_")):
            assert os.path.isfile(word), word
    scripts = [k for k, word in enumerate(words) if word.startswith("baselines.") or word in (
        "prepare.py", "estimate_value.py", "train_apo.py", "evaluate.py")]
    if scripts and "git" not in words:
        stage = words[scripts[0]]
        monkeypatch.setattr("sys.argv", [stage, *words[scripts[0] + 1:]])
        if stage.startswith("baselines."):
            baselines.configure(stage.replace(".", "/") + ".py")
        else:
            lib.cli.configure(stage)  # exits if a name or a value is wrong


def test_links():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@cpu_only
@pytest.mark.slow
@needs_real_data
def test_the_script_for_math(tmp_path):
    """runs/math.sh goes from prompts to the report with a model that knows nothing."""
    if not (REPO / ".venv").is_dir():
        pytest.skip("no .venv, which the script uses")
    for name in ("lib", "config", "runs", "tasks", "bench", "baselines"):
        shutil.copytree(REPO / name, tmp_path / name)
    for path in [*REPO.glob("*.py"), *REPO.glob("*.txt")]:
        shutil.copy(path, tmp_path)
    (tmp_path / ".venv").symlink_to(REPO / ".venv")
    config = tiny_config(vocab_size=len(byte_tokenizer()), hidden_size=128,
                         max_position_embeddings=8192)
    random_model(config).save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "small.py").write_text(
        f"model = 'tiny'\nsource = {str(REAL_DATA)!r}\nmax_prompts = 8\nmax_response_tokens = 8\n"
        "max_steps = 1\nbatch_size = 4\nmini_batch_size = 4\neval_prompts = 4\n"
        "compile = False\ncheckpoint_activations = True\n")
    done = subprocess.run(["bash", "runs/math.sh", "small.py"], cwd=tmp_path, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "GPUS": "1"})
    assert done.returncode == 0, done.stdout[-4000:]
    out = tmp_path / "out/math"
    measured = ["math500", "minerva_math", "olympiadbench", "amc23"]
    assert list(json.loads((out / "model/eval.json").read_text())) == measured
    text = (out / "report.md").read_text()
    assert "Five held-out prompts" in text
    assert all(f"| {task}, avg@" in text and f"| {task}, avg@" in done.stdout for task in measured)
    assert ("eval-amc23.jsonl: 264 responses, 0.0% right by reward.py, 0.0% right by the paper's, "
            "0.00% differ") in done.stdout
