"""The stages as a user runs them: files, learning, interruptions, one line for a mistake."""
import json
import os
import re
import shutil
import subprocess
import sys

import estimate_value
import evaluate
import prepare
import reward
import train_apo
from lib.data import load_prompts
from lib.files import read_jsonl, write_jsonl
from lib.samples import Response, load_values
from prepare import byte_tokenizer

import pytest
import torch
from conftest import (MODEL, OUT, REAL_DATA, REPO, arguments, command, cpu_only, environment, error,
                      metrics_of, needs_real_data, random_model, run, tiny_config)

pytestmark = cpu_only


# ---- prompts -------------------------------------------------------------------------------------

@needs_real_data
@pytest.mark.parametrize("task, sizes, dropped, too_long", [
    ("gsm8k", (7473, 1319), "", (0, 0)), ("math", (7498, 5000), "2 dropped", (339, 183))])
def test_real_data(task, sizes, dropped, too_long, tmp_path, monkeypatch, capsys):
    """Row counts are as published. With the real tokenizer, only prompts over the limit go."""
    from transformers import AutoTokenizer
    monkeypatch.chdir(tmp_path)
    prepare.main(arguments(prepare, task=task, source=REAL_DATA / task))
    assert dropped in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    for split, size, long in zip(("train", "test"), sizes, too_long, strict=True):
        rows = read_jsonl(f"data/{task}/{split}.jsonl", ())
        assert len(rows) == size and all(r["answer"] and r["task"] == task for r in rows)
        assert len(load_prompts(task, split, tokenizer, 256, 32768, 1024)) == size - long


@needs_real_data
def test_chat_template(small):
    """A prompt is as Qwen2.5-Instruct was trained to read it; a base model has no template."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "qwen2.5-tokenizer")
    row = load_prompts("arithmetic", "test", tokenizer, 0, 1000, 32, True)[5]
    assert tokenizer.decode(row["tokens"]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        f"<|im_end|>\n<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n")
    assert row["tokens"][0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert "has no chat template" in error(estimate_value, chat_template=True)


@needs_real_data
def test_benchmarks(tmp_path, monkeypatch):
    """Row counts are as published. Every reference answer in a box earns 1.0, and another row's
    answer 0.0 unless the two are equal."""
    counts = {"math500": 500, "minerva_math": 272, "olympiadbench": 675, "amc23": 40, "aime24": 30,
              "aime25": 30, "hmmt_feb_2024": 30, "hmmt_feb_2025": 30, "hmmt_nov_2025": 30}
    monkeypatch.chdir(tmp_path)
    prepare.main(arguments(prepare, task=",".join(counts), source=REAL_DATA))
    for task, count in counts.items():
        rows = read_jsonl(f"data/{task}/test.jsonl", ())
        assert len(rows) == count and os.listdir(f"data/{task}") == ["test.jsonl"]
        assert all(row["prompt"].endswith(r"the final answer within \boxed{}.") for row in rows)
        responses = [Response([], rf"So it is $\boxed{{{row['answer']}}}$.", False) for row in rows]
        graded = reward.grade(rows, responses)
        assert [row["answer"] for row, r in zip(rows, graded.rewards, strict=True) if r != 1] == []
        graded = reward.grade(rows, [*responses[1:], responses[0]])
        for row, other, r in zip(rows, [*rows[1:], rows[0]], graded.rewards, strict=True):
            assert r == reward.is_equivalent(row["answer"], other["answer"]), (row, other)
        assert sum(graded.rewards) < 0.1 * count
    levels = {row["level"] for row in read_jsonl("data/math500/test.jsonl", ())}
    assert levels == set("12345")
    hmmt = read_jsonl("data/hmmt_feb_2025/test.jsonl", ())
    assert {"Algebra", "Geometry", "Algebra, Number Theory"} <= {row["subject"] for row in hmmt}


def test_byte_tokenizer_is_lossless(small):
    """Through AutoTokenizer, which replaces the rules of tokenizers that it knows."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for text in ("47+86=?\n", "7+6+0=13,4+8+1=13\n#### 133", " a\tb\r\n\n é 漢 🙂 ",
                 *(chr(i) for i in range(1, 128))):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) == len(text.encode())


