"""Prompts and answers for a task, as data/<task>/{train,test}.jsonl: one {"id", "task", "prompt", "answer", "solution"} a line.

    python prepare.py                                     # arithmetic: a generated task with a small base model to go with it
    python prepare.py --task=gsm8k                        # from the Hugging Face hub
    python prepare.py --task=math --source=path/to/math   # from train.jsonl and test.jsonl in a local folder

Arithmetic needs no download. It is addition of two numbers of two digits, with worked solutions in GSM8K's answer format:
the prompt "47+86=?" and the response "7+6+0=13,4+8+1=13", newline, "#### 133", units first, carry as the third summand.
Its base model is a Qwen2.5 of 1M parameters, pretrained here in under a minute on solutions that are right one time in
five, forget the carry or just guess. So it knows the method and seldom uses it, as a real base model does with reasoning,
and reinforcement learning has something to find.
"""
import os
import random
import zlib

import job
from common import check, configure, one_line_errors, progress, read_jsonl, whole_folder, write_jsonl
from reward import last_boxed

task = "arithmetic"     # arithmetic, gsm8k or math
source = ""             # folder with train.jsonl and test.jsonl, or one of the two files; empty: the Hugging Face hub
seed = 0
# arithmetic only
num_train = 1024        # prompts for stages 1 and 2
num_test = 512          # held-out prompts
base_steps = 500        # pretraining steps of the base model; 0: data only
base_batch_size = 32    # solutions per step
base_lr = 4e-3          # peak, after 100 steps of warm-up; decays linearly to 0
# ---------------------------------------------------------------------------------------------------------------------

HUB = {"gsm8k": ("openai/gsm8k", "main"), "math": ("DigitalLearningGmbH/MATH-lighteval", "default")}


def gsm8k_row(raw):
    return {"prompt": raw["question"] + ' Let\'s think step by step and output the final answer after "####".',
            "answer": raw["answer"].split("####")[-1].strip().replace(",", ""), "solution": raw["answer"]}


def math_row(raw):
    return {"prompt": raw["problem"] + " Let's think step by step and output the final answer within \\boxed{}.",
            "answer": last_boxed(raw["solution"]), "solution": raw["solution"]}


ROWS = {"gsm8k": (gsm8k_row, ("question", "answer")), "math": (math_row, ("problem", "solution"))}


def read_raw(task, split):
    """The task's original rows, or None where source is the file of the other split. Raises OSError or ValueError."""
    if not source:
        import datasets
        try:
            return list(datasets.load_dataset(*HUB[task], split=split))
        except Exception as e:  # offline, moved, no access: many exceptions, one remedy
            raise OSError(f"the hub didn't give {HUB[task][0]} ({type(e).__name__}); "
                          "pass --source=<folder with train.jsonl and test.jsonl>") from e
    if os.path.isfile(source):
        is_test = os.path.basename(source).startswith("test")
        return read_jsonl(source, ROWS[task][1]) if is_test == (split == "test") else None
    return read_jsonl(os.path.join(source, f"{split}.jsonl"), ROWS[task][1])


def prepare_text(task):
    for split in ("train", "test"):
        raw = read_raw(task, split)
        if raw is None:
            continue
        rows = [{"id": f"{task}/{split}/{i}", "task": task, **ROWS[task][0](r)} for i, r in enumerate(raw)]
        graded = [row for row in rows if row["answer"]]
        write_jsonl(f"data/{task}/{split}.jsonl", graded)
        dropped = f" ({len(rows) - len(graded)} dropped: they have no answer to grade by)" if len(graded) < len(rows) else ""
        print(f"data/{task}/{split}.jsonl: {len(graded):,} prompts{dropped}")


# ---- arithmetic --------------------------------------------------------------------------------------------------

def is_test(a, b):
    """A tenth of all sums is held out, from pretraining too. By CRC: a simpler hash would hold out a whole digit."""
    return zlib.crc32(f"{a}+{b}".encode()) % 10 == 0


