r"""Rewards. The model learns whatever the grader calls right.

Tables of pairs (answers.txt, bench/answers.txt, docs/answers.md), all reference answers of the data
and pairs built from them (bench/pairs.py), random answers, hostile text, and batches.
"""
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from itertools import cycle
from pathlib import Path

import lib.answers
import lib.distributed
import lib.latex
import reward
from bench import pairs
from bench.pairs import written_to_break_it
from lib.files import read_jsonl
from lib.samples import Response
from reward import RewardError, is_equivalent, last_boxed, load_task

import pytest
from conftest import REAL_DATA, REPO, needs_real_data
from hypothesis import given, settings
from hypothesis import strategies as st

TABLES = Path(__file__).with_name("answers.txt").read_text()
EQUAL, DIFFERENT = ("\n".join(re.findall(rf"(?m)^{sign} (.*)", TABLES)) for sign in "=!")


def table(text, expected):
    entries = [entry.split(" ~ ") for entry in re.split(" ;; |\n", text)]
    return [(first, other, expected) for first, *others in entries for other in others]


def wrong_verdicts(pairs):
    """Those of [(prediction, answer, whether they are equal)] on which we err, in either order."""
    return [(a, b) for a, b, equal in pairs
            if (is_equivalent(a, b), is_equivalent(b, a)) != (equal, equal)]


def test_tables():
    tables = table(EQUAL, True) + table(DIFFERENT, False)
    assert len(tables) > 500 and wrong_verdicts(tables) == []
    assert wrong_verdicts([("", other, False) for other in ("", "0", " ", "$$")]) == []
    assert wrong_verdicts([("$$", "$$ $$", False)]) == []


def test_pairs_written_to_break_it():
    """Of 983, nine wrong answers are taken and 30 right ones are refused: never more."""
    found = written_to_break_it()
    verdicts = Counter((equal, is_equivalent(a, b)) for _, a, b, equal in found)
    assert verdicts == Counter((equal, is_equivalent(b, a)) for _, a, b, equal in found)
    assert verdicts.total() == 983 and verdicts[False, True] <= 9 and verdicts[True, False] <= 30


def test_a_fault_of_the_grader_is_a_wrong_answer(monkeypatch):
    """With a warning: the same response would end a run again after every restart."""
    monkeypatch.setattr(lib.answers, "read", lambda *_: {}["no such key"])
    with pytest.warns(UserWarning, match="'1' and '2' could not be compared .KeyError"):
        assert is_equivalent("1", "2") is False


def test_the_table_in_docs():
    """docs/answers.md says what is_equivalent does."""
    rows = re.findall(r"(?m)`(.*?)` +\| `(.*?)` +\| (yes|no) ",
                      (REPO / "docs/answers.md").read_text())
    assert len(rows) > 30
    assert wrong_verdicts([(a, b, verdict == "yes") for a, b, verdict in rows]) == []


@pytest.mark.parametrize("expected, answer, numbers", [
    (1, "72", ["72", "72.0", "$72", "72 apples", "72.", "72\n#### 5"]), (1, "-5", ["-5", "- $5"]),
    (1, "1200", ["1,200", "$1,200.00", "**1200**", "1000 + 200 = 1200", "1200. It was 1100."]),
    (1, "-18", ["−18", "**-18**"]), (1, "3/4", ["3/4", "\\frac34", "0.75"]),
    (0, "72", ["5\n#### 72", "-72", "720", "72.5", "72/2", "72.5/2", "72.5e3", "72^2", "72,000/3",
               "", "two", "72 + 1 = 73", "72 thousand", "1:12", "72, 73", "**"])])
def test_gsm8k(expected, answer, numbers):
    """The number after the first `####` counts, also in a truncated response."""
    for number in numbers:
        for response in (f"####{number}", f"7+6=13\n#### {number}"):
            assert reward.gsm8k(response, answer) == expected, response
            assert reward.gsm8k(response, answer, finished=False) == expected, response
    assert reward.gsm8k(answer, answer) == 0.0


