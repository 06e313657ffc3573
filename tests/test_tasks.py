"""Tasks: those with a base model of their own, and what users bring: a Python file, rows, published
samples."""
import json
import math
import os
import random
import re
from itertools import product
from pathlib import Path

import estimate_value
import prepare
import report
import reward
import train_apo
from baselines import grpo
from evaluate import measure
from lib.data import load_prompts
from lib.files import read_jsonl, write_jsonl
from lib.samples import Response, load_values, published_rows, read_published
from prepare import byte_tokenizer
from reward import load_task

import datasets
import pytest
import torch
from conftest import OUT, arguments, cpu_only, error, metrics_of

pytestmark = cpu_only


# ---- tasks with a base model ---------------------------------------------------------------------

def splits_of(name):
    """(task, training rows, test rows), which are always the same and have no prompt in common."""
    task = load_task(name)
    train, test = list(task.rows("train")), list(task.rows("test"))
    assert train == list(task.rows("train"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    return task, train, test


def test_arithmetic():
    """Solutions earn the reward, and no last digit is held out."""
    task, train, test = splits_of("arithmetic")
    assert (len(train), len(test)) == (1024, 512)
    for rows in (train, test):
        for row in rows:
            terms = row["prompt"].removesuffix("=?\n").split("+")
            assert int(row["answer"]) == sum(map(int, terms))
            assert task.reward(row["solution"], row["answer"], True) == 1
        assert len({int(row["answer"]) % 10 for row in rows}) == 10


def test_countdown():
    """Every target can be made; the reward is 1, 0.1 or 0; the base model's responses are right
    about as often as they should be."""
    task, train, test = splits_of("countdown")
    assert len(train) == len(test) == 1024
    for row in train + test:
        target, numbers = row["answer"].split(" from ")
        numbers = [int(n) for n in numbers.split()]
        assert row["prompt"].startswith(f"Make {target} from {', '.join(map(str, numbers))} with")
        assert task.attempts(numbers)[int(target)] and all(1 <= n <= 9 for n in numbers)
    for response, expected in (
            ("<answer>9-3-2</answer>", 1), ("<answer>9</answer> <answer>9-(2+3)</answer>", 1),
            ("<answer> 9 - 2 - 3 </answer>", 1), ("<answer>9+3-2</answer>", 0.1), ("9-3-2", 0),
            ("<answer>9-5</answer>", 0), ("<answer>9-3-2-2+2</answer>", 0),
            ("<answer>4</answer>", 0), ("<answer>9-3-2", 0), ("", 0), ("<answer>2*3-9</answer>", 0),
            ("<answer>9(3)-2</answer>", 0), ("<answer>(9)3-2</answer>", 0),
            ("<answer>__import__('os')</answer>", 0)):
        assert task.reward(response, "4 from 3 9 2", True) == expected, response
    row = {"id": "x", "task": "countdown", "prompt": "?", "answer": "4 from 3 9 2"}
    results, _ = measure([row], {"greedy": [[Response([1], "<answer>9+3-2</answer>", False)]]})
    assert (results["greedy"]["value"], results["reward"]["value"]) == (0, 0.1)  # not right
    rewards = []
    for prompt, response in task.pretraining_batch(random.Random(0), 500):
        target = re.search(r"Make (\S+) ", prompt)[1]
        numbers = " ".join(re.findall(r"\d+", prompt.split("from")[1]))
        rewards.append(task.reward(response, f"{target} from {numbers}", True))
    assert set(rewards) == {0.1, 1} and 0.25 < rewards.count(1) / 500 < 0.5


def test_facts():
    """Solutions are right. The base model's are wrong by 1 in a column, as often as each fact is
    unknown; it never sees a held-out prompt."""
    task, train, test = splits_of("facts")
    assert [len({row["prompt"] for row in rows}) for rows in (train, test)] == [1024, 256]
    assert all(task.reward(row["solution"], row["answer"], True) == 1 for row in train)
    known, count, held_out = {}, {}, {row["prompt"] for row in test}
    for prompt, response in task.pretraining_batch(random.Random(0), 20_000):
        assert prompt not in held_out
        for fact, total in re.findall(r"(\d\+\d\+\d)=(\d+)", response):
            error = int(total) - sum(map(int, fact.split("+")))
            assert error in (-1, 0, 1)
            known.setdefault(fact, []).append(error == 0)
    shares = [sum(of_fact) / len(of_fact) for of_fact in known.values() if len(of_fact) > 100]
    for share in shares:
        nearest = min((0.1, 0.5, 0.95), key=lambda p: abs(p - share))
        count[nearest] = count.get(nearest, 0) + 1
        assert abs(share - nearest) < 0.2
    assert len(shares) > 150 and count[0.95] > count[0.5] > count[0.1] > 15


# Of each kind: the conditions, a right response, and others with the share of conditions they meet.
RAIN = {"sentence": 5, "about": ["rain", "umbrella"]}
SEA = {"items": 3, "on_topic": ["fish", "whale", "crab"]}
INSTRUCTIONS = [
    (RAIN | {"at_most": 8}, "Rain is water from the sky.", {
        "Snow is water from the sky.": 2, "Rain is water.": 2, "Rain is water from the sky": 2,
        "Rain falls. It is water from the sky.": 2,
        "Rain is water that comes from the clouds above us.": 2}),
    (RAIN | {"has": "boots"}, 'She loves rain and her boots.', {
        'She loves rain and her "boots".': 2,
        "She loves rain and her boot.": 2, "She loves the sun and boots.": 2}),
    (RAIN | {"ends": "boots"}, "In the rain she wears boots!", {
        "She wears boots in the rain.": 2, "boots": 1, "Rain boots, rain boots, rain boots.": 0,
        "boots boots boots boots boots.": 0, "rain. boots": 2}),
    (RAIN | {"has": "hat", "at_most": 9}, "My hat is wet from the rain.", {
        "My hat is wet from the rain of this long day.": 3, "My head is wet now.": 2}),
    (RAIN | {"asks": True}, "Why does it rain in summer?", {"I like it when it rains.": 2}),
    (RAIN | {"case": "lower"}, "i like rain in the summer.", {"I like rain in the summer.": 2}),
    (SEA | {"numbers": True}, "1. Fish\n2. Blue whales\n3. Shrimp", {
        "1. Fish\n2. Whales": 2, "1. Fish\n3. Whales\n2. Crabs": 2, "1. Fish, crabs, whales": 2}),
    (SEA | {"dashes": True}, "- Fish\n- Blue whales\n- Shrimp", {
        "- Fish\n- Crabs": 2, "1. Fish\n2. Crabs\n3. Whales": 2, "Fish, crabs, whales": 2,
        "- A few words\n- Fish\n- Crab": 0, "- \n- \n- ": 0,
        "- Fish\n- Fish\n- Fish": 0, "- Oak\n- Birch\n- Pine": 2,
        "Sure:\n- Fish\n- Whale": 2, "- Fish are quick and live in water\n- Whales\n- Crabs": 2}),
    (SEA | {"commas": True}, "Fish, blue whales, and shrimp.", {
        "Fish, whales and crabs": 2, "Fish\nWhales\nCrabs": 2, ", , ,": 0}),
]


@pytest.mark.parametrize("asked, right, others", INSTRUCTIONS)
def test_the_reward_of_instructions(asked, right, others):
    """1 if all conditions hold, half their share otherwise; 0 for what isn't an attempt: nothing,
    no end, one word again and again, the prompt itself."""
    prompt = "Please write about rain and boots, or list the fish and whales and crabs."
    answer = json.dumps({"prompt": prompt, "asked": asked})
    task = load_task("instructions")
    assert task.reward(right, answer, True) == task.reward(f"\n{right} ", answer, True) == 1
    for response, holds in others.items():
        assert task.reward(response, answer, True) == 0.5 * holds / len(asked), response
    for response in ("", "...", prompt, prompt.upper(), f"{right} {right}", "rain " * 9):
        assert task.reward(response, answer, True) == 0, response
    assert task.reward(right, answer, False) == 0


def test_the_prompts_of_instructions():
    """All kinds are in both splits, no prompt is in both, a held-out topic is in one only, and the
    prompt itself earns nothing."""
    task = load_task("instructions")
    train, test = (list(task.rows(split)) for split in ("train", "test"))
    assert len(train) > 700 and len(test) > 240 and train == list(task.rows("train"))
    for rows in (train, test):
        assert {row["subject"] for row in rows} == set(task.KINDS)
        assert len({row["prompt"] for row in rows}) == len(rows)
        for row in rows:
            assert task.reward(row["prompt"], row["answer"], True) == 0, row
            assert (" about rain" in row["prompt"].lower()) <= (rows is test)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}


# ---- a user's task file --------------------------------------------------------------------------

ROWS = "def rows(split):\n    return [%s]\nreward = rows\n"


@pytest.mark.parametrize("source, message", [
    (None, "there is no task 'mine.py'; it can be arithmetic, countdown, facts, gsm8k, instructions"
           ", math, or"),
    ("1 / 0\n", "mine.py can't be loaded: ZeroDivisionError: division by zero (mine.py, line 1)"),
    ("def rows(split)\n", "mine.py can't be loaded: SyntaxError: "),
    ("rows = 1\n", "rows(split)"),
    ("def rows(split):\n    return []\n", "reward(response, answer, finished)"),
    (ROWS % "", "mine, train split: no rows"),
    (ROWS % "{}['x']", "mine.py: rows('train') raised KeyError: 'x' (mine.py, line 2)"),
    (ROWS % "{'prompt': '?', 'answer': 4}", "answer = 4 is not a string"),
    (ROWS % "{'prompt': '?'}", "mine, train split, row 1: no 'answer' in it, only prompt"),
    (ROWS % "{'prompt': ' ', 'answer': '4'}", "mine, train split, row 1: the prompt is empty"),
])
def test_task_files_that_are_wrong(source, message, tmp_path, monkeypatch):
    """One line names the file."""
    monkeypatch.chdir(tmp_path)
    load_task.cache_clear()
    if source:
        (tmp_path / "mine.py").write_text(source)
    said = error(prepare, task="mine.py")
    assert message in said and "mine" in said
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] in ([], ["__pycache__"])


