"""The stages as a user runs them: files, learning, interruptions, one line for what is wrong."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import estimate_value
import evaluate
import prepare
import reward
import train_apo
from lib.base_model import byte_tokenizer
from lib.cli import configure
from lib.data import load_prompts
from lib.files import read_jsonl, write_jsonl
from lib.values import load_values

import pytest
import torch
from conftest import (
    REAL_DATA,
    REPO,
    command,
    cpu_only,
    metrics_of,
    needs_real_data,
    random_model,
    run,
    tiny_config,
)

pytestmark = cpu_only
SMALL = ("--batch_size=32", "--mini_batch_size=16", "--eval_prompts=16", "--eval_every=100")


def values_in(folder):
    return load_values(folder / "values.pt")


# ---- prepare.py ----------------------------------------------------------------------------------

def test_arithmetic_data(base):
    """Train and test are disjoint, answers right, and the solutions earn the reward."""
    train, test = (read_jsonl(base / f"data/arithmetic/{split}.jsonl", ())
                   for split in ("train", "test"))
    assert (len(train), len(test)) == (1024, 512)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    for row in train + test:
        a, b = row["prompt"].removesuffix("=?\n").split("+")
        assert int(row["answer"]) == int(a) + int(b)
    graded = reward.grade(test, [r["solution"] for r in test], [False] * len(test))
    assert graded.rewards == [1.0] * len(test)
    for rows in (train, test):
        assert len({int(r["answer"]) % 10 for r in rows}) == 10  # no digit is held out as a whole


def test_base_model_knows_the_task_a_little(base):
    """pass@1 between 20% and 50%, pass@8 clearly higher: there is something to be learned."""
    rewards = values_in(base / "out/arithmetic")["rewards"]
    assert 0.2 < rewards.mean() < 0.5
    assert rewards.max(1).values.mean() > rewards.mean() + 0.25


def test_byte_tokenizer_is_lossless(base):
    """Through AutoTokenizer, which replaces the rules of tokenizers that it knows."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(base / "data/arithmetic/model")
    for text in ("47+86=?\n", "7+6+0=13,4+8+1=13\n#### 133", " a\tb\r\n\n é 漢 🙂 ",
                 *(chr(i) for i in range(1, 128))):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) == len(text.encode())


@needs_real_data
@pytest.mark.parametrize("task, sizes, dropped, too_long", [
    ("gsm8k", (7473, 1319), "", (0, 0)), ("math", (7498, 5000), "2 dropped", (339, 183))])
def test_real_data(task, sizes, dropped, too_long, tmp_path, monkeypatch):
    """Row counts; with the real tokenizer only the prompts over the limit are left out."""
    from transformers import AutoTokenizer
    done = run("prepare.py", f"--task={task}", f"--source={REAL_DATA / task}", cwd=tmp_path)
    assert dropped in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    monkeypatch.chdir(tmp_path)
    for split, size, long in zip(("train", "test"), sizes, too_long, strict=True):
        rows = read_jsonl(f"data/{task}/{split}.jsonl", ())
        assert len(rows) == size and all(r["answer"] and r["task"] == task for r in rows)
        kept = load_prompts(task, split, tokenizer, 256, True, 31744, reward.reward_of)
        assert len(kept) == size - long


