r"""How right and how fast is reward.py, compared with Math-Verify, with the paper's grader, which
compares strings, and with sympy in the place of step 4 of lib/answers.py? In one process and one
run, on the pairs of tests/pairs.py.

    python bench/grader.py [data folder]    # about five minutes
"""
import logging
import os
import signal
import statistics
import sys
import time
from fractions import Fraction
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

logging.disable(logging.WARNING)  # Math-Verify's, about timeouts

import reward  # noqa: E402
from bench import paper_grader  # noqa: E402
from lib import answers  # noqa: E402

import pairs  # noqa: E402


def timed(function, *args):
    """(result, milliseconds)"""
    start = time.perf_counter()
    result = function(*args)
    return result, 1000 * (time.perf_counter() - start)


def as_sympy(x):
    """A scalar tree (lib/answers.py) as a sympy expression."""
    import sympy
    if isinstance(x, Fraction):
        return sympy.Rational(x.numerator, x.denominator)
    if isinstance(x, str):
        known = {"e": sympy.E, "i": sympy.I, "\\pi": sympy.pi, "\\infty": sympy.oo}
        return known.get(x) or sympy.Symbol(x.strip("\\"), positive=True)
    if x[0] == "fn":
        args = list(map(as_sympy, x[2:]))
        if x[1] == "root":
            return args[0] ** (1 / args[1])
        names = {"ln": "log", "log": "log", "floor": "floor", "ceil": "ceiling",
                 "binom": "binomial", "abs": "Abs", "factorial": "factorial"}
        return getattr(sympy, names.get(x[1], x[1].replace("arc", "a")))(*args)
    if x[0] == "app":
        return sympy.Symbol(f"{x[1]}({x[2]})", positive=True)
    if x[0] == "unit":
        factors = {("percent1",): sympy.Rational(1, 100), ("degree1",): sympy.pi / 180}
        return as_sympy(x[2]) * factors.get(x[1], 1)
    a, *rest = map(as_sympy, x[1:])
    if x[0] == "^":
        return a ** rest[0]
    operations = {"+": sympy.Add, "*": sympy.Mul, "/": lambda a, b: a / b, "neg": lambda a: -a}
    return operations[x[0]](a, *rest)


def by_sympy(prediction, answer):
    """Does sympy find that the difference is 0? None if it took more than 5 seconds."""
    import sympy

    def stop(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    try:
        return sympy.simplify(as_sympy(prediction) - as_sympy(answer)) == 0
    except TimeoutError:
        return None
    finally:
        signal.alarm(0)


def by_digits(prediction, answer):
    answers.Work.left = answers.budget
    return answers.same(prediction, answer)


def summary(results, expected):
    """Share of right verdicts, number of wrong answers taken for right, and milliseconds.

    results: [(verdict, milliseconds)]; expected: [bool].
    """
    times = [ms for _, ms in results]
    verdicts = [bool(verdict) for verdict, _ in results]
    right = statistics.mean(v == e for v, e in zip(verdicts, expected, strict=True))
    taken = sum(v > e for v, e in zip(verdicts, expected, strict=True))
    return (f"{right:>10.3%}{taken:>13}{statistics.median(times):>11.3f}"
            f"{statistics.mean(times):>10.3f}{max(times):>10.1f}")


HEADER = f"{'':14}{'right':>10}{'wrong taken':>13}{'median ms':>11}{'mean ms':>10}{'max ms':>10}"


def compare_graders(built):
    """Print all three. Returns the pairs in which numbers were compared by their digits."""
    pairs.math_verify("1", "1")  # its imports
    ours, theirs, papers, inexact = [], [], [], []
    for _, prediction, answer, equal in built:
        answers.Work.inexact = 0
        ours.append(timed(reward.is_equivalent, prediction, answer))
        if answers.Work.inexact:
            inexact.append((prediction, answer, equal))
        theirs.append(timed(pairs.math_verify, prediction, answer))
        papers.append(timed(paper_grader.is_equal, prediction, answer))
    expected = [equal for *_, equal in built]
    print(f"{len(built):,} pairs of final answers\n{HEADER}")
    print(f"{'reward.py':<14}{summary(ours, expected)}")
    print(f"{'Math-Verify':<14}{summary(theirs, expected)}")
    print(f"{'paper grader':<14}{summary(papers, expected)}")
    ratio = statistics.mean(ms for _, ms in theirs) / statistics.mean(ms for _, ms in ours)
    print(f"on average reward.py is {ratio:.0f} times faster")
    return inexact


def compare_with_sympy(inexact):
    scalars = []
    for prediction, answer, equal in inexact:
        x, y = (answers.parse(answers.clean(text)) for text in (prediction, answer))
        if answers.kind(x) == answers.kind(y) == "scalar":
            scalars.append((x, y, equal))
    print(f"\n{len(inexact):,} of them needed digits; {len(scalars):,} of these are one number or "
          f"formula each. There:\n{HEADER}")
    by_sympy(Fraction(1), Fraction(2))  # its imports
    for label, judge in (("digits", by_digits), ("sympy", by_sympy)):
        results = [timed(judge, x, y) for x, y, _ in scalars]
        print(f"{label:<14}{summary(results, [equal for *_, equal in scalars])}")


def grade_a_batch(built):
    some = built[::len(built) // 5000][:5000]
    rows = [{"task": "math", "answer": answer} for _, _, answer, _ in some]
    texts = [f"{'so ' * 500}\\boxed{{{prediction}}}" for _, prediction, _, _ in some]
    reward.grade(rows[:100], texts[:100], [False] * 100)  # starts the processes
    graded, ms = timed(reward.grade, rows, texts, [False] * 5000)
    processes = min(16, os.cpu_count())
    print(f"\n5,000 responses in a batch: {ms / 1000:.2f} s in {processes} processes; "
          f"{sum(graded.timed_out)} ran out of time")


def find_worst_hostile_input():
    from test_reward import HOSTILE
    worst = max((timed(reward.is_equivalent, text, other)[1], text[:30]) for text in HOSTILE
                for other in ("1", text + "1", "\\frac12 " + text[:9000]))
    print(f"worst hostile input: {worst[0]:.0f} ms ({worst[1]!r} ...)")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else REPO.parent / "shared" / "data"
    built = pairs.pairs(folder)
    compare_with_sympy(compare_graders(built))
    grade_a_batch(built)
    find_worst_hostile_input()
