"""The stages as a user runs them: files, learning, interruptions, one line for a mistake."""
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
from lib.cli import configure
from lib.data import load_prompts
from lib.files import read_jsonl, write_jsonl
from lib.samples import load_values
from prepare import byte_tokenizer

import pytest
import torch
from conftest import (REAL_DATA, REPO, command, cpu_only, metrics_of, needs_real_data, random_model,
                      run, tiny_config)

pytestmark = cpu_only
SMALL = ("--batch_size=32", "--mini_batch_size=16", "--eval_prompts=16", "--eval_every=100")


# ---- prepare.py ----------------------------------------------------------------------------------

def test_arithmetic_data(base):
    """Train and test are disjoint, solutions earn the reward, and no last digit is held out."""
    train, test = (read_jsonl(base / f"data/arithmetic/{split}.jsonl", ())
                   for split in ("train", "test"))
    assert (len(train), len(test)) == (1024, 512)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    for rows in (train, test):
        assert all(int(r["answer"]) == sum(map(int, r["prompt"].removesuffix("=?\n").split("+")))
                   for r in rows)
        assert len({int(r["answer"]) % 10 for r in rows}) == 10
    graded = reward.grade(test, [r["solution"] for r in test], [False] * len(test))
    assert graded.rewards == [1.0] * len(test)


def test_base_model_knows_the_task_a_little(base):
    """There is something to learn: pass@1 is between 20% and 50%, pass@8 clearly higher."""
    rewards = load_values(base / "out/arithmetic/values.pt")["rewards"]
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
    """Row counts are as published. With the real tokenizer, only prompts over the limit go."""
    from transformers import AutoTokenizer
    done = run("prepare.py", f"--task={task}", f"--source={REAL_DATA / task}", cwd=tmp_path)
    assert dropped in done.stdout
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    monkeypatch.chdir(tmp_path)
    for split, size, long in zip(("train", "test"), sizes, too_long, strict=True):
        rows = read_jsonl(f"data/{task}/{split}.jsonl", ())
        assert len(rows) == size and all(r["answer"] and r["task"] == task for r in rows)
        assert len(load_prompts(task, split, tokenizer, 256, 32768, 1024)) == size - long


