r"""Pairs of final answers with a known verdict, built from the reference answers of real data.

Each answer is rewritten in ways that keep its value, and changed in ways that don't, so the verdict
is known without a grader. The pairs are always the same. bench/grader.py tries all of them.
"""
import json
import random
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from reward import last_boxed

FILES = """gsm8k/train math/train gsm8k/test math/test minerva_math amc23 aime24 aime25
hmmt_feb_2024 hmmt_feb_2025 hmmt_nov_2025 math500 olympiadbench""".split()
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
FRACTION = r"(?<![\d}] )(?<![\d}])\\[dtc]?frac\{(-?\d+)\}\{(\d+)\}"
REWRITES = [  # that keep the value: (kind or "" for all, pattern, replacement)
    ("", r"\\frac", r"\\dfrac"),
    ("", FRACTION, lambda m: f"\\frac{{{3 * int(m[1])}}}{{{3 * int(m[2])}}}"),
    ("", r"(?<!\\sec )" + FRACTION, r"(\1/\2)"),
    ("", r"\\sqrt\{(\d+)\}", lambda m: f"\\frac{{\\sqrt{{{4 * int(m[1])}}}}}{{2}}"),
    ("", r"\\sqrt\{(\d+)\}", r"{\1}^{1/2}"),
    ("matrix", "pmatrix", "bmatrix"),
    ("matrix", r" (&|\\\\) ", r"\1"),
    ("matrix", r"(?<![\d}])(-?\d+)/(\d+)", r"\\frac{\1}{\2}"),
    ("base", r"_\{?(\d+)\}?", r"_{\1}"),
    ("base", r"_\{?(\d+)\}?", r"_\1"),
    ("complex", r"^(-?)(\d+) ?([+-]) ?(\d*)i$",
     lambda m: f"{m[3].strip('+')}{m[4]}i {m[1] or '+'} {m[2]}"),
    ("function", r"\\(sin|cos|tan|cot|sec|csc) (x|t)(?![a-z])", r"\\\1(\2)"),
    ("function", r"\\(sin|cos|tan)\^2 ?([a-z])", r"(\\\1 \2)^2")]
TEXT = r"\\(?:text|mbox)\{([^{}]*)\}"
UNIT = r"\s*(?:\\?%|\^\{?\\circ\}?|\\(?:text|mbox|textnormal)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?)\.?$"
NUMBER = re.compile(r"(?<![\d.,_^{\\a-zA-Z])\d+(?![\d.,_^}a-zA-Z!\\])")


def reference_answers(folder):
    """Every different final answer in the data, in order."""
    def final_answer(row):
        if "final_answer" in row:
            [answer] = row["final_answer"]
            return answer.strip(" .$") if answer.count("$") == 2 else answer
        if "answer" in row:
            return str(row["answer"]).split("####")[-1].strip(" ")
        return last_boxed(row["solution"])

    rows = (json.loads(line) for name in FILES for line in open(folder / f"{name}.jsonl"))
    return [answer for answer in dict.fromkeys(map(final_answer, rows)) if answer]


def rational(text):
    """The value of an integer, decimal or fraction as the data spell it, else None."""
    text = re.sub(r"\{,\}|\\!,?\\?!?|,\\!|(?<=\d),(?=\d{3}(?:,|$))", "", text.strip())
    text = re.sub(r"^(-?)\\[dtc]?frac *(?:\{(-?\d+)\}|(\d)) *(?:\{(\d+)\}|(\d+))$", r"\1\2\3/\4\5",
                  text)
    try:
        return Fraction(text) if re.match(r"[-.\d][^_]*$", text) else None
    except (ValueError, ZeroDivisionError):
        return None


def decimal(x):
    """A fraction as a decimal with at most seven places, or None."""
    return f"{Decimal(x.numerator) / x.denominator:f}" if 10**7 % x.denominator == 0 else None


def split(text):
    """The items of a list, which end at commas outside brackets."""
    comma = r",(?!(?:[^(\[{}\])]|\{[^{}]*\})*[}\])])"
    return [item.strip() for item in re.split(comma, text.replace("\\,", " "))]


def inside(text):
    """(left, items, right) of a bracketed answer, or None."""
    found = re.fullmatch(r"(?s)\s*(?:\\left)?\s*([\[(])(.*?)(?:\\right)?\s*([\])])\.?\s*", text)
    if found and "cup" not in text and len(split(found[2])) > 1:
        return found[1], split(found[2]), found[3]


