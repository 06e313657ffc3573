r"""How right and how fast is reward.py, compared with Math-Verify, and with the paper's grader,
which compares strings? In one process and one run, on the pairs of bench/pairs.py, the tables of
tests/test_reward.py, and bench/answers.txt, which was written to break it.

    python bench/grader.py FOLDER    # its files: FILES of bench/pairs.py; about five minutes
"""
import logging
import os
import statistics
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(REPO / "tests")]

logging.disable(logging.WARNING)  # Math-Verify's, about timeouts

import reward  # noqa: E402
from bench import pairs, paper_grader  # noqa: E402
from lib.samples import Response  # noqa: E402

from test_reward import DIFFERENT, EQUAL, HOSTILE, table  # noqa: E402


def timed(function, *args):
    """(result, milliseconds)"""
    start = time.perf_counter()
    result = function(*args)
    return result, 1000 * (time.perf_counter() - start)


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
    """Print all three. built: [(kind, prediction, answer, whether they are equal)]"""
    pairs.math_verify("1", "1")  # its imports
    ours, theirs, papers = [], [], []
    for _, prediction, answer, _ in built:
        ours.append(timed(reward.is_equivalent, prediction, answer))
        theirs.append(timed(pairs.math_verify, prediction, answer))
        papers.append(timed(paper_grader.is_equal, prediction, answer))
    expected = [equal for *_, equal in built]
    print(f"{len(built):,} pairs of final answers\n{HEADER}")
    print(f"{'reward.py':<14}{summary(ours, expected)}")
    print(f"{'Math-Verify':<14}{summary(theirs, expected)}")
    print(f"{'paper grader':<14}{summary(papers, expected)}")
    ratio = statistics.mean(ms for _, ms in theirs) / statistics.mean(ms for _, ms in ours)
    print(f"on average reward.py is {ratio:.0f} times faster")


def grade_a_batch(built):
    some = built[::len(built) // 5000][:5000]
    rows = [{"task": "math", "answer": answer} for _, _, answer, _ in some]
    responses = [Response([], f"{'so ' * 500}\\boxed{{{prediction}}}", False)
                 for _, prediction, _, _ in some]
    reward.grade(rows[:100], responses[:100])  # starts the processes
    graded, ms = timed(reward.grade, rows, responses)
    processes = min(16, os.cpu_count())
    print(f"\n5,000 responses in a batch: {ms / 1000:.2f} s in {processes} processes; "
          f"{sum(graded.timed_out)} ran out of time")


def find_worst_hostile_input():
    worst = max((timed(reward.is_equivalent, text, other)[1], text[:30]) for text in HOSTILE
                for other in ("1", text + "1", "\\frac12 " + text[:9000]))
    print(f"worst hostile input: {worst[0]:.0f} ms ({worst[1]!r} ...)")


if __name__ == "__main__":
    built = pairs.pairs(Path(sys.argv[1]))
    compare_graders(built)
    compare_graders([("table", *pair) for pair in table(EQUAL, True) + table(DIFFERENT, False)])
    compare_graders(pairs.written_to_break_it())
    grade_a_batch(built)
    find_worst_hostile_input()
