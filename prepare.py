"""Prompts and answers of tasks: data/<task>/{train,test}.jsonl, one JSON object per line with
"id", "task", "prompt", "answer" and "solution". Rows of chats also have "prompt_messages".

    python prepare.py                                     # arithmetic, with a small base model
    python prepare.py --task=gsm8k                        # from the Hugging Face hub
    python prepare.py --task=math500,minerva_math,amc23   # benchmarks: a test split only
    python prepare.py --task=math --source=path/to/math   # from {train,test}.jsonl in a folder
    python prepare.py --source=mine.jsonl --reward=math   # your rows, with "prompt" and "answer"
    python prepare.py --task=my_tasks/chess.py            # your task: its rows and its reward

A task is a file in tasks/, or yours: tasks/countdown.py shows how to write one. For a task that
defines pretraining_batch a base model is made, too: a Qwen2.5 with 1M parameters, pretrained here
in a minute.
"""
import codecs
import json
import os
import random
from functools import partial
from pathlib import Path

from lib.batches import pack
from lib.cli import REPOSITORY, check, configure, one_line_errors, progress
from lib.data import chat_fields, task_name
from lib.distributed import device, run_stage
from lib.files import atomic_dir, lock, read_jsonl, write_jsonl
from model import Config, Qwen2
from reward import gsm8k, last_boxed, load_task, math, one_line

import torch

task = "arithmetic"     # a file in tasks/, a benchmark of tasks/math.py, a path; or several
source = ""             # a file, or a folder: see source_rows; empty: the task's own rows
reward = ""             # for rows of your own in `source`: the task that grades them
seed = 0
base_steps = 500        # steps of pretraining a small base model; 0: data only
# --------------------------------------------------------------------------------------------------


# ---- rows ----------------------------------------------------------------------------------------

