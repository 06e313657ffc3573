"""The rewards: with 0/1 rewards the grader is the training signal."""
import json

import pytest
from conftest import REAL_DATA, needs_real_data

import reward


@pytest.mark.parametrize("response, right", [
    ("7+6=13\n#### 72", True), ("#### 72.0", True), ("#### $72", True), ("#### 72 apples", True), ("#### 72.", True),
    ("####72", True), ("#### 72\n#### 5", True), ("#### 5\n#### 72", False), ("#### -72", False), ("#### 720", False),
    ("#### 72.5", False), ("#### 72/2", False), ("#### 72.5/2", False),
    ("#### 72.5e3", False), ("#### 72^2", False), ("#### 72,000/3", False), ("72", False), ("#### ", False), ("", False), ("#### seventy-two", False),
])
def test_gsm8k(response, right):
    """The first `####` counts, by value; the response need not have ended."""
    assert reward.gsm8k(response, "72") == float(right)
    assert reward.gsm8k(response, "72", finished=False) == float(right)


def test_gsm8k_thousands():
    assert reward.gsm8k("#### 1,200", "1200") == 1.0 and reward.gsm8k("#### $1,200.00", "1200") == 1.0
    assert reward.gsm8k("#### -5", "-5") == 1.0 and reward.gsm8k("#### - $5", "-5") == 1.0


def test_math_wants_a_closed_box_and_an_end():
    assert reward.math("so \\boxed{\\frac{1}{2}}.", "\\frac12") == 1.0
    assert reward.math("so \\boxed{\\frac{1}{2}}", "\\frac12", finished=False) == 0.0
    assert reward.math("\\boxed{1} no, \\boxed{2}", "2") == 1.0  # the last box is the answer
    assert reward.math("\\boxed{2} no, \\boxed{1}", "2") == 0.0
    assert reward.math("\\boxed{2", "2") == 0.0                  # an unclosed box is no answer
    assert reward.math("\\boxed 9", "9") == 1.0
    assert reward.math("the answer is 2", "2") == 0.0
    assert reward.math("\\boxed{}", "") == 0.0


@pytest.mark.parametrize("a, b", [
    ("\\dfrac{3}{4}", "\\frac34"), ("3/4", "0.75"), (".5", "\\frac{1}{2}"), ("-\\frac{1}{2}", "-0.5"), ("1,234", "1234"),
    ("1{,}234", "1\\!,\\!234"), ("x = 5", "5"), ("5\\text{ cm}", "5"), ("90^\\circ", "90"), ("\\$18.00", "18"),
    ("50\\%", "50"), ("\\left( 3, 4 \\right)", "(3,4)"), ("\\text{even}", "even"), ("\\sqrt3", "\\sqrt{3}"), ("72.", "72"),
])
def test_equivalent(a, b):
    assert reward.is_equivalent(a, b) and reward.is_equivalent(b, a)


@pytest.mark.parametrize("a, b", [
    ("\\frac{3}{4}", "\\frac{4}{3}"), ("1/2", "0.55"), ("12", "1"), ("(3,4)", "(4,3)"), ("", "0"), ("", ""), ("1/0", "0"),
    ("1,23", "123"), ("\\sqrt{2}", "2"), ("-1", "1"), ("x", "y"),
])
def test_not_equivalent(a, b):
    assert not reward.is_equivalent(a, b) and not reward.is_equivalent(b, a)


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "9" * 100_000, "{" * 10_000, "\\frac{1}{0}", "\x00",
                                  "\ud800", "\\boxed{" * 2000, "9^{9^{9^9}}", "1e999999999"])
def test_hostile_text_is_just_wrong(text):
    assert not reward.is_equivalent(text, "1")
    assert reward.math(f"\\boxed{{{text}}}", "1") == 0.0 and reward.gsm8k(f"#### {text}", "1") == 0.0


@needs_real_data
@pytest.mark.parametrize("task, function", [("gsm8k", reward.gsm8k), ("math", reward.math)])
def test_reference_solutions_earn_the_reward(task, function):
    """Every reference solution of GSM8K and MATH, train and test, given as a response, is right."""
    from prepare import ROWS
    for split in ("train", "test"):
        raw = [json.loads(line) for line in open(REAL_DATA / task / f"{split}.jsonl")]
        rows = [ROWS[task][0](r) for r in raw]
        graded = [row for row in rows if row["answer"]]
        assert len(rows) - len(graded) == (2 if (task, split) == ("math", "train") else 0)
        wrong = [row["answer"] for row in graded if function(row["solution"], row["answer"]) != 1.0]
        assert not wrong, wrong[:10]