def test_a_prompt_of_exactly_the_limit_is_kept(small):
    """Both the limit of the user and the context of the model may be met: a prompt has 8 tokens."""
    assert len(load_prompts("arithmetic", "test", byte_tokenizer(), 8, 100, 32)) == 8
    assert len(load_prompts("arithmetic", "test", byte_tokenizer(), 0, 40, 32)) == 8
    with pytest.raises(ValueError, match="line 1: the prompt has more tokens than the 7"):
        load_prompts("arithmetic", "test", byte_tokenizer(), 0, 39, 32)


# ---- all stages ----------------------------------------------------------------------------------

@pytest.mark.slow
def test_stage_1(base):
    """There is something to learn: pass@1 is between 20% and 50%, pass@8 clearly higher. Shapes and
    types are as documented; V* follows from the rewards; responses.jsonl agrees."""
    values = torch.load(base / OUT / "values.pt", weights_only=True)
    for key, dtype in (("rewards", torch.float32), ("lengths", torch.int32),
                       ("finished", torch.bool)):
        assert values[key].shape == (256, 8) and values[key].dtype == dtype
    assert len(values["ids"]) == 256 and values["v_star"].dtype == torch.float32
    rewards = values["rewards"]
    assert 0.2 < rewards.mean() < 0.5 and rewards.max(1).values.mean() > rewards.mean() + 0.25
    torch.testing.assert_close(values["v_star"], 0.5 * (rewards / 0.5).exp().mean(1).log())
    rows = read_jsonl(base / OUT / "responses.jsonl", ())
    assert [row["id"] for row in rows] == values["ids"]
    assert [[s["reward"] for s in row["responses"]] for row in rows] == rewards.tolist()
    assert {"model", "prompts", "reward", "temperature", "max_response_tokens", "beta1", "seed",
            "versions"} <= set(values["meta"])


@pytest.mark.slow
def test_training_learns_arithmetic(workdir):
    """A quarter of the default run: sampled accuracy goes from under 0.5 to over 0.7. The metrics
    agree with the responses that are kept, and the model opens in transformers."""
    run("train_apo.py", "--max_steps=8", "--save_rollouts=4", cwd=workdir)
    metrics = metrics_of(OUT)
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
    values = load_values(f"{OUT}/values.pt")
    v_star = dict(zip(values["ids"], values["v_star"].tolist(), strict=True))
    for step in (4, 8):  # the batch of the step, and the evaluation after it
        m = metrics[step - 1]
        rollouts = read_jsonl(f"{OUT}/rollouts/step-{step:06d}.jsonl", ())
        assert len({r["id"] for r in rollouts}) == 256
        for key, numbers in (("reward", [r["reward"] for r in rollouts]),
                             ("v_star", [v_star[r["id"]] for r in rollouts]),
                             ("response_length", [len(r["tokens"]) for r in rollouts])):
            assert sum(numbers) / 256 == pytest.approx(m[key]), key
        assert all(r["sampled_logp"] < 0 for r in rollouts)
        evaluated = read_jsonl(f"{OUT}/eval-{step:06d}.jsonl", ())
        for key, kind in (("accuracy", "greedy"), ("accuracy_sampled", "samples")):
            assert sum(r[kind][0]["reward"] for r in evaluated) / len(evaluated) == m[key]
    assert len(os.listdir(f"{OUT}/rollouts")) == 2

    done = run("evaluate.py", "--max_prompts=128", "--samples_per_prompt=4", "--show=1",
               f"--kl_to={MODEL}", cwd=workdir)
    assert 1 <= done.stdout.count("---- response\n") <= 2
    assert re.search(r"---- arithmetic/test/\S+: reward 0, the answer is '\d+'\n", done.stdout)
    before, after = (json.loads((workdir / path / "eval.json").read_text())["arithmetic"]
                     for path in (MODEL, f"{OUT}/model"))
    assert before["avg@4"]["value"] < 0.5 and after["avg@4"]["value"] > 0.7
    assert before["avg@4"]["value"] < before["pass@2"]["value"] < before["pass@4"]["value"]
    assert before["kl_per_token"] == 0 and 0.005 < after["kl_per_token"] < 0.5
    assert after["kl_per_response"]["value"] == pytest.approx(
        after["kl_per_token"] * after["response_length"], rel=1e-3)
    run("report.py", OUT, cwd=workdir)
    assert os.path.getsize(f"{OUT}/curves.png") > 10_000
    for page in ("report.md", "model/README.md"):
        text = (workdir / OUT / page).read_text()
        assert f"{before['avg@4']['value']:.1%} [" in text, page
        assert f"{after['avg@4']['value']:.1%} [" in text, page

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = (c.from_pretrained(f"{OUT}/model")
                        for c in (AutoModelForCausalLM, AutoTokenizer))
    right = next(r for r in evaluated if r["greedy"][0]["reward"] == 1)
    ids = tokenizer(right["prompt"], return_tensors="pt").input_ids
    [tokens] = model.generate(ids, max_new_tokens=32, do_sample=False)
    assert (tokenizer.decode(tokens, skip_special_tokens=True)
            == right["prompt"] + right["greedy"][0]["text"])