FAILS_IN_STEP_2 = """
import json
from pathlib import Path

def rows(split):
    lines = Path(f"data/arithmetic/{split}.jsonl").read_text().splitlines()
    return [{key: json.loads(line)[key] for key in ("prompt", "answer")} for line in lines]

def reward(response, answer, finished):
    metrics = Path(__file__).with_name("metrics.jsonl")
    if metrics.exists() and metrics.read_text().count("\\n") == 2:
        raise RuntimeError("on purpose")
    return response.endswith(f"#### {answer}")
"""


def test_a_reward_that_fails_during_training_loses_nothing(train, small):
    """Its traceback says what failed, and a checkpoint has the steps before."""
    path = small / OUT / "mine.py"
    path.write_text(FAILS_IN_STEP_2)
    prepare.main(arguments(prepare, task=path))
    with pytest.raises(SystemExit, match="(?s)error: step 2: for the response .*/mine.py raised "
                                         "this:.*RuntimeError: on purpose"):
        train(grpo, task=path, group_size=2, max_steps=3, save_every=0)
    assert [m["step"] for m in metrics_of(OUT)] == [0, 1]
    assert (small / OUT / "ckpt/step-000002").is_dir()


# ---- a user's rows -------------------------------------------------------------------------------

def test_own_rows(tmp_path, monkeypatch, capsys):
    """One file: a random tenth is held out, and rows keep their ids. A folder: both splits stay as
    they are. A reward of one's own reads the whole answer."""
    monkeypatch.chdir(tmp_path)
    load_task.cache_clear()
    mine = [{"prompt": f"{i}+{i}=?\n", "answer": str(2 * i), "id": f"q{i}"} for i in range(45)]
    write_jsonl("mine.jsonl", mine)
    prepare.main(arguments(prepare, source="mine.jsonl", reward="gsm8k"))
    train, test = (read_jsonl(f"data/mine/{split}.jsonl", ()) for split in ("train", "test"))
    assert len(test) == 5 and {r["id"] for r in train + test} == {r["id"] for r in mine}
    assert not {r["id"] for r in train} & {r["id"] for r in test}
    loaded = load_prompts("mine", "test", byte_tokenizer(), 0, 99, 9)
    graded = reward.grade(loaded, [Response([], f"#### {r['answer']}", False) for r in loaded])
    assert graded.rewards == [1.0] * 5
    write_jsonl("both/train.jsonl", mine[:3])
    write_jsonl("both/test.jsonl", [{"prompt": "?", "answer": "1"}, {"prompt": "?", "answer": ""}])
    prepare.main(arguments(prepare, source="both", reward="countdown"))
    [row] = read_jsonl("data/both/test.jsonl", ())
    assert row == {"id": "both/test/0", "task": "countdown", "prompt": "?", "answer": "1"}
    assert "both/test.jsonl: 1 dropped: no answer to grade by (the first is row 2)" in (
        capsys.readouterr().out)
    (tmp_path / "mine.py").write_text("def rows(split): ...\ndef reward(*arguments): ...\n")
    for settings, message in (({"reward": "chess", "source": "mine.jsonl"}, "no task 'chess'"),
                              ({"reward": "math"}, "set --source to their file or folder")):
        assert message in error(prepare, **settings)


