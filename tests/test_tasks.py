"""Tasks that users bring: a Python file, rows of their own, and published samples for stage 1."""
import json
import random
import re

import estimate_value
import prepare
import reward
import tasks
import train_apo
from lib.base_model import byte_tokenizer
from lib.data import load_prompts
from lib.files import read_jsonl, write_jsonl
from lib.published import published_rows, read_published
from lib.values import load_values

import datasets
import pytest
import torch
from conftest import REPO, cpu_only, metrics_of, run
from test_stages import SMALL, error

pytestmark = cpu_only
COUNTDOWN = str(REPO / "examples/countdown.py")
SHORT = ("--max_response_tokens=128", "--model=data/countdown/model")


# ---- a task file ---------------------------------------------------------------------------------

def test_countdown():
    """Every target can be made; test prompts are no training prompts; the reward gives 1, 0.1 or 0
    as it says; and responses of the base model are right about as often as they should be."""
    task = tasks.load_task(COUNTDOWN)
    train, test = list(task.rows("train")), list(task.rows("test"))
    assert len(train) == len(test) == 1024 and train == list(task.rows("train"))
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    for row in train + test:
        target, numbers = row["answer"].split(" from ")
        numbers = [int(n) for n in numbers.split()]
        assert row["prompt"].startswith(f"Make {target} from {', '.join(map(str, numbers))} with")
        assert task.attempts(numbers)[int(target)] and all(1 <= n <= 9 for n in numbers)
    for response, expected in (
            ("<answer>9-3-2</answer>", 1), ("<answer>9</answer> <answer>9-(2+3)</answer>", 1),
            ("<answer> 9 - 2 - 3 </answer>", 1), ("<answer>9+3-2</answer>", 0.1), ("9-3-2", 0),
            ("<answer>9-5</answer>", 0), ("<answer>9-3-2-2+2</answer>", 0),
            ("<answer>4</answer>", 0), ("<answer>9-3-2", 0), ("", 0),
            ("<answer>__import__('os')</answer>", 0)):
        assert task.reward(response, "4 from 3 9 2", True) == expected, response
    batch = list(task.pretraining_batch(random.Random(0), 500))
    texts = [(prompt, response, re.search(r"Make (\S+) ", prompt)[1],
              " ".join(re.findall(r"\d+", prompt.split("from")[1]))) for prompt, response in batch]
    rewards = [task.reward(response, f"{target} from {numbers}", True)
               for _, response, target, numbers in texts]
    assert set(rewards) == {0.1, 1} and 0.25 < rewards.count(1) / 500 < 0.5


def test_facts():
    """Solutions are right; the base model's are wrong by 1 in a column, as often as each fact is
    unknown; held-out prompts are in no other split."""
    facts = tasks.load_task(str(REPO / "examples/facts.py"))
    rows = {split: list(facts.rows(split)) for split in ("train", "test")}
    assert [len(rows[split]) for split in rows] == [1024, 256]
    prompts = {split: {row["prompt"] for row in rows[split]} for split in rows}
    assert len(prompts["train"]) == 1024 and not prompts["train"] & prompts["test"]
    assert all(facts.reward(row["solution"], row["answer"], True) == 1 for row in rows["train"])

    known, count = {}, {}
    for prompt, response in facts.pretraining_batch(random.Random(0), 20_000):
        assert prompt not in prompts["test"]
        right = True
        for fact, total in re.findall(r"(\d\+\d\+\d)=(\d+)", response):
            error = int(total) - sum(map(int, fact.split("+")))
            assert error in (-1, 0, 1)
            known.setdefault(fact, []).append(error == 0)
            right &= error == 0
        answer = str(sum(map(int, prompt.removesuffix("=?\n").split("+"))))
        assert not right or facts.reward(response, answer, True) == 1
    shares = [sum(of_fact) / len(of_fact) for of_fact in known.values() if len(of_fact) > 100]
    for share in shares:
        nearest = min((0.1, 0.5, 0.95), key=lambda p: abs(p - share))
        count[nearest] = count.get(nearest, 0) + 1
        assert abs(share - nearest) < 0.2
    assert len(shares) > 150 and count[0.95] > count[0.5] > count[0.1] > 15


