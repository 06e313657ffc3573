"""Rewards: 1.0 for a right final answer, else 0.0. Both stages grade with these same functions.

A response is text from a model and is never evaluated as code. `is_equivalent` compares two final answers in two steps:
equal after normalising the spelling, or equal as exact rational numbers.
"""
import re
from fractions import Fraction

# Words that MATH's answers carry after a number; "5\text{ cm}" and "5" are the same answer.
UNIT = re.compile(r"(?<=[\d}])\\?\s*(?:\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|"
                  r"(?:degrees?|cm|inches|feet|units?|dollars?|cents?)\b)(?:\^\{?\d\}?)?$")
NUMBER = re.compile(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?")


def gsm8k(response, answer, finished=True):
    """1.0 if the number after the first `#### ` is the answer, by value: `72.0`, `$72` and `1,200` count."""
    found = re.search(r"####\s*(-?)\s*\$?\s*(-?(?>[\d,]*\.?\d+))(?![/^*]|[eE]\d)", response)
    return float(found is not None and is_equivalent(found[1] + found[2], answer))


def math(response, answer, finished=True):
    """1.0 if the response ended by itself (EOS) and its last `\\boxed{}` equals the answer, as in the paper's code."""
    boxed = last_boxed(response)
    return float(finished and boxed is not None and is_equivalent(boxed, answer))


REWARDS = {"arithmetic": gsm8k, "gsm8k": gsm8k, "math": math}  # a data row's "task" -> its reward


def grade(rows, texts, finished):
    """Rewards of a batch, list of float. rows: data rows with "task" and "answer"; texts and finished go with them."""
    return [REWARDS[row["task"]](text, row["answer"], end) for row, text, end in zip(rows, texts, finished, strict=True)]


def last_boxed(text):
    """Content of the last `\\boxed{...}` (also `\\fbox{...}`, `\\boxed 5`), or None. An unclosed box is no answer."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if rest.startswith(" "):
        return re.match(r"\s+([^\s$]*)", rest)[1] or None
    depth = 0
    for i, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:i] if char == "}" else None
    return None


def is_equivalent(prediction, answer):
    """True if two final answers, as text or LaTeX without the \\boxed, are the same after normalisation or by value."""
    a, b = normalize(prediction), normalize(answer)
    if not a or not b:
        return False
    x, y = rational(a), rational(b)
    return a == b if x is None or y is None else x == y


def normalize(text):
    """One spelling for what LaTeX can spell in many ways. Not an identity on meaning: only fit for comparing."""
    text = text.strip().rstrip(".").replace("\n", "")
    for old, new in (("\\!", ""), ("\\,", ""), ("\\ ", " "), ("\\left", ""), ("\\right", ""), ("\\$", ""), ("$", ""),
                     ("\\%", ""), ("%", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("{,}", ","), ("tfrac", "frac"),
                     ("dfrac", "frac"), ("cfrac", "frac")):
        text = text.replace(old, new)
    text = UNIT.sub("", text.strip())
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text)                       # x = 5
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)    # \frac12
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)         # \frac1{72}
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text)
    return re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)


def rational(text):
    """Exact value of a normalised integer, decimal or fraction, else None."""
    fraction = (re.fullmatch(r"(-?)\\frac\{(-?[\d.,]+)\}\{(-?[\d.,]+)\}", text)
                or re.fullmatch(r"()(-?[\d.,]+)/(-?[\d.,]+)", text))
    sign, parts = (fraction[1], fraction.groups()[1:]) if fraction else ("", (text,))
    if not all(re.search(r"\d", p) and NUMBER.fullmatch(p) and len(p) < 1000 for p in parts):
        return None
    values = [Fraction(p.replace(",", "")) for p in parts]
    if len(values) == 2 and values[1] == 0:
        return None
    value = values[0] / values[1] if fraction else values[0]
    return -value if sign else value