@pytest.mark.parametrize("response, answer", [
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), (r"\fbox{7}", "7"), (r"\boxed {7}", "7"),
    (r"$\boxed 5$ is it", "5"), (r"\boxed{1} no, \boxed{2}. So 3.", "2"), (r"\boxed", None),
    (r"\boxed{\{1, \{2\}\}}", r"\{1, \{2\}\}"), (r"\boxed{[0, 1\}}", r"[0, 1\}"), (r"\boxed{}", ""),
    (r"\boxed{5", None), (r"\boxed{5} or rather \boxed{5", None), (r"\boxed5", None), ("5", None),
    (r"\fbox{1} \boxed{2}", "2"), (r"\boxed{1} \fbox{2}", "2"), ("\\boxed{\n5\n}", "\n5\n")])
def test_math(response, answer):
    """The last box counts, here and in reference solutions. It must be closed, and the response
    must have ended."""
    assert last_boxed(response) == answer
    assert reward.math(response, answer or "5") == bool(answer)
    assert reward.math(response, answer or "5", finished=False) == 0.0
    row = load_task("math").row({"problem": "?", "solution": response})
    assert row["answer"] == (answer or "")


# ---- real answers --------------------------------------------------------------------------------

@needs_real_data
@pytest.mark.parametrize("name, without_answer", [
    ("gsm8k/train", 0), ("gsm8k/test", 0), ("math/train", 2), ("math/test", 0), ("math500", 0),
    ("minerva_math", 0)])
def test_reference_solutions_are_right(name, without_answer):
    task = load_task("gsm8k" if name.startswith("gsm8k") else "math")
    rows = [*map(task.row, read_jsonl(REAL_DATA / f"{name}.jsonl", ()))]
    wrong = [row["answer"] for row in rows if task.reward(row["solution"], row["answer"]) != 1.0]
    assert wrong == [""] * without_answer


@needs_real_data
@pytest.mark.parametrize("build", [partial(pairs.pairs, every=10), pairs.by_kind])
def test_pairs_built_from_real_answers(build):
    """No verdict is wrong on a tenth of the 27,000 pairs, all of which bench/grader.py tries, and
    on bench/kinds.txt with numbers of real answers."""
    built = build(REAL_DATA)
    assert len(built) > 2000
    assert not [pair for pair in built if is_equivalent(*pair[1:3]) is not pair[3]]


@pytest.mark.slow
@needs_real_data
def test_against_math_verify():
    """Math-Verify is right on no kind of answer more often, and on all together less often."""
    lead = Counter()
    for name, prediction, answer, equal in pairs.pairs(REAL_DATA, every=30):
        lead[name] += is_equivalent(prediction, answer) == equal
        lead[name] -= pairs.math_verify(prediction, answer) == equal
    assert len(lead) > 10 and min(lead.values()) >= 0 and lead.total() > 0


# ---- random and hostile answers ------------------------------------------------------------------

settings.register_profile("slow machine", deadline=None)
settings.load_profile("slow machine")
numbers = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=1000)
spellings = st.sampled_from([
    "{n}/{d}", "{n:,}/{d}", "\\frac{{{n}}}{{{d}}}", "\\left({n}/{d}\\right)", "x = {n}/{d}",
    " \\! {n}/{d} \\,. ", "\\text{{{n}/{d}}}", "{n}/{d} + 1 - 1", "{n} \\cdot {d}^{{-1}}"])
units = st.sampled_from([
    "{n}/{d} \\text{{ cm}}", "\\${n}/{d}", "({n}/{d})^\\circ", "{n}/{d} \\text{{ apples}}"])
# Two spellings of each atom. Atoms are linearly independent over the rationals, so two sums of them
# are equal only if all coefficients are.
ATOMS = [
    ("1", "1^2"), ("\\sqrt2", "2^{1/2}"), ("\\sqrt{3}", "\\frac{3}{\\sqrt{3}}"), ("x", "(x)"),
    ("\\sqrt{6}", "\\sqrt2\\sqrt3"), ("\\pi", "{\\pi}"), ("i", "\\sqrt{-1}"), ("e", "\\exp(1)"),
    ("\\ln 2", "\\frac{\\ln 4}{2}"), ("x^2", "x \\cdot x"), ("y", "\\frac{y^2}{y}"), ("xy", "yx"),
    ("\\sin x", "\\cos(\\frac{\\pi}{2}-x)")]