def test_a_task_file_through_all_stages(tmp_path):
    """Its rewards of 0.1 reach V*, the loss and the evaluation, as they are."""
    run("prepare.py", f"--task={COUNTDOWN}", "--base_steps=60", cwd=tmp_path)
    run("estimate_value.py", f"--task={COUNTDOWN}", *SHORT, "--max_prompts=32", cwd=tmp_path)
    values = load_values(tmp_path / "out/countdown/values.pt")
    responses = read_jsonl(tmp_path / "out/countdown/responses.jsonl", ())
    task = tasks.load_task(COUNTDOWN)
    by_hand = [[task.reward(s["text"], row["answer"], True) for s in row["responses"]]
               for row in responses]
    assert values["rewards"].tolist() == torch.tensor(by_hand).tolist()
    assert values["rewards"].unique().tolist() == pytest.approx([0, 0.1]) or (
        0.1 in values["rewards"])
    expected = 0.5 * (values["rewards"] / 0.5).exp().mean(1).log()
    torch.testing.assert_close(values["v_star"], expected)
    run("train_apo.py", f"--task={COUNTDOWN}", *SHORT, *SMALL, "--max_steps=1", "--save_rollouts=1",
        cwd=tmp_path)
    rollouts = read_jsonl(tmp_path / "out/countdown/rollouts/step-000001.jsonl", ())
    [m] = metrics_of(tmp_path / "out/countdown")
    assert m["reward"] == pytest.approx(sum(r["reward"] for r in rollouts) / 32)
    run("evaluate.py", f"--task={COUNTDOWN}", "--model=out/countdown/model", "--max_prompts=16",
        "--max_response_tokens=128", "--samples_per_prompt=2", cwd=tmp_path)
    results = json.loads((tmp_path / "out/countdown/model/eval.json").read_text())["countdown"]
    records = read_jsonl(tmp_path / "out/countdown/model/eval-countdown.jsonl", ())
    rewards = [[s["reward"] for s in record["samples"]] for record in records]
    assert results["avg@2"]["value"] == sum(r == 1 for pair in rewards for r in pair) / 32
    if not {0.0, 1.0}.issuperset(r for pair in rewards for r in pair):
        assert results["reward"]["value"] == pytest.approx(sum(map(sum, rewards)) / 32)


ROWS = 'def rows(split):\n    return [{"prompt": "2 + 2?", "answer": "4"}] * 4\n'


@pytest.mark.parametrize("source, message", [
    (None, "mine.py: no such task file"),
    ("1 / 0\n", "mine.py can't be loaded: ZeroDivisionError: division by zero (mine.py, line 1)"),
    ("def rows(split)\n", "mine.py can't be loaded: SyntaxError: "),
    (ROWS, "mine.py defines no function reward(response, answer, finished)"),
    ("def reward(*_):\n    return 1\n", "mine.py defines no function rows(split)"),
    ("def rows(split):\n    return []\nreward = rows\n", "mine.py: the train split has no rows"),
    ("def rows(split):\n    return [{}['x']]\nreward = rows\n",
     "mine.py: rows('train') raised KeyError: 'x' (mine.py, line 2)"),
    ("def rows(split):\n    return [{'prompt': '?', 'answer': 4}]\nreward = rows\n",
     "answer = 4 is not a string"),
    ("def rows(split):\n    return [{'prompt': '?'}]\nreward = rows\n",
     "mine.py: row 1 of train has no 'answer' in it, only prompt"),
])
def test_task_files_that_are_wrong(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks.load_task.cache_clear()
    if source:
        (tmp_path / "mine.py").write_text(source)
    assert message in error(prepare, monkeypatch, task="mine.py")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] in ([], ["__pycache__"])


@pytest.mark.parametrize("body, message", [
    ("return 2", "returned 2, which is not a number from 0 to 1"),
    ("return '1'", "returned '1', which is not a number from 0 to 1"),
    ("return float('nan')", "returned nan, which is not a number from 0 to 1"),
    ("return None", "returned None, which is not a number from 0 to 1"),
    ("return [][1]", "raised IndexError: list index out of range (mine.py, line 2)"),
])
def test_rewards_that_are_wrong(body, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"def reward(response, answer, finished):\n    {body}\n{ROWS}"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError) as e:
        reward.grade([{"task": str(tmp_path / "mine.py"), "answer": "4"}], ["It is 4"], [False])
    assert message in str(e.value) and "\n" not in str(e.value)
    assert "for the response 'It is 4' and the answer '4'" in str(e.value)


