"""Every command in README.md and docs/: its files and constants exist, and it is run by a test or
needs what a test can't have."""
import json
import os
import re
import shlex
import shutil
import subprocess
from importlib import import_module

import lib.cli
from lib.base_model import byte_tokenizer

import pytest
from conftest import REAL_DATA, REPO, cpu_only, needs_real_data, random_model, run, tiny_config

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
# Commands, or how they begin, and the test that runs them, as they are or with smaller numbers.
RUN = {
    "bash runs/gsm8k.sh": "test_scripts_of_gsm8k_and_math",
    "bash runs/math.sh": "test_scripts_of_gsm8k_and_math",
    "GPUS=4 MODEL=Qwen/Qwen2.5-7B bash runs/math.sh": "test_scripts_of_gsm8k_and_math",
    "python prepare.py --task=gsm8k": "test_real_data",
    "python prepare.py --source=mine.jsonl --reward=math": "test_own_rows",
    "python prepare.py --task=examples/countdown.py": "test_a_task_file_through_all_stages",
    "python estimate_value.py --task=examples/countdown.py": "test_a_task_file_through_all_stages",
    "python train_apo.py --task=examples/countdown.py": "test_a_task_file_through_all_stages",
    "python prepare.py --task=examples/facts.py": "test_facts",
    "python prepare.py --task=math500,minerva_math,amc23": "test_benchmarks",
    "python evaluate.py --report=": "test_from_the_command_line",
    "python evaluate.py --plot=": "test_from_the_command_line",
    "python train_apo.py --tensorboard=True --wandb=": "test_a_run_is_watched",
    "python -m baselines.": "test_baselines_on_two_processes",
    "python estimate_value.py --task=mine": "test_a_task_of_own_rows"}
NOT_RUN = (
    "torchrun --nproc_per_node=4 ", "torchrun --nproc_per_node=8 ", "torchrun --nnodes=2 ",
    "sbatch runs/slurm.sh",
    "python estimate_value.py config/facts.py", "python train_apo.py config/facts.py",
    "bash runs/arithmetic.sh",           # the stages at their defaults, which other tests run
    "bash runs/test.sh", "source .venv/bin/activate", "git diff --no-index train_apo.py")


def commands():
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                line = " ".join(re.sub(r"\s+#.*", "", line).split())
                if line:
                    found.append(line)
    return found


def test_every_command_is_run_or_can_not_be():
    tests = "\n".join(path.read_text() for path in (REPO / "tests").glob("test_*.py"))
    for command in commands():
        by = [test for begin, test in RUN.items() if command.startswith(begin)]
        assert by or command.startswith(NOT_RUN), command
        assert all(f"def {test}(" in tests for test in by)
    for begin in (*RUN, *NOT_RUN):
        assert any(command.startswith(begin) for command in commands()), begin


@pytest.mark.parametrize("command", commands())
def test_files_and_constants_of_a_command_exist(command, monkeypatch):
    monkeypatch.chdir(REPO)
    words = shlex.split(command)
    for word in words:
        if word.endswith((".py", ".sh")) and not word.startswith("--"):
            assert os.path.isfile(word), word
    stages = [k for k, word in enumerate(words)
              if word in ("prepare.py", "estimate_value.py", "train_apo.py", "evaluate.py",
                          "baselines.grpo") and words[0] in ("python", "torchrun", "sbatch")]
    for k in stages[:1]:
        stage = import_module(words[k].removesuffix(".py"))
        monkeypatch.setattr("sys.argv", [words[k], *words[k + 1:]])
        lib.cli.configure(dict(vars(stage)))  # exits if a name or a value is wrong


def test_links():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@cpu_only
@pytest.mark.slow
@needs_real_data
def test_scripts_of_gsm8k_and_math(tmp_path):
    """From prompts to the report, with a model that knows nothing, in bfloat16, both at the same
    time on one process each."""
    if not (REPO / ".venv").is_dir():
        pytest.skip("no .venv, which the scripts use")
    for name in ("lib", "config", "runs", "baselines"):
        shutil.copytree(REPO / name, tmp_path / name)
    for path in [*REPO.glob("*.py"), *REPO.glob("*.txt")]:
        shutil.copy(path, tmp_path)
    (tmp_path / ".venv").symlink_to(REPO / ".venv")
    config = tiny_config(vocab_size=len(byte_tokenizer()), hidden_size=128)
    random_model(config).save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "small.py").write_text(
        f"source = {str(REAL_DATA)!r}\nmax_prompts = 8\nmax_response_tokens = 8\n"
        "max_steps = 1\nbatch_size = 4\nmini_batch_size = 4\neval_prompts = 4\n"
        "compile = False\ncheckpoint_activations = True\n")
    tasks = {"gsm8k": ["gsm8k"], "math": ["math500", "minerva_math", "olympiadbench", "amc23"]}
    scripts = [subprocess.Popen(["bash", f"runs/{task}.sh", "small.py"], cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env={**os.environ, "GPUS": "1", "MODEL": "tiny"}) for task in tasks]
    for script, (task, measured) in zip(scripts, tasks.items(), strict=True):
        output = script.communicate()[0]
        assert script.returncode == 0, output[-4000:]
        out = tmp_path / f"out/{task}-tiny"
        assert list(json.loads((out / "model/eval.json").read_text())) == measured
        assert f"wrote out/{task}-tiny/report.md" in output
        assert "Five held-out prompts" in (out / "report.md").read_text()
    results = json.loads((out / "model/eval.json").read_text())["math500"]
    assert results["avg@32, paper's grader"]["value"] == 0 and results["graders_differ"] == 0


@cpu_only
def test_a_task_of_own_rows(base, tmp_path):
    with open(tmp_path / "mine.jsonl", "w") as f:
        for i in range(20):
            f.write(json.dumps({"prompt": f"{i}+{i}=?\n", "answer": str(2 * i)}) + "\n")
    run("prepare.py", "--source=mine.jsonl", "--reward=gsm8k", cwd=tmp_path)
    done = run("estimate_value.py", "--task=mine", f"--model={base / 'data/arithmetic/model'}",
               "--samples_per_prompt=2", cwd=tmp_path)
    assert "18 prompts x 2 samples" in done.stdout