@pytest.mark.parametrize("answer, text", [
    ('["#### 1"]', '["#### 1"]'), (" 4\n", " 4\n"), (4, "4"), (0.5, "0.5"), (True, "true"),
    (["a, b", "it's"], '["a, b", "it\'s"]'), ({"é": [1, None]}, '{"é": [1, null]}')])
def test_an_own_reward_reads_the_answer_as_the_row_has_it(answer, text, tmp_path, monkeypatch):
    """What is not a string is JSON. The rewards of this repository compare text: a list is joined.
    """
    monkeypatch.chdir(tmp_path)
    load_task.cache_clear()
    (tmp_path / "own.py").write_text("def rows(split): ...\ndef reward(*arguments): ...\n")
    write_jsonl("mine.jsonl", [{"prompt": f"{i}?", "answer": answer} for i in range(2)])
    prepare.main(arguments(prepare, source="mine.jsonl", reward="own.py"))
    assert read_jsonl("data/mine/train.jsonl", ())[0]["answer"] == text
    if isinstance(answer, list):
        prepare.main(arguments(prepare, source="mine.jsonl", reward="math"))
        assert read_jsonl("data/mine/train.jsonl", ())[0]["answer"] == "a, b, it's"


def test_held_out_prompts_are_not_trained_on(tmp_path, monkeypatch, capsys):
    """Of rows with one prompt the first that has an answer stays, before a file is split. Between
    the files of a folder, a warning."""
    monkeypatch.chdir(tmp_path)
    answers = ["", *("1" * 50), *("2" * 3)]
    write_jsonl("mine.jsonl", [{"prompt": f"{i}?", "answer": answer, "id": f"{i}/{answer or 1}"}
                               for answer in answers for i in range(20)])
    prepare.main(arguments(prepare, source="mine.jsonl", reward="math"))
    train, test = (read_jsonl(f"data/mine/{split}.jsonl", ()) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)
    assert {row["prompt"] for row in train + test} == {f"{i}?" for i in range(20)}
    assert {row["answer"] for row in train + test} == {"1"}
    said = capsys.readouterr().out
    for line in ("20 dropped: no answer to grade by (the first is row 1)",
                 "980 dropped: an earlier row has the same prompt (the first is row 41)",
                 "60 dropped: an earlier row has the same prompt and another answer (the first is "
                 "row 1021)"):
        assert f"mine.jsonl: {line}\n" in said
    assert "warning" not in said
    write_jsonl("both/train.jsonl", train)
    write_jsonl("both/test.jsonl", [*test, *train[:3]])
    prepare.main(arguments(prepare, source="both", reward="math"))
    assert "warning: both: 3 of 5 test prompts are in train, too" in capsys.readouterr().out