def test_rewards_in_their_processes(tmp_path):
    """A number of any kind will do; what it prints disturbs nothing; the time limit holds."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n" + ROWS + "def reward(response, answer, finished):\n"
        "    print('here', response)\n"
        "    while response == 'hang':\n        pass\n"
        "    return {'numpy': np.float32(0.25), 'true': True, 'one': 1}.get(response, 0)\n")
    texts = ["numpy", "true", "hang", "one", "zero"]
    graded = reward.grade([{"task": str(tmp_path / "mine.py"), "answer": "4"}] * 5, texts,
                          [False] * 5)
    assert graded.rewards == [0.25, 1, 0, 1, 0]
    assert graded.timed_out == [False, False, True, False, False]


def test_a_task_file_is_part_of_the_fingerprint(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(response, answer, finished):\n    return 1\n" + ROWS)
    rows = [{"task": str(path)}]
    before, built_in = reward.fingerprint(rows), reward.fingerprint([{"task": "math"}])
    path.write_text(path.read_text().replace("1", "0", 1))
    assert reward.fingerprint(rows) != before
    assert reward.fingerprint([{"task": "math"}]) == built_in
    assert reward.fingerprint([{"task": "gsm8k"}]) != built_in  # another of our rewards


FAILS_IN_STEP_2 = """
import json
from pathlib import Path

