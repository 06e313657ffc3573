"""Prompts and answers of tasks: data/<task>/{train,test}.jsonl, one JSON object per line with
"id", "task", "prompt", "answer" and "solution". The tasks are listed in tasks.py.

    python prepare.py                                     # arithmetic, with a small base model
    python prepare.py --task=gsm8k                        # from the Hugging Face hub
    python prepare.py --task=math500,minerva_math,amc23   # benchmarks: a test split only
    python prepare.py --task=math --source=path/to/math   # from {train,test}.jsonl in a folder

The arithmetic task (lib/arithmetic.py) needs no download: its rows are generated, and its base
model, a Qwen2.5 with 1M parameters, is pretrained here in under a minute.
"""
import difflib
import os

from lib import arithmetic
from lib.cli import check, configure, one_line_errors
from lib.distributed import run_stage, world_size
from lib.files import atomic_dir, read_jsonl, write_jsonl
from model import Config, Qwen2
from tasks import TASKS

import torch

task = "arithmetic"     # one or several of tasks.py, separated by commas
source = ""             # a .jsonl file, or a folder: see read_raw; empty: the hub
seed = 0
# arithmetic only
num_train = 1024        # prompts for stages 1 and 2
num_test = 512          # held-out prompts
base_steps = 500        # pretraining steps of the base model; 0: data only
base_batch_size = 32    # solutions per step
base_lr = 4e-3          # peak, after 100 steps of warm-up; decays linearly to 0
# --------------------------------------------------------------------------------------------------


def read_raw(name, split):
    """The original rows of a split; None if `source` is the other split's file.

    In a folder they are in <task>/<split>.jsonl or <split>.jsonl; those of a benchmark, which has
    only a test split, in <task>/test.jsonl or <task>.jsonl.
    """
    if not source:
        import datasets
        path, configuration = TASKS[name].hub
        try:
            return list(datasets.load_dataset(path, configuration,
                                              split=TASKS[name].splits[split]))
        except Exception as e:  # offline, moved, no access: the remedy is the same
            raise OSError(f"the hub did not give {path} ({type(e).__name__}); pass "
                          "--source=<a folder or file with its rows>") from e
    if os.path.isfile(source):
        other = {"train": "test", "test": "train"}[split]
        return None if os.path.basename(source).startswith(other) else read_jsonl(source, ())
    only_test = "train" not in TASKS[name].splits
    # A benchmark doesn't take <split>.jsonl, which may be another task's.
    files = [f"{name}/{split}.jsonl", f"{name}.jsonl" if only_test else f"{split}.jsonl"]
    found = [file for file in files if os.path.isfile(os.path.join(source, file))]
    if not found:
        raise FileNotFoundError(f"--source={source}: neither {' nor '.join(files)} is there")
    return read_jsonl(os.path.join(source, found[0]), ())


def prepare_text(name):
    for split in TASKS[name].splits:
        raw = read_raw(name, split)
        if raw is None:
            continue
        rows = []
        for i, raw_row in enumerate(raw):
            try:
                row = TASKS[name].row(raw_row)
            except KeyError as e:
                raise ValueError(f"{name}: row {i + 1} of {split} has no {e} in it, only "
                                 f"{', '.join(raw_row)}") from None
            rows.append({"id": f"{name}/{split}/{i}", "task": name, **row})
        write_split(name, split, [row for row in rows if row["answer"]], len(rows))


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
    if not base_steps:
        return
    torch.manual_seed(seed)
    tokenizer = arithmetic.byte_tokenizer()
    model = Qwen2(Config(vocab_size=len(tokenizer), **arithmetic.BASE_MODEL))
    model.hf_config = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    arithmetic.pretrain(model, tokenizer, sums["train"], base_steps, base_batch_size, base_lr, seed)
    with atomic_dir("data/arithmetic/model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"data/arithmetic/model: {sum(p.numel() for p in model.parameters()):,} parameters")


def main():
    with one_line_errors():
        check(world_size == 1, "prepare.py runs in one process: start it with python")
        names = [name.strip() for name in task.split(",")]
        for name in names:
            near = difflib.get_close_matches(name, TASKS, n=1)
            check(name in TASKS, f"--task={name}: the tasks are {', '.join(TASKS)}"
                  + "".join(f"; did you mean {other}?" for other in near))
        check(len(names) == 1 or not os.path.isfile(source),
              f"--source={source} is one file, but --task={task} names several tasks")
        for name in names:
            if name == "arithmetic":
                prepare_arithmetic()
            else:
                prepare_text(name)


if __name__ == "__main__":
    configure(globals())
    run_stage(main, timeout_minutes=24 * 60.0)
