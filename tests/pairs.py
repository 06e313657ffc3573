r"""Pairs of final answers with a known verdict, built from the reference answers of real data.

    python tests/pairs.py [data folder]    # every pair on which reward.py and Math-Verify disagree, and who is right: minutes

Each answer is rewritten in ways that keep its value and changed in ways that don't. The verdict is known by construction, so
neither grader has a part in it. Everything is deterministic.
"""
import json
import random
import re
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from reward import is_equivalent, last_boxed  # noqa: E402

KINDS = [  # the first pattern that matches names the kind
    ("matrix", r"pmatrix"), ("interval", r"\\infty|\\cup|^\s*(?:\\left)?[\[(][^\[\](),]*,[^\[\](),]*(?:\\right)?[)\]]$(?<=\])"
                                         r"|^\s*(?:\\left)?\[[^\[\](),]*,[^\[\](),]*(?:\\right)?\)$"),
    ("base", r"^-?\d[\dA-Z.]*_\{?\d+\}?\.?$"), ("equation", r"=|\\le|\\ge|<|>|\\in\b"),
    ("words", r"^\(?\\(?:text|mbox)\{[^{}\d]*\}\)?,?$|^[A-Z](?:, ?[A-Z])+$|^[A-Z]{3,}$"),
    ("unit", r"\\text|\\mbox|\\\$|%|\\circ|\\mathrm"), ("tuple", r"^\s*(?:\\left)?\(.*,.*\)$"),
    ("list", r",(?!\s*\\!|\d{3}(?!\d)|\})|\\pm"),
    ("text", r"^\\text\{[^{}]*\d|p\.m\."), ("integer", r"^[+-]?[\d,{}!\\ ]+$"),
    ("decimal", r"^-?[\d,]*\.\d+(?:e-?\d+)?$|^-?\d+e-?\d+$"),
    ("fraction", r"^-?\\[dtc]?frac\s*\{?-?[\d,\\!]+\}?\s*\{?[\d,\\!]+\}?$|^-?\d+/\d+$"),
    ("function", r"\\(?:sin|cos|tan|sec|csc|cot|ln|log|arc|exp|binom|lfloor)|e\^|!"),
    ("complex", r"(?<![a-zA-Z\\])i(?![a-zA-Z])"),
    ("radical", r"^(?:[-+\d\s{}()/.\[\]]|\\[dt]?frac|\\sqrt|\\pi|\\cdot|\^|\\left|\\right)+$"),
    ("formula", r"")]


def kind(answer):
    return next(name for name, pattern in KINDS if re.search(pattern, answer))


def reference_answers(folder):
    """Every different final answer in the data, in order."""
    answers = {}

    def rows(name):
        return map(json.loads, open(folder / name))
    for split in ("train", "test"):
        for row in rows(f"gsm8k/{split}.jsonl"):
            answers[row["answer"].split("####")[-1].strip()] = None
        for row in rows(f"math/{split}.jsonl"):
            answers[last_boxed(row["solution"])] = None
    for name in ("minerva_math", "amc23", "aime24", "aime25", "hmmt_feb_2024", "hmmt_feb_2025", "hmmt_nov_2025", "math500"):
        for row in rows(f"{name}.jsonl"):
            answers[str(row["answer"])] = None
    for row in rows("olympiadbench.jsonl"):
        answer = row["final_answer"][0]
        answers[answer.strip(" .$") if answer.count("$") == 2 else answer] = None
    return [a for a in answers if a]


# ---- rewrites that keep the value ----------------------------------------------------------------------------------

NUMBER = re.compile(r"(?<![\d.,_^{\\a-zA-Z])\d+(?![\d.,_^}a-zA-Z!\\])")
FRACTION = re.compile(r"(?<![\d}] )(?<![\d}])\\[dtc]?frac\{(-?\d+)\}\{(\d+)\}")


