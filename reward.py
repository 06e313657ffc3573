r"""Rewards: a number from 0 to 1 for each response. Both stages and evaluate.py use them.

    gsm8k("7 + 6 = 13, so #### 13", "13")                      # 1.0
    math(r"Therefore \boxed{\frac{1}{2}}", r"\frac12")         # 1.0

The rewards in this file are 1.0 for the right final answer, else 0.0; lib/answers.py compares two
final answers. Each task file names its reward: one of these, or its own (tasks/countdown.py).
Responses are untrusted, so a batch is graded in processes of its own, under a time limit.
"""
import ast
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
import sysconfig
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from lib.answers import is_equivalent, last_boxed

answer_limit = 2.0         # seconds that grading one answer may take, unless its task says more
memory_limit = 2 * 2**30   # bytes of address space of a grading process


def gsm8k(response, answer, finished=True):
    """1.0 if what the line after the first `####` states equals the answer, by value: also 72.0,
    $72, **72**, 70 + 2 = 72.

    The format is that of GSM8K's own solutions. `finished` has no effect: a response that was
    truncated after its `#### 72` still earns 1.0 if the answer is 72.
    """
    _, *after = response.split("####", 2)
    line = "".join(after[:1]).strip().partition("\n")[0]
    line = re.sub(r"\*\*(.*?)\*\*", r"\1", line)  # bold in Markdown
    return float(is_equivalent(line.partition(". ")[0], answer))


def math(response, answer, finished=True):
    r"""1.0 if the response ended with EOS and its last `\boxed{}` equals the answer, by value.

    A truncated response (finished=False) earns 0.0 whatever it contains, as in the paper's code.
    """
    boxed = last_boxed(response)
    return float(finished and boxed is not None and is_equivalent(boxed, answer))


# ---- tasks ---------------------------------------------------------------------------------------

@cache
def load_task(name):
    """The module of a task: tasks/<name>.py, or the Python file that `name` is the path of.

    It has the functions rows(split) and reward(response, answer, finished). Raises
    FileNotFoundError or ValueError with one line.
    """
    built_in = Path(__file__).parent / "tasks"
    path = Path(name) if name.endswith(".py") else built_in / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in built_in.glob("*.py")))
        raise FileNotFoundError(f"there is no task {name!r}; it can be {known}, or a Python file")
    spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    if (folder := os.path.dirname(os.path.abspath(path))) not in sys.path:
        sys.path.append(folder)  # for modules beside it; last, as tasks/math.py is not `math`
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise ValueError(f"{path} can't be loaded: {one_line(e)}") from e
    for function in ("rows(split)", "reward(response, answer, finished)"):
        if not callable(getattr(module, function.split("(")[0], None)):
            raise ValueError(f"{path} defines no function {function}; see tasks/countdown.py")
    return module


def one_line(error):
    """An exception and where it was raised, as text."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):  # its text says where
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{text} ({os.path.basename(last.filename)}, line {last.lineno})"


def fingerprint(rows):
    """SHA-256 of the code that grades these data rows, without comments and docstrings: this file,
    the tasks, and what they import from files that are not installed.

    When it changes, stage 1 grades its samples again. Raises what load_task() raises.
    """
    code = {}
    for module in (sys.modules[__name__], *map(load_task, {row["task"] for row in rows})):
        add_code(module.__file__, code)
    return hashlib.sha256("\n".join(sorted(code.values())).encode()).hexdigest()


def add_code(path, code):
    """Add a Python file, and those that it imports, to code: {path: its code as text}."""
    if (path in code or not path.endswith(".py") or "-packages" in path  # site- or dist-packages
            or path.startswith(sysconfig.get_path("stdlib"))):
        return
    tree = ast.parse(Path(path).read_bytes())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in ast.walk(tree):
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None):
            del node.body[0]
    code[path] = ast.unparse(tree)
    for node in imports:
        package = getattr(node, "module", None)
        for name in (package, *(x.name for x in node.names),
                     *(f"{package}.{x.name}" for x in node.names)):
            add_code(getattr(sys.modules.get(name), "__file__", None) or "", code)


# ---- grading a batch -----------------------------------------------------------------------------

class RewardError(SystemExit):
    """A reward function is wrong, not a response. It ends the stage with its text."""


class Graded(NamedTuple):
    """The grades of a batch: lists in the batch's order."""
    rewards: list     # float
    timed_out: list   # bool: grading was ended at answer_limit or memory_limit; the reward is 0.0


