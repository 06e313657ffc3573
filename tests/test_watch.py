"""What a run shows to others: Weights & Biases, TensorBoard, the model card, the hub."""
import json
import os
import re
import struct
import subprocess
import sys

import lib.watch
import train_apo
from lib.watch import Watch

import pytest
from conftest import cpu_only, metrics_of, run
from huggingface_hub import ModelCard
from test_stages import SMALL, error

pytestmark = cpu_only
BOTH = ("--wandb=some-project", "--tensorboard=True")


def records_of(path):
    """The records of a .wandb file, in wandb's own protocol buffers. wandb has no reader in Python
    any more; the file is a LevelDB log: a header of 7 bytes, and blocks of 32 KiB of chunks, each
    with checksum, length, and kind: 1 a whole record, 2, 3, 4 the first, a middle and the last part
    of one."""
    from wandb.proto.wandb_internal_pb2 import Record
    data, i, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while i + 7 <= len(data):
        if 32768 - i % 32768 < 7:  # too short for a chunk
            i += 32768 - i % 32768
            continue
        length, kind = struct.unpack("<HB", data[i + 4:i + 7])
        record += data[i + 7:i + 7 + length]
        i += 7 + length
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def logged_by_wandb(folder):
    """{step: {name: value}} of a run's .wandb files."""
    steps = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records_of(path):
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json)
                     for i in record.history.item}
            if items:
                steps.setdefault(items["_step"], {}).update(items)
    return steps


def logged_by_tensorboard(folder):
    """{metric: {step: value}}; a step that was logged twice fails."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    scalars = {}
    for name in events.Tags()["scalars"]:
        steps = [e.step for e in events.Scalars(name)]
        assert len(steps) == len(set(steps)), name
        scalars[name.split("/")[1]] = {e.step: e.value for e in events.Scalars(name)}
    return scalars


@pytest.mark.slow
def test_a_run_is_watched(workdir, monkeypatch):
    """Both logs hold what metrics.jsonl holds, also after the run was continued."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = (*SMALL[:-1], "--eval_every=2", "--save_every=2", "--lr_decay=False", *BOTH)
    run("train_apo.py", *options, "--max_steps=2", cwd=workdir)
    run("train_apo.py", *options, "--max_steps=4", cwd=workdir)
    folder, metrics = workdir / "out/arithmetic", metrics_of("out/arithmetic")
    scalars, steps = logged_by_tensorboard(folder), logged_by_wandb(folder)
    assert sorted(steps) == [0, 1, 2, 3]
    for m in metrics:
        for name, value in m.items():
            if name != "step":
                assert scalars[name][m["step"]] == pytest.approx(value, rel=1e-5), name
        assert steps[m["step"]]["train/reward"] == pytest.approx(m["reward"])
    assert "eval/accuracy" in steps[3] and "eval/accuracy" not in steps[2]
    assert steps[1]["samples.nrows"] == steps[3]["samples.nrows"] == 16
    [table] = folder.rglob(os.path.basename(steps[3]["samples.path"]))
    rows = json.loads(table.read_text())
    with open(folder / "eval-000004.jsonl") as f:
        first = json.loads(f.readline())
    assert rows["columns"] == ["id", "prompt", "answer", "greedy response", "reward"]
    assert rows["data"][0] == [first["id"], first["prompt"], first["answer"],
                               first["greedy"][0]["text"], first["greedy"][0]["reward"]]
    assert len({p.name.split("-")[-1] for p in folder.glob("wandb/offline-run-*")}) == 1  # one id


def test_a_logger_that_fails_is_switched_off(tmp_path, capsys):
    class Broken:
        def log(self, *_):
            raise OSError("No space left\non device")

    watch = Watch(str(tmp_path), {"wandb": "", "tensorboard": True}, 0)
    watch.loggers.insert(0, Broken())
    for step in (0, 1):
        watch.log({"step": step, "reward": 0.5 + step})
    watch.close()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "Broken is switched off (OSError: No space left on" in said
    assert logged_by_tensorboard(tmp_path)["reward"] == {0: 0.5, 1: 1.5}


def test_a_package_that_is_missing(workdir, monkeypatch):
    monkeypatch.setattr(lib.watch, "find_spec", lambda name: None)
    assert error(train_apo, monkeypatch, wandb="x") == "error: --wandb=x: pip install wandb"


@pytest.mark.slow
def test_the_model_card(workdir, monkeypatch):
    """The hub's reader opens it, its numbers are those of the run, and its code runs. A file where
    the folder of W&B should be, and no hub, are two warnings."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    (workdir / "out/arithmetic/wandb").write_text("")
    done = run("train_apo.py", *SMALL[:2], "--eval_prompts=64", "--max_steps=2",
               "--wandb=some-project", "--push_to_hub=some/model", cwd=workdir)
    assert done.stdout.count("warning: WandB is switched off (") == 1
    assert "hf upload some/model out/arithmetic/model\n" in done.stdout
    assert done.stdout.count("warning: the hub did not take some/model (") == 1
    path = workdir / "out/arithmetic/model/README.md"
    card, metrics = ModelCard.load(path), metrics_of("out/arithmetic")
    assert card.data.library_name == "transformers" and card.data.base_model is None
    before, after = metrics[0]["accuracy_start"], metrics[-1]["accuracy"]
    found = re.search(r"\| greedy \| ([\d.]+)% \[.*\] \| ([\d.]+)% \[", card.text)
    assert [float(x) for x in found.groups()] == [round(100 * x, 1) for x in (before, after)]
    assert "64 held-out prompts" in card.text and "lr = 0.0004" in card.text
    run("evaluate.py", "--model=out/arithmetic/model", "--max_prompts=32", cwd=workdir)
    again = ModelCard.load(path).text
    assert "## Measured by evaluate.py" in again and "| avg@8" in again
    assert again.startswith(card.text[:card.text.index("## How to use it")].rstrip())
    for code in re.findall(r"```python\n(.*?)```", card.text, re.S)[:1]:
        code = code.replace("some/model", "out/arithmetic/model")  # which the hub did not take
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "####" in done.stdout, done.stderr
