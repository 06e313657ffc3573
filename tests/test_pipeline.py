"""The stages as a user runs them: files, learning, interruptions, and one clear line for whatever is wrong."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REAL_DATA, REPO, metrics_of, needs_real_data, own_words, run

import estimate_value
import evaluate
import prepare
import train_apo


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="exact on the CPU only; on a GPU test_cuda.py runs them")


# ---- prepare.py --------------------------------------------------------------------------------------------------

def rows_of(path):
    return [json.loads(line) for line in open(path)]


def test_arithmetic_data(base):
    """Train and test are disjoint, answers right, and the solutions earn the reward."""
    from reward import grade
    train, test = (rows_of(base / f"data/arithmetic/{split}.jsonl") for split in ("train", "test"))
    assert (len(train), len(test)) == (1024, 512)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    for row in train + test:
        a, b = row["prompt"].removesuffix("=?\n").split("+")
        assert int(row["answer"]) == int(a) + int(b)
    assert grade(test, [r["solution"] for r in test], [True] * len(test)).rewards == [1.0] * len(test)
    assert len({int(r["answer"]) % 10 for r in test}) == len({int(r["answer"]) % 10 for r in train}) == 10


def test_base_model_knows_the_task_a_little(base):
    """pass@1 between 20% and 50%, pass@8 clearly higher: something to find, and a way to it."""
    rewards = estimate_value.load_values(base / "out/arithmetic/values.pt")["rewards"]
    assert 0.2 < rewards.mean() < 0.5
    assert rewards.max(1).values.mean() > rewards.mean() + 0.25


def test_byte_tokenizer_is_lossless(base):
    """Through AutoTokenizer, which rebuilds tokenizers it knows and once dropped the newline."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(base / "data/arithmetic/model")
    for text in ("47+86=?\n", "7+6+0=13,4+8+1=13\n#### 133", " a\tb\r\n\n é 漢 🙂 ", *(chr(i) for i in range(1, 128))):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) == len(text.encode())


@needs_real_data
@pytest.mark.parametrize("task, sizes, dropped", [("gsm8k", (7473, 1319), None), ("math", (7498, 5000), "2 dropped")])
def test_real_data(task, sizes, dropped, tmp_path, monkeypatch):
    """Row counts, the count of what is dropped, and with the real tokenizer only prompts over the limit are left out."""
    from transformers import AutoTokenizer
    from common import load_prompts
    done = run("prepare.py", f"--task={task}", f"--source={REAL_DATA / task}", cwd=tmp_path)
    assert dropped is None or dropped in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    monkeypatch.chdir(tmp_path)
    for split, size, too_long in zip(("train", "test"), sizes, {"gsm8k": (0, 0), "math": (339, 183)}[task]):
        rows = rows_of(f"data/{task}/{split}.jsonl")
        assert len(rows) == size and all(r["answer"] and r["task"] == task for r in rows)
        assert sum(len(ids) > 256 for ids in tokenizer([r["prompt"] for r in rows])["input_ids"]) == too_long
        assert len(load_prompts(task, split, tokenizer, 256, True, 31744)) == size - too_long


# ---- all stages --------------------------------------------------------------------------------------------------