coefficients = st.lists(st.integers(-9, 9), min_size=len(ATOMS), max_size=len(ATOMS))
pieces = st.sampled_from([*r"""\frac { } ( ) [ ] ^ _ \sqrt 1 23 0 x y n \pi e i + - * / , = < \le
\infty \cup \{ \} | ! % ^\circ \text{ \text{\ cm} \pm & \\ \sin \begin{pmatrix} \end{pmatrix} \log_
\binom \lfloor \rfloor 99999 e5 . : and or \$ \left( \right) \in \mathbb{R} ² ½ \overline{3} '
\setminus f( \cdot \ge \ne \approx \emptyset""".split(), " ", "\x00", "\ud800"])
texts = st.text(max_size=40) | st.lists(pieces, max_size=14).map("".join)


@given(numbers, numbers, spellings, spellings, units)
def test_numbers_are_equal_only_by_value(x, y, one, other, unit):
    def spelled(x, spelling):
        return spelling.format(n=x.numerator, d=x.denominator)
    for z in (x, y):
        assert is_equivalent(spelled(x, one), spelled(z, other)) is (x == z)
        assert is_equivalent(spelled(x, unit), spelled(z, unit)) is (x == z)
    assert is_equivalent(spelled(x, one), spelled(x, unit))


@given(coefficients, st.sampled_from(range(len(ATOMS))), st.integers(1, 3))
def test_formulas_are_equal_only_by_value(numbers, i, change):
    def formula(numbers, spelling):
        terms = [f"{n} {{{atom[spelling]}}}" for n, atom in zip(numbers, ATOMS, strict=True) if n]
        return " + ".join(terms).replace("+ -", "- ") or "0"
    other = [n + change * (k == i) for k, n in enumerate(numbers)]
    assert is_equivalent(formula(numbers, 0), formula(numbers, 1))
    assert not is_equivalent(formula(numbers, 0), formula(other, 1))


@given(st.lists(numbers.map(str), min_size=2, max_size=5, unique=True), st.randoms())
def test_order_matters_in_tuples_only(items, rng):
    text, shuffled = ", ".join(items), rng.sample(items, len(items))
    assert is_equivalent(" \\text{ and } ".join(shuffled), text)
    assert is_equivalent("\\{" + ", ".join(shuffled) + "\\}", text)
    assert is_equivalent(f"({', '.join(shuffled)})", f"({text})") == (shuffled == items)
    for other in ([*items[1:], "10001"], [*items, items[0]], items[1:]):
        assert not is_equivalent(text, ", ".join(other))


@given(texts, texts)
def test_any_text(a, b):
    """Nothing is raised, and the order of two answers doesn't matter."""
    assert is_equivalent(a, a) is bool(a.strip())
    assert is_equivalent(a, b) is is_equivalent(b, a)


ENTRIES = "\\\\".join("&".join(f"x_{{{i}}}+{j}y" for j in range(50)) for i in range(50))
HOSTILE = [
    "9^{9^{9^9}}", "e^{e^{e^{e^{e^e}}}}", "1000000!", "(10^{100})!", "9!!!!!!", r"\frac{1}{0}",
    r"\binom{10^{10}}{10^9}", r"\sin(10^{10^{10}})", "(x+1)^{1000000}", r"(1+\sqrt2)^{1000000}",
    "x!" * 200, "x(" * 40 + "y+1" + ")" * 40,
    r"\sqrt[999999999]{2}", "{" * 10_000 + "1" + "}" * 10_000, "(" * 5000, "|" * 5000,
    r"\frac{1}{" * 300 + "2" + "}" * 300, r"\text{" * 5000, r"\boxed{" * 2000, "9" * 15_000,
    "a+" * 500_000 + "1", "1e999999999", "1e4999", "1" + ",000" * 3000, "\\" * 15_000, "\x00\x001",
    r"0.\overline{" + "7" * 4000, " " * 15_000 + "2", ",".join(map(str, range(4000))), "e " * 9000,
    r"\begin{pmatrix}" + ENTRIES + r"\end{pmatrix}", "+".join(["(x+1/3)^{400}"] * 600),
    r"\{" + ",".join(rf"\sqrt{{{i}}}" for i in range(1500)) + r"\}", "\ud800\udfff",
    r"\cup".join(f"({i},{i + 1})" for i in range(1500)), "(" + ",".join([r"\pm1"] * 40) + ")"]