def source_rows(source, name, splits, seed, graded_by, row):
    """{split: data rows} of a task, from a local file or folder.

    In a folder they are in <task>/<split>.jsonl or <split>.jsonl; a benchmark, which has a test
    split only, is in <task>/test.jsonl or <task>.jsonl. Of a single file a random tenth of the
    rows, at most 500, is held out as the test split. graded_by, row: as in data_rows().
    """
    if os.path.isfile(source):
        rows = data_rows(source, name, read_rows(source), graded_by, row)
        if len(splits) == 1:
            return {splits[0]: rows}
        chosen = random.Random(seed).sample(range(len(rows)), min(-(-len(rows) // 10), 500))
        return {"train": [row for i, row in enumerate(rows) if i not in set(chosen)],
                "test": [rows[i] for i in chosen]}
    found = {}
    for split in splits:
        # A benchmark doesn't take <split>.jsonl, which may be another task's.
        names = (f"{name}/{split}", split if len(splits) > 1 else name)
        there = [path for stem in names for ending in (".jsonl", ".json", ".parquet")
                 if os.path.isfile(path := os.path.join(source, stem + ending))]
        if not there:
            raise FileNotFoundError(f"--source={source}: neither {names[0]}.jsonl nor "
                                    f"{names[1]}.jsonl is there (.json and .parquet do as well)")
        found[split] = data_rows(there[0], f"{name}/{split}", read_rows(there[0]), graded_by, row)
    return found


def read_rows(path):
    """The rows of a file: .parquet, .jsonl, or .json with either lines or one list."""
    try:
        if path.endswith(".parquet"):
            from pyarrow.parquet import read_table
            return read_table(path).to_pylist()
        content = Path(path).read_bytes() if path.endswith(".json") else b""
        if content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return json.loads(content)
        return read_jsonl(path, ())
    except ValueError as e:
        raise ValueError(f"{path} can't be read: {e}") from None


def task_rows(module, name, split):
    """The rows of a task's split. Raises ValueError with one line."""
    try:
        return list(module.rows(split))
    except Exception as e:  # the task file has a fault, or it can't reach the hub
        raise ValueError(f"{name}: rows({split!r}) raised {one_line(e)}. If it needs the hub, "
                         "--source=<a folder or file with its rows> does not") from e


def data_rows(where, prefix, originals, graded_by, row):
    """Data rows of original rows, without those that have no answer, or the prompt of an earlier
    row, which could be held out while this one is trained on.

    where: the originals' name, for messages; prefix: of ids, for rows that have none; graded_by:
    the task whose reward grades them; row: makes a data row of an original one, whose prompt may be
    a list of messages. Raises ValueError, naming the row, if one is wrong.
    """
    rows, ids, dropped = {}, set(), {}  # rows: {prompt: row}; dropped: {why: row numbers}
    for number, original in enumerate(originals, 1):
        try:
            check(isinstance(original, dict), f"no names and values, but {str(original)[:50]}")
            new = {"id": f"{prefix}/{number - 1}", "task": graded_by} | row(original)
            new |= {"id": str(new["id"]), "task": graded_by}
            if isinstance(new["prompt"], list):
                new |= chat_fields(new["prompt"])
            for key in ("prompt", "answer"):
                check(isinstance(new[key], str), f"{key} = {new[key]!r} is not a string")
                new[key].encode()  # raises ValueError for half of a surrogate pair
            check(new["prompt"].strip(), "the prompt is empty")
            why = "" if new["answer"].strip() else "no answer to grade by"
            if not why and (earlier := rows.get(new["prompt"])):
                why = ("an earlier row has the same prompt"
                       + " and another answer" * (earlier["answer"] != new["answer"]))
            check(why or new["id"] not in ids, f"the id {new['id']!r} was used before")
        except KeyError as e:
            raise ValueError(f"{where}, row {number}: no {e} in it, only {', '.join(original)}"
                             ) from None
        except Exception as e:
            text = e if isinstance(e, ValueError) else one_line(e)
            raise ValueError(f"{where}, row {number}: {text}") from None
        if why:
            dropped.setdefault(why, []).append(number)
        else:
            rows[new["prompt"]] = new
            ids.add(new["id"])
    for why, numbers in dropped.items():
        print(f"{where}: {len(numbers)} dropped: {why} (the first is row {numbers[0]})")
    check(rows, f"{where}: no rows")
    return list(rows.values())


def own_row(row, bare):
    """A data row of a user's row, which has "prompt" and "answer", or verl's columns.

    An answer that is not a string becomes JSON; null and NaN, which is pandas' null, become "".
    bare: join a list by commas; if the answer, or "solution" where it is missing, is a whole
    solution, take the final answer out of it.
    """
    answer = row["reward_model"]["ground_truth"] if "reward_model" in row else row["answer"]
    if bare and isinstance(answer, str) and answer.startswith('["'):  # a list as text
        answer = json.loads(answer)
    if bare and isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    if isinstance(answer, bool | list | dict):
        answer = json.dumps(answer, ensure_ascii=False, default=str)
    answer = "" if answer is None or answer != answer else str(answer)
    if bare:
        answer = (final_answer(answer) or answer.strip()
                  or final_answer(str(row.get("solution"))) or "")
    return row | {"answer": answer}


def final_answer(solution):
    """What is after the last ####, or in the last box; None if there is neither."""
    return (solution.rpartition("####")[2].strip() if "####" in solution
            else last_boxed(solution))


def write_splits(name, origin, splits):
    """Write data/<name>/<split>.jsonl of {split: data rows}. origin: the task's file, or that of a
    user's rows, which must not replace the data of a task in tasks/ or of a benchmark."""
    benchmark = name in load_task("math").BENCHMARKS
    built_in = REPOSITORY / "tasks" / ("math.py" if benchmark else f"{name}.py")
    check(not built_in.is_file() or built_in.samefile(origin), f"{origin}: data/{name} is for the "
          f"prompts of the built-in {name}; give your file or folder another name")
    check(all(splits.values()), f"{name}: one row is not enough for a train and a test split")
    train, test = ({row["prompt"] for row in splits.get(split, ())} for split in ("train", "test"))
    if train & test:
        print(f"warning: {name}: {len(train & test)} of {len(test)} test prompts are in train, too,"
              " so they are not held out; take them out of one of the two")
    lock(os.path.join("data", name))
    for split, rows in splits.items():
        path = f"data/{name}/{split}.jsonl"
        write_jsonl(path, rows)
        print(f"{path}: {len(rows):,} prompts")


# ---- small base models, to try a task without a GPU ----------------------------------------------

# Fields of model.Config: 1M parameters.
BASE_MODEL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
              "rope_theta": 10000.0, "initializer_range": 0.08}


def byte_tokenizer():
    """A Qwen2 tokenizer without merges: one token per byte, and <|endoftext|>.

    It must be a real Qwen2Tokenizer: transformers opens any checkpoint of this model type as one,
    and would replace the rules of a tokenizer made otherwise.
    """
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # GPT-2's byte alphabet
    end, character = "<|endoftext|>", bytes_to_unicode()
    return Qwen2Tokenizer(vocab={character[b]: b for b in range(256)}, merges=[], eos_token=end,
                          pad_token=end, unk_token=end)


def make_base_model(name, pretraining_batch, steps, seed):
    """data/<task>/model, pretrained with next-token cross-entropy on responses.

    pretraining_batch(rng, size): `size` pairs (prompt, response), both text. The learning rate
    rises for 100 steps, then it decays linearly to 0.
    """
    batch_size, lr = 32, 4e-3
    torch.manual_seed(seed)
    rng, tokenizer = random.Random(seed), byte_tokenizer()
    model = Qwen2(Config(vocab_size=len(tokenizer), **BASE_MODEL)).to(device)
    model.hf_config = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    bar = progress(range(steps), desc="pretraining the base model", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, (steps - step) / max(steps - 100, 1), 1)
        texts = zip(*pretraining_batch(rng, batch_size), strict=True)
        prompts, responses = (tokenizer(list(column))["input_ids"] for column in texts)
        responses = [r + [tokenizer.eos_token_id] for r in responses]
        batch = pack(range(batch_size), prompts, responses)
        logps = model.token_logps(batch.input_ids, batch.cu_seqlens,
                                  response_mask=batch.response_mask)                      # (T,)
        loss = -logps.sum() / batch.response_mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with atomic_dir(f"data/{name}/model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"data/{name}/model: {sum(p.numel() for p in model.parameters()):,} parameters")


# ---- the stage -----------------------------------------------------------------------------------

@one_line_errors()
def main(args):
    if args.reward:
        check(args.source, "--reward is for your own rows: set --source to their file or folder")
        # Other rewards may want to see more of an answer.
        bare = load_task(args.reward).reward in (gsm8k, math)
        path = Path(os.path.abspath(args.source))
        name = path.stem if path.is_file() else path.name
        write_splits(name, args.source, source_rows(
            args.source, name, ("train", "test"), args.seed, args.reward,
            partial(own_row, bare=bare)))
        return
    benchmarks = load_task("math").BENCHMARKS
    tasks = [name.strip() for name in args.task.split(",")]
    modules = {task: load_task("math" if task in benchmarks else task) for task in tasks}
    check(len(tasks) == 1 or not os.path.isfile(args.source),
          f"--source={args.source} is one file, but --task={args.task} names several tasks")
    for task, module in modules.items():
        name, is_benchmark = task_name(task), task in benchmarks
        splits = ("test",) if is_benchmark else ("train", "test")
        graded_by = "math" if is_benchmark else task
        if args.source:
            found = source_rows(args.source, name, splits, args.seed, graded_by,
                                getattr(module, "row", dict))
        else:
            found = {split: data_rows(f"{name}, {split} split", f"{name}/{split}", task_rows(
                module, task, task if is_benchmark else split), graded_by, dict)
                for split in splits}
        write_splits(name, module.__file__, found)
        if hasattr(module, "pretraining_batch") and args.base_steps:
            make_base_model(name, module.pretraining_batch, args.base_steps, args.seed)


if __name__ == "__main__":
    run_stage(main, configure(__file__), timeout_minutes=24 * 60.0, alone=True)
