r"""Rewards: numbers from 0 to 1 for responses. All stages grade with these.

    gsm8k("7 + 6 = 13, so #### 13", "13")                      # 1.0
    math(r"Therefore \boxed{\frac{1}{2}}", r"\frac12")         # 1.0

A built-in reward is 1.0 for the right final answer, else 0.0. How two final answers are compared is
in lib/answers.py. A task file brings a reward of its own (examples/countdown.py). A batch is graded
in processes of its own, with a time limit for each answer: a response may contain any text, also
text made to harm.
"""
import hashlib
import json
import numbers
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import lib.answers
from lib.answers import is_equivalent, last_boxed
from tasks import TASKS, load_task, one_line

answer_limit = 2.0         # seconds that grading one answer may take; most take 0.0001
memory_limit = 2 * 2**30   # bytes of address space of a grading process


# ---- rewards -------------------------------------------------------------------------------------

def gsm8k(response, answer, finished=True):
    """1.0 if the number after the first `####` equals the answer, by value: also 72.0, $72, 1,200.

    The format is that of GSM8K's own solutions. `finished` has no effect: a response that was
    truncated after its `#### 72` still earns 1.0 if the answer is 72.
    """
    number = number_after_hashes(response)
    return float(number is not None and is_equivalent(number, answer))


def math(response, answer, finished=True):
    r"""1.0 if the response ended with EOS and its last `\boxed{}` equals the answer, by value.

    A truncated response (finished=False) earns 0.0 whatever it contains, as in the paper's code.
    """
    boxed = last_boxed(response)
    return float(finished and boxed is not None and is_equivalent(boxed, answer))


def number_after_hashes(text):
    """The final answer in a response to GSM8K: the number after the first `####`, or None."""
    # (?>...) matches a number as a whole or not at all; it must not be the start of a formula.
    found = re.search(r"####\s*(-?)\s*\$?\s*(-?(?>[\d,]*\.?\d+))(?![/^*]|[eE]\d)", text)
    return found[1] + found[2] if found else None


def reward_of(task):
    """The reward function of a data row's "task": a name in tasks.py, or a task file's path.

    Raises ValueError with one line if there is none.
    """
    if task.endswith(".py"):
        return load_task(task).reward
    if task not in TASKS:
        raise ValueError(f"task {task!r} has no reward; tasks.py has {', '.join(TASKS)}")
    return {"gsm8k": gsm8k, "math": math}[TASKS[task].reward]


def explain(task, response, answer, finished):
    """Why a response did not earn a reward of 1, in a few words for people."""
    if task.endswith(".py"):
        return f"the answer was {answer!r}"
    if reward_of(task) is math:
        if not finished:
            return "it was truncated"
        final = last_boxed(response)
    else:
        final = number_after_hashes(response)
    return "it has no final answer" if final is None else f"{final!r} is not equal to {answer!r}"


def fingerprint(rows):
    """SHA-256 of the code that grades these data rows. When it changes, stage 1 grades its samples
    again."""
    tasks = sorted({row["task"] for row in rows})
    files = [__file__, lib.answers.__file__, *(task for task in tasks if task.endswith(".py"))]
    code = [Path(file).read_bytes() for file in files]
    names = [reward_of(task).__name__ for task in tasks]
    return hashlib.sha256(b"".join(code) + repr(names).encode()).hexdigest()


# ---- grading a batch -----------------------------------------------------------------------------

class Graded(NamedTuple):
    """The grades of a batch: lists in the batch's order."""
    rewards: list     # float
    inexact: list     # bool: numbers were compared, and not by exact fractions but by digits
    timed_out: list   # bool: grading was ended at answer_limit or memory_limit; the reward is 0.0


def grade(rows, texts, truncated):
    """Grade a batch in this process's pool. Returns Graded.

    rows: data rows with "task" and "answer"; texts: the responses (str); truncated: whether each
    was truncated (bool). Raises ValueError with one line if a reward function raises, or returns
    anything but a number from 0 to 1: the function is wrong then, not the response.
    """
    graded = results(submit(rows, texts, truncated))
    warn_of_timeouts(graded)
    return graded


