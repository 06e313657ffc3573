"""The paper's string grader (bench/paper_grader.py) against is_equiv of lm-evaluation-harness
0.4.13, whose rules for MATH are the same. Its verdicts were written down here."""
from itertools import combinations

from bench.paper_grader import gsm8k, is_equal, math
from lib.answers import last_boxed
from lib.files import read_jsonl

from conftest import REAL_DATA, needs_real_data

# The answers in a line are equal to each other and differ from all others.
GROUPS = [line.split(" ~ ") for line in r"""\frac12 ~ \frac{1}{2} ~ \dfrac{1}{2} ~ 0.5 ~ .5 ~ 1/2
\sqrt3 ~ \sqrt{3}
5\text{ cm} ~ 5 ~ x=5 ~ k = 5 ~ \$5
50\% ~ 50
\left(1,2\right) ~ (1, 2) ~ (1,2)
90^\circ ~ 90^{\circ} ~ 90
\frac1{72} ~ \frac{1}{72}""".splitlines()]
GROUPS += [[answer] for answer in ("72", "72.0", "$72$", "1,200", "-1/2", "50%", "abc=5", "3/x",
                                   "\\sqrt", "", "\\frac", "5\\text{ cm}\\text{ s}")]


def test_equal_answers():
    groups = {answer: i for i, line in enumerate(GROUPS) for answer in line}
    for a, b in combinations(groups, 2):
        assert is_equal(a, b) == (groups[a] == groups[b]), (a, b)
    # Where no rule applies, equal text is equal; what follows a unit is not read.
    assert is_equal("3/x", "3/x") and not is_equal("3/x", "3 /x")
    assert is_equal("19 \\text{ and }44", "19 \\text{ and }43")


def test_math():
    for response in (r"so \boxed{\frac12}", r"\boxed{1} or \boxed{0.5}", r"\fbox{0.5}"):
        assert math(response, "\\frac{1}{2}") == 1
        assert math(response, "\\frac{1}{2}", finished=False) == 0
    for response in (r"\boxed{0.5} or \boxed{1}", r"\boxed{0.50}", r"\boxed{0.5", "so 0.5"):
        assert math(response, "\\frac{1}{2}") == 0


def test_gsm8k():
    for response in ("#### 1,200", "#### 1200 and #### 73"):
        assert gsm8k(response, "1200", finished=False) == 1
    for response in ("#### 1200.0", "#### 1200.", "####1200", "1200", "#### $1200", "#### -1200"):
        assert gsm8k(response, "1200") == 0


@needs_real_data
def test_reference_solutions_are_right():
    for row in read_jsonl(REAL_DATA / "math/test.jsonl", ("solution",)):
        assert math(row["solution"], last_boxed(row["solution"])) == 1