@needs_real_data
def test_chat_template(base, monkeypatch):
    """A prompt is as Qwen2.5-Instruct was trained to read it; a base model has no template."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    monkeypatch.chdir(base)
    rows = load_prompts("arithmetic", "test", tokenizer, 0, 1000, 32, True)
    assert tokenizer.decode(rows[5]["tokens"]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        f"<|im_end|>\n<|im_start|>user\n{rows[5]['prompt']}<|im_end|>\n<|im_start|>assistant\n")
    assert rows[5]["tokens"][0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert "has no chat template" in error(estimate_value, monkeypatch, chat_template=True)


@needs_real_data
def test_benchmarks(tmp_path):
    """Row counts are as published. Every reference answer in a box earns 1.0, and another row's
    answer 0.0 unless the two are equal."""
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


# ---- all stages ----------------------------------------------------------------------------------

@pytest.mark.slow
def test_training_learns_arithmetic(workdir):
    """A quarter of the default run: sampled accuracy goes from under 0.5 to over 0.7. The metrics
    agree with the responses that are kept, and the model opens in transformers."""
    run("train_apo.py", "--max_steps=8", "--save_rollouts=4", cwd=workdir)
    metrics = metrics_of("out/arithmetic")
    assert [m["step"] for m in metrics] == list(range(8))
    assert {"step", "reward", "loss", "kl", "entropy", "grad_norm", "response_length", "truncated",
            "v_star", "logp_diff_max", "logp_diff_mean", "tokens", "seconds_generate",
            "seconds_reference", "seconds_train", "seconds_sync", "seconds_step",
            "grade_timed_out"} <= set(metrics[0])
    assert metrics[0]["accuracy_start_sampled"] < 0.5 and metrics[-1]["accuracy_sampled"] > 0.7
    low, high = metrics[-1]["accuracy_sampled_ci95"]
    assert low < metrics[-1]["accuracy_sampled"] < high
    assert abs(metrics[0]["kl"]) < 1e-4 and metrics[-1]["kl"] > 0.005  # it starts at the reference
    assert max(m["logp_diff_max"] for m in metrics) < 1e-4
    values = load_values("out/arithmetic/values.pt")
    v_star = dict(zip(values["ids"], values["v_star"].tolist(), strict=True))
    for step in (4, 8):  # the batch of the step, and the evaluation after it
        m = metrics[step - 1]
        rollouts = read_jsonl(f"out/arithmetic/rollouts/step-{step:06d}.jsonl", ())
        assert len({r["id"] for r in rollouts}) == 256
        for key, numbers in (("reward", [r["reward"] for r in rollouts]),
                             ("v_star", [v_star[r["id"]] for r in rollouts]),
                             ("response_length", [len(r["tokens"]) for r in rollouts])):
            assert sum(numbers) / 256 == pytest.approx(m[key]), key
        assert all(r["sampled_logp"] < 0 for r in rollouts)
        evaluated = read_jsonl(f"out/arithmetic/eval-{step:06d}.jsonl", ())
        for key, kind in (("accuracy", "greedy"), ("accuracy_sampled", "samples")):
            assert sum(r[kind][0]["reward"] for r in evaluated) / len(evaluated) == m[key]
    assert len(os.listdir("out/arithmetic/rollouts")) == 2

    done = run("evaluate.py", "--max_prompts=128", "--samples_per_prompt=4", "--show=1",
               "--kl_to=data/arithmetic/model", cwd=workdir)
    assert 1 <= done.stdout.count("---- response\n") <= 2
    assert re.search(r"---- arithmetic/test/\S+: reward 0, the answer is '\d+'\n", done.stdout)
    before, after = (json.loads((workdir / path / "eval.json").read_text())["arithmetic"]
                     for path in ("data/arithmetic/model", "out/arithmetic/model"))
    assert before["avg@4"]["value"] < 0.5 and after["avg@4"]["value"] > 0.7
    assert before["avg@4"]["value"] < before["pass@2"]["value"] < before["pass@4"]["value"]
    assert before["kl_per_token"] == 0 and 0.005 < after["kl_per_token"] < 0.5
    assert after["kl_per_response"]["value"] == pytest.approx(
        after["kl_per_token"] * after["response_length"], rel=1e-3)
    run("report.py", "out/arithmetic", cwd=workdir)
    assert os.path.getsize("out/arithmetic/curves.png") > 10_000
    for page in ("report.md", "model/README.md"):
        text = (workdir / "out/arithmetic" / page).read_text()
        assert f"{before['avg@4']['value']:.1%} [" in text, page
        assert f"{after['avg@4']['value']:.1%} [" in text, page

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (c.from_pretrained("out/arithmetic/model")
                        for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("12+34=?\n", return_tensors="pt").input_ids
    assert "46" in tokenizer.decode(model.generate(ids, max_new_tokens=32, do_sample=False)[0])


@pytest.mark.slow
def test_what_a_run_may_change_and_what_it_may_not(workdir):
    """Other micro-batches and recomputed activations change rounding only. A finished run says so.
    With another learning rate or other values its folder is refused, by the name of what differs.
    Accuracy during training is that of the test rows."""
    run("train_apo.py", *SMALL, "--max_steps=4", "--save_every=0", cwd=workdir)
    assert os.listdir("out/arithmetic/ckpt") == []
    whole = metrics_of("out/arithmetic")
    train = read_jsonl("data/arithmetic/train.jsonl", ())
    write_jsonl("data/arithmetic/test.jsonl",
                [{**row, "id": f"test/{i}", "answer": "-1"} for i, row in enumerate(train[:16])])
    run("train_apo.py", *SMALL, "--max_steps=4", "--save_every=3", "--micro_batch_tokens=100",
        "--checkpoint_activations=True", cwd=workdir)
    again = metrics_of("out/arithmetic")
    for a, b in zip(whole, again, strict=True):
        for key in ("loss", "kl", "reward", "grad_norm", "entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key
    assert {again[0]["accuracy_start"], again[0]["accuracy_start_sampled"],
            again[-1]["accuracy"], again[-1]["accuracy_sampled"]} == {0}  # nobody can solve these
    assert sorted(os.listdir("out/arithmetic/ckpt")) == ["step-000003", "step-000004"]
    assert "lr = 0.0004" in error_of_run(workdir, "--lr=1e-5")
    finished = run("train_apo.py", *SMALL, "--max_steps=4", cwd=workdir)
    assert "is trained: 4 steps" in finished.stdout and again == metrics_of("out/arithmetic")
    run("estimate_value.py", "--beta1=2", "--max_prompts=256", cwd=workdir)
    assert "with fingerprint of values = " in error_of_run(workdir)


def error_of_run(workdir, *options):
    refused = run("train_apo.py", *SMALL, "--max_steps=4", *options, cwd=workdir, check=False)
    assert refused.returncode == 1 and "Traceback" not in refused.stdout
    return refused.stdout


@pytest.mark.slow
def test_stale_weights_stop_the_run(workdir):
    """A sampler that did not take the new weights raises no error by itself. Training must stop
    before it updates the weights."""
    (workdir / "broken.py").write_text(
        "import rollout, train_apo\n"
        "from lib.cli import configure\n"
        "from lib.distributed import run_stage\n"
        "rollout.Engine.sync = lambda self, weights: list(weights)  # it keeps the old ones\n"
        "run_stage(train_apo.main, configure(train_apo.__file__))\n")
    done = subprocess.run([sys.executable, "broken.py", *SMALL, "--max_steps=3"], text=True,
                          capture_output=True)
    assert done.returncode == 1 and "error: step 1: vLLM's log-probabilities differ" in done.stderr
    assert "Traceback" not in done.stderr
    assert [m["step"] for m in metrics_of("out/arithmetic")] == [0]


# ---- interruptions -------------------------------------------------------------------------------

def kill_while_sampling(pattern, *stage):
    """Start a stage and kill it after 50 responses. Then mark its first response, and cut off its
    file in the middle of a line. Returns the marked response."""
    process = subprocess.Popen(command(*stage), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline, part = time.time() + 180, None
    while not (part and part.read_bytes().count(b"\n") > 50) and time.time() < deadline:
        time.sleep(0.01)
        part = next(pattern.parent.glob(pattern.name), None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = part.read_text().split("\n")
    marked = {**json.loads(lines[1]), "text": "#### 0"}
    part.write_text("\n".join([lines[0], json.dumps(marked), *lines[2:40], lines[40][:10]]))
    return marked


@pytest.mark.slow
def test_stage_1_continues_and_adds_what_is_missing(base, workdir):
    """Killed while sampling, it keeps what it had; asked for more samples it keeps the old ones;
    both end where an undisturbed run ends. Asked for fewer, it loses none."""
    folder = workdir / "out/a"
    marked = kill_while_sampling(folder / "responses.part.0.jsonl", "estimate_value.py",
                                 "--out=out/a", "--samples_per_prompt=4")
    assert not (folder / "values.pt").exists()
    run("estimate_value.py", "--out=out/a", "--max_prompts=256", cwd=workdir)  # 8 samples
    a, b = (load_values(path / "values.pt") for path in (folder, base / "out/arithmetic"))
    assert a["ids"] == b["ids"] and a["meta"] == b["meta"]
    assert not (folder / "responses.part.0.jsonl").exists()
    others = [i for i, prompt in enumerate(a["ids"]) if prompt != marked["id"]]
    for key in ("rewards", "lengths", "finished", "v_star"):
        assert torch.equal(a[key][others], b[key][others]), key

    def texts():
        return {(row["id"], s["sample"]): s["text"]
                for row in read_jsonl("out/a/responses.jsonl", ()) for s in row["responses"]}

    before = texts()  # of all prompts that were sampled, also of those beyond the 256
    assert before[marked["id"], marked["sample"]] == "#### 0"
    run("estimate_value.py", "--out=out/a", "--samples_per_prompt=2", "--max_prompts=100",
        cwd=workdir)
    assert load_values(folder / "values.pt")["rewards"].shape == (100, 2) and texts() == before


@pytest.mark.slow
def test_an_evaluation_continues_and_adds_what_is_missing(workdir):
    """Asked for more samples or for the KL it samples only what it lacks; killed while sampling, it
    keeps what it had, and its results are those of an undisturbed one. Responses of other settings
    are sampled anew."""
    options = ("evaluate.py", "--model=data/arithmetic/model", "--samples_per_prompt=4")
    results = workdir / "data/arithmetic/model/eval.json"

    def evaluated(*more):
        done = run(*options, *more, cwd=workdir)
        return json.loads(results.read_text())["arithmetic"], done.stdout

    whole, text = evaluated("--max_prompts=200")
    assert "greedy, engine 1 of 1" in text and "800/800" in text
    fewer, text = evaluated("--max_prompts=100", "--kl_to=data/arithmetic/model")
    assert "engine" not in text and fewer["kl_per_token"] == 0 and fewer["prompts"] == 100
    more, text = evaluated("--max_prompts=200", "--samples_per_prompt=5")
    assert "200/200" in text and "greedy, engine" not in text and more["avg@5"]
    assert more["greedy"] == whole["greedy"]  # though the call before asked for fewer
    shutil.rmtree(results.parent / "responses")
    marked = kill_while_sampling(results.parent / "responses/arithmetic-samples-*.0.jsonl",
                                 *options)
    again, text = evaluated("--max_prompts=200")
    assert "greedy, engine" not in text and "samples, engine" in text
    texts = {(r["id"], i): s["text"]
             for r in read_jsonl(results.parent / "eval-arithmetic.jsonl", ())
             for i, s in enumerate(r["samples"])}
    in_subset = (marked["id"], marked["sample"]) in texts
    assert not in_subset or texts[marked["id"], marked["sample"]] == "#### 0"
    assert again["greedy"] == whole["greedy"]
    assert abs(again["avg@4"]["value"] - whole["avg@4"]["value"]) <= in_subset / 800 + 1e-9
    other, text = evaluated("--max_prompts=200", "--temperature=0.5")
    assert "greedy, engine" not in text and "samples, engine" in text
    assert other["avg@4"]["value"] != whole["avg@4"]["value"]


def test_values_file(base):
    """Shapes and types are as documented; V* follows from the rewards; responses.jsonl agrees."""
    values = torch.load(base / "out/arithmetic/values.pt", weights_only=True)
    for key, dtype in (("rewards", torch.float32), ("lengths", torch.int32),
                       ("finished", torch.bool)):
        assert values[key].shape == (256, 8) and values[key].dtype == dtype
    assert len(values["ids"]) == 256 and values["v_star"].dtype == torch.float32
    expected = 0.5 * torch.log(torch.exp(values["rewards"] / 0.5).mean(1))
    torch.testing.assert_close(values["v_star"], expected)
    rows = read_jsonl(base / "out/arithmetic/responses.jsonl", ())
    assert [row["id"] for row in rows] == values["ids"]
    assert [[s["reward"] for s in row["responses"]] for row in rows] == values["rewards"].tolist()
    assert {"model", "prompts", "reward", "temperature", "max_response_tokens", "beta1", "seed",
            "versions"} <= set(values["meta"])


# ---- mistakes: one line, status 1, nothing lost --------------------------------------------------

def error(stage, monkeypatch, **constants):
    """The one line with which a stage stops before its work has begun."""
    with monkeypatch.context() as m, pytest.raises(SystemExit) as e:
        m.setattr(sys, "argv", ["stage", *(f"--{k}={v}" for k, v in constants.items())])
        stage.main(configure(stage.__file__))
    assert isinstance(e.value.code, str) and e.value.code.startswith("error: ")
    assert "\n" not in e.value.code
    return e.value.code


@pytest.mark.parametrize("stage, constants, message", [
    (estimate_value, {"task": "nowhere"},
     "data/nowhere/train.jsonl: no such file; make it with: python prepare.py --task=nowhere"),
    (train_apo, {"out": "out/new"}, "out/new/values.pt: no such file; make it with estimate_value"),
    (evaluate, {"model": "no/such/model"}, "no/such/model: no config.json"),
    (estimate_value, {"model": "Qwen/no-such-model"}, "the hub did not give it"),
    (prepare, {"task": "gsm8k", "source": "nowhere"},
     "--source=nowhere: neither gsm8k/train.jsonl nor train.jsonl is there"),
    (prepare, {"task": "math,math50"}, "no task 'math50'; it can be arithmetic, countdown, "),
    (prepare, {"task": "math,amc23", "source": "test.jsonl"},
     "one file, but --task=math,amc23 names several"),
    (prepare, {"task": "gsm8k", "source": "test.jsonl"},
     "test.jsonl, row 1: no 'answer' in it, only question, solution"),
    (estimate_value, {"temperature": 0.5}, "sampled with temperature = 1.0, this run has 0.5"),
    (train_apo, {"temperature": 0}, "--temperature=0.0: "),
    (train_apo, {"batch_size": 257, "mini_batch_size": 257},
     "--batch_size=257: there are 256 prompts"),
    (train_apo, {"mini_batch_size": 100}, "--mini_batch_size=100 does not divide --batch_size=256"),
    (train_apo, {"dtype": "float16"}, "--dtype=float16: it must be float32 or bfloat16"),
    (train_apo, {"keep_checkpoints": 0}, "--keep_checkpoints=0: it must be at least 1"),
    (evaluate, {"model": "data/arithmetic/model, other"}, "other has another shape"),
    # A prompt has 8 tokens, and the model's context 8,192.
    (train_apo, {"max_response_tokens": 8185}, "more tokens than the 7 that the model's context"),
    (estimate_value, {"max_prompt_tokens": 7}, "no prompt has at most 7 tokens"),
])
def test_mistakes(stage, constants, message, workdir, monkeypatch):
    write_jsonl("test.jsonl", [{"question": "1 + 1?", "solution": r"\boxed{2}"}] * 2)
    random_model(tiny_config()).save_pretrained("other")
    byte_tokenizer().save_pretrained("other")
    assert message in error(stage, monkeypatch, **constants)


def test_a_prompt_of_exactly_the_limit_is_kept(base, monkeypatch):
    """Both the limit of the user and the context of the model may be met."""
    monkeypatch.chdir(base)
    assert len(load_prompts("arithmetic", "test", byte_tokenizer(), 8, 100, 32)) == 512
    assert len(load_prompts("arithmetic", "test", byte_tokenizer(), 0, 40, 32)) == 512
    with pytest.raises(ValueError, match="line 1: the prompt has more tokens than the 7"):
        load_prompts("arithmetic", "test", byte_tokenizer(), 0, 39, 32)


@pytest.mark.parametrize("change, message", [
    (lambda rows: [*rows, '{"id": "x"'], "train.jsonl, line 1025: not valid JSON"),
    (lambda rows: [], "train.jsonl: empty"),
    (lambda rows: [*rows, rows[0]], "train.jsonl, line 1025: id 'arithmetic/train/"),
    (lambda rows: [json.dumps({**json.loads(rows[0]), "prompt": ""})], "the prompt is empty"),
    (lambda rows: [json.dumps({**json.loads(rows[0]), "answer": 5})], "must be strings"),
    (lambda rows: [json.dumps({**json.loads(rows[0]), "task": "chess"})], "no task 'chess'"),
])
def test_broken_data(change, message, workdir, monkeypatch):
    path = workdir / "data/arithmetic/train.jsonl"
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
    for stage in (estimate_value, train_apo):
        assert message in error(stage, monkeypatch)


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


def test_weights_or_a_tokenizer_that_do_not_fit_the_config(workdir, monkeypatch):
    """vLLM samples without most weights and says nothing, so every stage checks by itself."""
    from safetensors.torch import load_file, save_file
    path, name = "data/arithmetic/model/model.safetensors", "model.layers.2.mlp.down_proj.weight"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != name}, path, metadata={"format": "pt"})
    for stage, changes in ((estimate_value, {}), (train_apo, {}),
                           (evaluate, {"model": "data/arithmetic/model"})):
        assert f"the weights don't fit config.json: missing: {name} (1 in all)" in error(
            stage, monkeypatch, **changes)
    config = workdir / "data/arithmetic/model/config.json"
    config.write_text(config.read_text().replace('"vocab_size": 257', '"vocab_size": 256'))
    assert "the tokenizer has 257 entries, the model's vocabulary only 256" in error(
        estimate_value, monkeypatch)


@pytest.mark.slow
def test_the_command_line(workdir):
    """In a real process: exit status 1 and one line for a mistake; --help; nothing is imported that
    takes seconds or claims the GPU, and importing a stage runs nothing."""
    shutil.rmtree("out")
    for options, begin in (((), "error: out/arithmetic/values.pt: no such file"),
                           (("--max_stepz=3",), "error: --max_stepz=3: there is no constant "
                            "'max_stepz'; did you mean max_steps?")):
        done = run("train_apo.py", *options, cwd=workdir, check=False, alone=True)
        assert done.returncode == 1 and done.stdout.count("\n") == 1
        assert done.stdout.startswith(begin)
    three = run("train_apo.py", "--batch_size=16", "--mini_batch_size=8", cwd=workdir, processes=3,
                check=False)  # all ranks find the mistake, one says it
    assert three.returncode and three.stdout.count("error: --mini_batch_size=8 is not a mult") == 1
    text = run("baselines.grpo", "--help", cwd=workdir, alone=True).stdout
    assert "max_steps = 32" in text and "group_size = 8" in text
    assert "batch_size = 32 " in text and "batch_size = 256" not in text and "beta2" not in text
    code = ("import sys, prepare, estimate_value, train_apo, evaluate, baselines.grpo\n"
            "sys.exit('vllm' in sys.modules or 'matplotlib' in sys.modules)")
    (workdir / "empty").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=workdir / "empty", text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(workdir / "empty") == [] and REPO.is_dir()
