"""Prompts and answers of tasks: data/<task>/{train,test}.jsonl, one JSON object per line with
"id", "task", "prompt", "answer" and "solution".

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
import os
import random
from pathlib import Path

from lib.base_model import BASE_MODEL, byte_tokenizer, pretrain
from lib.cli import check, configure, one_line_errors
from lib.data import task_name
from lib.distributed import device, run_stage, world_size
from lib.files import atomic_dir, read_jsonl, write_jsonl
from model import Config, Qwen2
from reward import load_task, one_line

import torch

task = "arithmetic"     # a file in tasks/, a benchmark of tasks/math.py, a path; or several
source = ""             # a .jsonl file, or a folder: see source_rows; empty: the task's own rows
reward = ""             # for rows of your own in `source`: the task that grades them
seed = 0
base_steps = 500        # steps of pretraining a small base model; 0: data only
# --------------------------------------------------------------------------------------------------


def source_rows(source, name, splits, seed):
    """{split: rows} of a task, from a local file or folder.

    In a folder they are in <task>/<split>.jsonl or <split>.jsonl; a benchmark, which has a test
    split only, is in <task>/test.jsonl or <task>.jsonl. A single file is the split that its name
    begins with; otherwise a random tenth of its rows, at most 500, is held out as the test split.
    """
    if os.path.isfile(source):
        rows = read_jsonl(source, ())
        for split in splits:
            if os.path.basename(source).startswith(split) or len(splits) == 1:
                return {split: rows}
        chosen = random.Random(seed).sample(range(len(rows)), min(-(-len(rows) // 10), 500))
        return {"train": [row for i, row in enumerate(rows) if i not in set(chosen)],
                "test": [rows[i] for i in chosen]}
    found = {}
    for split in splits:
        # A benchmark doesn't take <split>.jsonl, which may be another task's.
        files = [f"{name}/{split}.jsonl", f"{split if len(splits) > 1 else name}.jsonl"]
        there = [file for file in files if os.path.isfile(os.path.join(source, file))]
        if not there:
            raise FileNotFoundError(f"--source={source}: neither {' nor '.join(files)} is there")
        found[split] = read_jsonl(os.path.join(source, there[0]), ())
    return found


def task_rows(module, name, split):
    """The rows of a task's split. Raises ValueError with one line."""
    try:
        return list(module.rows(split))
    except Exception as e:  # the task file has a fault, or it can't reach the hub
        raise ValueError(f"{name}: rows({split!r}) raised {one_line(e)}. If it needs the hub, "
                         "--source=<a folder or file with its rows> does not") from e


def write_split(name, split, originals, graded_by, row=dict):
    """Write data/<name>/<split>.jsonl. graded_by: the task whose reward grades it; row: makes a
    data row of an original one."""
    rows = []
    for i, original in enumerate(originals):
        try:
            new = row(original)
            for key in ("prompt", "answer"):
                check(isinstance(new[key], str),
                      f"{name}: row {i + 1} of {split}: {key} = {new[key]!r} is not a string")
        except KeyError as e:
            raise ValueError(f"{name}: row {i + 1} of {split} has no {e} in it, only "
                             f"{', '.join(original)}") from None
        rows.append({"id": f"{name}/{split}/{i}", "task": graded_by} | new | {"task": graded_by})
    kept = [row for row in rows if row["answer"]]
    check(kept, f"{name}: the {split} split has no rows")
    path = f"data/{name}/{split}.jsonl"
    write_jsonl(path, kept)
    dropped = len(rows) - len(kept)
    print(f"{path}: {len(kept):,} prompts"
          + (f" ({dropped} dropped: no answer to grade by)" if dropped else ""))


def make_base_model(name, pretraining_batch, steps, seed):
    """data/<task>/model, pretrained on pretraining_batch(rng, size): pairs (prompt, response)."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    model = Qwen2(Config(vocab_size=len(tokenizer), **BASE_MODEL)).to(device)
    model.hf_config = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    pretrain(model, tokenizer, pretraining_batch, steps, seed)
    with atomic_dir(f"data/{name}/model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"data/{name}/model: {sum(p.numel() for p in model.parameters()):,} parameters")


@one_line_errors()
def main(args):
    check(world_size == 1, "prepare.py runs in one process: start it with python")
    if args.reward:
        check(args.source, "--reward is for your own rows: set --source to their file or folder")
        load_task(args.reward)
        name = Path(args.source).stem
        for split, rows in source_rows(args.source, name, ("train", "test"), args.seed).items():
            write_split(name, split, rows, args.reward)
        return
    benchmarks = load_task("math").BENCHMARKS
    names = [name.strip() for name in args.task.split(",")]
    modules = {name: load_task("math" if name in benchmarks else name) for name in names}
    check(len(names) == 1 or not os.path.isfile(args.source),
          f"--source={args.source} is one file, but --task={args.task} names several tasks")
    for name, module in modules.items():
        splits = ("test",) if name in benchmarks else ("train", "test")
        if args.source:
            found = source_rows(args.source, name, splits, args.seed)
        else:
            found = {split: task_rows(module, name, name if name in benchmarks else split)
                     for split in splits}
        for split, rows in found.items():
            write_split(task_name(name), split, rows, "math" if name in benchmarks else name,
                        getattr(module, "row", dict) if args.source else dict)
        if hasattr(module, "pretraining_batch") and args.base_steps:
            make_base_model(task_name(name), module.pretraining_batch, args.base_steps, args.seed)


if __name__ == "__main__":
    run_stage(main, configure(__file__), timeout_minutes=24 * 60.0)