def rational(text):
    """The value of an integer, decimal or fraction as it is spelled in the data, else None."""
    text = re.sub(r"\{,\}|\\!,?\\?!?|,\\!|(?<=\d),(?=\d{3}(?:,|$))", "", text.strip())
    if not re.fullmatch(r"-?\d*\.?\d*(?:e-?\d+)?|-?\\[dtc]?frac *\{?-?\d+\}? *\{?\d+\}?|-?\d+/\d+", text):
        return None
    found = re.fullmatch(r"(-?)\\[dtc]?frac *(?:\{(-?\d+)\}|(\d)) *(?:\{(\d+)\}|(\d+))", text)
    try:
        sign = -1 if found and found[1] else 1
        return sign * Fraction(int(found[2] or found[3]), int(found[4] or found[5])) if found else Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def split(text):
    """The items of a list: at commas that no bracket holds."""
    text = text.replace("\\,", " ")
    items, depth, last = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            items.append(text[last:i].strip())
            last = i + 1
    return [*items, text[last:].strip()]


def inside(text):
    """(left, items, right) of a bracketed answer, or None."""
    found = re.fullmatch(r"\s*(?:\\left)?\s*([\[(])(.*?)(?:\\right)?\s*([\])])\.?\s*", text, re.DOTALL)
    return (found[1], split(found[2]), found[3]) if found and "cup" not in text and len(split(found[2])) > 1 else None


def decimal(x):
    """A terminating decimal of a fraction, or None."""
    for places in range(8):
        if (x * 10 ** places).denominator == 1:
            digits = f"{abs(int(x * 10 ** places)):0{places + 1}d}"
            return ("-" if x < 0 else "") + (digits[:-places] + "." + digits[-places:] if places else digits)
    return None


def sympy_forms(text):
    """Other forms of a formula in one or more variables: expanded, factored, reordered. By sympy, through its own parser of
    plain text: only for polynomials that need no LaTeX parser to be read."""
    import sympy
    plain = re.sub(r"\\(?:left|right)|\s", "", text)
    if not re.fullmatch(r"[-+\d()a-zA-Z^{}]*[a-zA-Z][-+\d()a-zA-Z^{}]*", plain) or re.search(r"[a-zA-Z]\(|[ei]|\d\^", plain):
        return []
    plain = re.sub(r"\^\{(\d+)\}", r"^\1", plain).replace("^", "**")
    if re.search("[{}]", plain):
        return []
    plain = re.sub(r"(?<=[\da-zA-Z)])(?=[a-zA-Z(])", "*", plain)
    expression = sympy.sympify(plain, {c: sympy.Symbol(c) for c in re.findall("[a-zA-Z]", plain)})
    other = sympy.Symbol(sorted(map(str, expression.free_symbols))[0])
    one = len(expression.free_symbols) == 1
    return [sympy.latex(form) for form in (
        sympy.expand(expression), sympy.factor(expression), sympy.expand(expression + other) - other,
        sympy.horner(expression) if one else expression)]