@pytest.mark.slow
def test_a_task_of_ones_own_through_all_stages(tmp_path):
    """A Python file, whose rewards of 0.1 reach V*, the metrics and the evaluation as they are."""
    shutil.copy(REPO / "tasks/countdown.py", tmp_path / "mine.py")
    mine = ("--task=mine.py", "--max_response_tokens=64")
    out, task = tmp_path / "out/mine", reward.load_task("countdown")
    run("prepare.py", "--task=mine.py", "--base_steps=40", cwd=tmp_path)
    run("estimate_value.py", *mine, "--model=data/mine/model", "--max_prompts=32", cwd=tmp_path)
    values = load_values(out / "values.pt")
    by_hand = [[task.reward(s["text"], row["answer"], True) for s in row["responses"]]
               for row in read_jsonl(out / "responses.jsonl", ())]
    assert values["rewards"].tolist() == torch.tensor(by_hand).tolist()
    assert (values["rewards"] == 0.1).any()
    expected = 0.5 * (values["rewards"] / 0.5).exp().mean(1).log()
    torch.testing.assert_close(values["v_star"], expected)
    run("train_apo.py", *mine, "--model=data/mine/model", "--batch_size=32", "--max_steps=1",
        "--mini_batch_size=16", "--eval_prompts=16", "--save_rollouts=1", cwd=tmp_path)
    rollouts = read_jsonl(out / "rollouts/step-000001.jsonl", ())
    [m] = metrics_of(out)
    assert m["reward"] == pytest.approx(sum(r["reward"] for r in rollouts) / 32)
    run("evaluate.py", *mine, "--model=out/mine/model", "--max_prompts=16",
        "--samples_per_prompt=2", cwd=tmp_path)
    results = json.loads((out / "model/eval.json").read_text())["mine"]
    rewards = [s["reward"] for record in read_jsonl(out / "model/eval-mine.jsonl", ())
               for s in record["samples"]]
    assert results["avg@2"]["value"] == rewards.count(1) / 32
    if not {0.0, 1.0}.issuperset(rewards):
        assert results["reward"]["value"] == pytest.approx(sum(rewards) / 32)


# ---- interruptions -------------------------------------------------------------------------------

def cut(lines, path):
    """Leave of a file of responses what a kill leaves: 40 lines, and part of one. The first
    response is marked, to be known again; returns it."""
    marked = {**json.loads(lines[1]), "text": "#### 0"}
    path.write_text("\n".join([lines[0], json.dumps(marked), *lines[2:40], lines[40][:10]]))
    return marked


