r"""The tasks: where the rows of each come from, how a row becomes prompt and answer, and which of
reward.py's functions grades it. prepare.py and reward.py read this file.

Prompts are those of the A*-PO paper's code: the question and an instruction, without a chat
template. Another task of this kind is one more line in TASKS; a task with a reward of its own is a
Python file (examples/countdown.py), which every stage takes by its path: --task=path/to/file.py.
"""
import importlib.util
import os
import traceback
from functools import cache
from pathlib import Path
from typing import Callable, NamedTuple

from lib.answers import last_boxed

HASHES = 'Let\'s think step by step and output the final answer after "####".'
BOXED = "Let's think step by step and output the final answer within \\boxed{}."


def gsm8k(raw):
    return {"prompt": f"{raw['question']} {HASHES}", "solution": raw["answer"],
            "answer": raw["answer"].split("####")[-1].strip().replace(",", "")}


def boxed(raw):
    """MATH and the benchmarks like it. Data sets differ in the names of their fields."""
    answer = raw["answer"] if "answer" in raw else last_boxed(raw["solution"])
    row = {"prompt": f"{raw.get('problem') or raw['question']} {BOXED}",
           "answer": "" if answer is None else str(answer), "solution": raw.get("solution") or ""}
    level = raw.get("level")
    subject = raw.get("subject") or raw.get("type") or ", ".join(raw.get("problem_type") or ())
    if level is not None:
        row["level"] = str(level).removeprefix("Level ")
    if subject:
        row["subject"] = subject
    return row


def olympiadbench(raw):
    """A problem may have a context before its question, and several answers."""
    question = "\n".join(filter(None, (raw["context"], raw["question"])))
    return {"prompt": f"{question} {BOXED}", "answer": ", ".join(raw["final_answer"]),
            "solution": "\n".join(raw["solution"] or []), "subject": raw["subfield"]}


class Task(NamedTuple):
    row: Callable        # a row of the data set -> {"prompt", "answer", "solution", ...}
    reward: str          # the name of a function in reward.py
    hub: tuple           # on the Hugging Face hub: data set and configuration
    splits: dict         # our split -> the hub's


TRAIN_AND_TEST = {"train": "train", "test": "test"}
TASKS = {
    "arithmetic": Task(None, "gsm8k", (), TRAIN_AND_TEST),  # generated: lib/arithmetic.py
    "gsm8k": Task(gsm8k, "gsm8k", ("openai/gsm8k", "main"), TRAIN_AND_TEST),
    "math": Task(boxed, "math", ("DigitalLearningGmbH/MATH-lighteval", "default"), TRAIN_AND_TEST),
    # for evaluation only
    "math500": Task(boxed, "math", ("HuggingFaceH4/MATH-500", "default"), {"test": "test"}),
    "minerva_math": Task(boxed, "math", ("math-ai/minervamath", "default"), {"test": "test"}),
    "olympiadbench": Task(olympiadbench, "math", ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP"),
                          {"test": "train"}),
    "amc23": Task(boxed, "math", ("math-ai/amc23", "default"), {"test": "test"}),
    "aime24": Task(boxed, "math", ("HuggingFaceH4/aime_2024", "default"), {"test": "train"}),
    "aime25": Task(boxed, "math", ("math-ai/aime25", "default"), {"test": "test"}),
    "hmmt_feb_2024": Task(boxed, "math", ("MathArena/hmmt_feb_2024", "default"), {"test": "train"}),
    "hmmt_feb_2025": Task(boxed, "math", ("MathArena/hmmt_feb_2025", "default"), {"test": "train"}),
    "hmmt_nov_2025": Task(boxed, "math", ("MathArena/hmmt_nov_2025", "default"), {"test": "train"}),
}


@cache
def load_task(path):
    """The module of a task file. Raises FileNotFoundError, or ValueError with one line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such task file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ValueError(f"{path} can't be loaded: {one_line(e)}") from e
    for name in ("rows(split)", "reward(response, answer, finished)"):
        if not callable(getattr(module, name.split("(")[0], None)):
            raise ValueError(f"{path} defines no function {name}; see examples/countdown.py")
    return module


def one_line(error):
    """An exception and where it was raised, as text."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):  # its text says where
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{text} ({os.path.basename(last.filename)}, line {last.lineno})"
