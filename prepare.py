"""Prompts and answers of a task: data/<task>/{train,test}.jsonl, one JSON object per line with
"id", "task", "prompt", "answer" and "solution".

    python prepare.py                                     # arithmetic, with a small base model
    python prepare.py --task=gsm8k                        # from the Hugging Face hub
    python prepare.py --task=math --source=path/to/math   # from {train,test}.jsonl in a folder

The arithmetic task (lib/arithmetic.py) needs no download: its rows are generated, and its base
model, a Qwen2.5 with 1M parameters, is pretrained here in under a minute.
"""
import os

from lib import arithmetic
from lib.cli import check, configure, one_line_errors
from lib.distributed import run_stage, world_size
from lib.files import atomic_dir, read_jsonl, write_jsonl
from model import Config, Qwen2
from reward import last_boxed

import torch

task = "arithmetic"     # arithmetic, gsm8k or math
source = ""             # a folder with {train,test}.jsonl, or one of the two; empty: the hub
seed = 0
# arithmetic only
num_train = 1024        # prompts for stages 1 and 2
num_test = 512          # held-out prompts
base_steps = 500        # pretraining steps of the base model; 0: data only
base_batch_size = 32    # solutions per step
base_lr = 4e-3          # peak, after 100 steps of warm-up; decays linearly to 0
# --------------------------------------------------------------------------------------------------

HUB = {"gsm8k": ("openai/gsm8k", "main"), "math": ("DigitalLearningGmbH/MATH-lighteval", "default")}


def gsm8k_row(raw):
    instruction = 'Let\'s think step by step and output the final answer after "####".'
    return {"prompt": f"{raw['question']} {instruction}",
            "answer": raw["answer"].split("####")[-1].strip().replace(",", ""),
            "solution": raw["answer"]}


def math_row(raw):
    instruction = "Let's think step by step and output the final answer within \\boxed{}."
    return {"prompt": f"{raw['problem']} {instruction}", "answer": last_boxed(raw["solution"]),
            "solution": raw["solution"]}


# task -> (how a row is made, the fields that it is made of). Prompts as in the paper's code.
ROWS = {"gsm8k": (gsm8k_row, ("question", "answer")), "math": (math_row, ("problem", "solution"))}


def read_raw(split):
    """The original rows of a split; None if `source` is the other split's file."""
    fields = ROWS[task][1]
    if not source:
        import datasets
        try:
            return list(datasets.load_dataset(*HUB[task], split=split))
        except Exception as e:  # offline, moved, no access: the remedy is the same
            raise OSError(f"the hub did not give {HUB[task][0]} ({type(e).__name__}); pass "
                          "--source=<folder with train.jsonl and test.jsonl>") from e
    if os.path.isfile(source):
        is_test = os.path.basename(source).startswith("test")
        return read_jsonl(source, fields) if is_test == (split == "test") else None
    return read_jsonl(os.path.join(source, f"{split}.jsonl"), fields)


def prepare_text():
    for split in ("train", "test"):
        raw = read_raw(split)
        if raw is None:
            continue
        rows = [{"id": f"{task}/{split}/{i}", "task": task, **ROWS[task][0](r)}
                for i, r in enumerate(raw)]
        write_split(split, [row for row in rows if row["answer"]], len(rows))


def write_split(split, rows, found):
    path = f"data/{task}/{split}.jsonl"
    write_jsonl(path, rows)
    dropped = f" ({found - len(rows)} dropped: no answer to grade by)" if found > len(rows) else ""
    print(f"{path}: {len(rows):,} prompts{dropped}")


def prepare_arithmetic():
    sums = arithmetic.sums(seed)
    for split, number in (("train", num_train), ("test", num_test)):
        rows = [arithmetic.row(split, a, b) for a, b in sums[split][:number]]
        write_split(split, rows, len(rows))
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
        if task == "arithmetic":
            prepare_arithmetic()
        elif task in ROWS:
            prepare_text()
        else:
            raise ValueError(f"--task={task}: the tasks are arithmetic, {', '.join(ROWS)}")


if __name__ == "__main__":
    configure(globals())
    run_stage(main, timeout_minutes=24 * 60.0)