CODE = ["__import__('os').system('touch owned')", "().__class__.__bases__[0].__subclasses__()",
        "exec(\"open('owned','w')\")", "eval(compile('1','','eval'))", "lambda: 0", "Symbol('x')",
        "f'{1}'", "x;import os", "{{7*7}}", "\\input{/etc/passwd}"]


@pytest.mark.parametrize("text", HOSTILE + CODE)
def test_hostile_text_is_just_wrong(text):
    """No comparison raises an error or takes long."""
    start = time.process_time()
    assert not is_equivalent(text, "1") and not is_equivalent("1", text)
    assert reward.math(f"\\boxed{{{text}}}", "1") == reward.gsm8k(f"#### {text}", "17") == 0.0
    assert is_equivalent(text, text + "1") is is_equivalent(text + "1", text)
    assert time.process_time() - start < 6 * reward.answer_limit


def test_nothing_is_run_as_code(tmp_path):
    """Python reports every eval, import, opened file and new process to an audit hook. Grading
    causes none of them. Grading processes don't load torch, which would take seconds."""
    texts = [*CODE, "x = 1", "\\sin x", "1, 2", "(0, 1)", "5!", "2^x"]
    done = subprocess.run([sys.executable, "-c", rf"""
import reward, sys
reward.is_equivalent(r"\sin x", r"\cos x + \binom{{n}}{{2}}! + \arctan y")  # late imports of mpmath
seen = set()
sys.addaudithook(lambda event, args: seen.add(event.split(".")[0]))
for a in {texts}:
    for b in {texts}:
        reward.math("\\boxed{{" + a + "}}", b)
        reward.gsm8k("#### " + a, b)
print("torch" in sys.modules, *seen)
"""], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    loads_torch, *seen = done.stdout.split()
    assert loads_torch == "False" and not os.listdir(tmp_path) and not {*seen} & {
        "exec", "compile", "import", "open", "os", "subprocess", "socket", "ctypes", "code"}


# ---- grading a batch -----------------------------------------------------------------------------

@pytest.fixture
def task(tmp_path):
    """A user's task file. Its reward is the value of the response, which is a Python expression."""
    path = tmp_path / "mine.py"
    path.write_text("import time\ndef rows(split):\n    return []\n"
                    "def reward(response, answer, finished):\n"
                    "    print('This is no reply.')\n    return eval(response)\n")
    return str(path)


def grade(task, *texts):
    return reward.grade([{"task": task, "answer": "5"}] * len(texts), responses_of(texts))


def responses_of(texts, truncated=None):
    return [Response([], *pair) for pair in zip(texts, truncated or cycle([False]), strict=False)]


def processes(parent=None):
    """The ids of all grading processes, or of those that `parent` has started."""
    ps = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True)
    lines = [line.split() for line in ps.stdout.splitlines() if reward.__file__ in line]
    return {int(pid) for pid, ppid, *_ in lines if parent in (None, int(ppid))}


def wait_for_the_end(pids):
    deadline = time.time() + 30
    while pids & processes():
        assert time.time() < deadline
        time.sleep(0.05)


