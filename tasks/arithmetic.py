"""Sums of two 2-digit numbers, and a small base model that half knows how: the first task to run.

A prompt is "47+86=?" and a newline. The response is "7+6+0=13,4+8+1=13", a newline and "#### 133":
the units first, then the tens with the carry as third summand, then GSM8K's answer format. The base
model is pretrained on solutions of which one in five is right; the others forget the carry or only
guess. It knows the method but seldom uses it, as a real base model does with reasoning, so
reinforcement learning has something to find.
"""
import random
import zlib
from functools import cache

from reward import gsm8k as reward  # noqa: F401

TRAIN, TEST = 1024, 512  # prompts


@cache
def sums():
    """{"train": [(a, b), ...], "test": [...]}: all pairs of 2-digit numbers, shuffled.

    A tenth is held out, also from pretraining. It is chosen by CRC, because a simpler hash of a and
    b holds out all sums that end in a certain digit.
    """
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(pairs)
    found = {"train": [], "test": []}
    for a, b in pairs:
        found["train" if zlib.crc32(f"{a}+{b}".encode()) % 10 else "test"].append((a, b))
    return found


def rows(split):
    for a, b in sums()[split][:TRAIN if split == "train" else TEST]:
        yield {"id": f"arithmetic/{split}/{a}+{b}", "prompt": f"{a}+{b}=?\n", "answer": str(a + b),
               "solution": solution(a, b)}


def solution(a, b, carry=True, slip=0):
    """Worked solution of a + b; wrong without the carry, or with a slip in the sum of the units."""
    units = a % 10 + b % 10 + slip
    c = units // 10 if carry else 0
    tens = a // 10 + b // 10 + c
    return f"{a % 10}+{b % 10}+0={units},{a // 10}+{b // 10}+{c}={tens}\n#### {tens}{units % 10}"


def base_solution(a, b, rng):
    """What the base model learns: 20% right, 40% without the carry, 40% a guess. 3% of the worked
    solutions have a slip."""
    kind = rng.random()
    if kind < 0.4:
        return f"#### {a + b + rng.choice((-20, -10, -2, -1, 0, 1, 2, 10, 20))}"
    slip = rng.choice((-1, 1)) if rng.random() < 0.03 else 0
    return solution(a, b, carry=kind < 0.6, slip=slip)


def pretraining_batch(rng, size):
    pairs = [rng.choice(sums()["train"]) for _ in range(size)]
    return [(f"{a}+{b}=?\n", base_solution(a, b, rng)) for a, b in pairs]