def test_training_learns_arithmetic(base, tmp_path):
    """The point of it all, at a third of the default length: sampled accuracy from under 0.5 to over 0.7."""
    shutil.copytree(base / "data", tmp_path / "data")
    shutil.copytree(base / "out", tmp_path / "out")
    out = tmp_path / "out/arithmetic"
    run("train_apo.py", "--max_steps=8", cwd=tmp_path)
    metrics = metrics_of(out)
    assert [m["step"] for m in metrics] == list(range(8))
    assert {"step", "reward", "loss", "kl", "entropy", "grad_norm", "response_length", "truncated", "v_star", "logp_diff_max",
            "logp_diff_mean", "tokens", "seconds_generate", "seconds_reference", "seconds_train", "seconds_sync",
            "seconds_step", "grade_inexact", "grade_timed_out"} <= set(metrics[0])
    assert metrics[0]["accuracy_start_sampled"] < 0.5 and metrics[-1]["accuracy_sampled"] > 0.7
    assert abs(metrics[0]["kl"]) < 1e-4 and metrics[-1]["kl"] > 0.005  # it starts at the reference
    assert max(m["logp_diff_max"] for m in metrics) < 1e-4

    done = run("evaluate.py", "--max_prompts=128", "--samples_per_prompt=4", "--kl_to=data/arithmetic/model", cwd=tmp_path)
    before, after = (json.load(open(tmp_path / p / "eval.json"))["arithmetic"] for p in ("data/arithmetic/model",
                                                                                       "out/arithmetic/model"))
    assert before["avg@4"]["value"] < 0.5 and after["avg@4"]["value"] > 0.7
    assert before["avg@4"]["value"] < before["pass@2"]["value"] < before["pass@4"]["value"]
    low, high = after["greedy"]["ci95"]
    assert low < after["greedy"]["value"] <= high + 1e-9  # where every answer is right, the interval ends there
    assert before["kl_per_token"] == 0 and 0.005 < after["kl_per_token"] < 0.5
    assert "data/arithmetic/model" in done.stdout and (out / "curves.png").stat().st_size > 10_000

    from transformers import AutoModelForCausalLM, AutoTokenizer  # what users do with the result
    model, tokenizer = (c.from_pretrained(out / "model") for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("12+34=?\n", return_tensors="pt").input_ids
    assert "46" in tokenizer.decode(model.generate(ids, max_new_tokens=32, do_sample=False)[0])


def same(a, b):
    """Equal metrics, but for what was measured in seconds and bytes, and when accuracy was measured."""
    def rest(metrics):
        return [{k: v for k, v in m.items() if not any(word in k for word in ("seconds", "memory", "accuracy"))}
                for m in metrics]
    return rest(a) == rest(b)


def test_micro_batches_change_nothing_and_other_settings_are_refused(base, tmp_path):
    """Filling micro-batches otherwise changes rounding only. A finished run says so; with another learning rate or other
    values its folder is refused, by the name of what differs. (Interruptions: test_job.py.)"""
    shutil.copytree(base / "data", tmp_path / "data")
    shutil.copytree(base / "out", tmp_path / "out")
    out = tmp_path / "out/arithmetic"
    small = ("--batch_size=32", "--mini_batch_size=16", "--eval_prompts=16", "--eval_every=100", "--max_steps=6")
    run("train_apo.py", *small, "--save_every=0", cwd=tmp_path)
    assert os.listdir(out / "ckpt") == []
    whole = metrics_of(out)
    run("train_apo.py", *small, "--save_every=2", "--micro_batch_tokens=100", cwd=tmp_path)
    for a, b in zip(whole, metrics_of(out), strict=True):
        for key in ("loss", "kl", "reward", "grad_norm", "entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key
    assert sorted(os.listdir(out / "ckpt")) == ["step-000004", "step-000006"]
    whole = metrics_of(out)
    refused = run("train_apo.py", *small, "--lr=1e-5", cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "lr = 0.0004" in refused.stdout and "Traceback" not in refused.stdout
    again = run("train_apo.py", *small, cwd=tmp_path)
    assert "is trained: 6 steps" in again.stdout and whole == metrics_of(out)
    run("estimate_value.py", "--beta1=2", "--max_prompts=256", cwd=tmp_path)
    refused = run("train_apo.py", *small, cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "was trained with values" in refused.stdout


def test_stale_weights_stop_the_run(base, tmp_path):
    """A sampler that did not take the new weights is the failure nobody sees: training must stop, before an update."""
    shutil.copytree(base / "data", tmp_path / "data")
    shutil.copytree(base / "out", tmp_path / "out")
    (tmp_path / "broken.py").write_text(
        f"import sys; sys.path.insert(0, {str(REPO)!r})\n"
        "import job, train_apo, rollout\n"
        "if __name__ == '__main__':\n"
        "    rollout.Engine.sync = lambda self, weights, tied: list(weights)  # neither takes nor checks them\n"
        "    train_apo.batch_size, train_apo.mini_batch_size, train_apo.eval_prompts, train_apo.max_steps = 32, 16, 16, 3\n"
        "    job.run(train_apo.main, {})\n")
    done = subprocess.run([sys.executable, "broken.py"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 1 and "error: step 1: vLLM's log-probabilities differ" in done.stderr
    assert "Traceback" not in done.stderr
    assert [m["step"] for m in metrics_of(tmp_path / "out/arithmetic")] == [0]


def test_torchrun(base, tmp_path):
    """torchrun with one process is the same run; with a number that doesn't divide the mini-batch it says so, once."""
    shutil.copytree(base / "data", tmp_path / "data")
    shutil.copytree(base / "out", tmp_path / "out")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
    script = [str(REPO / "train_apo.py"), "--max_steps=1", "--batch_size=16", "--mini_batch_size=8", "--eval_prompts=8"]
    subprocess.run([*torchrun, "1", *script], cwd=tmp_path, check=True)
    one = metrics_of(tmp_path / "out/arithmetic")
    run(*script, "--resume=False", cwd=tmp_path)
    assert same(one, metrics_of(tmp_path / "out/arithmetic"))
    three = subprocess.run([*torchrun, "3", *script], cwd=tmp_path, text=True, capture_output=True)
    assert three.returncode != 0 and three.stderr.count("error: --mini_batch_size=8 can't be dealt evenly to 3 processes") == 1
    assert "Traceback" not in own_words(three.stderr)


@needs_real_data
@pytest.mark.parametrize("task", ["gsm8k", "math"])
def test_real_tasks_run_through(task, base, tmp_path):
    """Every stage on GSM8K and MATH with the tiny model and only the options that users set: its accuracy is about 0."""
    model = f"--model={base / 'data/arithmetic/model'}"
    run("prepare.py", f"--task={task}", f"--source={REAL_DATA / task}", cwd=tmp_path)
    run("estimate_value.py", model, f"--task={task}", "--out=out/x", "--samples_per_prompt=2", "--max_prompts=16", cwd=tmp_path)
    run("train_apo.py", model, f"--task={task}", "--out=out/x", "--max_steps=1", "--batch_size=8", "--mini_batch_size=4",
        "--eval_prompts=8", "--dtype=bfloat16", "--checkpoint_activations=True", "--entropy_coef=1e-3", cwd=tmp_path)
    run("evaluate.py", "--model=out/x/model", f"--task={task}", "--samples_per_prompt=2", "--max_prompts=8", cwd=tmp_path)
    assert json.load(open(tmp_path / "out/x/eval.json".replace("x/", "x/model/")))[task]["prompts"] == 8


# ---- stage 1 goes on -----------------------------------------------------------------------------------------------

def test_stage_1_goes_on_after_a_kill_and_adds_what_is_missing(base, tmp_path):
    """Killed while sampling, it keeps what it had; asked for more samples it keeps the old; both end where an undisturbed run
    ends. What is kept is told from what is made anew by a mark put into one response."""
    shutil.copytree(base / "data", tmp_path / "data")
    part = tmp_path / "out/a/responses.part.0.jsonl"
    process = subprocess.Popen([sys.executable, str(REPO / "estimate_value.py"), "--out=out/a", "--samples_per_prompt=4"],
                               cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") > 50) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = part.read_text().split("\n")
    assert len(lines) > 50 and not (tmp_path / "out/a/values.pt").exists()
    marked = json.loads(lines[1])
    part.write_text("\n".join([lines[0], json.dumps({**marked, "text": "kept " + marked["text"]}), *lines[2:40],
                               lines[40][:10]]))  # and the last line is cut short
    run("estimate_value.py", "--out=out/a", "--samples_per_prompt=4", "--max_prompts=256", cwd=tmp_path)
    run("estimate_value.py", "--out=out/a", "--samples_per_prompt=8", "--max_prompts=256", cwd=tmp_path)
    a = estimate_value.load_values(tmp_path / "out/a/values.pt")
    b = estimate_value.load_values(base / "out/arithmetic/values.pt")
    assert a["ids"] == b["ids"] and a["meta"] == b["meta"]
    for key in ("rewards", "lengths", "finished", "v_star"):
        assert torch.equal(a[key], b[key]), key
    assert not part.exists()

    def texts():
        return {(row["id"], s["sample"]): s["text"] for row in rows_of(tmp_path / "out/a/responses.jsonl")
                for s in row["responses"]}

    before = texts()  # the marked response too, though its prompt may be outside the subset of 256
    assert before[marked["id"], marked["sample"]] == "kept " + marked["text"]
    run("estimate_value.py", "--out=out/a", "--samples_per_prompt=2", "--max_prompts=100", cwd=tmp_path)  # fewer: none is lost
    fewer = estimate_value.load_values(tmp_path / "out/a/values.pt")
    assert fewer["rewards"].shape == (100, 2) and texts() == before


def test_values_file(base):
    """Shapes and types as documented; V* follows from the rewards; responses.jsonl tells the same story."""
    values = torch.load(base / "out/arithmetic/values.pt", weights_only=True)
    n = len(values["ids"])
    assert n == 256 and values["rewards"].shape == values["lengths"].shape == values["finished"].shape == (n, 8)
    assert (values["rewards"].dtype, values["lengths"].dtype, values["finished"].dtype, values["v_star"].dtype) == \
           (torch.float32, torch.int32, torch.bool, torch.float32)
    torch.testing.assert_close(values["v_star"], estimate_value.optimal_value(values["rewards"], 0.5))
    rows = rows_of(base / "out/arithmetic/responses.jsonl")
    assert [row["id"] for row in rows] == values["ids"]
    assert [[s["reward"] for s in row["responses"]] for row in rows] == values["rewards"].tolist()
    assert {"model", "prompts", "reward", "temperature", "max_response_tokens", "beta1", "seed", "versions"} <= set(
        values["meta"])


# ---- bad input: one line, status 1, nothing lost -------------------------------------------------------------------

def error(stage, monkeypatch, **constants):
    """The one line with which a stage stops before it has begun."""
    for name, value in constants.items():
        monkeypatch.setattr(stage, name, value)
    with pytest.raises(SystemExit) as e:
        stage.main({}) if stage is train_apo else stage.main()
    assert isinstance(e.value.code, str) and e.value.code.startswith("error: ") and "\n" not in e.value.code
    return e.value.code


@pytest.fixture
def run_folder(base, workdir):
    """A current folder with data, base model and a finished stage 1."""
    shutil.copytree(base / "out", workdir / "out")
    return workdir


def test_missing_files(workdir, monkeypatch):
    assert "data/nowhere/train.jsonl: no such file; make it with: python prepare.py --task=nowhere" in error(
        estimate_value, monkeypatch, task="nowhere")
    assert "out/arithmetic/values.pt: no such file; make it with estimate_value.py" in error(train_apo, monkeypatch)
    assert "no/such/model: no config.json" in error(evaluate, monkeypatch, model="no/such/model")
    assert "nowhere/train.jsonl: no such file" in error(prepare, monkeypatch, task="gsm8k", source="nowhere")
    assert "the tasks are arithmetic, gsm8k, math" in error(prepare, monkeypatch, task="sorting", source="")


def test_the_hub_out_of_reach_is_one_line(workdir, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "the hub didn't give it" in error(estimate_value, monkeypatch, model="Qwen/no-such-model")


def test_broken_data_line(workdir, monkeypatch):
    path = workdir / "data/arithmetic/train.jsonl"
    path.write_text(path.read_text() + '{"id": "x"\n')
    for stage in (estimate_value, train_apo):
        assert "data/arithmetic/train.jsonl, line 1025: not valid JSON" in error(stage, monkeypatch)


def test_empty_data(workdir, monkeypatch):
    (workdir / "data/arithmetic/train.jsonl").write_text("")
    (workdir / "data/arithmetic/test.jsonl").write_text("")
    assert "train.jsonl: empty" in error(estimate_value, monkeypatch)
    assert "test.jsonl: empty" in error(evaluate, monkeypatch, model="data/arithmetic/model")


def test_long_prompts(workdir, monkeypatch):
    """An error that says where; with --drop_long_prompts they go, unless none is left."""
    message = error(estimate_value, monkeypatch, max_prompt_tokens=5)
    assert "data/arithmetic/train.jsonl, line 1: the prompt has 8 tokens, the limit is 5 (1024 of 1024 are longer)" in message
    assert "no prompt is left under 5 tokens" in error(estimate_value, monkeypatch, drop_long_prompts=True)
    assert "the limit is 2" in error(train_apo, monkeypatch, max_response_tokens=8190)  # the model's context is 8,192


@pytest.mark.parametrize("part", ["model", "prompts", "reward", "temperature", "max_response_tokens", "file"])
def test_values_of_another_run_are_refused(part, run_folder, monkeypatch):
    """Stage 2 names the part that differs, and changes nothing in the folder."""
    changes = {}
    if part == "model":
        path = run_folder / "data/arithmetic/model/model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif part == "prompts":
        path = run_folder / "data/arithmetic/train.jsonl"
        path.write_text(path.read_text().replace("=?", "=!", 1))
    elif part == "reward":
        monkeypatch.setattr(train_apo, "fingerprint_reward", lambda: "edited")
    elif part == "file":
        path = run_folder / "out/arithmetic/values.pt"
        path.write_bytes(path.read_bytes()[:1000])
    else:
        changes = {part: {"temperature": 0.7, "max_response_tokens": 31}[part]}
    before = {p: p.read_bytes() for p in (run_folder / "out").rglob("*") if p.is_file()}
    message = error(train_apo, monkeypatch, **changes)
    assert "out/arithmetic/values.pt" in message
    assert ("not a whole values file" if part == "file" else f"another {part} than") in message
    assert before == {p: p.read_bytes() for p in (run_folder / "out").rglob("*") if p.is_file()}


def test_stage_1_refuses_to_mix_samples(run_folder, monkeypatch):
    """Samples at another temperature don't belong into the same values file."""
    assert "sampled with temperature = 1.0, this run has 0.5" in error(estimate_value, monkeypatch, temperature=0.5)


def test_batch_sizes(run_folder, monkeypatch):
    assert "--batch_size=512 is larger than the data set: out/arithmetic/values.pt has 256 prompts" in error(
        train_apo, monkeypatch, batch_size=512)
    assert "--mini_batch_size=100 does not divide --batch_size=256" in error(train_apo, monkeypatch, batch_size=256,
                                                                          mini_batch_size=100)


def test_vocabulary_larger_than_the_models(workdir, monkeypatch):
    path = workdir / "data/arithmetic/model/config.json"
    path.write_text(path.read_text().replace('"vocab_size": 257', '"vocab_size": 200'))
    assert "the tokenizer has 257 entries, the model's vocabulary only 200" in error(estimate_value, monkeypatch)


def test_duplicate_ids_and_empty_prompts(workdir, monkeypatch):
    path = workdir / "data/arithmetic/train.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0]]) + "\n")
    assert "train.jsonl, line 1025: id 'arithmetic/train/" in error(estimate_value, monkeypatch)
    path.write_text(json.dumps({**json.loads(lines[0]), "prompt": ""}) + "\n")
    assert "line 1: the prompt is empty" in error(estimate_value, monkeypatch)
    path.write_text(json.dumps({**json.loads(lines[0]), "task": "chess"}) + "\n")
    assert "line 1: task 'chess' has no reward" in error(estimate_value, monkeypatch)


def test_models_of_different_shapes_are_not_mixed(workdir, monkeypatch):
    from conftest import random_model, tiny_config
    random_model(tiny_config()).save_pretrained(workdir / "other")
    prepare.byte_tokenizer().save_pretrained(workdir / "other")
    assert "other has another shape" in error(evaluate, monkeypatch, model="data/arithmetic/model, other")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.down_proj.weight"])
def test_missing_weights(name, run_folder, monkeypatch):
    """vLLM samples happily without most of them: every stage must look for itself."""
    from safetensors.torch import load_file, save_file
    path = run_folder / "data/arithmetic/model/model.safetensors"
    weights = load_file(path)
    weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    monkeypatch.setattr(evaluate, "model", "data/arithmetic/model")
    for stage in (estimate_value, train_apo, evaluate):
        assert f"the weights don't fit config.json: missing {name} (1 in all)" in error(stage, monkeypatch)


def test_errors_from_the_command_line(workdir):
    """Through a real process: exit status 1, the reason in one line, nothing else."""
    done = run("train_apo.py", cwd=workdir, check=False)
    assert done.returncode == 1 and done.stdout == ("error: out/arithmetic/values.pt: no such file; make it with "
                                                    "estimate_value.py and the same --model, --task and --out, or copy it "
                                                    "from another run\n")