def keep(answer, name, rng):
    """Other spellings of the same answer."""
    bracket, items, x = inside(answer), split(answer), rational(answer)
    yield f"${answer}$"
    yield from (re.sub(pattern, new, answer) for of, pattern, new in REWRITES if of in ("", name))
    if "\\left" not in answer and answer.count("(") == answer.count(")"):
        yield answer.replace("(", "\\left(").replace(")", "\\right)")
    if x is not None:
        yield from rational_forms(answer, name, x)
    if name == "words":
        yield from (re.sub(TEXT, new, answer) for new in (r"\1", r"\\textbf{\1}"))
    if name == "list" and len(items) > 1:
        yield ", ".join(rng.sample(items, len(items)))
        if len(set(items)) == len(items):
            yield f"\\{{{', '.join(items)}\\}}"
        yield f"{', '.join(items[:-1])} \\text{{ and }} {items[-1]}"
    if name == "interval" and bracket and bracket[1][0] and "infty" not in answer:
        left, (low, high), right = bracket
        signs = ["<" if left == "(" else "\\le", "<" if right == ")" else "\\leq"]
        yield from (f"{low} {signs[0]} x {signs[1]} {high}", f"x \\in {answer}")
    if name == "interval" and "\\cup" in answer:
        yield " \\cup ".join(reversed(answer.split("\\cup")))
    if name == "tuple" and bracket and "(" not in "".join(bracket[1]):
        yield f"({' , '.join(bracket[1])})"
        if len(bracket[1]) < 5 and "=" not in answer:
            yield "\\left(" + ",\\, ".join(f"{{{item}}}" for item in bracket[1]) + "\\right)"
    if name == "matrix" and re.fullmatch(r"\\begin\{pmatrix\}[-\d\s&\\]*\\end\{pmatrix\}", answer):
        yield "\\frac{1}{2}" + re.sub(r"-?\d+", lambda m: str(2 * int(m[0])), answer)
    if name == "equation" and not re.search(r"[<>,%]|\\le|\\ge|\\approx|\\text|=.*=", answer):
        left, right = answer.split("=")
        yield f"{right} = {left}"
        if "'" not in left:
            yield f"2({left}) = 2({right})"
    if name == "unit":
        number = re.sub(UNIT, "", answer)
        if number not in ("", answer) and not re.search(
                r"and|or|[ap]\.m|[AP]M|[A-Z]$|\\(?:tan|cos)|\\ ", answer):
            yield from (number, number + "\\ " + answer[len(number):])
        if "\\$" in answer and "approx" not in answer:
            bare = answer.replace("\\$", "")
            yield from (bare, bare + " \\text{ dollars}")
    if name == "formula":
        yield from sympy_forms(answer)


def rational_forms(answer, name, x):
    """Other spellings of an answer whose value is the fraction x."""
    yield f"\\frac{{{2 * x.numerator}}}{{{2 * x.denominator}}}"
    yield from (f"x = {answer}", f"{x.numerator}/{x.denominator}")
    if decimal(x):
        yield from (decimal(x) + ("0" if "." in decimal(x) else ".00"), decimal(x))
    if x.denominator == 1:
        if abs(x) >= 1000:
            yield from (f"{int(x):,}".replace(",", comma) for comma in (",", "{,}", "\\!,\\!"))
        yield from (f"{x} \\text{{ apples}}", f"\\${x}", f"{'-' * (x < 0)}\\sqrt{{{int(x) ** 2}}}")
    elif abs(x) > 1 and name == "fraction":
        whole, rest = divmod(abs(x), 1)
        yield f"{'-' * (x < 0)}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}"
    if name == "decimal":
        yield re.sub(r"e(-?\d+)", r" \\times 10^{\1}", answer)


def sympy_forms(text):
    """A polynomial expanded, factored and reordered by sympy. sympy's parser of plain text reads
    it, so only what needs no LaTeX parser is rewritten."""
    import sympy
    plain = re.sub(r"\^\{(\d+)\}", r"^\1", re.sub(r"\\left|\\right|\s", "", text))
    letters = sorted({*re.findall("[a-zA-Z]", plain)})
    if not letters or re.search(r"[^-+\d()a-zA-Z^]|[a-zA-Z]\(|[ei]|\d\^", plain):
        return []
    plain = re.sub(r"(?<=[\da-zA-Z)])(?=[a-zA-Z(])", "*", plain.replace("^", "**"))
    # sympify runs Python. What comes here are sums and products of single letters and integers: the
    # test above lets no name, call, attribute or quote through.
    formula = sympy.sympify(plain, {c: sympy.Symbol(c) for c in letters})
    forms = [sympy.expand(formula), sympy.factor(formula),
             sympy.expand(formula + sympy.Symbol(letters[0])) - sympy.Symbol(letters[0]),
             sympy.horner(formula) if len(letters) == 1 else formula]
    return map(sympy.latex, forms)