def rows(split):
    lines = Path(f"data/arithmetic/{split}.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("prompt", "answer")} for line in lines]

def reward(response, answer, finished):
    metrics = Path("out/mine/metrics.jsonl")
    if metrics.exists() and metrics.read_text().count("\\n") == 2:
        raise RuntimeError("on purpose")
    return response.endswith(f"#### {answer}")
"""


@pytest.mark.slow
def test_a_reward_that_fails_during_training_loses_nothing(workdir):
    """One line, and a checkpoint of the steps before."""
    (workdir / "mine.py").write_text(FAILS_IN_STEP_2)
    mine = ("--task=mine.py", "--model=data/arithmetic/model")
    run("prepare.py", "--task=mine.py", cwd=workdir)
    run("estimate_value.py", *mine, "--max_prompts=128", cwd=workdir)
    assert 0.2 < load_values("out/mine/values.pt")["rewards"].mean() < 0.5
    failed = run("train_apo.py", *mine, *SMALL, cwd=workdir, check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stdout
    assert "error: step 2: the reward of task mine.py raised RuntimeError: on purpose" in (
        failed.stdout)
    assert [m["step"] for m in metrics_of("out/mine")] == [0, 1]
    assert (workdir / "out/mine/ckpt/step-000002").is_dir()


# ---- rows of one's own ---------------------------------------------------------------------------

def test_own_rows(tmp_path, monkeypatch):
    """One file: a tenth is held out, and rows keep their ids. A folder: both splits as they are."""
    monkeypatch.chdir(tmp_path)
    mine = [{"prompt": f"{i} + 1 = ?", "answer": str(i + 1), "id": f"q{i}"} for i in range(45)]
    write_jsonl("mine.jsonl", mine)
    run("prepare.py", "--source=mine.jsonl", "--reward=math", cwd=tmp_path)
    train, test = (read_jsonl(f"data/mine/{split}.jsonl", ()) for split in ("train", "test"))
    assert len(test) == 5 and {r["id"] for r in train + test} == {r["id"] for r in mine}
    assert not {r["id"] for r in train} & {r["id"] for r in test}
    assert all(row["task"] == "math" for row in train)
    loaded = load_prompts("mine", "test", byte_tokenizer(), 0, False, 99, reward.reward_of)
    graded = reward.grade(loaded, [rf"\boxed{{{r['answer']}}}" for r in loaded], [False] * 5)
    assert graded.rewards == [1.0] * 5
    write_jsonl("both/train.jsonl", mine[:3])
    write_jsonl("both/test.jsonl", [{"prompt": "?", "answer": "1"}])
    run("prepare.py", "--source=both", f"--reward={COUNTDOWN}", cwd=tmp_path)
    [row] = read_jsonl("data/both/test.jsonl", ())
    assert row == {"id": "both/test/0", "prompt": "?", "answer": "1", "task": COUNTDOWN}
    for settings, message in (
            ({"reward": "chess", "source": "mine.jsonl"}, "task 'chess' has no reward"),
            ({"reward": "math"}, "set --source to their file or folder"),
            ({"reward": "math", "source": "math.jsonl"}, "there is a built-in task math"),
            ({"reward": "math", "source": "nowhere"}, "neither nowhere/train.jsonl nor ")):
        assert message in error(prepare, monkeypatch, **settings)


# ---- published samples ---------------------------------------------------------------------------

@pytest.fixture
def published(workdir):
    """The base's 256 prompts x 8 samples in the paper's columns, other rewards at some."""
    rows = read_jsonl("out/arithmetic/responses.jsonl", ())
    samples = {(row["id"], s["sample"]): s for row in rows for s in row["responses"]}
    rng = random.Random(0)
    for s in samples.values():
        if rng.random() < 0.1:
            s["reward"] = 1 - s["reward"]
    rows = [{**row, "task": "arithmetic"} for row in rows]
    table = published_rows(rows, samples)
    assert {"prompt", "reward_model", "response_0", "response_7", "eval_7"} <= set(table[0])
    table.append({**table[0], "prompt": [{"role": "user", "content": "of another data set"}]})
    datasets.Dataset.from_list(table).to_parquet("published.parquet")
    return table


@pytest.mark.parametrize("beta1", [0.5, 0.0])
@pytest.mark.parametrize("keep_rewards", [True, False])
def test_published_samples(published, workdir, keep_rewards, beta1):
    """values.pt without sampling, from the published rewards or from ours; stage 2 takes it.
    beta1 = 0 is the mean."""
    before = load_values("out/arithmetic/values.pt")
    done = run("estimate_value.py", "--responses_from=published.parquet", "--out=out/p",
               f"--keep_rewards={keep_rewards}", f"--beta1={beta1}", cwd=workdir)
    values = load_values("out/p/values.pt")
    theirs = {t["prompt"][0]["content"]: [t[f"eval_{i}"] for i in range(8)] for t in published}
    prompts = {r["id"]: r["prompt"] for r in read_jsonl("data/arithmetic/train.jsonl", ())}
    of_theirs = torch.tensor([theirs[prompts[i]] for i in values["ids"]])
    ours = dict(zip(before["ids"], before["rewards"].tolist(), strict=True))
    of_ours = torch.tensor([ours[i] for i in values["ids"]])
    rewards = of_theirs if keep_rewards else of_ours
    assert torch.equal(values["rewards"], rewards) and not torch.equal(of_theirs, of_ours)
    expected = 0.5 * (rewards / 0.5).exp().mean(1).log() if beta1 else rewards.mean(1)
    torch.testing.assert_close(values["v_star"], expected)
    assert f"differs from the published rewards in {(of_theirs != of_ours).sum()} of 2,048" in (
        done.stdout)
    assert "responses to 256 of 1,024 prompts; 1 of its prompts are not used" in done.stdout
    # Tokens of a text: those that were sampled, but for few that no text is written with.
    assert (values["lengths"] == before["lengths"]).float().mean() > 0.99
    assert "sampling" not in done.stdout
    if keep_rewards and beta1:
        run("train_apo.py", "--out=out/p", *SMALL, "--max_steps=1", cwd=workdir)
        again = run("estimate_value.py", "--out=out/p", cwd=workdir, check=False)
        assert "was sampled with seed = published.parquet, this run has 0" in again.stdout


def test_published_samples_that_do_not_fit(published, workdir, monkeypatch):
    datasets.Dataset.from_list([{"prompt": "x", "response_0": "y"}]).to_parquet("columns.parquet")
    (workdir / "broken.parquet").write_bytes(b"PAR1")
    for source, message in (
            ("columns.parquet", "has no column response_1, response_2"),
            ("broken.parquet", "broken.parquet: not a parquet file"),
            ("nowhere.parquet", "--responses_from=nowhere.parquet: no such file"),
            ("no-such/data-set", "the hub did not give no-such/data-set")):
        assert message in error(estimate_value, monkeypatch, responses_from=source, out="out/p")
    rows = [{"id": "a", "prompt": "another"}]
    with pytest.raises(ValueError, match="none of its prompts is in data/"):
        read_published("published.parquet", rows, 8, byte_tokenizer(), 32)
    assert not (workdir / "out/p").exists() and train_apo.beta2 == 1e-3


def test_published_samples_at_the_limit(published):
    """A response of the limit's length, EOS included, ended by itself; a longer one did not."""
    rows = read_jsonl("data/arithmetic/train.jsonl", ())
    texts = {t["prompt"][0]["content"]: t["response_0"] for t in published}
    samples = read_published("published.parquet", rows, 1, byte_tokenizer(), 20)
    prompts = {r["id"]: r["prompt"] for r in rows}
    for (i, _), s in samples.items():
        size = len(texts[prompts[i]].encode()) + 1
        assert (s["length"], s["finished"]) == (min(size, 20), size <= 20)
    assert {s["finished"] for s in samples.values()} == {True, False}


def test_the_responses_are_uploaded_or_not(workdir):
    """Without a hub: one line, after the files are written."""
    done = run("estimate_value.py", "--push_to_hub=some/data", "--max_prompts=256", cwd=workdir)
    assert "warning: the hub did not take some/data (" in done.stdout
    assert done.stdout.index("wrote out/arithmetic") < done.stdout.index("warning: the hub")