def keep(answer, name, rng):
    """Other spellings of the same answer: [text]."""
    out = ["$" + answer + "$", re.sub(r"\\frac", r"\\dfrac", answer) if "\\frac" in answer else " " + answer + " "]
    bracket, items, x = inside(answer), split(answer), rational(answer)
    if FRACTION.search(answer):
        out += [FRACTION.sub(lambda m: f"\\frac{{{3 * int(m[1])}}}{{{3 * int(m[2])}}}", answer),
                FRACTION.sub(lambda m: f"({m[1]}/{m[2]})", answer) if "\\sec" not in answer else answer]
    if "\\sqrt{" in answer:
        out += [re.sub(r"\\sqrt\{(\d+)\}", lambda m: f"\\frac{{\\sqrt{{{4 * int(m[1])}}}}}{{2}}", answer),
                re.sub(r"\\sqrt\{(\d+)\}", r"{\1}^{1/2}", answer)]
    if "(" in answer and "\\left" not in answer and answer.count("(") == answer.count(")"):
        out.append(answer.replace("(", "\\left(").replace(")", "\\right)"))
    if x is not None:
        out += [f"\\frac{{{2 * x.numerator}}}{{{2 * x.denominator}}}", f"x = {answer}", f"{x.numerator}/{x.denominator}"]
        if decimal(x):
            out += [decimal(x) + ("0" if "." in decimal(x) else ".00"), decimal(x)]
        if x.denominator == 1 and abs(x) >= 1000:
            out += [f"{int(x):,}", f"{int(x):,}".replace(",", "{,}"), f"{int(x):,}".replace(",", "\\!,\\!")]
        if x.denominator == 1:
            out += [f"{x} \\text{{ apples}}", f"\\${x}", f"\\sqrt{{{int(x) ** 2}}}" if x >= 0 else f"-\\sqrt{{{int(x) ** 2}}}"]
        elif abs(x) > 1 and name == "fraction":
            whole, rest = divmod(abs(x), 1)
            out.append(f"{'-' if x < 0 else ''}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}")
        if name == "decimal" and "e" in answer:
            out.append(re.sub(r"e(-?\d+)", r" \\times 10^{\1}", answer))
    if name == "list" and len(items) > 1:
        shuffled = rng.sample(items, len(items))
        out += [", ".join(shuffled), "\\{" + ", ".join(items) + "\\}" if len(set(items)) == len(items) else answer,
                ", ".join(items[:-1]) + " \\text{ and } " + items[-1]]
    if bracket and name == "interval":
        left, (low, high), right = bracket if len(bracket[1]) == 2 else ("", ("", ""), "")
        if low and "infty" not in answer:
            signs = [">" if left == "(" else "\\ge", "<" if right == ")" else "\\leq"]
            out += [f"{low} {signs[0].replace('>', '<').replace('ge', 'le')} x {signs[1]} {high}", f"x \\in {answer}"]
    if "\\cup" in answer and name == "interval":
        out.append(" \\cup ".join(reversed(answer.split("\\cup"))))
    if name == "tuple" and bracket and "(" not in "".join(bracket[1]):
        out.append("(" + " , ".join(bracket[1]) + ")")
        if len(bracket[1]) < 5 and "=" not in answer:
            out.append("\\left(" + ",\\, ".join(f"{{{item}}}" for item in bracket[1]) + "\\right)")
    if name == "matrix":
        out += [answer.replace("pmatrix", "bmatrix"), answer.replace(" & ", "&").replace(" \\\\ ", "\\\\"),
                re.sub(r"(?<![\d}])(-?\d+)/(\d+)", r"\\frac{\1}{\2}", answer)]
        if re.fullmatch(r"\\begin\{pmatrix\}[-\d\s&\\]*\\end\{pmatrix\}", answer):
            out.append("\\frac{1}{2}" + re.sub(r"-?\d+", lambda found: str(2 * int(found[0])), answer))
    if name == "base":
        out += [re.sub(r"_\{?(\d+)\}?", r"_{\1}", answer), re.sub(r"_\{?(\d+)\}?", r"_\1", answer)]
    if name == "equation" and answer.count("=") == 1 and not re.search(r"[<>,%]|\\le|\\ge|\\approx|\\text", answer):
        left, right = answer.split("=")
        out += [f"{right} = {left}", f"2({left}) = 2({right})" if "'" not in left else answer]
    if name == "unit":
        number = re.sub(r"\s*(?:\\?%|\^\{?\\circ\}?|\\(?:text|mbox|textnormal)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?)\.?$", "", answer)
        if number not in ("", answer) and not re.search(r"and|or|p\.m|PM|[A-Z]$|\\(?:tan|cos)|\\ ", answer):
            out += [number, number + "\\ " + answer[len(number):]]
        if "\\$" in answer and "approx" not in answer:
            out += [answer.replace("\\$", ""), answer.replace("\\$", "") + " \\text{ dollars}"]
    if name == "words":
        out += [re.sub(r"\\(?:text|mbox)\{([^{}]*)\}", spelled, answer) for spelled in (r"\1", r"\\textbf{\1}")]
    if name == "complex" and (found := re.fullmatch(r"(-?\d+) ?([+-]) ?(\d*)i", answer)):
        out += [f"{found[2].strip('+')}{found[3]}i + {found[1]}".replace("+ -", "- ")]
    if name == "formula":
        out += sympy_forms(answer)
    if name == "function":
        out += [re.sub(r"\\(sin|cos|tan|cot|sec|csc) (x|t)(?![a-z])", r"\\\1(\2)", answer)]
        out += [re.sub(r"\\(sin|cos|tan)\^2 ?([a-z])", r"(\\\1 \2)^2", answer)]
    return [text for text in dict.fromkeys(out) if text.strip() != answer.strip()]


# ---- changes that don't --------------------------------------------------------------------------------------------