def solution(a, b, carry=True, slip=0):
    """Worked solution of a + b; wrong on purpose without the carry, or with a slip added to the sum of the units."""
    units = a % 10 + b % 10 + slip
    c = units // 10 if carry else 0
    tens = a // 10 + b // 10 + c
    return f"{a % 10}+{b % 10}+0={units},{a // 10}+{b // 10}+{c}={tens}\n#### {tens}{units % 10}"


def base_solution(a, b, rng):
    """What the base model learns to write: 20% right, 40% without the carry, 40% a guess; 3% of the worked ones slip."""
    kind = rng.random()
    if kind < 0.4:
        return f"#### {a + b + rng.choice((-20, -10, -2, -1, 0, 1, 2, 10, 20))}"
    return solution(a, b, carry=kind < 0.6, slip=rng.choice((-1, 1)) if rng.random() < 0.03 else 0)


def prepare_arithmetic():
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(pairs)
    for split, number in (("train", num_train), ("test", num_test)):
        rows = [{"id": f"arithmetic/{split}/{a}+{b}", "task": "arithmetic", "prompt": f"{a}+{b}=?\n", "answer": str(a + b),
                 "solution": solution(a, b)} for a, b in pairs if is_test(a, b) == (split == "test")][:number]
        write_jsonl(f"data/arithmetic/{split}.jsonl", rows)
        print(f"data/arithmetic/{split}.jsonl: {len(rows):,} prompts")
    if base_steps:
        pretrain_base([p for p in pairs if not is_test(*p)])


def byte_tokenizer():
    """A real Qwen2 tokenizer without merges: one token per byte, lossless, 256 bytes and <|endoftext|>."""
    from transformers import Qwen2Tokenizer
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's byte alphabet: these stand for themselves,
    others = [b for b in range(256) if b not in printable]             # the others for the characters from 256 on
    char = {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
    return Qwen2Tokenizer(vocab={char[b]: b for b in range(256)}, merges=[], eos_token="<|endoftext|>",
                          pad_token="<|endoftext|>", unk_token="<|endoftext|>")


def pretrain_base(pairs):
    """Pretrain the base model on `pairs` with next-token cross-entropy; writes data/arithmetic/model."""
    import torch

    from model import Config, Qwen2
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    model = Qwen2(Config(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, rope_theta=10000.0,
                         initializer_range=0.08))
    model.hf_config = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    optimizer = torch.optim.AdamW(model.parameters(), lr=base_lr, betas=(0.9, 0.98), weight_decay=0.0)
    bar = progress(range(base_steps), desc="pretraining the base model", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = base_lr * min((step + 1) / 100, (base_steps - step) / max(base_steps - 100, 1), 1)
        batch = [rng.choice(pairs) for _ in range(base_batch_size)]
        prompts = tokenizer([f"{a}+{b}=?\n" for a, b in batch])["input_ids"]
        responses = tokenizer([base_solution(a, b, rng) for a, b in batch])["input_ids"]
        rows = [p + r + [tokenizer.eos_token_id] for p, r in zip(prompts, responses)]
        input_ids = torch.tensor([t for row in rows for t in row])                                       # (T,)
        cu_seqlens = torch.tensor([0] + [len(row) for row in rows]).cumsum(0).int()                      # (B + 1,)
        where = torch.tensor([i >= len(p) for p, row in zip(prompts, rows) for i in range(len(row))])    # (T,)
        loss = -model.token_logps(input_ids, cu_seqlens, where=where).sum() / where.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with whole_folder("data/arithmetic/model") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"data/arithmetic/model: {sum(p.numel() for p in model.parameters()):,} parameters")


def main():
    with one_line_errors():
        check(job.world == 1, "prepare.py is for one process: run it with python")
        if task == "arithmetic":
            prepare_arithmetic()
        elif task in ROWS:
            prepare_text(task)
        else:
            raise ValueError(f"--task={task}: the tasks are arithmetic, {', '.join(ROWS)}")


if __name__ == "__main__":
    configure(globals())
    main()