@pytest.mark.slow
def test_stage_1_continues_and_adds_what_is_missing(base, workdir):
    """Killed while sampling, it keeps what it had; asked for more samples it keeps the old ones;
    both end where an undisturbed run ends. Asked for fewer, it loses none."""
    folder, whole = workdir / "out/a", load_values(base / OUT / "values.pt")
    part = folder / "responses.part.1.0.jsonl"
    folder.mkdir()
    kept = [{"id": row["id"], "tokens": [1] * s["length"], **s}
            for row in read_jsonl(f"{OUT}/responses.jsonl", ()) for s in row["responses"]]
    kept.sort(key=lambda s: s["reward"], reverse=True)  # the marked one was right
    marked = cut([json.dumps(x) for x in (whole["meta"], *kept)], part)
    for fewer in (("--samples_per_prompt=4", "--max_prompts=64"), ("--max_prompts=256",)):
        run("estimate_value.py", "--out=out/a", *fewer, cwd=workdir)
    found = load_values(folder / "values.pt")
    assert found["ids"] == whole["ids"] and found["meta"] == whole["meta"] and not part.exists()
    changed = found["ids"].index(marked["id"])
    assert found["rewards"][changed, marked["sample"]] == 0 != marked["reward"]
    others = [i for i in range(256) if i != changed]
    for key in ("rewards", "lengths", "finished", "v_star"):
        assert torch.equal(found[key][others], whole[key][others]), key

    def texts():
        return {(row["id"], s["sample"]): s["text"]
                for row in read_jsonl("out/a/responses.jsonl", ()) for s in row["responses"]}

    before = texts()
    assert before[marked["id"], marked["sample"]] == "#### 0" and len(before) == 256 * 8
    run("estimate_value.py", "--out=out/a", "--samples_per_prompt=2", "--max_prompts=100",
        cwd=workdir)
    assert load_values(folder / "values.pt")["rewards"].shape == (100, 2) and texts() == before


@pytest.mark.slow
def test_an_evaluation_continues_and_adds_what_is_missing(workdir):
    """Asked for more samples or for the KL it samples only what it lacks; killed while sampling, it
    keeps what it had, and its results are those of an undisturbed one. Responses of other settings
    are sampled anew."""
    results = workdir / MODEL / "eval.json"

    def evaluated(*more):
        done = run("evaluate.py", f"--model={MODEL}", "--samples_per_prompt=4", *more, cwd=workdir)
        return json.loads(results.read_text())["arithmetic"], done.stdout

    whole, text = evaluated("--max_prompts=200")
    assert "greedy, engine 1 of 1" in text and "800/800" in text
    fewer, text = evaluated("--max_prompts=100", f"--kl_to={MODEL}")
    assert "engine" not in text and fewer["kl_per_token"] == 0 and fewer["prompts"] == 100
    [samples] = results.parent.glob("responses/arithmetic-samples-*.0.jsonl")
    marked = cut(samples.read_text().splitlines(), samples)
    again, text = evaluated("--max_prompts=200")
    assert "greedy, engine" not in text and "761/761" in text
    texts = {(r["id"], i): s["text"]
             for r in read_jsonl(results.parent / "eval-arithmetic.jsonl", ())
             for i, s in enumerate(r["samples"])}
    assert texts[marked["id"], marked["sample"]] == "#### 0"
    assert again["greedy"] == whole["greedy"]
    assert abs(again["avg@4"]["value"] - whole["avg@4"]["value"]) <= 1 / 800 + 1e-9
    more, text = evaluated("--max_prompts=200", "--samples_per_prompt=5")
    assert "200/200" in text and "greedy, engine" not in text and more["avg@5"]
    other, text = evaluated("--max_prompts=200", "--temperature=0.5")
    assert "greedy, engine" not in text and "samples, engine" in text
    assert other["avg@4"]["value"] != whole["avg@4"]["value"]


