"""Sums of two-digit numbers, by a small model that knows some facts of addition better than others.

A response adds column by column. Each column is a fact such as "7+8+1=16": two digits and a carry.
The base model knows half of the facts almost surely, a third half of the time, and the others
hardly; its mistake in a fact is always the same one. A prompt is as hard as its facts together:
some prompts are always solved, others never in eight samples. The model learns fact by fact, so a
run takes longer than on the arithmetic task, and differences between algorithms have time to show:

    python prepare.py --task=facts
    python estimate_value.py config/facts.py
    python train_apo.py config/facts.py
"""
import random
import zlib

from reward import gsm8k as reward  # noqa: F401

DIGITS, TRAIN, TEST = 2, 1024, 256
KNOWN = (0.95, 0.95, 0.95, 0.5, 0.5, 0.1)  # how often a fact is right in the base model


def column(a, b, carry, rng=None):
    """The sum in a column: the base model's if rng is given, else the right one."""
    fact = zlib.crc32(f"{a}+{b}+{carry}".encode())
    mistake = rng is not None and rng.random() > KNOWN[fact // 2 % len(KNOWN)]
    return a + b + carry + (mistake and (1 if fact % 2 else -1))


def solution(a, b, rng=None):
    """Worked solution, units first."""
    columns, answer, carry = [], "", 0
    for _ in range(DIGITS):
        total = max(column(a % 10, b % 10, carry, rng), 0)
        columns.append(f"{a % 10}+{b % 10}+{carry}={total}")
        a, b, carry, answer = a // 10, b // 10, total // 10, f"{total % 10}{answer}"
    return f"{','.join(columns)}\n#### {carry or ''}{answer}"


def problem(rng, split):
    """Two numbers. A tenth of all pairs belongs to the test split."""
    while True:
        a, b = (rng.randrange(10 ** (DIGITS - 1), 10 ** DIGITS) for _ in range(2))
        if (zlib.crc32(f"{a},{b}".encode()) % 10 == 0) == (split == "test"):
            return a, b


def rows(split):
    rng, found = random.Random(split), {}
    while len(found) < (TRAIN if split == "train" else TEST):
        found.setdefault(problem(rng, split))
    for a, b in found:
        yield {"prompt": f"{a}+{b}=?\n", "answer": str(a + b), "solution": solution(a, b)}


def pretraining_batch(rng, size):
    for a, b in (problem(rng, "train") for _ in range(size)):
        yield f"{a}+{b}=?\n", solution(a, b, rng)