def test_a_batch_is_graded_in_its_order():
    """The grades are those of the reward functions, also for truncated responses."""
    equal = table(EQUAL, True)
    rows = [{"task": task, "answer": a} for a, *_ in equal for task in ("math", "arithmetic")]
    texts = [f"#### {b}\n\\boxed{{{b}}} \ud800" for _, b, _ in equal for _ in range(2)]
    truncated = [i % 3 == 0 for i in range(len(rows))]
    graded = reward.grade(rows, responses_of(texts, truncated))
    assert graded.rewards == [
        load_task(row["task"]).reward(text, row["answer"], not is_truncated)
        for row, text, is_truncated in zip(rows, texts, truncated, strict=True)]
    assert graded.rewards[::2] == [float(not is_truncated) for is_truncated in truncated[::2]]
    assert sum(graded.rewards[3::6]) > 10  # truncated sums
    assert not any(graded.timed_out) and reward.grade([], []) == ([], [])


def test_a_users_reward_is_a_number_from_0_to_1(task):
    right = {"0": 0.0, "1": 1.0, "-0.0": 0.0, "0.25": 0.25, "True": 1.0,
             "__import__('numpy').float32(0.5)": 0.5, "__import__('numpy').True_": 1.0}
    assert grade(task, *right).rewards == [*right.values()]
    for response, message in {
            "1.0000001": "returned 1.0000001, ", "-0.1": "returned -0.1, ", "'1'": "returned '1', ",
            "float('nan')": "returned nan, ", "None": "returned None, ",
            "[][1]": "raised this:\nTraceback"}.items():
        with pytest.raises(RewardError) as e:
            grade(task, "1", response)
        assert str(e.value).startswith(f"error: for the response {response!r} and the answer '5' "
                                       f"the reward of task {task} {message}")
    assert str(e.value).count("  File ") == 2 and "line 6, in reward" in str(e.value)
    assert str(e.value).endswith("IndexError: list index out of range\n")


def test_what_exceeds_a_limit_earns_0(task, capsys):
    """The limits are 2 seconds, without the time to load the task, and 2 GiB. The pool goes on. A
    task may set another limit; it can't escape from it by timers or processes of its own."""
    graded = grade(task, "time.sleep(1.4) or 1", "len(bytes(1 << 30)) > 0", "9 ** 9 ** 9",
                   "time.sleep(2.6) or 1", "len(bytes(2 << 30)) > 0", "1", "1", "1")
    assert graded.rewards == [1, 1, 0, 0, 0, 1, 1, 1]
    assert graded.timed_out == [r == 0 for r in graded.rewards]
    assert "3 of 8 responses took too long to grade, or too m" in capsys.readouterr().out
    slow = Path(task).with_name("slow.py")
    slow.write_text("import time\ntime.sleep(2.2)\n" + Path(task).read_text())
    assert grade(str(slow), "1", "1").rewards == [1.0, 1.0]
    judge = slow.with_name("judge.py")
    judge.write_text("answer_limit = 4\n" + Path(task).read_text())
    assert grade(str(judge), "time.sleep(2.6) or 1").rewards == [1.0]
    begin = time.time()
    graded = grade(task, "__import__('signal').alarm(0) or time.sleep(20)",
                   "(__import__('os').fork() or time.sleep(30)) and time.sleep(20)")
    assert graded == ([0.0, 0.0], [True, True]) and time.time() - begin < 15


def test_what_a_reward_starts_has_limits_too(tmp_path):
    """The processes that a reward function starts can't reach the pipes to the stage, and end when
    it takes too long. Its crash is an error."""
    task = tmp_path / "mine.py"
    task.write_text("""from __future__ import annotations
import os, subprocess, sys
from dataclasses import dataclass

@dataclass
class Result:
    status: int

def rows(split): ...

def reward(response, answer, finished):
    if response == "crash":
        os.abort()
    return float(Result(subprocess.run([sys.executable, "-c", response]).returncode).status == 0)
""")
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    graded = grade(str(task), "print(1)", "1 / 0", "input()", "print('x')", "1 / 0",
                   f"{sleeper}; time.sleep(60)", "")
    assert graded.rewards == [1, 0, 0, 1, 0, 0, 1] and sum(graded.timed_out) == 1
    time.sleep(0.3)
    ps = subprocess.run(["ps", "-o", "state=", (tmp_path / "pid").read_text()], capture_output=True)
    assert ps.stdout.strip() in (b"", b"Z")  # Z: dead, and not reaped yet
    with pytest.raises(RewardError, match="response 'crash' .*mine.py crashed with status -6"):
        grade(str(task), "print(1)", "crash")