@pytest.mark.slow
def test_two_evaluations_of_one_model(workdir):
    """At the same time, each beside another model: all samples, and the results of both tasks, are
    in the folder of the model that they share."""
    for name in ("a", "b"):
        shutil.copytree(MODEL, name)
    shutil.copytree("data/arithmetic", "data/second")
    jobs = [subprocess.Popen(
        command("evaluate.py", f"--model={MODEL},{name}", f"--task={task}", "--max_prompts=16",
                "--samples_per_prompt=2"), env=environment(()), stdout=subprocess.DEVNULL)
        for name, task in (("a", "arithmetic,second"), ("b", "second"))]
    assert [job.wait() for job in jobs] == [0, 0]
    of_both = json.loads((workdir / MODEL / "eval.json").read_text())
    assert of_both == json.loads((workdir / "a/eval.json").read_text())
    assert of_both["second"] == json.loads((workdir / "b/eval.json").read_text())["second"]
    assert len(of_both) == 2


# ---- mistakes: one line, status 1, nothing lost --------------------------------------------------

@pytest.mark.parametrize("stage, constants, message", [
    (estimate_value, {"task": "nowhere"},
     "data/nowhere/train.jsonl: no such file; make it with: python prepare.py --task=nowhere"),
    (train_apo, {"out": "out/new"}, "out/new/values.pt: no such file; make it with estimate_value"),
    (evaluate, {"model": "no/such/model"}, "no/such/model: no config.json"),
    (estimate_value, {"model": "Qwen/no-such-model"}, "the hub did not give it"),
    (estimate_value, {"model": "some/gated-model"}, "if the model is gated or private, accept its "
     "licence on https://huggingface.co/some/gated-model and run `hf auth login`"),
    (estimate_value, {"keep_rewards": True}, "--keep_rewards=True: the rewards of which"),
    *((stage, {"model": MODEL, "chat_template_kwargs": '{"thinking": 0}'},
       "it needs --chat_template=True") for stage in (estimate_value, train_apo, evaluate)),
    (prepare, {"task": "gsm8k", "source": "nowhere"},
     "--source=nowhere: neither gsm8k/train.jsonl nor train.jsonl is there"),
    (prepare, {"task": "math,math50"}, "no task 'math50'; it can be arithmetic, countdown, "),
    (prepare, {"task": "math,amc23", "source": "test.jsonl"},
     "one file, but --task=math,amc23 names several"),
    (prepare, {"task": "gsm8k", "source": "test.jsonl"},
     "test.jsonl, row 1: no 'answer' in it, only question, solution"),
    (estimate_value, {"temperature": 0.5}, "sampled with temperature = 1.0, this run has 0.5"),
    (train_apo, {"temperature": 0}, "--temperature=0.0: "),
    (train_apo, {"beta2": 0}, "--beta2=0: nothing would be learned"),
    (train_apo, {"grad_clip": 0}, "--grad_clip=0: nothing would be learned"),
    (evaluate, {"temperature": 0}, "which would all be the greedy response"),
    (train_apo, {"batch_size": 17, "mini_batch_size": 17}, "--batch_size=17: there are 16 prompts"),
    (train_apo, {"mini_batch_size": 100}, "--mini_batch_size=100 does not divide --batch_size=256"),
    (train_apo, {"mini_batch_size": 256}, "--mini_batch_size=256 is not a multiple of the 3 proc"),
    (train_apo, {"dtype": "float16"}, "--dtype=float16: it must be float32 or bfloat16"),
    (train_apo, {"keep_checkpoints": 0}, "--keep_checkpoints=0: it must be at least 1"),
    (evaluate, {"model": f"{MODEL}, other"}, "other has another shape"),
    # A prompt has 8 tokens, and the model's context 1,024.
    (train_apo, {"max_response_tokens": 1017}, "more tokens than the 7 that the model's context"),
    *((stage, {"model": MODEL, "max_response_tokens": 1024},
       "--max_response_tokens=1024 leaves no room") for stage in (estimate_value, evaluate)),
    (estimate_value, {"max_prompt_tokens": 7}, "no prompt has at most 7 tokens"),
])
def test_mistakes(stage, constants, message, small, monkeypatch):
    write_jsonl("test.jsonl", [{"question": "1 + 1?", "solution": r"\boxed{2}"}] * 2)
    random_model(tiny_config()).save_pretrained("other")
    byte_tokenizer().save_pretrained("other")
    if "3 proc" in message:
        monkeypatch.setattr(train_apo, "world_size", 3)
    assert message in error(stage, **constants)


