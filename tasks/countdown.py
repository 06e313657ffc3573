"""Countdown, the task of TinyZero (github.com/Jiayi-Pan/TinyZero): make a target from numbers.

This file is a model for your own. A task defines rows(split) and reward(response, answer,
finished). It may also define pretraining_batch(rng, size), from which prepare.py makes a small base
model, so that the task can be tried without a GPU. The base model of this task mostly guesses; in a
third of its responses it tries one expression after the other.
"""
import random
import re
import zlib
from itertools import permutations, product

from reward import is_equivalent

COUNT, LARGEST, OPERATIONS = 3, 9, "+-"  # for larger models: 4, 99, "+-*"


def attempts(numbers):
    """{value: an expression}: all values that can be made without brackets, in a fixed order."""
    found = {}
    for order in permutations(numbers):
        for signs in product(OPERATIONS, repeat=COUNT - 1):
            expression = str(order[0]) + "".join(map("{}{}".format, signs, order[1:]))
            found.setdefault(value(order, signs), expression)
    return found


def value(numbers, signs):
    """Of the numbers with the signs between them: products first."""
    terms = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            terms[-1] *= number
        else:
            terms.append(number if sign == "+" else -number)
    return sum(terms)


def problem(rng, split):
    """(numbers, target, prompt). A tenth of all prompts belongs to the test split."""
    while True:
        numbers = [rng.randint(1, LARGEST) for _ in range(COUNT)]
        target = rng.choice(list(attempts(numbers)))
        prompt = (f"Make {target} from {', '.join(map(str, numbers))} with "
                  f"{' and '.join(OPERATIONS)}, in <answer></answer>:\n")
        if (zlib.crc32(prompt.encode()) % 10 == 0) == (split == "test"):
            return numbers, target, prompt


def rows(split):
    rng = random.Random(split)
    for numbers, target, prompt in (problem(rng, split) for _ in range(1024)):
        yield {"prompt": prompt, "answer": f"{target} from {' '.join(map(str, numbers))}"}


def reward(response, answer, finished):
    """1.0 for an expression of the target, 0.1 for another expression of the same numbers."""
    found = re.findall(rf"<answer>([\d() {re.escape(OPERATIONS)}]+)</answer>", response)
    target, numbers = answer.split(" from ")
    if not found or sorted(re.findall(r"\d+", found[-1])) != sorted(numbers.split()):
        return 0.0
    if re.search(r"[\d)] *\(|\) *\d", found[-1]):  # a product without a sign
        return 0.0
    return 1.0 if is_equivalent(found[-1], target) else 0.1


def pretraining_batch(rng, size):
    """`size` pairs (prompt, response) that the base model learns."""
    for numbers, target, prompt in (problem(rng, "train") for _ in range(size)):
        response, expression = "", rng.choice(list(attempts(numbers).values()))
        if rng.random() < 1 / 3:
            for value, expression in attempts(numbers).items():
                response += f"{expression}={value}\n"
                if value == target or rng.random() < 0.1:
                    break
        yield prompt, f"{response}<answer>{expression}</answer>"