def test_names_of_data(tmp_path, monkeypatch):
    """A folder's whole name counts. What a user has doesn't replace the data of a built-in task or
    of a benchmark; the same task under its path may, and a task of one's own knows its rows."""
    monkeypatch.chdir(tmp_path)
    load_task.cache_clear()
    rows = [{"prompt": f"{i}?", "answer": "1"} for i in range(2)]
    for name in ("rl.v1.1/", "rl.v1.2"):
        write_jsonl(f"{name}/train.jsonl", rows)
        write_jsonl(f"{name}/test.jsonl", rows)
        prepare.main(arguments(prepare, source=name, reward="math"))
    assert sorted(os.listdir("data")) == ["rl.v1.1", "rl.v1.2"]
    own = f"def rows(split):\n    return {rows}\ndef reward(*arguments): ...\n"
    for path in ("a/gsm8k.py", "a/amc23.py", "a/chess.py", "b/chess.py"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(own)
    write_jsonl("amc23.jsonl", rows)
    write_jsonl("facts/train.jsonl", rows)
    write_jsonl("facts/test.jsonl", rows)
    for settings in ({"task": "a/gsm8k.py"}, {"task": "a/amc23.py"},
                     {"source": "amc23.jsonl", "reward": "math"},
                     {"source": "facts", "reward": "math"}):
        assert "give your file or folder another name" in error(prepare, **settings)
    assert len(os.listdir("data")) == 2
    prepare.main(arguments(prepare, task=reward.__file__.replace("reward.py", "tasks/facts.py"),
                           base_steps=0))
    prepare.main(arguments(prepare, task="a/chess.py"))
    for task in ("a/chess.py", str(tmp_path / "a/chess.py")):
        assert len(load_prompts(task, "test", byte_tokenizer(), 0, 99, 9)) == 2
    with pytest.raises(ValueError, match="line 1: the prompt is one of the task a/chess.py; make "
                                         "those of b/chess.py with: "):
        load_prompts("b/chess.py", "test", byte_tokenizer(), 0, 99, 9)


def test_prompts_of_several_messages(tmp_path, monkeypatch):
    """All messages are in the template, in the published columns and in the model card. Without a
    template they are refused. A user's only message is a prompt as any other."""
    monkeypatch.chdir(tmp_path)
    load_task.cache_clear()
    chats = [[("system", "Think."), ("user", "1+1=?")], [("system", "Guess."), ("user", "1+1=?")],
             [("user", "a"), ("assistant", "b"), ("user", "c")], [("system", "Write.")]]
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    plain = [{"role": "user", "content": "2=?"}]
    for split, prompts in (("train", [*chats, plain]), ("test", [plain, "3=?"])):
        write_jsonl(f"mine/{split}.jsonl", [{"prompt": p, "answer": "2"} for p in prompts])
    prepare.main(arguments(prepare, source="mine", reward="math"))
    own = f"def rows(split):\n    yield {{'prompt': {chats[0]}, 'answer': '2'}}\nreward = rows\n"
    (tmp_path / "own.py").write_text(own)
    prepare.main(arguments(prepare, task="own.py"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")

    def load(task, split, *template):
        return load_prompts(task, split, tokenizer, 0, 99, 9, *template)

    rows = load("mine", "train", True)
    assert [tokenizer.decode(row["tokens"]) for row in rows] == [
        "<system>Think.<user>1+1=?<assistant>", "<system>Guess.<user>1+1=?<assistant>",
        "<user>a<assistant>b<user>c<assistant>", "<system>Write.<assistant>",
        "<user>2=?<assistant>"]
    assert rows[0]["prompt"] == "system: Think.\n\nuser: 1+1=?" and rows[4]["prompt"] == "2=?"
    assert load("own.py", "test", True)[0]["tokens"] == rows[0]["tokens"]
    assert [row["tokens"] for row in load("mine", "test")] == [[*b"2=?"], [*b"3=?"]]
    with pytest.raises(ValueError, match="train.jsonl, line 1: the prompt is a chat of 2 messages; "
                                         "set --chat_template=True in all stages"):
        load("mine", "train")

    samples = {(row["id"], 0): {"text": f"{i}", "reward": 0.0} for i, row in enumerate(rows)}
    table = published_rows(rows, samples)
    assert [row["prompt"] for row in table] == [*chats, plain]
    datasets.Dataset.from_list(table).to_parquet("published.parquet")
    published = read_published("published.parquet", rows, 1, tokenizer, 9)
    assert {key: s["text"] for key, s in published.items()} == {
        key: s["text"] for key, s in samples.items()}
    _, records = measure(rows, {"greedy": [[Response([1], "2", False)] for _ in rows]})
    card = report.model_card("m", {"model": "a/b", "task": "x", "max_response_tokens": 9,
                                   "chat_template": True}, records[0]["prompt_messages"])
    assert f"llm.chat({chats[0]!r}, params)\n" in card


def test_the_limit_of_a_prompt(small):
    """--max_prompt_tokens never lets through what the model's context has no room for."""
    for limit, context in ((8, 40), (9, 40), (99, 40)):
        assert len(load_prompts("arithmetic", "test", byte_tokenizer(), limit, context, 32)) == 8
    for limit, context in ((7, 99), (8, 39), (99, 39)):
        with pytest.raises(ValueError, match="no prompt has at most 7 tokens"):
            load_prompts("arithmetic", "test", byte_tokenizer(), limit, context, 32)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# Their prompts differ, because equal ones are one row.
ROW, VERL = {"prompt": "1+1=?", "answer": "2"}, {
    "prompt": [{"role": "user", "content": "1+1=?"}], "reward_model": {"ground_truth": "2"}}
ROW_2, VERL_2 = ROW | {"prompt": "2=?"}, VERL | {"prompt": [{"role": "user", "content": "2=?"}]}
BOM = "\ufeff"


@pytest.mark.parametrize("name, content", [
    ("mine.jsonl", lines(ROW, ROW_2) + "\n"), ("mine.json", lines(ROW, ROW_2)),
    ("mine.json", json.dumps([ROW, ROW_2], indent=1)), ("mine.parquet", [ROW, ROW_2]),
    ("mine.json", BOM + json.dumps([ROW, ROW_2], indent=1)), ("mine.json", BOM + lines(ROW, ROW_2)),
    ("mine.jsonl", lines(VERL, VERL_2)), ("mine.parquet", [VERL, VERL_2]),
    ("train.jsonl", lines(ROW, ROW_2)),
    ("mine.jsonl", lines({**ROW, "answer": 2, "note": "\ud83d"}, {**ROW_2, "answer": ["2"]})),
    ("mine.jsonl", lines({**ROW, "answer": "#### 3? No:\n#### 2"}, {**ROW_2, "answer": '["2"]'})),
    ("mine.jsonl", lines({**ROW, "answer": r"So $\boxed{2}$."},
                         {**ROW_2, "answer": None, "solution": r"It is \boxed{2}."})),
    ("mine.jsonl", lines({**ROW, "answer": math.nan, "solution": "#### 2"}, {**ROW_2, "answer": 2},
                         *({"prompt": f"{answer!r}?", "answer": answer, "solution": math.nan}
                           for answer in (math.nan, " \n", "", None)))),
    ("mine.jsonl", lines({**ROW, "id": ["a", 1]}, {**ROW_2, "id": 2}))])
def test_rows_as_people_have_them(name, content, tmp_path, monkeypatch):
    """Files of several kinds, verl's columns, numbers, and solutions instead of bare answers."""
    monkeypatch.chdir(tmp_path)
    if name.endswith(".parquet"):
        datasets.Dataset.from_list(content).to_parquet(name)
    else:
        (tmp_path / name).write_text(content)
    prepare.main(arguments(prepare, source=name, reward="gsm8k"))
    folder = f"data/{name.partition('.')[0]}"
    for split in ("train", "test"):
        [row] = load_prompts(folder.removeprefix("data/"), split, byte_tokenizer(), 0, 99, 9)
        assert row["prompt"] in ("1+1=?", "2=?")
        assert (row["answer"], row["task"]) == ("2", "gsm8k")


@pytest.mark.parametrize("name, content, message", [
    ("mine.jsonl", lines(ROW, ["1+1=?", "2"]), "mine.jsonl, row 2: no names and values, but ['1"),
    ("mine.json", "[1", "mine.json can't be read: Expecting ',' delimiter"),
    ("mine.parquet", "PAR1", "mine.parquet can't be read: "),
    ("mine.jsonl", lines(ROW, {"prompt": "?"}), "mine.jsonl, row 2: no 'answer' in it, only pr"),
    ("mine.jsonl", lines(ROW, {**VERL, "prompt": [{"role": "assistant", "content": "2"}]}),
     "mine.jsonl, row 2: the prompt ends with the assistant's message"),
    ("mine.jsonl", lines(ROW, {**ROW, "prompt": ""}), "mine.jsonl, row 2: the prompt is empty"),
    ("mine.jsonl", lines(ROW, {**ROW, "prompt": []}), "mine.jsonl, row 2: the prompt is empty"),
    ("mine.jsonl", lines(ROW, {**ROW, "prompt": "\ud83d"}), ": 'utf-8' codec can't encode"),
    ("mine.jsonl", lines({**ROW, "id": 1}, {**ROW_2, "id": 1}), "row 2: the id '1' was used"),
    ("mine.jsonl", lines({**ROW, "answer": None}), "mine.jsonl: no rows"),
    ("mine.jsonl", lines(ROW), "mine: one row is not enough for a train and a test split")])
def test_rows_that_can_not_be_read(name, content, message, tmp_path, monkeypatch):
    """One line names the file or the row. Nothing is written, not even the split that is right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content)
    assert message in error(prepare, source=name, reward="gsm8k")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number, held_out", [(10, 1), (11, 2), (4990, 499), (5000, 500),
                                              (5010, 500)])
def test_the_held_out_tenth(number, held_out, tmp_path):
    """It is rounded up, is at most 500 rows, and depends on the seed."""
    path = tmp_path / "mine.jsonl"
    write_jsonl(path, [{"prompt": f"{i}?", "answer": "1"} for i in range(number)])

    def found_with(seed):
        return prepare.source_rows(str(path), "mine", ("train", "test"), seed, "math", dict)

    found = found_with(0)
    assert len(found["test"]) == held_out
    ids = {r["id"] for r in found["train"] + found["test"]}
    assert ids == {f"mine/{i}" for i in range(number)}
    assert number < 4990 or found_with(1)["test"] != found["test"]


# ---- published samples ---------------------------------------------------------------------------

@pytest.mark.parametrize("keep_rewards, beta1", [(True, 0.5), (True, -1.0), (False, 0.0)])
def test_published_samples(keep_rewards, beta1, train, capsys):
    """values.pt is made without sampling, from the published rewards or from ours; stage 2 takes
    it. A response of exactly the limit's length, EOS included, ended by itself, a longer one did
    not, and earns nothing on MATH. beta1 = 0 is the mean, a negative one is 0. Without a hub a
    warning follows, after the files are written."""
    for split in ("train", "test"):
        file = Path(f"data/arithmetic/{split}.jsonl")
        file.write_text(file.read_text().replace('"arithmetic"', '"math"'))
    rng, rows, samples = random.Random(0), read_jsonl("data/arithmetic/train.jsonl", ())[:15], {}
    for row, i in product(rows, range(8)):  # texts of 10 to 17 bytes
        right = rng.random() < 0.5
        samples[row["id"], i] = {
            "text": f"{'.' * i}\\boxed{{{int(row['answer']) + 1 - right}}}",
            "right": float(right and i < 5), "reward": float(right != (rng.random() < 0.1))}
    table = published_rows(rows, samples)
    assert {"prompt", "reward_model", "response_0", "response_7", "eval_7"} <= set(table[0])
    table.append({**table[0], "prompt": [{"role": "user", "content": "of another data set"}]})
    datasets.Dataset.from_list(table).to_parquet("published.parquet")

    settings = {"out": "out/p", "temperature": 0.7, "max_response_tokens": 15}
    estimate_value.main(arguments(
        estimate_value, **settings, responses_from="published.parquet", keep_rewards=keep_rewards,
        beta1=beta1, push_to_hub="some/data"))
    values, said = load_values("out/p/values.pt"), capsys.readouterr().out
    assert values["ids"] == [row["id"] for row in rows]
    theirs, ours = (torch.tensor([[samples[i, k][name] for k in range(8)] for i in values["ids"]])
                    for name in ("reward", "right"))
    rewards = theirs if keep_rewards else ours
    assert torch.equal(values["rewards"], rewards) and not torch.equal(theirs, ours)
    expected = {0.5: 0.5 * (rewards / 0.5).exp().mean(1).log(), 0.0: rewards.mean(1),
                -1.0: torch.zeros(15)}
    torch.testing.assert_close(values["v_star"], expected[beta1])
    assert values["lengths"].tolist() == [[11, 12, 13, 14, 15, 15, 15, 15]] * 15
    assert values["finished"].tolist() == [[True] * 5 + [False] * 3] * 15
    assert "responses to 15 of 16 prompts; it has 16 prompts" in said and "sampling" not in said
    assert f"differs from the published rewards in {(theirs != ours).sum()} of 120" in said
    assert said.index("wrote out/p") < said.index("warning: the hub did not take some/data (")
    train(train_apo, **settings, max_steps=1)
    assert "was sampled with seed = published.parquet, this run has 0" in error(
        estimate_value, **settings)


def test_published_samples_that_do_not_fit(small):
    datasets.Dataset.from_list([{"prompt": "x", "response_0": "y"}]).to_parquet("columns.parquet")
    (small / "broken.parquet").write_bytes(b"PAR1")
    for source, message in (
            ("columns.parquet", "has no column response_1, response_2"),
            ("broken.parquet", "broken.parquet can't be read"),
            ("nowhere.parquet", "nowhere.parquet can't be read (FileNotFoundError)"),
            ("no-such/data-set", "no-such/data-set can't be read")):
        assert message in error(estimate_value, responses_from=source, out="out/p")