def start_grading(rows, responses):
    """Start to grade a batch in the background. A collective: each rank grades its part.

    rows: data rows with "task" and "answer"; responses: objects with .text and .truncated. Both are
    those of the whole batch, the same on all ranks. Returns a function, also a collective, that
    waits for all ranks and returns Graded of the whole batch. It raises what grade() raises.
    """
    # Not at the top: grading processes import this file too, and torch, which lib.distributed
    # imports, would cost each of them seconds and memory.
    from lib.distributed import all_gather, rank, world_size
    part = slice(rank, None, world_size)
    futures = submit(rows[part], [response.text for response in responses[part]],
                     [response.truncated for response in responses[part]])

    def wait():
        graded = Graded(*([None] * len(rows) for _ in Graded._fields))
        try:
            mine = results(futures)
        except ValueError as e:  # of one rank: all have to know
            mine = str(e)
        for other, part_of_other in enumerate(all_gather(mine)):
            if isinstance(part_of_other, str):
                raise ValueError(part_of_other)
            for whole, values in zip(graded, part_of_other, strict=True):
                whole[other::world_size] = values
        warn_of_timeouts(graded)
        return graded

    return wait


def submit(rows, texts, truncated):
    """A future per response: of the triple that grade_one() returns."""
    return [pool().submit(grade_one, row["task"], text, row["answer"], not is_truncated)
            for row, text, is_truncated in zip(rows, texts, truncated, strict=True)]


def results(futures):
    """Graded of what submit() returned. Waits."""
    triples = [future.result() for future in futures]
    return Graded(*([triple[i] for triple in triples] for i in range(3)))


def warn_of_timeouts(graded):
    if any(graded.timed_out):
        print(f"warning: {sum(graded.timed_out)} of {len(graded.timed_out)} answers took over "
              f"{answer_limit:g} s to grade and count as wrong")


@cache
def pool():
    """Threads, each with a grading process of its own. The ranks of a machine share its cores."""
    cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return ThreadPoolExecutor(max(1, min(16, cores)), "grader")


# A process per thread and not multiprocessing's pools: these can't end a task that takes too long,
# and would import the running stage, and torch with it, in every process.
this_thread = threading.local()


def grade_one(task, response, answer, finished):
    """(reward, inexact, timed out) of one response, from the calling thread's grading process."""
    process = getattr(this_thread, "process", None)
    if process is None or process.poll() is not None:
        # In a session of its own, so that Ctrl-C doesn't end it. It ends when its input ends.
        process = this_thread.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True)
    try:
        process.stdin.write(json.dumps([task, response, answer, finished]).encode() + b"\n")
        process.stdin.flush()
        reply = process.stdout.readline()
    except BrokenPipeError:
        reply = b""
    if not reply:  # it was killed, by its timer or because it needed too much memory
        process.communicate()  # closes the pipes and waits
        if process.returncode not in (-signal.SIGALRM, -signal.SIGKILL):
            raise RuntimeError(f"a grading process ended with status {process.returncode}")
        return 0.0, False, True
    reply = json.loads(reply)
    if isinstance(reply, str):
        raise ValueError(f"the reward of task {task} {reply}, for the response "
                         f"{response[:200]!r} and the answer {answer!r}")
    return (*reply, False)


def serve():
    """A grading process: one request per line of input, one reply per line of output.

    A request is the JSON list [task, response, answer, finished], a reply the list [reward,
    inexact], or a text that says what is wrong with the reward function. The time limit is a timer
    without a handler: when it runs out, the kernel ends the process, even in the middle of a long
    computation in C. The process ends with its input, so also when its parent was killed.
    """
    replies, sys.stdout = sys.stdout, sys.stderr  # what a reward function prints is no reply
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the stage may still want this batch's grades
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        function = reward_of(task)  # loading a task file takes none of the answer's time
        lib.answers.Work.inexact = 0
        signal.setitimer(signal.ITIMER_REAL, answer_limit)
        try:
            reward = function(*arguments)
            if isinstance(reward, numbers.Real) and 0 <= reward <= 1:
                reply = [float(reward), lib.answers.Work.inexact > 0]
            else:
                reply = f"returned {reward!r}, which is not a number from 0 to 1"
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)
        except Exception as e:
            reply = f"raised {one_line(e)}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
