"""Prompts and answers of tasks: data/<task>/{train,test}.jsonl, one JSON object per line with
"id", "task", "prompt", "answer" and "solution". The tasks are listed in tasks.py.

    python prepare.py                                     # arithmetic, with a small base model
    python prepare.py --task=gsm8k                        # from the Hugging Face hub
    python prepare.py --task=math500,minerva_math,amc23   # benchmarks: a test split only
    python prepare.py --task=math --source=path/to/math   # from {train,test}.jsonl in a folder
    python prepare.py --source=mine.jsonl --reward=math   # your rows, with "prompt" and "answer"
    python prepare.py --task=examples/countdown.py        # your task: its rows and its reward

The arithmetic task (lib/arithmetic.py) needs no download: its rows are generated, and its base
model, a Qwen2.5 with 1M parameters, is pretrained here in under a minute.
"""
import difflib
import os
import random
from functools import partial
from pathlib import Path

from lib import arithmetic, base_model
from lib.cli import check, configure, one_line_errors
from lib.data import task_name
from lib.distributed import run_stage, world_size
from lib.files import atomic_dir, read_jsonl, write_jsonl
from model import Config, Qwen2
from reward import reward_of
from tasks import TASKS, load_task, one_line

import torch

task = "arithmetic"     # of tasks.py, one or several, separated by commas; or a task file
source = ""             # a .jsonl file, or a folder: see original_rows; empty: the hub
reward = ""             # for rows of your own in `source`: the task that grades them
seed = 0
# arithmetic only
num_train = 1024        # prompts for stages 1 and 2
num_test = 512          # held-out prompts
# the small base model of arithmetic, and of task files that define pretraining_batch
base_steps = 500        # pretraining steps; 0: data only
base_batch_size = 32    # responses per step
base_lr = 4e-3          # peak, after 100 steps of warm-up; decays linearly to 0
# --------------------------------------------------------------------------------------------------


def original_rows(name, splits):
    """{split: rows} of a task, from a task file, from `source` or from the hub.

    In a folder they are in <task>/<split>.jsonl or <split>.jsonl; those of a benchmark, which has
    only a test split, in <task>/test.jsonl or <task>.jsonl. A single file is the split that its
    name begins with; else a random tenth of its rows, at most 500, is held out as the test split.
    """
    if name.endswith(".py"):
        rows = {}
        for split in splits:
            try:
                rows[split] = list(load_task(name).rows(split))
            except Exception as e:
                raise ValueError(f"{name}: rows({split!r}) raised {one_line(e)}") from e
        return rows
    if not source:
        import datasets
        path, configuration = TASKS[name].hub
        try:
            return {split: list(datasets.load_dataset(path, configuration, split=of_hub))
                    for split, of_hub in TASKS[name].splits.items()}
        except Exception as e:  # offline, moved, no access: the remedy is the same
            raise OSError(f"the hub did not give {path} ({type(e).__name__}); pass "
                          "--source=<a folder or file with its rows>") from e
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


def prepare_rows(name, splits, to_row, graded_by):
    """Write a task's splits. to_row: makes a data row of an original one; graded_by: the task whose
    reward grades it."""
    for split, originals in original_rows(name, splits).items():
        rows = []
        for i, original in enumerate(originals):
            try:
                row = to_row(original)
            except KeyError as e:
                raise ValueError(f"{name}: row {i + 1} of {split} has no {e} in it, only "
                                 f"{', '.join(original)}") from None
            rows.append({"id": f"{task_name(name)}/{split}/{i}", **row, "task": graded_by})
        check(rows, f"{name}: the {split} split has no rows")
        write_split(task_name(name), split, [row for row in rows if row["answer"]], len(rows))


def own_row(original):
    """A row of a task file or of a file of one's own: it has prompt and answer, and is kept."""
    for key in ("prompt", "answer"):
        check(isinstance(original[key], str), f"{key} = {original[key]!r} is not a string")
    return original


def write_split(name, split, rows, found):
    path = f"data/{name}/{split}.jsonl"
    write_jsonl(path, rows)
    dropped = f" ({found - len(rows)} dropped: no answer to grade by)" if found > len(rows) else ""
    print(f"{path}: {len(rows):,} prompts{dropped}")


def prepare_arithmetic():
    sums = arithmetic.sums(seed)
    for split, number in (("train", num_train), ("test", num_test)):
        rows = [arithmetic.row(split, a, b) for a, b in sums[split][:number]]
        write_split("arithmetic", split, rows, len(rows))
    make_base_model("arithmetic", partial(arithmetic.pretraining_batch, sums["train"]))


def prepare_task_file(path):
    name = task_name(path)
    check(name not in TASKS, f"{path}: there is a built-in task {name}; rename the file")
    prepare_rows(path, ("train", "test"), own_row, path)
    if hasattr(load_task(path), "pretraining_batch"):
        make_base_model(name, load_task(path).pretraining_batch)


def make_base_model(name, pretraining_batch):
    """data/<task>/model, pretrained on pretraining_batch(rng, size): pairs (prompt, response)."""
    if not base_steps:
        return
    torch.manual_seed(seed)
    tokenizer = base_model.byte_tokenizer()
    model = Qwen2(Config(vocab_size=len(tokenizer), **base_model.BASE_MODEL))
    model.hf_config = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    base_model.pretrain(model, tokenizer, pretraining_batch, base_steps, base_batch_size, base_lr,
                        seed)
    with atomic_dir(f"data/{name}/model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"data/{name}/model: {sum(p.numel() for p in model.parameters()):,} parameters")


def main():
    with one_line_errors():
        check(world_size == 1, "prepare.py runs in one process: start it with python")
        if reward:
            check(source, "--reward is for rows of your own: set --source to their file or folder")
            reward_of(reward)
            name = Path(source).stem
            check(name not in TASKS, f"--source={source}: there is a built-in task {name}; rename "
                  "the file or folder")
            prepare_rows(name, ("train", "test"), own_row, reward)
            return
        names = [name.strip() for name in task.split(",")]
        for name in names:
            near = difflib.get_close_matches(name, TASKS, n=1)
            check(name in TASKS or name.endswith(".py"), f"--task={name}: the tasks are "
                  f"{', '.join(TASKS)}" + "".join(f"; did you mean {other}?" for other in near))
        check(len(names) == 1 or not os.path.isfile(source),
              f"--source={source} is one file, but --task={task} names several tasks")
        for name in names:
            if name == "arithmetic":
                prepare_arithmetic()
            elif name.endswith(".py"):
                prepare_task_file(name)
            else:
                prepare_rows(name, tuple(TASKS[name].splits), TASKS[name].row, name)


if __name__ == "__main__":
    configure(globals())
    run_stage(main, timeout_minutes=24 * 60.0)