def test_a_killed_grading_process_is_replaced(task):
    """Ctrl-C and SIGTERM don't end one."""
    grade(task, *["1"] * 20)
    pids = processes(os.getpid())
    assert 1 <= len(pids) <= 16 and all(os.getsid(pid) == pid for pid in pids)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGKILL:
            wait_for_the_end(pids)
        graded = grade(task, *["1"] * 20)
        assert graded.rewards == [1.0] * 20 and not any(graded.timed_out)
        assert pids.isdisjoint(processes(os.getpid())) == (number == signal.SIGKILL)


def test_no_process_is_left_behind(task, tmp_path):
    """A stage is killed while one grading process is idle and the other one hangs, in C: both end.
    """
    stage = subprocess.Popen([sys.executable, "-c", f"""
import reward
from lib.samples import Response
rows = [{{"task": {task!r}, "answer": "5"}}] * 99
one, endless = (Response([], text, False) for text in ("1", "9 ** 9 ** 9"))
print(reward.grade(rows, [one] * 99).rewards[0], flush=True)
reward.grade(rows, [endless] + [one] * 98)
"""], cwd=tmp_path, stdout=subprocess.PIPE)
    assert stage.stdout.readline() == b"1.0\n"
    time.sleep(0.3)
    pids = processes(stage.pid)
    stage.kill()
    stage.wait()
    assert pids
    wait_for_the_end(pids)


def test_ranks_grade_a_batch_together(task, monkeypatch):
    """Each rank grades a part and gets all grades in the batch's order, or an error of any rank."""
    def graded_on(rank, texts, all_gather):
        for name, value in (("rank", rank), ("world_size", 3), ("all_gather", all_gather)):
            monkeypatch.setattr(lib.distributed, name, value)
        return reward.start_grading([{"task": task, "answer": "5"}] * len(texts),
                                    responses_of(texts))()

    texts = ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]
    parts = [[*map(tuple, grade(task, *texts[rank::3]))] for rank in range(3)]
    for rank in range(3):
        mine = []
        graded = graded_on(rank, texts, lambda part, mine=mine: mine.append(part) or parts)
        assert graded.rewards == [*map(float, texts)] and mine == [parts[rank]]
    with pytest.raises(RewardError, match="all get: error: for the response '1 / 0'"):
        graded_on(1, ["0", "1 / 0"], lambda part: [f"all get: {part}"] * 3)


def test_the_fingerprint_covers_all_code_that_grades(task, tmp_path, monkeypatch):
    """It changes with reward.py, lib/{answers,latex}.py, the file of each task in the rows, and
    what such a file imports from files beside it, but not with comments and docstrings."""
    helper = tmp_path / "helper_of_mine.py"
    helper.write_text("LIMIT = 3\n")
    Path(task).write_text("from helper_of_mine import LIMIT\n" + Path(task).read_text())
    rows = [{"task": "math"}, {"task": task}, {"task": "math"}]
    before = reward.fingerprint(rows)
    assert reward.fingerprint(rows[:0:-1]) == before != reward.fingerprint(rows[:1])
    read = Path.read_bytes
    paths = [m.__file__ for m in (reward, lib.answers, lib.latex, load_task("math"))]
    for path in (*paths, task, str(helper)):
        for more, same in (("# a comment\n", True), ("x = 1\n", False)):
            with monkeypatch.context() as patch:
                patch.setattr(Path, "read_bytes", lambda self, path=path, more=more: read(self) + (
                    more.encode() if str(self) == path else b""))
                assert (reward.fingerprint(rows) == before) == same, path
    text = helper.read_text()
    helper.write_text('"""A docstring."""\n' + text)
    assert reward.fingerprint(rows) == before
    assert grade(task, "LIMIT / 4").rewards == [0.75]
