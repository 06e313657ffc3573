"""The paper's string grader against is_equiv of lm-evaluation-harness 0.4.13, whose rules for MATH
are the same: its verdicts on pairs of these answers were written down here."""
from itertools import combinations

import reward
from lib import paper_grader

import pytest
from conftest import REAL_DATA, needs_real_data

ANSWERS = ["72", "72.0", "$72$", "1,200", "\\frac12", "\\frac{1}{2}", "\\dfrac{1}{2}", "0.5", ".5",
           "1/2", "-1/2", "\\sqrt3", "\\sqrt{3}", "5\\text{ cm}", "5", "50\\%", "50%", "50", "x=5",
           "k = 5", "abc=5", "\\left(1,2\\right)", "(1, 2)", "(1,2)", "90^\\circ", "90^{\\circ}",
           "90", "\\$5", "\\frac1{72}", "\\frac{1}{72}", "3/x", "\\sqrt", "", "\\frac",
           "5\\text{ cm}\\text{ s}"]
# Answers of a line are equal to each other, and to no other of ANSWERS.
EQUAL = [["\\frac12", "\\frac{1}{2}", "\\dfrac{1}{2}", "0.5", ".5", "1/2"],
         ["\\sqrt3", "\\sqrt{3}"],
         ["5\\text{ cm}", "5", "x=5", "k = 5", "\\$5"], ["50\\%", "50"],
         ["\\left(1,2\\right)", "(1, 2)", "(1,2)"], ["90^\\circ", "90^{\\circ}", "90"],
         ["\\frac1{72}", "\\frac{1}{72}"]]


def test_equal_answers():
    equal = {pair for line in EQUAL for pair in combinations(sorted(line), 2)}
    for pair in combinations(sorted(ANSWERS), 2):
        assert paper_grader.is_equal(*pair) == (pair in equal), pair
    # Where no rule applies, equal text is equal; what is behind a unit is not read.
    assert paper_grader.is_equal("3/x", "3/x") and not paper_grader.is_equal("3/x", "3 /x")
    assert paper_grader.is_equal("19 \\text{ and }44", "19 \\text{ and }43")


@pytest.mark.parametrize("response, finished, expected", [
    (r"so \boxed{\frac12}", True, 1), (r"so \boxed{\frac12}", False, 0), ("so 0.5", True, 0),
    (r"\boxed{1} or \boxed{0.5}", True, 1), (r"\boxed{0.5} or \boxed{1}", True, 0),
    (r"\boxed{0.50}", True, 0), (r"\fbox{0.5}", True, 1), (r"\boxed{0.5", True, 0)])
def test_math(response, finished, expected):
    assert paper_grader.math(response, "\\frac{1}{2}", finished) == expected


@pytest.mark.parametrize("response, answer, expected", [
    ("#### 1,200", "1200", 1), ("#### -7", "-7", 1), ("#### 72.0", "72", 0), ("#### 72.", "72", 0),
    ("####72", "72", 0), ("#### 72 and #### 73", "72", 1), ("72", "72", 0), ("#### $72", "72", 0)])
def test_gsm8k(response, answer, expected):
    assert paper_grader.gsm8k(response, answer, finished=False) == expected


@needs_real_data
def test_reference_solutions():
    """Both graders accept them."""
    from lib.files import read_jsonl
    for row in read_jsonl(REAL_DATA / "math/test.jsonl", ("solution",)):
        answer = reward.last_boxed(row["solution"])
        assert paper_grader.math(row["solution"], answer) == 1
        assert reward.math(row["solution"], answer) == 1
