r"""The rewards of the A*-PO paper's code, for results that are to be compared with published ones.

They compare strings, where reward.py compares values: 0.50 is not 1/2 here. The paper's repository
is a fork of verl, whose rules for MATH are those of Hendrycks et al. 2021 (arXiv 2103.03874).
"""
import re

from lib.answers import last_boxed


def gsm8k(response, answer, finished=True):
    """1.0 if the number after the first `#### ` is the answer, but for commas and $."""
    found = re.search(r"#### (-?[0-9.,]+)", response)
    return float(found is not None and found[1].replace(",", "").replace("$", "") == answer)


def math(response, answer, finished=True):
    r"""1.0 if the response ended with EOS and its last `\boxed{}`, normalised, is the answer."""
    boxed = last_boxed(response)
    return float(finished and boxed is not None and is_equal(boxed, answer))


def is_equal(a, b):
    try:
        return normalise(a) == normalise(b)
    except ValueError:  # a form that the rules don't foresee
        return a == b


def normalise(text):
    """An answer in LaTeX by the rules of MATH. Raises ValueError where they are not defined."""
    for old, new in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
                     ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
                     ("\\$", "")):
        text = text.replace(old, new)
    if "\\text{ " in text:  # a unit on the right
        text, *units = text.split("\\text{ ")
        if len(units) != 1:
            raise ValueError("two units")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # k = 5
        text = sides[1]
    text = add_braces_to_roots(text).replace(" ", "")
    text = add_braces_to_fractions(text)
    if text == "0.5":
        text = "\\frac{1}{2}"
    if text.count("/") == 1:
        above, below = map(int, text.split("/"))  # ValueError if one is no integer
        if text == f"{above}/{below}":
            text = f"\\frac{{{above}}}{{{below}}}"
    return text


def add_braces_to_roots(text):
    r"""\sqrt3 -> \sqrt{3}"""
    first, *parts = text.split("\\sqrt")
    if "" in parts:
        raise ValueError("a root of nothing")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}")
                           for part in parts)


def add_braces_to_fractions(text):
    r"""\frac12 and \frac1{2} -> \frac{1}{2}. Where too little follows, the text stays as it is."""
    first, *parts = text.split("\\frac")
    if "" in parts:
        raise ValueError("a fraction of nothing")
    result = first
    for part in parts:
        result += "\\frac"
        if part.startswith("{"):
            result += part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            result += f"{{{part[0]}}}{part[1:]}"
        else:
            result += f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return result