@pytest.mark.parametrize("change, message", [
    (lambda rows: [*rows, b'{"id": "x"'], "train.jsonl, line 17: not valid JSON"),
    (lambda rows: [*rows, b"", b'{"id": "\xff"}'], "train.jsonl, line 18: not valid JSON"),
    (lambda rows: [b'{"ix": 1}', *rows], "train.jsonl, line 1: no 'id'"),
    (lambda rows: [*rows, b"[1]"], "train.jsonl, line 17: no 'id'"),
    (lambda rows: [], "train.jsonl: empty"),
    (lambda rows: [*rows, rows[0]], "train.jsonl, line 17: id 'train/0' was used before"),
    (lambda rows: [rows[0].replace(b"10+20=?\\n", b"")], "line 1: the prompt is empty"),
    (lambda rows: [rows[0].replace(b'"30"', b"30")], "must be strings"),
    (lambda rows: [rows[0].replace(b'"arithmetic"', b'"chess"')], "no task 'chess'"),
])
def test_broken_data(change, message, small):
    path = small / "data/arithmetic/train.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    for stage in (estimate_value, train_apo):
        assert message in error(stage)


@pytest.mark.parametrize("part", ["model", "prompts", "reward", "temperature",
                                  "max_response_tokens", "file"])
def test_values_of_another_run_are_refused(part, small, monkeypatch):
    """Stage 2 names the part that differs, and changes nothing in the folder."""
    changes = {"temperature": {part: 0.7}, "max_response_tokens": {part: 31}}.get(part, {})
    if part == "model":
        path = small / MODEL / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif part == "prompts":
        path = small / "data/arithmetic/train.jsonl"
        path.write_text(path.read_text().replace("=?", "=!", 1))
    elif part == "reward":
        monkeypatch.setattr(reward, "fingerprint", lambda rows: "edited")
    elif part == "file":
        path = small / OUT / "values.pt"
        path.write_bytes(path.read_bytes()[:1000])
    before = {p: p.read_bytes() for p in (small / "out").rglob("*") if p.is_file()}
    message = error(train_apo, **changes)
    assert f"{OUT}/values.pt" in message
    assert ("not a whole values file" if part == "file" else f"another {part} than") in message
    assert before == {p: p.read_bytes() for p in (small / "out").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_command_line(small):
    """In a real process: exit status 1 and one line for a mistake; --help; nothing is imported that
    takes seconds or claims the GPU, and importing a stage runs nothing."""
    shutil.rmtree("out")
    done = run("train_apo.py", cwd=small, check=False, alone=True)
    assert done.returncode == 1 and done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"error: {OUT}/values.pt: no such file")
    text = run("baselines.grpo", "--help", cwd=small, alone=True).stdout
    assert "max_steps = 32" in text and "group_size = 8" in text
    assert "batch_size = 32 " in text and "batch_size = 256" not in text and "beta2" not in text
    code = ("import sys, prepare, estimate_value, train_apo, evaluate, baselines.grpo\n"
            "sys.exit('vllm' in sys.modules or 'matplotlib' in sys.modules)")
    os.mkdir("empty")
    done = subprocess.run([sys.executable, "-c", code], cwd="empty", text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir("empty") == []