@needs_real_data
def test_chat_template(base, tmp_path, monkeypatch):
    """A prompt as Qwen2.5-Instruct was trained to read it; only where there is a template."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    monkeypatch.chdir(base)
    rows = load_prompts("arithmetic", "test", tokenizer, 0, False, 1000, reward.reward_of, True)
    assert tokenizer.decode(rows[5]["tokens"]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        f"<|im_end|>\n<|im_start|>user\n{rows[5]['prompt']}<|im_end|>\n<|im_start|>assistant\n")
    assert rows[5]["tokens"][0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base / "data", "data")
    assert "--chat_template=True: the tokenizer in data/arithmetic/model has no chat template" in (
        error(estimate_value, monkeypatch, chat_template=True))


def test_stage_1_says_what_is_usually_wrong(capsys):
    def printed(rewards, finished):
        values = {"rewards": torch.tensor(rewards), "finished": torch.tensor(finished),
                  "lengths": torch.ones(2, 2), "v_star": torch.zeros(2)}
        graded = reward.Graded([0.0] * 4, [False] * 4, [False] * 4)
        estimate_value.report(values, graded, 1.0, 0)
        return capsys.readouterr().out

    some, none = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]] * 2
    assert "warning" not in printed(some, [[True, True], [True, False]])
    assert "warning: most responses were truncated" in printed(some, [[True, False], [False] * 2])
    text = printed(none, [[False] * 2] * 2)
    assert "only 0% of the responses ended by themselves" in text and "--chat_template=True" in text
    assert "no prompt was ever solved" in text


@needs_real_data
def test_benchmarks(tmp_path):
    """All in one call: row counts as published. Every reference answer in a box earns 1.0, and
    another row's answer 0.0 unless the two are equal."""
    counts = {"math500": 500, "minerva_math": 272, "olympiadbench": 675, "amc23": 40, "aime24": 30,
              "aime25": 30, "hmmt_feb_2024": 30, "hmmt_feb_2025": 30, "hmmt_nov_2025": 30}
    run("prepare.py", f"--task={','.join(counts)}", f"--source={REAL_DATA}", cwd=tmp_path)
    for task, count in counts.items():
        rows = read_jsonl(tmp_path / f"data/{task}/test.jsonl", ())
        assert len(rows) == count and not (tmp_path / f"data/{task}/train.jsonl").exists()
        assert all(row["prompt"].endswith(r"the final answer within \boxed{}.") for row in rows)
        texts = [rf"So it is $\boxed{{{row['answer']}}}$." for row in rows]
        graded = reward.grade(rows, texts, [False] * count)
        assert [row["answer"] for row, r in zip(rows, graded.rewards, strict=True) if r != 1] == []
        graded = reward.grade(rows, [*texts[1:], texts[0]], [False] * count)
        for row, other, r in zip(rows, [*rows[1:], rows[0]], graded.rewards, strict=True):
            assert r == reward.is_equivalent(row["answer"], other["answer"]), (row, other)
        assert sum(graded.rewards) < 0.1 * count
    levels = {row["level"] for row in read_jsonl(tmp_path / "data/math500/test.jsonl", ())}
    assert levels == set("12345")
    hmmt = read_jsonl(tmp_path / "data/hmmt_feb_2025/test.jsonl", ())
    assert {"Algebra", "Geometry", "Algebra, Number Theory"} <= {row["subject"] for row in hmmt}
    # All in one call, with a model that knows nothing.
    config = tiny_config(vocab_size=len(byte_tokenizer()), hidden_size=128)
    random_model(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    done = run("evaluate.py", f"--task={','.join(counts)}", "--model=model", "--max_prompts=3",
               "--max_response_tokens=8", "--drop_long_prompts=True", "--samples_per_prompt=2",
               cwd=tmp_path)
    evaluated = json.loads((tmp_path / "model/eval.json").read_text())
    assert list(evaluated) == list(counts)
    for task, results in evaluated.items():
        assert (results["prompts"], results["greedy"]["value"], results["avg@2"]["value"]) == (
            3, 0, 0)
        assert f"\n| {task} " in done.stdout
    lines = (tmp_path / "model/eval.md").read_text().splitlines()
    assert lines[-1].startswith("| model ") and lines[-1].count("|") == len(counts) + 2


# ---- all stages ----------------------------------------------------------------------------------

@pytest.mark.slow
def test_training_learns_arithmetic(workdir):
    """At a quarter of the default length: sampled accuracy from under 0.5 to over 0.7. The result
    opens in transformers."""
    run("train_apo.py", "--max_steps=8", "--save_rollouts=4", cwd=workdir)
    metrics = metrics_of("out/arithmetic")
    assert [m["step"] for m in metrics] == list(range(8))
    assert {"step", "reward", "loss", "kl", "entropy", "grad_norm", "response_length", "truncated",
            "v_star", "logp_diff_max", "logp_diff_mean", "tokens", "seconds_generate",
            "seconds_reference", "seconds_train", "seconds_sync", "seconds_step", "grade_inexact",
            "grade_timed_out"} <= set(metrics[0])
    assert metrics[0]["accuracy_start_sampled"] < 0.5 and metrics[-1]["accuracy_sampled"] > 0.7
    assert abs(metrics[0]["kl"]) < 1e-4 and metrics[-1]["kl"] > 0.005  # it starts at the reference
    assert max(m["logp_diff_max"] for m in metrics) < 1e-4
    for step in (4, 8):  # what was sampled in the step, and what was measured after it
        m = metrics[step - 1]
        rollouts = read_jsonl(f"out/arithmetic/rollouts/step-{step:06d}.jsonl", ())
        assert len({r["id"] for r in rollouts}) == 256
        for key, values in (("reward", [r["reward"] for r in rollouts]),
                            ("v_star", [r["v_star"] for r in rollouts]),
                            ("response_length", [len(r["tokens"]) for r in rollouts])):
            assert sum(values) / 256 == pytest.approx(m[key]), key
        assert all(r["sampled_logp"] < 0 for r in rollouts)
        evaluated = read_jsonl(f"out/arithmetic/eval-{step:06d}.jsonl", ())
        for key, kind in (("accuracy", "greedy"), ("accuracy_sampled", "samples")):
            assert sum(r[kind][0]["reward"] for r in evaluated) / len(evaluated) == m[key]
    assert len(os.listdir("out/arithmetic/rollouts")) == 2

    done = run("evaluate.py", "--max_prompts=128", "--samples_per_prompt=4", "--show=2",
               "--kl_to=data/arithmetic/model", cwd=workdir)
    assert 2 <= done.stdout.count("---- response\n") <= 4
    assert re.search(r"---- arithmetic/test/\S+: '\d+' is not equal to '\d+'\n", done.stdout)
    before, after = (json.loads((workdir / path / "eval.json").read_text())["arithmetic"]
                     for path in ("data/arithmetic/model", "out/arithmetic/model"))
    assert before["avg@4"]["value"] < 0.5 and after["avg@4"]["value"] > 0.7
    assert before["avg@4"]["value"] < before["pass@2"]["value"] < before["pass@4"]["value"]
    low, high = after["greedy"]["ci95"]
    assert low < after["greedy"]["value"] <= high + 1e-9  # where all are right, both are 1
    assert before["kl_per_token"] == 0 and 0.005 < after["kl_per_token"] < 0.5
    assert "data/arithmetic/model" in done.stdout
    assert os.path.getsize("out/arithmetic/curves.png") > 10_000

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (c.from_pretrained("out/arithmetic/model")
                        for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("12+34=?\n", return_tensors="pt").input_ids
    assert "46" in tokenizer.decode(model.generate(ids, max_new_tokens=32, do_sample=False)[0])


@pytest.mark.slow
def test_what_a_run_may_change_and_what_it_may_not(workdir):
    """Other micro-batches, compiled layers and recomputed activations change rounding only. A
    finished run says so; with another learning rate or other values its folder is refused, by the
    name of what differs. Accuracy during training is of the test rows."""
    run("train_apo.py", *SMALL, "--max_steps=6", "--save_every=0", cwd=workdir)
    assert os.listdir("out/arithmetic/ckpt") == []
    whole = metrics_of("out/arithmetic")
    train = read_jsonl("data/arithmetic/train.jsonl", ())
    (workdir / "data/arithmetic/test.jsonl").write_text("".join(
        json.dumps({**row, "id": f"test/{i}", "answer": "-1"}) + "\n"
        for i, row in enumerate(train[:16])))  # rows that nobody can solve
    run("train_apo.py", *SMALL, "--max_steps=6", "--save_every=2", "--micro_batch_tokens=100",
        "--compile=True", "--checkpoint_activations=True", cwd=workdir)
    for a, b in zip(whole, metrics_of("out/arithmetic"), strict=True):
        for key in ("loss", "kl", "reward", "grad_norm", "entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key
    whole = metrics_of("out/arithmetic")
    assert (whole[0]["accuracy_start"], whole[0]["accuracy_start_sampled"],
            whole[-1]["accuracy"], whole[-1]["accuracy_sampled"]) == (0, 0, 0, 0)
    assert sorted(os.listdir("out/arithmetic/ckpt")) == ["step-000004", "step-000006"]
    refused = run("train_apo.py", *SMALL, "--max_steps=6", "--lr=1e-5", cwd=workdir, check=False)
    assert refused.returncode == 1 and "lr = 0.0004" in refused.stdout
    again = run("train_apo.py", *SMALL, "--max_steps=6", cwd=workdir)
    assert "is trained: 6 steps" in again.stdout and whole == metrics_of("out/arithmetic")
    run("estimate_value.py", "--beta1=2", "--max_prompts=256", cwd=workdir)
    refused = run("train_apo.py", *SMALL, "--max_steps=6", cwd=workdir, check=False)
    assert refused.returncode == 1 and "with fingerprint of values = " in refused.stdout
    assert "Traceback" not in refused.stdout


@pytest.mark.slow
def test_stale_weights_stop_the_run(workdir):
    """A sampler that did not take the new weights raises no error by itself: training must stop,
    before it updates the weights."""
    (workdir / "broken.py").write_text(
        "import rollout, train_apo\n"
        "from lib.cli import configure\n"
        "from lib.distributed import run_stage\n"
        "rollout.Engine.sync = lambda self, weights: list(weights)  # it keeps the old ones\n"
        "run_stage(train_apo.main, configure(vars(train_apo)), timeout_minutes=10)\n")
    done = subprocess.run([sys.executable, "broken.py", *SMALL, "--max_steps=3"], text=True,
                          capture_output=True)
    assert done.returncode == 1 and "error: step 1: vLLM's log-probabilities differ" in done.stderr
    assert "Traceback" not in done.stderr
    assert [m["step"] for m in metrics_of("out/arithmetic")] == [0]


def test_a_number_of_processes_that_does_not_fit(workdir):
    """All ranks find the mistake; it is said once."""
    three = run("train_apo.py", "--batch_size=16", "--mini_batch_size=8", cwd=workdir, processes=3,
                check=False)
    line = "error: --mini_batch_size=8 is not a multiple of the 3 processes"
    assert three.returncode != 0 and three.stdout.count(line) == 1


# ---- stage 1 continues ---------------------------------------------------------------------------

@pytest.mark.slow
def test_stage_1_continues_and_adds_what_is_missing(base, workdir):
    """Killed while sampling, it keeps what it had; asked for more samples it keeps the old ones;
    both end where an undisturbed run ends. A mark in one response shows that it was kept."""
    part = workdir / "out/a/responses.part.0.jsonl"
    process = subprocess.Popen(command("estimate_value.py", "--out=out/a",
                                       "--samples_per_prompt=4"),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") > 50) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = part.read_text().split("\n")
    assert len(lines) > 50 and not (workdir / "out/a/values.pt").exists()
    marked = json.loads(lines[1])
    part.write_text("\n".join([lines[0],
                               json.dumps({**marked, "text": "kept " + marked["text"]}),
                               *lines[2:40], lines[40][:10]]))  # the last line is incomplete
    run("estimate_value.py", "--out=out/a", "--max_prompts=256", cwd=workdir)  # 8 samples
    a, b = values_in(workdir / "out/a"), values_in(base / "out/arithmetic")
    assert a["ids"] == b["ids"] and a["meta"] == b["meta"] and not part.exists()
    for key in ("rewards", "lengths", "finished", "v_star"):
        assert torch.equal(a[key], b[key]), key

    def texts():
        return {(row["id"], s["sample"]): s["text"]
                for row in read_jsonl("out/a/responses.jsonl", ()) for s in row["responses"]}

    before = texts()  # with the marked response, though its prompt may not be among the 256
    assert before[marked["id"], marked["sample"]] == "kept " + marked["text"]
    run("estimate_value.py", "--out=out/a", "--samples_per_prompt=2", "--max_prompts=100",
        cwd=workdir)  # fewer: none is lost
    assert values_in(workdir / "out/a")["rewards"].shape == (100, 2) and texts() == before


@pytest.mark.slow
def test_an_evaluation_continues_and_adds_what_is_missing(workdir):
    """Killed while sampling, it keeps what it had; asked for more samples, for the KL or for a
    second task it samples only what it lacks, and its results are those of an undisturbed one. A
    mark in one response shows that it was kept. Other settings are sampled anew."""
    options = ("--model=data/arithmetic/model", "--samples_per_prompt=4")
    results = workdir / "data/arithmetic/model/eval.json"

    def evaluated(*more):
        done = run("evaluate.py", *options, *more, cwd=workdir)
        return json.loads(results.read_text())["arithmetic"], done.stdout

    whole, text = evaluated("--max_prompts=200")
    assert "arithmetic, greedy, engine 1 of 1" in text
    assert "arithmetic, samples, engine 1 of 1" in text and "800/800" in text
    fewer, text = evaluated("--max_prompts=100", "--kl_to=data/arithmetic/model")
    assert "engine" not in text and fewer["kl_per_token"] == 0 and fewer["prompts"] == 100
    more, text = evaluated("--max_prompts=200", "--samples_per_prompt=5")
    assert "200/200" in text and "greedy, engine" not in text and more["avg@5"]
    assert more["greedy"] == whole["greedy"]  # though the call before asked for fewer
    records = results.parent / "eval-arithmetic.jsonl"
    shutil.rmtree(results.parent / "responses")
    process = subprocess.Popen(command("evaluate.py", *options),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, part = time.time() + 120, None
    while not (part and part.read_bytes().count(b"\n") > 50) and time.time() < deadline:
        time.sleep(0.01)
        part = next(results.parent.glob("responses/arithmetic-samples-*.0.jsonl"), None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = part.read_text().split("\n")
    marked = json.loads(lines[1])
    part.write_text("\n".join([lines[0], json.dumps({**marked, "text": "#### 0"}), *lines[2:40],
                               lines[40][:10]]))
    again, text = evaluated("--max_prompts=200")
    assert "greedy, engine" not in text and "samples, engine" in text
    texts = {(r["id"], i): s["text"] for r in read_jsonl(records, ())
             for i, s in enumerate(r["samples"])}
    in_subset = (marked["id"], marked["sample"]) in texts
    assert not in_subset or texts[marked["id"], marked["sample"]] == "#### 0"
    assert again["greedy"] == whole["greedy"]
    assert abs(again["avg@4"]["value"] - whole["avg@4"]["value"]) <= in_subset / 800 + 1e-9
    other, text = evaluated("--max_prompts=200", "--temperature=0.5")
    assert "greedy, engine" not in text and "samples, engine" in text
    assert other["avg@4"]["value"] != whole["avg@4"]["value"]


def test_values_file(base):
    """Shapes and types as documented; V* follows from the rewards; responses.jsonl agrees."""
    values = torch.load(base / "out/arithmetic/values.pt", weights_only=True)
    n = len(values["ids"])
    for key, dtype in (("rewards", torch.float32), ("lengths", torch.int32),
                       ("finished", torch.bool)):
        assert values[key].shape == (n, 8) and values[key].dtype == dtype
    assert n == 256 and values["v_star"].dtype == torch.float32
    expected = 0.5 * torch.log(torch.exp(values["rewards"] / 0.5).mean(1))
    torch.testing.assert_close(values["v_star"], expected)
    rows = read_jsonl(base / "out/arithmetic/responses.jsonl", ())
    assert [row["id"] for row in rows] == values["ids"]
    assert [[s["reward"] for s in row["responses"]] for row in rows] == values["rewards"].tolist()
    assert {"model", "prompts", "reward", "temperature", "max_response_tokens", "beta1", "seed",
            "versions"} <= set(values["meta"])


# ---- bad input: one line, status 1, nothing lost -------------------------------------------------

def error(stage, monkeypatch, **constants):
    """The one line with which a stage stops before its work has begun."""
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(sys, "argv", ["stage", *(f"--{k}={v}" for k, v in constants.items())])
        for name, value in list(vars(stage).items()):
            m.setattr(stage, name, value)  # so that configure's changes are undone
        configured = configure(vars(stage))
        stage.main(configured) if stage is train_apo else stage.main()
    assert isinstance(e.value.code, str) and e.value.code.startswith("error: ")
    assert "\n" not in e.value.code
    return e.value.code


def test_missing_files(workdir, monkeypatch):
    assert "data/nowhere/train.jsonl: no such file; make it with: python prepare.py" in error(
        estimate_value, monkeypatch, task="nowhere")
    os.remove("out/arithmetic/values.pt")
    assert "out/arithmetic/values.pt: no such file; make it with estimate_value.py" in error(
        train_apo, monkeypatch)
    assert "no/such/model: no config.json" in error(evaluate, monkeypatch, model="no/such/model")
    assert "--source=nowhere: neither gsm8k/train.jsonl nor train.jsonl is there" in error(
        prepare, monkeypatch, task="gsm8k", source="nowhere")
    assert "--task=math50: the tasks are arithmetic, gsm8k, math, " in error(
        prepare, monkeypatch, task="math,math50")
    assert "did you mean math500?" in error(prepare, monkeypatch, task="math50")
    write_jsonl("test.jsonl", [{"question": "1 + 1?", "solution": r"\boxed{2}"}])
    assert "one file, but --task=math,amc23 names several" in error(
        prepare, monkeypatch, task="math,amc23", source="test.jsonl")
    assert "gsm8k: row 1 of test has no 'answer' in it, only question, solution" in error(
        prepare, monkeypatch, task="gsm8k", source="test.jsonl")


def test_the_hub_out_of_reach(workdir, monkeypatch):
    assert "the hub did not give it" in error(estimate_value, monkeypatch,
                                              model="Qwen/no-such-model")


@pytest.mark.parametrize("change, message", [
    (lambda rows: [*rows, '{"id": "x"'], "train.jsonl, line 1025: not valid JSON"),
    (lambda rows: [], "train.jsonl: empty"),
    (lambda rows: [*rows, rows[0]], "train.jsonl, line 1025: id 'arithmetic/train/"),
    (lambda rows: [json.dumps({**json.loads(rows[0]), "prompt": ""})], "the prompt is empty"),
    (lambda rows: [json.dumps({**json.loads(rows[0]), "task": "chess"})],
     "line 1: task 'chess' has no reward"),
])
def test_broken_data(change, message, workdir, monkeypatch):
    path = workdir / "data/arithmetic/train.jsonl"
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
    for stage in (estimate_value, train_apo):
        assert message in error(stage, monkeypatch)


def test_long_prompts(workdir, monkeypatch):
    """An error that says where; with --drop_long_prompts they go, unless none is left."""
    message = error(estimate_value, monkeypatch, max_prompt_tokens=5)
    assert "data/arithmetic/train.jsonl, line 1: the prompt has 8 tokens, the limit is 5" in message
    assert "(1024 of 1024 are longer)" in message
    assert "no prompt has at most 5 tokens" in error(
        estimate_value, monkeypatch, max_prompt_tokens=5, drop_long_prompts=True)
    # The model's context is 8,192 tokens.
    assert "the limit is 2" in error(train_apo, monkeypatch, max_response_tokens=8190)


@pytest.mark.parametrize("part", ["model", "prompts", "reward", "temperature",
                                  "max_response_tokens", "file"])
def test_values_of_another_run_are_refused(part, workdir, monkeypatch):
    """Stage 2 names the part that differs, and changes nothing in the folder."""
    changes = {}
    if part == "model":
        path = workdir / "data/arithmetic/model/model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif part == "prompts":
        path = workdir / "data/arithmetic/train.jsonl"
        path.write_text(path.read_text().replace("=?", "=!", 1))
    elif part == "reward":
        monkeypatch.setattr(reward, "fingerprint", lambda rows: "edited")
    elif part == "file":
        path = workdir / "out/arithmetic/values.pt"
        path.write_bytes(path.read_bytes()[:1000])
    else:
        changes = {part: {"temperature": 0.7, "max_response_tokens": 31}[part]}
    before = {p: p.read_bytes() for p in (workdir / "out").rglob("*") if p.is_file()}
    message = error(train_apo, monkeypatch, **changes)
    assert "out/arithmetic/values.pt" in message
    assert ("not a whole values file" if part == "file" else f"another {part} than") in message
    assert before == {p: p.read_bytes() for p in (workdir / "out").rglob("*") if p.is_file()}


def test_settings(workdir, monkeypatch):
    assert "sampled with temperature = 1.0, this run has 0.5" in error(
        estimate_value, monkeypatch, temperature=0.5)
    assert "--batch_size=512: there are 256 prompts" in error(train_apo, monkeypatch,
                                                              batch_size=512)
    assert "--mini_batch_size=100 does not divide --batch_size=256" in error(
        train_apo, monkeypatch, mini_batch_size=100)
    assert "--dtype=float16: it must be float32 or bfloat16" in error(train_apo, monkeypatch,
                                                                      dtype="float16")


def test_models_that_do_not_fit(workdir, monkeypatch):
    random_model(tiny_config()).save_pretrained("other")
    byte_tokenizer().save_pretrained("other")
    assert "other has another shape" in error(evaluate, monkeypatch,
                                              model="data/arithmetic/model, other")
    path = workdir / "data/arithmetic/model/config.json"
    path.write_text(path.read_text().replace('"vocab_size": 257', '"vocab_size": 200'))
    assert "the tokenizer has 257 entries, the model's vocabulary only 200" in error(
        estimate_value, monkeypatch)


def test_missing_weights(workdir, monkeypatch):
    """vLLM samples without most of them and says nothing: every stage checks by itself."""
    from safetensors.torch import load_file, save_file
    path, name = "data/arithmetic/model/model.safetensors", "model.layers.2.mlp.down_proj.weight"
    weights = load_file(path)
    weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    for stage, changes in ((estimate_value, {}), (train_apo, {}),
                           (evaluate, {"model": "data/arithmetic/model"})):
        assert f"the weights don't fit config.json: missing {name} (1 in all)" in error(
            stage, monkeypatch, **changes)


def test_errors_from_the_command_line(workdir):
    """Through a real process: exit status 1, one line, nothing else."""
    shutil.rmtree("out")
    done = run("train_apo.py", cwd=workdir, check=False)
    assert done.returncode == 1 and done.stdout == (
        "error: out/arithmetic/values.pt: no such file; make it with estimate_value.py and the "
        "same --model, --task and --out, or copy it from another run\n")
    done = run("train_apo.py", "--max_stepz=3", cwd=workdir, check=False)
    assert (done.returncode, done.stdout) == (1, "error: --max_stepz=3: there is no constant "
                                              "'max_stepz'; did you mean max_steps?\n")
    assert "max_steps = 32" in run("train_apo.py", "--help", cwd=workdir).stdout


def test_importing_a_stage_runs_nothing(tmp_path):
    """And imports no vLLM, which takes seconds and claims the GPU."""
    code = ("import sys, prepare, estimate_value, train_apo, evaluate, baselines.grpo\n"
            "sys.exit('vllm' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == [] and REPO.is_dir()
