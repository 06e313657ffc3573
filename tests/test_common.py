"""Constants from the command line, presets, and files that are whole or absent."""
import json
import os
import runpy

import pytest
from conftest import REPO

import common


@pytest.fixture
def script(tmp_path):
    """A script's globals, with the constants of which configure() is the editor."""
    return {"__file__": str(tmp_path / "some_stage.py"), "__name__": "x", "lr": 1e-6, "max_steps": 10, "resume": True,
            "model": "a/b", "LIMIT": 3}


def configure(script, *args, monkeypatch):
    monkeypatch.setattr("sys.argv", ["some_stage.py", *args])
    return common.configure(script)


def test_constants_are_overridden_with_their_types(script, monkeypatch):
    constants = configure(script, "--lr=2", "--resume=False", "--model=12", "--max_steps=5", monkeypatch=monkeypatch)
    assert (script["lr"], script["resume"], script["model"], script["max_steps"]) == (2.0, False, "12", 5)
    assert type(script["lr"]) is float and "LIMIT" not in constants and set(constants) == {"lr", "resume", "model", "max_steps"}


@pytest.mark.parametrize("arg, message", [
    ("--max_stepz=3", "did you mean max_steps?"), ("--max_steps=3.5", "max_steps is of type int"),
    ("--max_steps=True", "max_steps is of type int"), ("--resume=1", "resume is of type bool"),
    ("--lr=fast", "lr is of type float"), ("--lr", "--lr=value"), ("--lr=-1", "lr can't be -1"),
    ("--max_steps=-1", "max_steps can't be -1"),
    ("no_such_preset.py", "neither --name=value nor a preset file"), ("--LIMIT=4", "no constant 'LIMIT'"),
])
def test_mistakes_are_named(arg, message, script, monkeypatch):
    with pytest.raises(SystemExit) as e:
        configure(script, arg, monkeypatch=monkeypatch)
    assert message in e.value.code and arg in e.value.code and "\n" not in e.value.code


def test_presets(script, monkeypatch, tmp_path):
    """A preset serves all stages: beta1 belongs to stage 1 and is skipped here, an unknown name is a mistake. The command
    line wins. Nothing in a preset is executed, and what isn't `name = value` is an error, not skipped."""
    preset = tmp_path / "preset.py"
    preset.write_text("lr = 3e-6  # comment\nbeta1 = 0.5\nmax_steps = 7\n")
    configure(script, "--max_steps=9", str(preset), monkeypatch=monkeypatch)
    assert (script["lr"], script["max_steps"], "beta1" in script) == (3e-6, 9, False)
    preset.write_text("betta1 = 0.5\n")
    with pytest.raises(SystemExit) as e:
        configure(script, str(preset), monkeypatch=monkeypatch)
    assert "did you mean beta1?" in e.value.code
    for text in (f"model = open({str(tmp_path / 'made')!r}, 'w').name\n", "lr: float = 1e-5\n", "lr = = 2\n", "import os\n",
                 "lr = max_steps = 1\n", "Lr = 2e-6\n"):
        preset.write_text(text)
        with pytest.raises(SystemExit) as e:
            configure(script, str(preset), monkeypatch=monkeypatch)
        assert e.value.code.startswith(f"error: {preset}") and "\n" not in e.value.code
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("preset", sorted(p.name for p in (REPO / "config").glob("*.py")))
def test_every_preset_fits_every_stage(preset, monkeypatch):
    """And carries the paper's settings for its task and size."""
    for stage in ("estimate_value.py", "train_apo.py", "evaluate.py"):
        constants = runpy.run_path(str(REPO / stage), run_name="imported")
        configure(constants, str(REPO / "config" / preset), monkeypatch=monkeypatch)
        task, size = preset.removesuffix(".py").split("_qwen2.5_")
        assert constants["task"] == task and constants["model"].lower() == f"qwen/qwen2.5-{size}"
        assert (constants["max_prompt_tokens"], constants["max_response_tokens"], constants["dtype"]) == (256, 1024, "bfloat16")
        if stage == "train_apo.py":
            assert (constants["batch_size"], constants["mini_batch_size"], constants["beta2"], constants["lr"],
                    constants["lr_decay"], constants["weight_decay"]) == (256, 128, 1e-3, 1e-6, False, 0.01)
            assert constants["max_steps"] == 25 * ({"gsm8k": 7473, "math": 7498 - 339}[task] // 256)


@pytest.mark.parametrize("text, message", [
    ('{"id": 1}\n{"id": 2\n', "line 2: not valid JSON"), ('{"id": 1}\n\n', "line 2: not valid JSON"),
    ('{"id": 1}\n[1]\n', "line 2: no 'id'"), ('{"ix": 1}\n', "line 1: no 'id'"), ("", "empty"),
    (b'{"id": "\xff"}\n', "line 1: not valid JSON"),
])
def test_broken_lines_are_named(text, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as e:
        common.read_jsonl(path, ("id",))
    assert message in str(e.value) and str(path) in str(e.value)


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with pytest.raises(RuntimeError), common.whole_file(path) as f:
        f.write("half")
        raise RuntimeError
    assert os.listdir(tmp_path / "new") == []
    common.write_jsonl(path, [{"a": "é"}])
    with pytest.raises(RuntimeError), common.whole_file(path) as f:
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": "é"} and os.listdir(tmp_path / "new") == ["a.txt"]


def test_folders_are_whole_or_as_before(tmp_path):
    path = tmp_path / "model"
    for content in ("1", "2"):
        with common.whole_folder(path) as folder:
            open(os.path.join(folder, "x"), "w").write(content)
    with pytest.raises(RuntimeError), common.whole_folder(path) as folder:
        raise RuntimeError
    assert os.listdir(tmp_path) == ["model"] and (path / "x").read_text() == "2"