def change(answer, name, rng):
    """Answers that are wrong where this one is right."""
    bracket, items, x = inside(answer), split(answer), rational(answer)
    numbers = [*NUMBER.finditer(answer)]
    for found in rng.sample(numbers, min(2, len(numbers))):
        number = int(found[0]) + rng.choice((1, 2, 10))
        yield f"{answer[:found.start()]}{number}{answer[found.end():]}"
    if x:
        yield "-" + answer if x > 0 else answer.replace("-", "", 1)
        yield f"{x.numerator + x.denominator}/{x.denominator}"
        if x.denominator > 1:
            yield f"{x.denominator}/{x.numerator}"
        yield decimal(x * 10) or f"\\frac{{{x.numerator}}}{{{x.denominator + 1}}}"
    if name == "list" and len(items) > 2:
        yield from (", ".join(items[1:]), ", ".join([*items, "997"]))
    if name == "interval" and bracket:
        left, (low, high), right = bracket
        if "\\infty" not in low:
            yield f"{'[' if left == '(' else '('}{low},{high}{right}"
        if "\\infty" not in high:
            yield f"{left}{low},{high}{']' if right == ')' else ')'}"
    if name == "tuple" and bracket and "=" not in answer and "(" not in "".join(bracket[1]):
        if len({re.sub(r"\s", "", entry) for entry in bracket[1]}) == len(bracket[1]):
            yield f"({', '.join(reversed(bracket[1]))})"
    signs = [*re.finditer(r"(?<=[\dA-Za-z}) ])[+-]", answer)]
    if signs and name in ("formula", "complex", "radical", "function", "equation"):
        at = rng.choice(signs).start()
        if answer[:at].count("{") == answer[:at].count("}"):
            yield answer[:at] + ("-" if answer[at] == "+" else "+") + answer[at + 1:]
    if name == "base" and (found := re.fullmatch(r"(-?)(\d+)_\{?(\d+)\}?\.?", answer)):
        sign, digits, base = found.groups()
        yield from (f"{sign}{digits}_{{{int(base) + 1}}}", f"{sign}1{digits}_{base}")
    if name == "words" and (found := re.search(r"\{\(?([A-Z])\)?\}", answer)):
        yield f"\\text{{{chr((ord(found[1]) - 64) % 26 + 65)}}}"  # the next letter
        yield "\\text{Z}" if found[1] != "Z" else "\\text{Q}"
    elif name == "words":
        yield from ("\\text{none of these}", "\\text{not }" + answer)
    if name == "function":
        for old, new in (("\\sin", "\\cos"), ("\\tan", "\\cot"), ("\\sec", "\\csc")):
            yield answer.replace(old, new, 1)
    if name == "matrix" and "&" in answer:
        rows = re.search(r"(?s)\\begin\{pmatrix\}(.*)\\end", answer)[1].split("\\\\")
        if len({re.sub(r"\s", "", row) for row in rows}) == len(rows):
            yield "\\begin{pmatrix}" + "\\\\".join(reversed(rows)) + "\\end{pmatrix}"


def pairs(folder, every=1):
    """[(kind, prediction, answer, equal)]: up to three rewrites and up to three changes of every
    n-th reference answer, chosen at random."""
    rng, out = random.Random(0), []
    for answer in reference_answers(folder)[::every]:
        name = next(name for name, pattern in KINDS if re.search(pattern, answer))
        rewritten, changed = ([*function(answer, name, rng)] for function in (keep, change))
        for equal, texts in ((True, rewritten), (False, changed)):
            texts = [text for text in dict.fromkeys(texts) if text.strip() != answer.strip()]
            out += [(name, text, answer, equal) for text in rng.sample(texts, min(3, len(texts)))]
    return out


def by_kind(folder, count=60):
    """[(kind, prediction, answer, equal)]: bench/kinds.txt with whole numbers of the reference
    answers. Of each kind as many right as wrong pairs."""
    rng, words, rows = random.Random(0), "two three four five six seven eight nine".split(), {}
    numbers = sorted({int(x) for x in map(rational, reference_answers(folder))
                      if x and x.denominator == 1 and 2 <= x < 10_000})
    for line in Path(__file__).with_name("kinds.txt").read_text().splitlines():
        if line.startswith("# "):
            kind = line[2:]
        elif " @@ " in line:
            equal, *pair = line.split(" @@ ")
            rows.setdefault((kind, equal == "1"), []).append(pair)
    out = []
    for (kind, equal), templates in rows.items():
        for i in range(count):
            a, b, c = rng.sample(numbers, 3)
            if kind == "number words":
                a = rng.randint(2, 9)
            new = {"①": a, "②": b, "③": c, "Ⓦ": words[a - 2] if a < 10 else ""}
            new = str.maketrans({old: str(text) for old, text in new.items()})
            out.append((kind, *(text.translate(new) for text in templates[i % len(templates)]),
                        equal))
    return out


def written_to_break_it():
    """The lines of bench/answers.txt: whether they are equal @@ prediction @@ answer."""
    lines = Path(__file__).with_name("answers.txt").read_text().splitlines()
    rows = [line.split(" @@ ") for line in lines if " @@ " in line]
    return [("", prediction, answer, equal == "1") for equal, prediction, answer in rows]


def math_verify(prediction, answer):
    """Math-Verify's verdict on a pair, given in the form that it expects. If it raises, False."""
    from math_verify import parse, verify
    try:
        gold, guess = (parse(f"${text.strip().strip('$')}$", parsing_timeout=None)
                       for text in (answer, prediction))
        return bool(verify(gold, guess, timeout_seconds=None))
    except Exception:
        return False