def change(answer, name, rng):
    """Answers that are wrong where this one is right: [text]."""
    out, numbers, items = [], list(NUMBER.finditer(answer)), split(answer)
    for found in rng.sample(numbers, min(2, len(numbers))):
        out.append(answer[:found.start()] + str(int(found[0]) + rng.choice((1, 2, 10))) + answer[found.end():])
    x, bracket = rational(answer), inside(answer)
    if x:
        out += ["-" + answer if x > 0 else answer.replace("-", "", 1), f"{x.numerator + x.denominator}/{x.denominator}"]
        if x.denominator > 1:
            out.append(f"{x.denominator}/{x.numerator}")
        out.append(decimal(x * 10) if decimal(x * 10) else f"\\frac{{{x.numerator}}}{{{x.denominator + 1}}}")
    if name == "list" and len(items) > 2:
        out += [", ".join(items[1:]), ", ".join([*items, "997"])]
    if bracket and name == "interval" and len(bracket[1]) == 2:
        left, (low, high), right = bracket
        out += [("[" if left == "(" else "(") + low + "," + high + right] if "\\infty" not in low else []
        out += [left + low + "," + high + ("]" if right == ")" else ")")] if "\\infty" not in high else []
    entries = [re.sub(r"\s", "", entry) for entry in bracket[1]] if bracket else []
    if name == "tuple" and "=" not in answer and len({*entries}) == len(entries) and "(" not in "".join(entries) and entries:
        out.append("(" + ", ".join(reversed(bracket[1])) + ")")
    found = list(re.finditer(r"(?<=[\dA-Za-z}) ])[+-]", answer))
    if found and name in ("formula", "complex", "radical", "function", "equation"):
        at = rng.choice(found).start()
        if answer[:at].count("{") == answer[:at].count("}"):
            out.append(answer[:at] + ("-" if answer[at] == "+" else "+") + answer[at + 1:])
    if name == "base":
        found = re.fullmatch(r"(-?)(\d+)_\{?(\d+)\}?\.?", answer)
        if found:
            out += [f"{found[1]}{found[2]}_{{{int(found[3]) + 1}}}", f"{found[1]}1{found[2]}_{found[3]}"]
    if name == "words" and (found := re.search(r"\{\(?([A-Z])\)?\}", answer)):
        out += [f"\\text{{{chr((ord(found[1]) - 64) % 26 + 65)}}}", "\\text{Z}" if found[1] != "Z" else "\\text{Q}"]
    elif name == "words":
        out += ["\\text{none of these}", "\\text{not }" + answer]
    if name == "function":
        out += [answer.replace(a, b, 1) for a, b in (("\\sin", "\\cos"), ("\\tan", "\\cot"), ("\\sec", "\\csc")) if a in answer]
    if name == "matrix" and "&" in answer:
        rows = re.search(r"\\begin\{pmatrix\}(.*)\\end", answer, re.DOTALL)[1].split("\\\\")
        if len({re.sub(r"\s", "", row) for row in rows}) == len(rows):
            out.append("\\begin{pmatrix}" + "\\\\".join(reversed(rows)) + "\\end{pmatrix}")
    return [text for text in dict.fromkeys(out) if text.strip() != answer.strip()]


def pairs(folder, per_answer=3, seed=0):
    """[(kind, prediction, answer, equal)]: of each answer up to per_answer rewrites and as many changes, at random."""
    rng, out = random.Random(seed), []
    for answer in reference_answers(folder):
        name = kind(answer)
        for equal, texts in ((True, keep(answer, name, rng)), (False, change(answer, name, rng))):
            out += [(name, text, answer, equal) for text in rng.sample(texts, min(per_answer, len(texts)))]
    return out


def math_verify(prediction, answer):
    """Math-Verify's verdict on the same pair, given as it wants them; what it raises counts as "not equal"."""
    from math_verify import parse, verify
    try:
        gold, guess = (parse(f"${text.strip().strip('$')}$", parsing_timeout=None) for text in (answer, prediction))
        return bool(verify(gold, guess, timeout_seconds=None))
    except Exception:
        return False


if __name__ == "__main__":
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "shared" / "data"
    for name, prediction, answer, equal in pairs(data):
        ours, theirs = is_equivalent(prediction, answer), math_verify(prediction, answer)
        if ours != theirs:
            who = "reward.py" if ours == equal else "Math-Verify"
            print(f"{who} is right: {prediction}  {'=' if equal else '!='}  {answer}   ({name})")