def grade(rows, responses):
    """Grade any number of responses, as start_grading() does. Slow rewards of many responses may
    take hours: after each part the ranks hear from each other, so that none is thought to hang.
    """
    graded = Graded([], [])
    for i in range(0, len(rows), 1024):
        for whole, part in zip(graded, start_grading(rows[i:i + 1024], responses[i:i + 1024])(),
                               strict=True):
            whole += part
    return graded


def start_grading(rows, responses):
    """Start to grade a batch in the background. A collective: each rank grades its part.

    rows: data rows with "task" and "answer"; responses: objects with .text and .truncated. Both are
    of the whole batch, the same on all ranks. Returns a function, also a collective, that waits for
    all ranks and returns Graded of the whole batch. That function raises RewardError, on all ranks,
    if a reward function raises, crashes, or returns anything but a number from 0 to 1.
    """
    # Not imported at the top, because grading processes import this file, too: torch, which
    # lib.distributed imports, would cost each of them seconds and memory.
    from lib.distributed import all_gather, rank, world_size
    part = slice(rank, None, world_size)
    futures = [pool().submit(grade_one, row["task"], response.text, row["answer"],
                             not response.truncated)
               for row, response in zip(rows[part], responses[part], strict=True)]

    def wait_for_grades():
        graded = Graded([None] * len(rows), [None] * len(rows))
        try:
            mine = [*zip(*(future.result() for future in futures), strict=True)] or [(), ()]
        except RewardError as e:  # on one rank; all ranks have to know
            mine = str(e)
        for other, part_of_other in enumerate(all_gather(mine)):
            if isinstance(part_of_other, str):
                raise RewardError(part_of_other)
            for whole, values in zip(graded, part_of_other, strict=True):
                whole[other::world_size] = values
        if any(graded.timed_out):
            print(f"warning: {sum(graded.timed_out)} of {len(rows)} responses took too long to "
                  "grade, or too much memory, and count as wrong. The limit is the task file's "
                  f"answer_limit, or {answer_limit:g} s")
        return graded

    return wait_for_grades


@cache
def pool():
    """Threads, each with a grading process of its own. The ranks of a machine share its cores."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return ThreadPoolExecutor(max(1, min(16, cores)), "grader")


# Each thread has a process. multiprocessing's pools can't be used: they can't kill a task that
# hangs, and they would import the running stage, and torch with it, in every process.
this_thread = threading.local()


def grade_one(task, response, answer, finished):
    """(reward, timed out) of one response, from the calling thread's grading process. Raises
    RewardError."""
    process = getattr(this_thread, "process", None)
    if process is None or process.poll() is not None:
        # Its session is its own, so that Ctrl-C doesn't end it.
        process = this_thread.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True)
    # To load the task takes none of the answer's time.
    limit = reply = ask(process, task)
    if isinstance(limit, float):
        reply = ask(process, [response, answer, finished], limit)
    if reply is None:  # it takes too long, it was killed for its memory, or it crashed
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what the reward function has started
        process.communicate()  # closes the pipes and waits
        if process.returncode == -signal.SIGKILL:
            return 0.0, True
        reply = f"crashed with status {process.returncode}"
    if isinstance(reply, str):
        raise RewardError(f"error: for the response {response[:200]!r} and the answer {answer!r} "
                          f"the reward of task {task} {reply}")
    return reply, False


def ask(process, request, seconds=None):
    """A grading process's reply to a request; None if it ends, or takes longer than `seconds`."""
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        if wait([process.stdout], seconds) and (line := process.stdout.readline()):
            return json.loads(line)


def serve():
    """A grading process: one request per line of input, one reply per line of output.

    A request is a task's name, and then the list [response, answer, finished]. The replies are the
    seconds that grading may take, and the reward. A reply is a text instead if the task or its
    reward is wrong. The stage keeps the time, and kills the process when it is over.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the stage
    # Neither a reward function nor a process that it starts must reach the pipes of this one.
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the stage may still want this batch's grades
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    for line in requests:
        request = json.loads(line)
        try:
            if isinstance(request, str):
                task = load_task(request)
                reply = float(getattr(task, "answer_limit", answer_limit))
            else:
                reward = task.reward(*request)
                reply = f"returned {reward!r}, which is not a number from 0 to 1"
                with suppress(TypeError, ValueError):  # float() takes numpy's numbers, too
                    if not isinstance(reward, str) and 0 <= float(reward) <= 1:
                        reply = float(reward)
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)
        except (Exception, SystemExit) as e:
            e.__traceback__ = e.__traceback__.tb_next  # without this function
            reply = "raised this:\n" + "".join(traceback.format_exception(e))
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
