r"""Pairs of final answers with a known verdict, built from the reference answers of real data.

    python tests/pairs.py [data folder]    # the pairs on which we and Math-Verify disagree, and who
                                           # is right; takes minutes

Each answer is rewritten in ways that keep its value, and changed in ways that don't. So the verdict
is known without a grader. Everything is deterministic.
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
    ("matrix", r"pmatrix"),
    ("interval", r"\\infty|\\cup"
                 r"|^\s*(?:\\left)?[\[(][^\[\](),]*,[^\[\](),]*(?:\\right)?[)\]]$(?<=\])"
                 r"|^\s*(?:\\left)?\[[^\[\](),]*,[^\[\](),]*(?:\\right)?\)$"),
    ("base", r"^-?\d[\dA-Z.]*_\{?\d+\}?\.?$"),
    ("equation", r"=|\\le|\\ge|<|>|\\in\b"),
    ("words", r"^\(?\\(?:text|mbox)\{[^{}\d]*\}\)?,?$|^[A-Z](?:, ?[A-Z])+$|^[A-Z]{3,}$"),
    ("unit", r"\\text|\\mbox|\\\$|%|\\circ|\\mathrm"),
    ("tuple", r"^\s*(?:\\left)?\(.*,.*\)$"),
    ("list", r",(?!\s*\\!|\d{3}(?!\d)|\})|\\pm"),
    ("text", r"^\\text\{[^{}]*\d|p\.m\."),
    ("integer", r"^[+-]?[\d,{}!\\ ]+$"),
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

    for part in ("train", "test"):
        for row in rows(f"gsm8k/{part}.jsonl"):
            answers[row["answer"].split("####")[-1].strip()] = None
        for row in rows(f"math/{part}.jsonl"):
            answers[last_boxed(row["solution"])] = None
    for name in ("minerva_math", "amc23", "aime24", "aime25", "hmmt_feb_2024", "hmmt_feb_2025",
                 "hmmt_nov_2025", "math500"):
        for row in rows(f"{name}.jsonl"):
            answers[str(row["answer"])] = None
    for row in rows("olympiadbench.jsonl"):
        answer = row["final_answer"][0]
        answers[answer.strip(" .$") if answer.count("$") == 2 else answer] = None
    return [a for a in answers if a]


# ---- rewrites that keep the value ----------------------------------------------------------------

NUMBER = re.compile(r"(?<![\d.,_^{\\a-zA-Z])\d+(?![\d.,_^}a-zA-Z!\\])")
FRACTION = re.compile(r"(?<![\d}] )(?<![\d}])\\[dtc]?frac\{(-?\d+)\}\{(\d+)\}")


def rational(text):
    """The value of an integer, decimal or fraction as the data spell it, else None."""
    text = re.sub(r"\{,\}|\\!,?\\?!?|,\\!|(?<=\d),(?=\d{3}(?:,|$))", "", text.strip())
    if not re.fullmatch(r"-?\d*\.?\d*(?:e-?\d+)?|-?\\[dtc]?frac *\{?-?\d+\}? *\{?\d+\}?|-?\d+/\d+",
                        text):
        return None
    found = re.fullmatch(r"(-?)\\[dtc]?frac *(?:\{(-?\d+)\}|(\d)) *(?:\{(\d+)\}|(\d+))", text)
    try:
        if not found:
            return Fraction(text)
        value = Fraction(int(found[2] or found[3]), int(found[4] or found[5]))
        return -value if found[1] else value
    except (ValueError, ZeroDivisionError):
        return None


def split(text):
    """The items of a list: at commas outside brackets."""
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
    found = re.fullmatch(r"\s*(?:\\left)?\s*([\[(])(.*?)(?:\\right)?\s*([\])])\.?\s*", text,
                         re.DOTALL)
    if not found or "cup" in text or len(split(found[2])) == 1:
        return None
    return found[1], split(found[2]), found[3]


def decimal(x):
    """A terminating decimal of a fraction, or None."""
    for places in range(8):
        if (x * 10 ** places).denominator == 1:
            digits = f"{abs(int(x * 10 ** places)):0{places + 1}d}"
            if places:
                digits = digits[:-places] + "." + digits[-places:]
            return ("-" if x < 0 else "") + digits
    return None


def sympy_forms(text):
    """Other forms of a polynomial: expanded, factored, reordered, by sympy.

    sympy's own parser of plain text reads it, so only what needs no LaTeX parser is rewritten.
    """
    import sympy
    plain = re.sub(r"\\(?:left|right)|\s", "", text)
    if (not re.fullmatch(r"[-+\d()a-zA-Z^{}]*[a-zA-Z][-+\d()a-zA-Z^{}]*", plain)
            or re.search(r"[a-zA-Z]\(|[ei]|\d\^", plain)):
        return []
    plain = re.sub(r"\^\{(\d+)\}", r"^\1", plain).replace("^", "**")
    if re.search("[{}]", plain):
        return []
    plain = re.sub(r"(?<=[\da-zA-Z)])(?=[a-zA-Z(])", "*", plain)
    expression = sympy.sympify(plain, {c: sympy.Symbol(c) for c in re.findall("[a-zA-Z]", plain)})
    names = sorted(map(str, expression.free_symbols))
    other = sympy.Symbol(names[0])
    forms = (sympy.expand(expression), sympy.factor(expression),
             sympy.expand(expression + other) - other,
             sympy.horner(expression) if len(names) == 1 else expression)
    return [sympy.latex(form) for form in forms]


def keep(answer, name, rng):
    """Other spellings of the same answer: [text]."""
    out = ["$" + answer + "$",
           re.sub(r"\\frac", r"\\dfrac", answer) if "\\frac" in answer else " " + answer + " "]
    bracket, items, x = inside(answer), split(answer), rational(answer)
    if FRACTION.search(answer):
        out.append(FRACTION.sub(lambda m: f"\\frac{{{3 * int(m[1])}}}{{{3 * int(m[2])}}}", answer))
        if "\\sec" not in answer:
            out.append(FRACTION.sub(lambda m: f"({m[1]}/{m[2]})", answer))
    if "\\sqrt{" in answer:
        out += [re.sub(r"\\sqrt\{(\d+)\}", lambda m: f"\\frac{{\\sqrt{{{4 * int(m[1])}}}}}{{2}}",
                       answer),
                re.sub(r"\\sqrt\{(\d+)\}", r"{\1}^{1/2}", answer)]
    if "(" in answer and "\\left" not in answer and answer.count("(") == answer.count(")"):
        out.append(answer.replace("(", "\\left(").replace(")", "\\right)"))
    if x is not None:
        out += rational_forms(answer, name, x)
    if name == "list" and len(items) > 1:
        out.append(", ".join(rng.sample(items, len(items))))
        if len(set(items)) == len(items):
            out.append("\\{" + ", ".join(items) + "\\}")
        out.append(", ".join(items[:-1]) + " \\text{ and } " + items[-1])
    if name == "interval" and bracket and len(bracket[1]) == 2 and "infty" not in answer:
        left, (low, high), right = bracket
        if low:
            signs = ["<" if left == "(" else "\\le", "<" if right == ")" else "\\leq"]
            out += [f"{low} {signs[0]} x {signs[1]} {high}", f"x \\in {answer}"]
    if name == "interval" and "\\cup" in answer:
        out.append(" \\cup ".join(reversed(answer.split("\\cup"))))
    if name == "tuple" and bracket and "(" not in "".join(bracket[1]):
        out.append("(" + " , ".join(bracket[1]) + ")")
        if len(bracket[1]) < 5 and "=" not in answer:
            out.append("\\left(" + ",\\, ".join(f"{{{item}}}" for item in bracket[1]) + "\\right)")
    if name == "matrix":
        out += [answer.replace("pmatrix", "bmatrix"),
                answer.replace(" & ", "&").replace(" \\\\ ", "\\\\"),
                re.sub(r"(?<![\d}])(-?\d+)/(\d+)", r"\\frac{\1}{\2}", answer)]
        if re.fullmatch(r"\\begin\{pmatrix\}[-\d\s&\\]*\\end\{pmatrix\}", answer):
            out.append("\\frac{1}{2}" + re.sub(r"-?\d+", lambda m: str(2 * int(m[0])), answer))
    if name == "base":
        out += [re.sub(r"_\{?(\d+)\}?", r"_{\1}", answer), re.sub(r"_\{?(\d+)\}?", r"_\1", answer)]
    if (name == "equation" and answer.count("=") == 1
            and not re.search(r"[<>,%]|\\le|\\ge|\\approx|\\text", answer)):
        left, right = answer.split("=")
        out.append(f"{right} = {left}")
        if "'" not in left:
            out.append(f"2({left}) = 2({right})")
    if name == "unit":
        number = re.sub(r"\s*(?:\\?%|\^\{?\\circ\}?"
                        r"|\\(?:text|mbox|textnormal)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?)\.?$",
                        "", answer)
        if (number not in ("", answer)
                and not re.search(r"and|or|p\.m|PM|[A-Z]$|\\(?:tan|cos)|\\ ", answer)):
            out += [number, number + "\\ " + answer[len(number):]]
        if "\\$" in answer and "approx" not in answer:
            bare = answer.replace("\\$", "")
            out += [bare, bare + " \\text{ dollars}"]
    if name == "words":
        out += [re.sub(r"\\(?:text|mbox)\{([^{}]*)\}", new, answer)
                for new in (r"\1", r"\\textbf{\1}")]
    if name == "complex" and (found := re.fullmatch(r"(-?\d+) ?([+-]) ?(\d*)i", answer)):
        out.append(f"{found[2].strip('+')}{found[3]}i + {found[1]}".replace("+ -", "- "))
    if name == "formula":
        out += sympy_forms(answer)
    if name == "function":
        out += [re.sub(r"\\(sin|cos|tan|cot|sec|csc) (x|t)(?![a-z])", r"\\\1(\2)", answer),
                re.sub(r"\\(sin|cos|tan)\^2 ?([a-z])", r"(\\\1 \2)^2", answer)]
    return [text for text in dict.fromkeys(out) if text.strip() != answer.strip()]


def rational_forms(answer, name, x):
    """Other spellings of an answer whose value is the fraction x."""
    out = [f"\\frac{{{2 * x.numerator}}}{{{2 * x.denominator}}}", f"x = {answer}",
           f"{x.numerator}/{x.denominator}"]
    if decimal(x):
        out += [decimal(x) + ("0" if "." in decimal(x) else ".00"), decimal(x)]
    if x.denominator == 1:
        if abs(x) >= 1000:
            out += [f"{int(x):,}".replace(",", comma) for comma in (",", "{,}", "\\!,\\!")]
        out += [f"{x} \\text{{ apples}}", f"\\${x}",
                ("" if x >= 0 else "-") + f"\\sqrt{{{int(x) ** 2}}}"]
    elif abs(x) > 1 and name == "fraction":
        whole, rest = divmod(abs(x), 1)
        sign = "-" if x < 0 else ""
        out.append(f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}")
    if name == "decimal" and "e" in answer:
        out.append(re.sub(r"e(-?\d+)", r" \\times 10^{\1}", answer))
    return out


# ---- changes that don't --------------------------------------------------------------------------

def change(answer, name, rng):
    """Answers that are wrong where this one is right: [text]."""
    out, numbers, items = [], list(NUMBER.finditer(answer)), split(answer)
    for found in rng.sample(numbers, min(2, len(numbers))):
        number = str(int(found[0]) + rng.choice((1, 2, 10)))
        out.append(answer[:found.start()] + number + answer[found.end():])
    x, bracket = rational(answer), inside(answer)
    if x:
        out += ["-" + answer if x > 0 else answer.replace("-", "", 1),
                f"{x.numerator + x.denominator}/{x.denominator}"]
        if x.denominator > 1:
            out.append(f"{x.denominator}/{x.numerator}")
        out.append(decimal(x * 10) or f"\\frac{{{x.numerator}}}{{{x.denominator + 1}}}")
    if name == "list" and len(items) > 2:
        out += [", ".join(items[1:]), ", ".join([*items, "997"])]
    if name == "interval" and bracket and len(bracket[1]) == 2:
        left, (low, high), right = bracket
        if "\\infty" not in low:
            out.append(("[" if left == "(" else "(") + low + "," + high + right)
        if "\\infty" not in high:
            out.append(left + low + "," + high + ("]" if right == ")" else ")"))
    if name == "tuple" and bracket and "=" not in answer:
        entries = [re.sub(r"\s", "", entry) for entry in bracket[1]]
        if len({*entries}) == len(entries) and "(" not in "".join(entries):
            out.append("(" + ", ".join(reversed(bracket[1])) + ")")
    signs = list(re.finditer(r"(?<=[\dA-Za-z}) ])[+-]", answer))
    if signs and name in ("formula", "complex", "radical", "function", "equation"):
        at = rng.choice(signs).start()
        if answer[:at].count("{") == answer[:at].count("}"):
            out.append(answer[:at] + ("-" if answer[at] == "+" else "+") + answer[at + 1:])
    if name == "base" and (found := re.fullmatch(r"(-?)(\d+)_\{?(\d+)\}?\.?", answer)):
        sign, digits, base = found.groups()
        out += [f"{sign}{digits}_{{{int(base) + 1}}}", f"{sign}1{digits}_{base}"]
    if name == "words" and (found := re.search(r"\{\(?([A-Z])\)?\}", answer)):
        next_letter = chr((ord(found[1]) - 64) % 26 + 65)
        out += [f"\\text{{{next_letter}}}", "\\text{Z}" if found[1] != "Z" else "\\text{Q}"]
    elif name == "words":
        out += ["\\text{none of these}", "\\text{not }" + answer]
    if name == "function":
        for old, new in (("\\sin", "\\cos"), ("\\tan", "\\cot"), ("\\sec", "\\csc")):
            if old in answer:
                out.append(answer.replace(old, new, 1))
    if name == "matrix" and "&" in answer:
        rows = re.search(r"\\begin\{pmatrix\}(.*)\\end", answer, re.DOTALL)[1].split("\\\\")
        if len({re.sub(r"\s", "", row) for row in rows}) == len(rows):
            out.append("\\begin{pmatrix}" + "\\\\".join(reversed(rows)) + "\\end{pmatrix}")
    return [text for text in dict.fromkeys(out) if text.strip() != answer.strip()]


def pairs(folder, per_answer=3, seed=0):
    """[(kind, prediction, answer, equal)]: of each answer up to per_answer rewrites and as many
    changes, chosen at random."""
    rng, out = random.Random(seed), []
    for answer in reference_answers(folder):
        name = kind(answer)
        for equal, texts in ((True, keep(answer, name, rng)), (False, change(answer, name, rng))):
            out += [(name, text, answer, equal)
                    for text in rng.sample(texts, min(per_answer, len(texts)))]
    return out


def math_verify(prediction, answer):
    """Math-Verify's verdict on a pair, given in the form that it expects. If it raises, False."""
    from math_verify import parse, verify
    try:
        gold, guess = (parse(f"${text.strip().strip('$')}$", parsing_timeout=None)
                       for text in (answer, prediction))
        return bool(verify(gold, guess, timeout_seconds=None))
    except Exception:
        return False


if __name__ == "__main__":
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    for name, prediction, answer, equal in pairs(Path(sys.argv[1]) if sys.argv[1:] else shared):
        ours, theirs = is_equivalent(prediction, answer), math_verify(prediction, answer)
        if ours != theirs:
            who = "reward.py" if ours == equal else "Math-Verify"
            sign = "=" if equal else "!="
            print(f"{who} is right: {prediction}  {sign}  {answer}   ({name})")
