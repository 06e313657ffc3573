r"""Rewards: 1.0 for a right final answer, else 0.0. All stages grade with these functions.

    is_equivalent(r"\frac{1}{\sqrt2}", r"\dfrac{\sqrt{2}}{2}")   # True
    is_equivalent("x > 3", r"(3, \infty)")                        # True
    is_equivalent("0.333", r"\frac13")                            # False: near is not equal

How two final answers are compared, cheapest first:
  1. Equal as text, after the spellings of LaTeX that mean the same have become one (`clean`).
  2. Tokens, then a tree: a hand-written parser for what answers consist of. Nothing is ever run as code.
  3. Trees are compared by kind: lists in any order, tuples in order, intervals and inequalities as sets of reals, equations
     up to a factor, matrices entry by entry ...
  4. What is left are pairs of numbers or formulas, and those are evaluated: exactly, as fractions, where that is possible,
     else with mpmath to 40 and, if they agree so far, to 500 digits. Variables take random values: two polynomials that
     agree there are the same (Schwartz-Zippel), two closed forms that agree to 450 digits are taken to be.
A computer algebra system would prove step 4 where it can; it takes 100 times longer, hangs on hostile input, and gives up
on what the digits decide. Here every comparison has a budget, and `grade` a time limit that the kernel enforces.

The tree: a number is a Fraction, a variable or constant a str, all else a tuple of a kind and its parts:
  scalar   ("+", ...) ("neg", a) ("*", ...) ("/", a, b) ("^", a, b) ("!", a) ("fn", name, a, ...) ("app", f, x, ...)
           ("pm", sign, a) for sign * (+-a)   ("unit", name, a)   ("base", digits, base)
  several  ("list", ...) 1, 2   ("set", ...) {1, 2}   ("tuple", "(", "]", ...)   ("matrix", columns, ...)   ("ratio", ...) 1:2
  sets     ("union", ...) ("minus", a, b)
  others   ("rel", ("<", ...), side, side, ...)   ("word", text)
"""
import json
import math as integers
import os
import random
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

import mpmath

answer_limit = 2.0        # seconds an answer may take to grade; typical are 0.0001
max_answer_chars = 20_000 # longer answers are only compared as text
budget = 30_000           # evaluation steps of one comparison: about a second at worst


# ---- rewards -----------------------------------------------------------------------------------------------------

def gsm8k(response, answer, finished=True):
    """1.0 if the number after the first `#### ` is the answer, by value: `72.0`, `$72` and `1,200` count."""
    found = re.search(r"####\s*(-?)\s*\$?\s*(-?(?>[\d,]*\.?\d+))(?![/^*]|[eE]\d)", response)
    return float(found is not None and is_equivalent(found[1] + found[2], answer))


def math(response, answer, finished=True):
    r"""1.0 if the response ended by itself (EOS) and its last `\boxed{}` equals the answer, as in the paper's code."""
    boxed = last_boxed(response)
    return float(finished and boxed is not None and is_equivalent(boxed, answer))


REWARDS = {"arithmetic": gsm8k, "gsm8k": gsm8k, "math": math}  # a data row's "task" -> its reward


def last_boxed(text):
    r"""The final answer in a response: content of the last `\boxed{...}` or `\fbox{...}`, or None.

    The last, as a response may correct itself, and whatever text follows. In `\boxed 5` it is the next word. A box that is
    not closed is no answer, even after one that is: the response was cut while it changed its mind.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = re.compile(r"\\[a-z]+(\s*)").match(text, start)
    if not text.startswith("{", rest.end()):
        return re.compile(r"[^\s$]*").match(text, rest.end())[0] or None if rest[1] else None
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, rest.end()):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[rest.end() + 1:brace.start()]
    return None


def is_equivalent(prediction, answer):
    r"""True if two final answers, LaTeX or plain text without the \boxed, are the same by value. Symmetric; never raises."""
    if prediction == answer:
        return bool(answer.strip())
    if max(len(prediction), len(answer)) > max_answer_chars:
        return False
    a, b = clean(prediction), clean(answer)
    if not a or not b or a == b:
        return a == b != ""
    (a_words, a_is_text), (b_words, b_is_text) = words(a), words(b)
    if a_is_text or b_is_text:
        if a_words in MEANINGS or b_words in MEANINGS:  # \text{four}, \text{no solution}
            a, b = MEANINGS.get(a_words, a), MEANINGS.get(b_words, b)
        else:
            return a_words == b_words is not None
    Work.left = budget
    try:
        x, y = parse(a), parse(b)
        if (kind(x) == "list") != (kind(y) == "list"):  # next to a list, 108,135 is one too, and not a number
            x, y = parse(a, thousands=kind(x) == "list"), parse(b, thousands=kind(y) == "list")
        return same(x, y)
    except (ValueError, ArithmeticError, RecursionError):  # unreadable, undefined, too large
        return plain(a) == plain(b)


class Work:
    """Of the comparison that runs: evaluation steps left. Of the process: comparisons that needed inexact numbers."""
    left = budget
    inexact = 0

    @classmethod
    def spend(cls, steps):
        cls.left -= steps
        if cls.left < 0:
            raise ValueError("too much work")


# ---- text --------------------------------------------------------------------------------------------------------

UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "°": "^\\circ ", "π": "\\pi ",
    "√": "\\sqrt ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∈": "\\in ",
    "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ",
    "λ": "\\lambda ", "μ": "\\mu ", "ω": "\\omega ", "φ": "\\phi ", "ℝ": "\\mathbb{R} ", "½": "\\frac12 ", "¼": "\\frac14 ",
    "¾": "\\frac34 ", "²": "^2 ", "³": "^3 ", "′": "'", "’": "'", "“": "", "”": "", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
SPELLINGS = [(re.compile(old), new) for old, new in (
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"(?<=\d)(?:\{,\}|\\!,\\!|,\\!|\\!,|\\,|\\!)\s*(?=\d{3}(?!\d))", ""),                    # 1{,}234 1\!,\!234 1\,234
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|phantom\s*(?:\{[^{}]*\}|.)|rm|bf|it)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-zA-Z])|~|\\\n|\\hspace\{[^{}]*\}", " "),
    (r"\\\(|\\\)|\\\[|\\\](?!\s*$)|(?<!\\)\$", ""),
    (r"\^\s*\{?\s*(?:\\circ|\\degree)(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])", "°"), (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
    (r"\\(?:math(?:bf|it|sf|rm|normal)|boldsymbol|bm)\s*\{\s*([-\d.,]+)\s*\}", r"\1"), (r"\*\*", "^"), (r"\bnp\.", ""),
    (r"\\(?:lbrace|\{)(?![a-zA-Z])", r"\\{"), (r"\\(?:rbrace|\})(?![a-zA-Z])", r"\\}"), (r"\\[lr]?vert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
    (r"\\(?:leqslant|leq|leqq)(?![a-zA-Z])|<=", r"\\le "), (r"\\(?:geqslant|geq|geqq)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"), (r"\\neq(?![a-zA-Z])|!=", r"\\ne "), (r"\\%", "%"))]
TEXT = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|textnormal|textsf|mathrm|operatorname)\s*\{([^{}]*)\}")
MEANINGS = {("no solution",): "\\emptyset", ("no solutions",): "\\emptyset", ("empty set",): "\\emptyset",
            ("all real numbers",): "\\mathbb{R}", ("all reals",): "\\mathbb{R}", ("infinity",): "\\infty"}
MEANINGS |= {(word,): str(i) for i, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split())}


def clean(text):
    """One spelling for what LaTeX and Unicode spell in many ways, without what has no meaning in an answer."""
    text = text.strip()
    if text.isdigit() and text.isascii():
        return text
    text = text.translate(UNICODE) if not text.isascii() else text
    if "\\" in text or not text.isalnum():
        for pattern, new in SPELLINGS:
            text = pattern.sub(new, text)
    return re.sub(r"\s+", " ", text).lstrip(" ,;:").rstrip(" .,;:")


def words(text):
    r"""(answer in words, surely not a formula) of a cleaned answer: (("even",), True) for `\text{Even}.`; (None, False) for 2x.

    A comma, "and" or "or" makes several, in any order. Letters alone are words if they stood in \text or are four or more.
    """
    bare = TEXT.sub(r" \1 ", text)
    if not re.fullmatch(r"[a-zA-Z\s.,;'()&-]+", bare):
        return None, False
    items = [re.sub(r"^(?:a|an|the|option|choice|answer) ", "", " ".join(re.findall(r"[a-z']+", item)))
             for item in re.split(r"[,;&]|\band\b|\bor\b", bare.lower())]
    is_text = bare != text and "\\mathrm" not in text or re.search(r"[a-zA-Z]{4}", bare) and bare not in FUNCTIONS
    return tuple(sorted(item for item in items if item)), bool(is_text)


def plain(text):
    """What is compared as text if it can't be read: case, spaces and text commands don't count."""
    return re.sub(r"\s|(?<=[a-z])\.", "", TEXT.sub(r"\1", text).lower())


# ---- tokens ------------------------------------------------------------------------------------------------------

FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "ln", "log",
             "lg", "exp", "sqrt"}
GREEK = set("""alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma tau
upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega pi infty hbar ell angle triangle odot
circ star prime partial nabla perp parallel""".split())
RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "≤", "\\ge": "≥", "\\ne": "≠", "\\in": "in", "\\approx": "≈", "\\simeq": "≈"}
UNITS = {alias: names.split()[0] for names in """mm millimeter millimetre|cm centimeter centimetre|m meter metre|km kilometer kilometre
inch inches in|foot feet ft|yard yd|mile mi|second sec s|minute min|hour hr h|day|week|month|year yr|mg milligram|gram gm g
kilogram kg|pound lb|ounce oz|ton|liter litre l|milliliter ml|gallon gal|dollar usd|cent ¢|euro €|degree|percent|mph|am a.m|pm p.m
radian rad""".replace("\n", "|").split("|") for alias in names.split()}
SURE_UNITS = {"cm", "mm", "km", "kg", "ft", "lb", "hr"}  # of those with two letters, which may also be a product: 3 mg
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
TOKEN = re.compile(TEXT.pattern + r"""|(?P<based>\d[\dA-Z]*(?:\.\d+)?_\{?\(?\d+\)?\}?)
|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<command>\\(?:[a-zA-Z]+|.))|(?P<letters>[a-zA-Z]+)|(?P<other>\S)""", re.VERBOSE)
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?")


def tokenize(text, thousands):
    """Tokens of a cleaned answer. Words start with a quotation mark. thousands: 1,234 is a number, unless in brackets."""
    tokens, at, depth = [], 0, 0
    while at < len(text):
        found = thousands and depth == 0 and THOUSANDS.match(text, at)
        if found:
            tokens.append(found[0].replace(",", ""))
            at = found.end()
            continue
        found = TOKEN.match(text, at)
        if not found:
            at += 1
            continue
        spaced, at, token = text[at - 1:at] in (" ", "", "}"), found.end(), found[0]
        if found[1] is not None:
            tokens += text_tokens(found[1])
        elif found["letters"]:
            tokens += letter_tokens(token, spaced)
        else:
            depth += (token in ("(", "[", "\\{")) - (token in (")", "]", "\\}"))
            tokens.append(token)
    return tokens


def text_tokens(content):
    r"""Tokens of what stands in \text{}."""
    if not re.search("[a-zA-Z]", content):
        return tokenize(content, True)
    tokens = []
    for part in re.split(r"(,|;|\band\b|\bor\b)", content):
        if part in (",", ";", "and", "or"):
            tokens.append(",")
        elif part.strip():
            tokens.append('"' + part.strip())
    return tokens


def letter_tokens(run, spaced):
    """Tokens of a run of letters: a function, a word, or a product of variables."""
    if run in FUNCTIONS or run in GREEK:
        return ["\\" + run]
    if run in ("and", "or"):
        return [","]
    if run.lower() in ("inf", "infinity"):
        return ["\\infty"]
    low = run.lower()
    unit = low.removesuffix("s") if len(run) > 3 else low
    if low in SCALES or unit in UNITS and (len(unit) > 2 or unit in SURE_UNITS or spaced and unit in ("am", "pm")):
        return ['"' + run]
    if spaced and len(run) > 3 and run.islower() and list(run) != sorted(run):
        return ['"' + run]
    name = re.match("|".join(sorted(FUNCTIONS | {"pi"}, key=len, reverse=True)), run)  # sinx
    return ["\\" + name[0], *letter_tokens(run[name.end():], False)] if name and len(run) > len(name[0]) else list(run)


# ---- parser ------------------------------------------------------------------------------------------------------

def parse(text, thousands=True):
    """Tree of a cleaned answer. Raises ValueError (or RecursionError, on a thousand nested braces) if it can't be read."""
    parser = Parser(tokenize(text, thousands))
    tree = parser.answer()
    if parser.peek:
        raise ValueError(f"unexpected {parser.peek}")
    return tree


class Parser:
    """Recursive descent; one method per level: answer > relation > side > sum > term > factor > base."""

    def __init__(self, tokens):
        self.tokens, self.at = tokens + [""], 0

    @property
    def peek(self):
        return self.tokens[self.at]

    def take(self, expected=None):
        token = self.tokens[self.at]
        if expected is not None and token != expected or not token:
            raise ValueError(f"expected {expected}, got {token}")
        self.at += 1
        return token

    def skip(self, *tokens):
        """The next token if it is one of these, else None."""
        return self.take() if self.peek in tokens and self.peek else None

    def answer(self):
        """One value, or several with commas: 1, 2 and 3."""
        while self.skip(",", "=", "\\approx"):
            pass
        items = [self.relation()]
        while self.skip(",", ";"):
            while self.skip(",", ";"):
                pass
            items.append(self.relation())
        items = [x for item in items for x in both_signs(item)]
        return ("list", *items) if len(items) > 1 else items[0]

    def relation(self):
        sides, ops = [self.side()], []
        while self.peek in RELATIONS:
            ops.append(RELATIONS[self.take()])
            sides.append(self.side())
        return ("rel", tuple(ops), *sides) if ops else sides[0]

    def side(self):
        node = self.ratio()
        while op := self.skip("\\cup", "\\setminus", "\\backslash"):
            node = ("union" if op == "\\cup" else "minus", node, self.ratio())
        return node

    def ratio(self):
        parts = [self.sum()]
        while self.skip(":"):
            parts.append(self.sum())
        node = ("ratio", *parts) if len(parts) > 1 else parts[0]
        return self.unit(node) if self.peek.startswith('"') else node

    def unit(self, node):
        """Words after a value. Those of UNITS are kept, to tell 5 cm from 5 m; others (18 integers) say nothing more."""
        phrase = []
        while self.peek not in ("", ",", ";", ")", "]", "\\}", "}", "|", "&", "\\\\", "+", "-", "\\cup", *RELATIONS):
            if self.peek == "{":
                self.at += 1
                phrase.append(self.take())
                self.take("}")
            else:
                phrase.append(self.take().strip('"'))
        phrase = " ".join(phrase).lower()
        if scale := SCALES.get(phrase.split()[0]):
            node, phrase = ("*", node, Fraction(scale)), phrase.partition(" ")[2]
        found = re.fullmatch(r"(sq|square|cu|cubic)?\.? ?([a-z.€¢]+?)\.?(?: ?\^ ?([23])| squared| cubed)?", phrase)
        name = found and (UNITS.get(found[2]) or UNITS.get(found[2].removesuffix("s")))
        if not name or node[0] == "unit" if isinstance(node, tuple) else not name:
            return node
        power = 2 if (found[1] or "")[:2] == "sq" or "squared" in phrase else 3 if found[1] or "cubed" in phrase else found[3] or ""
        return ("unit", name + str(power), node)

    def sum(self):
        terms, sign = [], self.skip("+", "-", "\\pm", "\\mp")
        while True:
            term = self.term()
            terms.append(term if sign in (None, "+") else negative(term) if sign == "-" else ("pm", 1 if sign == "\\pm" else -1, term))
            sign = self.skip("+", "-", "\\pm", "\\mp")
            if not sign:
                return terms[0] if len(terms) == 1 else ("+", *terms)

    def term(self):
        above, below = [], []
        while True:
            literal = self.peek
            node = self.signed() if above else self.factor()
            if literal.isdigit() and isinstance(node, Fraction):
                node = self.mixed(node)
            above.append(node)
            while op := self.skip("/", "\\div"):
                below.append(self.signed())
            if not self.skip("*", "\\cdot", "\\times") and not self.starts_factor():
                break
        node = product(above)
        return ("/", node, product(below)) if below else node

    def mixed(self, whole):
        r"""6\frac{1}{6} and 1 1/2 are sums: a whole number before a proper fraction."""
        start, node = self.at, None
        if self.peek == "\\frac":
            node = self.factor()
        elif self.peek.isdigit() and self.tokens[self.at + 1] == "/" and self.tokens[self.at + 2].isdigit():
            node = ("/", Fraction(self.take()), Fraction(self.tokens[self.at + 1]))
            self.at += 2
        match node:
            case ("/", Fraction() as a, Fraction() as b) if 0 < a < b and a.denominator == b.denominator == 1:
                return ("+", whole, node)
        self.at = start
        if self.peek[:1].isdigit() or self.peek[:1] == ".":
            raise ValueError("two numbers in a row")
        return whole

    def signed(self):
        sign = self.skip("-", "+")
        return negative(self.factor()) if sign == "-" else self.factor()

    def starts_factor(self):
        token = self.peek
        return bool(token) and (token[0].isalnum() or token in ("(", "[", "{", "\\{", "\\$", "|") and not (token == "|" and self.bars)
                                or token[0] == "\\" and token[1:] in STARTERS)

    bars = 0  # how many |...| are open: the next | closes

    def factor(self):
        node = self.base()
        while True:
            if self.skip("^"):
                node = ("^", node, self.argument(sign=True))
            elif self.skip("!"):
                node = ("!", node)
            elif self.skip("%"):
                node = ("unit", "percent", node)
            elif self.skip("°"):
                node = ("unit", "degree", node)
            else:
                return node

    def argument(self, sign=False, digit=False):
        r"""What a command or ^ applies to: a group, or the next token. digit: of a number just the first, as in \frac12."""
        if self.skip("{"):
            return self.until("}")
        if sign and self.peek in ("-", "+"):
            return self.signed()
        if digit and self.peek[:1].isdigit() and len(self.peek) > 1 and self.peek.isdigit():
            self.tokens[self.at:self.at + 1] = [self.peek[0], self.peek[1:]]
        return self.base()

    def until(self, *closing):
        node = self.answer()
        if self.peek not in closing:
            raise ValueError(f"expected {closing}")
        self.at += 1
        return node

    def raw(self):
        """The next group or token as text: for names."""
        if not self.skip("{"):
            return self.take().strip('"')
        parts, depth = [], 1
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return "".join(parts)
            parts.append(token.strip('"'))

    def base(self):
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return self.number(token)
        if token.isalpha() and len(token) == 1:
            return self.symbol(token)
        if token[0] == '"':
            return self.symbol(token[1:]) if len(token) == 2 else ("word", token[1:].lower())
        if token in ("(", "[", "\\langle"):
            return self.bracket("[" if token == "[" else "(")
        if token == "{":
            node = self.until("}")
            return ("set", *node[1:]) if kind(node) == "list" else node
        if token == "\\{":
            return self.braces()
        if token == "|":
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.take("|")
            return ("fn", "abs", node)
        if token in ("\\lfloor", "\\lceil"):
            node = self.sum()
            self.take("\\rfloor" if token == "\\lfloor" else "\\rceil")
            return ("fn", "floor" if token == "\\lfloor" else "ceil", node)
        if token == "\\frac":
            return quotient(self.argument(digit=True), self.argument(digit=True))
        if token == "\\binom":
            return ("fn", "binom", self.argument(digit=True), self.argument(digit=True))
        if token == "\\sqrt":
            if not self.skip("["):
                return ("fn", "root", self.argument(), Fraction(2))
            n = self.until("]")
            return ("fn", "root", self.argument(), n)
        if token[1:] in FUNCTIONS:
            return self.function(token[1:])
        if token == "\\$":
            sign = self.skip("-")
            node = ("unit", "dollar", self.factor())
            return negative(node) if sign else node
        if token in ("\\emptyset", "\\varnothing"):
            return ("set",)
        if token == "\\begin":
            return self.matrix()
        if token[1:] in ACCENTS:
            return self.symbol(f"{token} {self.raw()}")
        if token[0] == "\\" and token[1:] in GREEK:
            return self.symbol(token)
        raise ValueError(f"unexpected {token}")

    def number(self, token):
        if "_" in token:
            digits, base = re.fullmatch(r"(.*)_\D*(\d+)\D*", token).groups()
            if not 2 <= int(base) <= 36 or any(int(d, 36) >= int(base) for d in digits if d != "."):
                raise ValueError(f"{digits} is no number in base {base}")
            return Fraction(digits) if base == "10" else ("base", digits.lstrip("0") or "0", int(base))
        if abs(int(re.split("[eE]", token + "e0")[1])) > 5000:
            raise ValueError("too large")
        value = Fraction(token.rstrip(".") if "e" not in token.lower() else token)
        if "." in token and self.peek in ("\\overline", "\\bar", "\\dot"):  # 0.1\overline{6}
            self.at += 1
            period = self.raw()
            value += Fraction(int(period), 10 ** len(token.partition(".")[2]) * (10 ** len(period) - 1))
        return value

    def symbol(self, name):
        while self.peek in ("_", "'"):
            name += self.take() if self.peek == "'" else f"_{self.take() and self.raw()}"
        if self.peek == "(":
            # f(x) is a function's value; n(n+1) is a product. Letters other than f and g need a lone variable or 0.
            start = self.at
            self.at += 1
            inner = self.bracket("(")
            if name[0] in "fgFG" or (isinstance(inner, str) or inner == 0):
                return ("app", name, inner)
            self.at = start
        return name

    def bracket(self, left):
        bars, self.bars = self.bars, 0
        node = self.answer()
        self.bars = bars
        right = "]" if self.peek == "]" else ")"
        if self.take() not in (")", "]", "\\rangle"):
            raise ValueError("unclosed bracket")
        if kind(node) == "list":
            return ("tuple", left, right, *node[1:])
        if left + right in ("()", "[]"):
            return node
        raise ValueError("half-open bracket around one value")

    def braces(self):
        """A set, by its members or as {x : condition}."""
        if self.skip("\\}"):
            return ("set",)
        self.bars += 1
        node = self.relation_before_colon()
        if self.skip("|", ":"):
            node = self.until("\\}")
        else:
            items = list(both_signs(node))
            while self.skip(",", ";"):
                items += both_signs(self.relation())
            self.take("\\}")
            node = ("set", *items)
        self.bars -= 1
        return node

    def relation_before_colon(self):
        node = self.sum()
        if op := self.skip(*RELATIONS):
            node = ("rel", (RELATIONS[op],), node, self.sum())
        return node

    def function(self, name):
        power = base = None
        while self.peek in ("^", "_"):
            if self.take() == "^":
                power = self.argument(sign=True)
            else:
                base = self.argument()
        sign = self.skip("-")
        args = [self.base() if self.peek in ("(", "[", "{", "|") else self.factor()]
        if self.tokens[self.at - 1] not in (")", "]", "|"):  # sin 2 x: as far as letters go
            while self.peek and (self.peek.isalpha() and len(self.peek) == 1 or self.peek[1:] in GREEK):
                args.append(self.factor())
        x = negative(product(args)) if sign else product(args)
        if name == "sqrt":
            return ("fn", "root", x, Fraction(2))
        if name == "exp":
            return ("^", "e", x)
        if power == -1:
            name, power = "arc" + name, None
        node = ("fn", "ln" if base is not None else "log10" if name == "lg" else name, x)
        if base is not None:
            node = ("/", node, ("fn", "ln", base))
        return node if power is None else ("^", node, power)

    def matrix(self):
        name = self.raw().rstrip("*")
        if name == "array" and self.peek == "{":
            self.raw()
        if name not in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix"):
            raise ValueError(f"unknown environment {name}")
        rows = [[]]
        while self.peek != "\\end":
            rows[-1].append(self.relation())
            if self.skip("\\\\") and self.peek != "\\end":
                rows.append([])
            elif self.peek != "\\end" and self.tokens[self.at - 1] != "\\\\":
                self.take("&")
        self.take("\\end")
        self.raw()
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        return ("matrix", len(rows[0]), *(x for row in rows for x in row))


ACCENTS = {"overline", "vec", "hat", "bar", "tilde", "dot", "ddot", "widehat", "overrightarrow", "mathbf", "mathbb", "mathcal", "mathit",
           "boldsymbol", "mathrm"}
STARTERS = FUNCTIONS | GREEK | ACCENTS | {"frac", "binom", "sqrt", "lfloor", "lceil", "begin", "langle", "emptyset", "varnothing"}
SCALARS = {"+", "neg", "*", "/", "^", "!", "fn", "app", "unit", "pm"}


def kind(node):
    """"number" for whatever has a value, else the tree's first entry."""
    if node == "\\mathbb R":
        return "union"
    return "number" if not isinstance(node, tuple) or node[0] in SCALARS else node[0]


def negative(x):
    match x:
        case Fraction():
            return -x
        case ("base", digits, base):
            return ("base", "-" + digits, base)
        case ("unit", *_) | ("matrix", *_):
            return rebuilt(x, negative)
    return ("neg", x)


def product(factors):
    """Product of trees; a matrix takes the others into its entries."""
    matrices = [x for x in factors if kind(x) == "matrix"]
    if len(matrices) == 1 and len(factors) > 1:
        others = [x for x in factors if kind(x) != "matrix"]
        return rebuilt(matrices[0], lambda x: product([*others, x]))
    return factors[0] if len(factors) == 1 else ("*", *factors)


def quotient(a, b):
    return rebuilt(a, lambda x: quotient(x, b)) if kind(a) == "matrix" else ("/", a, b)


HEAD = {"tuple": 3, "base": 3, "word": 2, "fn": 2, "app": 2, "unit": 2, "pm": 2, "rel": 2, "matrix": 2}  # entries that are no trees


def parts(x):
    """The trees in a tree."""
    return x[HEAD.get(x[0], 1):] if isinstance(x, tuple) else ()


def rebuilt(x, change):
    """The tree with each of its parts changed."""
    return (*x[:HEAD.get(x[0], 1)], *map(change, parts(x))) if isinstance(x, tuple) else x


def nodes(x):
    """The tree and all trees in it."""
    yield x
    for part in parts(x):
        yield from nodes(part)


def variables(x):
    """What has a value only once a Point gives it one."""
    return {y for y in nodes(x) if isinstance(y, str) and y not in CONSTANTS or isinstance(y, tuple) and y[0] == "app"}


def both_signs(x):
    """The one or two values of an answer with +-."""
    def choose(x, sign):
        x = rebuilt(x, lambda part: choose(part, sign))
        return x if not isinstance(x, tuple) or x[0] != "pm" else x[2] if x[1] == sign else negative(x[2])
    return (choose(x, 1), choose(x, -1)) if any(isinstance(y, tuple) and y[0] == "pm" for y in nodes(x)) else (x,)


# ---- comparison by kind ------------------------------------------------------------------------------------------

def same(a, b):
    """True if two trees have the same meaning. Raises ValueError or ArithmeticError where that can't be found out."""
    if a == b:
        return True
    kinds = {kind(a), kind(b)}
    if kinds & {"union", "minus"}:
        return region(a) == region(b) or same_regions(region(a), region(b))
    if "rel" in kinds and "list" not in kinds:
        return same_relations(a, b) if kinds == {"rel"} else meets(a, b) if kind(a) == "rel" else meets(b, a)
    if kinds == {"list", "tuple"}:  # an ordered pair without its parentheses
        return same_in_order(parts(a), parts(b))
    if kinds & {"list", "set"}:
        return same_in_any_order(members(a), members(b))
    if kinds == {"tuple"}:
        return (a[1:3] == b[1:3] or len(a) > 5) and same_in_order(parts(a), parts(b))
    if kinds == {"matrix"}:
        return a[1] == b[1] and same_in_order(parts(a), parts(b))
    if kinds == {"matrix", "tuple"}:  # a row or column as a vector
        return 1 in {x[1] for x in (a, b)} | {x[1] / (len(x) - 2) for x in (a, b) if x[0] == "matrix"} and same_in_order(parts(a), parts(b))
    if kinds == {"ratio"}:
        return same_in_order(a[1:], b[1:]) or len(a) == len(b) == 3 and same_numbers(("/", *a[1:]), ("/", *b[1:]))
    if kinds == {"ratio", "number"}:
        a, b = (a, b) if kind(a) == "ratio" else (b, a)
        return len(a) == 3 and same_numbers(("/", *a[1:]), b)
    return kinds == {"number"} and same_quantities(a, b)


def same_in_order(xs, ys):
    return len(xs) == len(ys) and all(map(same, xs, ys))


def same_in_any_order(xs, ys):
    ys = list(ys)
    if len(xs) != len(ys):
        return False
    for x in xs:
        match = next((i for i, y in enumerate(ys) if same(x, y)), None)
        if match is None:
            return False
        del ys[match]
    return True


def members(x):
    """The values of a list, of a set (each once), or of a single value."""
    if kind(x) == "set":
        once = []
        for y in x[1:]:
            if not any(same(y, z) for z in once):
                once.append(y)
        return once
    return x[1:] if kind(x) == "list" else (x,)


def same_relations(a, b):
    """Two equations or inequalities: side by side the same, one a multiple of the other, or the same set of reals."""
    (_, ops, *xs), (_, qs, *ys) = forwards(a), forwards(b)
    if set(ops + qs) == {"="}:
        if xs[0] == ys[0]:
            if same_in_order(xs[1:], ys[1:]) or len(ops + qs) > 2 and all(same(x, y) for x in xs[1:] for y in ys[1:]):
                return True
        functions = [x for x in (xs[0], ys[0]) if kind(x) == "number" and isinstance(x, tuple) and x[0] == "app"]
        if len(functions) == 2 and functions[0][1] == functions[1][1]:  # f(x) = 2x, f(t) = 2t
            return same(xs[1], renamed(ys[1], ys[0][2], xs[0][2]))
        if functions and "y" in (xs[0], ys[0]):                         # y = 2x, f(x) = 2x
            return same_in_order(xs[1:], ys[1:])
    if ops == qs and (same_in_order(xs, ys) or len(ops) == 1 and ops[0] in "=≠" and same_in_order(xs, ys[::-1])):
        return True
    if ops == qs and len(ops) == 1 and ops[0] in "=≠<≤" and {*map(kind, xs), *map(kind, ys)} == {"number"}:
        return proportional(minus(*xs), minus(*ys), positive=ops[0] in "<≤")
    return "=" not in ops + qs and subject(a) == subject(b) is not None and same_regions(region(a), region(b))


def meets(relation, x):
    """Is x the value that a relation gives: 5 for x = 5 or x = 10/2 = 5, 2/3 or 0.67 for 2/3 ≈ 0.67, (3, ∞) for x > 3."""
    _, ops, *sides = relation
    values = [side for side in sides if not is_name(side)] or sides[-1:]
    if set(ops) == {"="}:
        return len(values) < len(sides) + (kind(values[0]) == kind(x) == "number" and not variables(relation)) and \
            all(same(value, x) for value in values)
    if set(ops) <= {"=", "≈"}:
        return any(same(value, x) for value in values)
    return same_regions(region(relation), region(x))


def is_name(x):
    """The left side of x = 5, f(x) = 2x, AB = 9, (x, y) = (1, 2), dy/dx = 3: letters without a number."""
    if isinstance(x, str):
        return x not in CONSTANTS
    return isinstance(x, tuple) and (x[0] in ("app", "word") or x[0] in ("*", "/", "tuple") and
                                     all(map(is_name, parts(x))) or x[0] == "^" and is_name(x[1]))


def renamed(x, old, new):
    return new if x == old else rebuilt(x, lambda part: renamed(part, old, new))


def minus(a, b):
    return ("+", a, negative(b))


def forwards(relation):
    """The same relation with < instead of >."""
    kind, ops, *sides = relation
    return (kind, tuple("<" if op == ">" else "≤" for op in reversed(ops)), *reversed(sides)) if set(ops) <= {">", "≥"} else relation


# ---- sets of reals -----------------------------------------------------------------------------------------------

INFINITY = "\\infty"


def region(node):
    """A set of reals as disjoint intervals, ordered: [(low, contains low, high, contains high)]. Raises ValueError on others."""
    parts, merged = list(intervals(node)), []
    if len(parts) > 1:
        parts.sort(key=lambda p: (place(p[0]), not p[1]))
    for low, has_low, high, has_high in parts:
        if merged and (gap := place(merged[-1][2]) - place(low)) >= 0 and (gap > 0 or merged[-1][3] or has_low):
            if place(high) > place(merged[-1][2]) or place(high) == place(merged[-1][2]) and has_high:
                merged[-1][2:] = [high, has_high]
        else:
            merged.append([low, has_low, high, has_high])
    return merged


def same_regions(xs, ys):
    return len(xs) == len(ys) and all(x[1] == y[1] and x[3] == y[3] and same(x[0], y[0]) and same(x[2], y[2]) for x, y in zip(xs, ys))


def place(x):
    """Where an endpoint lies, as a float; a symbolic one somewhere, but the same each time."""
    value = evaluate(x, Point(1))
    return float(value if isinstance(value, Fraction) else value.real)


def intervals(node):
    everything = (negative(INFINITY), False, INFINITY, False)
    match node:
        case "\\mathbb R":
            yield everything
        case ("tuple", left, right, low, high):
            yield (low, left == "[", high, right == "]")
        case ("set", *points):
            yield from ((p, True, p, True) for p in points)
        case ("union" | "list", *parts):
            for part in parts:
                yield from intervals(part)
        case ("minus", whole, ("set", *points)):
            rest = list(intervals(whole))
            for p in points:
                rest = [piece for low, a, high, b in rest for piece in (
                    [(low, a, p, False), (p, False, high, b)] if place(low) < place(p) < place(high) else
                    [(low, a and low != p, high, b and high != p)])]
            yield from rest
        case ("rel", ("in",), _, whole):
            yield from intervals(whole)
        case ("rel", ("≠",), name, p) if is_name(name):
            yield from intervals(("minus", "\\mathbb R", ("set", p)))
        case ("rel", ("=",), name, p) if is_name(name):
            yield (p, True, p, True)
        case ("rel", *_):
            match forwards(node):
                case ("rel", ("<" | "≤" as op,), name, high) if is_name(name):
                    yield (*everything[:2], high, op == "≤")
                case ("rel", ("<" | "≤" as op,), low, name) if is_name(name):
                    yield (low, op == "≤", *everything[2:])
                case ("rel", ("<" | "≤" as op, "<" | "≤" as op2), low, name, high) if is_name(name):
                    yield (low, op == "≤", high, op2 == "≤")
                case _:
                    raise ValueError("not a set of reals")
        case _:
            raise ValueError("not a set of reals")


def subject(relation):
    """What a relation is about: x in 2 < x < 3."""
    sides = relation[2:]
    return next((side for side in (sides if len(sides) == 2 else sides[1:2]) if is_name(side)), None)


# ---- comparison by value -----------------------------------------------------------------------------------------

MP = mpmath.mp.clone()        # a context of our own: no one else's precision is touched
PRECISIONS = ((40, 20), (500, 450))  # digits to compute with, digits that have to agree
CONSTANTS = {"e": lambda: +MP.e, "i": lambda: MP.j, "\\pi": lambda: +MP.pi, "\\infty": lambda: MP.inf}
MAX_BITS = 20_000             # of exact integers; larger numbers are rounded


class Point(NamedTuple):
    """Where formulas are evaluated: it gives every variable a value."""
    index: int            # 2 is a negative point
    whole: bool = False   # variables are positive integers: for n!, binomials, floors
    log10: bool = False   # log without a base means log10, not ln


def same_quantities(a, b):
    """Numbers or formulas with their units. A unit may be left off; 50% is 50 and 0.5, 90 degrees are 90 and pi/2."""
    (a_unit, x), (b_unit, y) = ((n[1], n[2]) if isinstance(n, tuple) and n[0] == "unit" else ("", n) for n in (a, b))
    if a_unit and b_unit and a_unit != b_unit:
        return False
    return same_numbers(x, y) or a_unit != b_unit and (a_unit or b_unit) in ("degree", "percent") and same_numbers(a, b)


def same_numbers(a, b):
    """Do two scalar trees agree in value, at all points if there are variables? Raises ValueError on sides without a value."""
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return False
    free = variables(a) | variables(b)
    used = {x[:2] if x[0] == "fn" else x[:1] for tree in (a, b) for x in nodes(tree) if isinstance(x, tuple)}
    whole = bool(free) and bool(used & {("!",), ("fn", "floor"), ("fn", "ceil"), ("fn", "binom")})
    indices = range(12) if whole else range(3) if free else (0,)
    logs = (False, True) if ("fn", "log") in used else (False,)
    return any(all(same_at(a, b, Point(i, whole, log10)) for i in indices) for log10 in logs)


def same_at(a, b, point):
    for digits, agree in PRECISIONS:
        MP.dps = digits
        try:
            x, y = evaluate(a, point), evaluate(b, point)
        except ArithmeticError:
            if point.index == 2 and not point.whole:
                return True  # sqrt(x) and ln(x) are for positive x
            raise
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        Work.inexact += digits == 40
        x, y = inexact(x), inexact(y)
        if point.index == 2 and not point.whole and (x.imag or y.imag):
            return True
        if MP.isinf(x) or MP.isinf(y):
            return x == y
        if not abs(x - y) <= MP.mpf(10) ** -agree * max(1, abs(x), abs(y)):  # also where one is not a number
            return False
    return True


def proportional(f, g, positive):
    """Is f = c g with a constant c (> 0 if positive)?"""
    if not variables(f) or not variables(g):
        return False
    MP.dps = 500
    values = [(evaluate(f, Point(i)), evaluate(g, Point(i))) for i in (0, 1, 3, 4)]
    f0, g0 = values[0]
    if f0 == 0 or g0 == 0 or positive and (inexact(f0) / inexact(g0)).real < 0:
        return False
    for x, y in values[1:]:
        left, right = times(x, g0), times(y, f0)
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            if left != right:
                return False
        else:
            left, right = inexact(left), inexact(right)
            if not abs(left - right) <= MP.mpf(10) ** -450 * max(1, abs(left), abs(right)):
                return False
    return True


def inexact(x):
    return MP.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def evaluate(x, point):
    """Value of a scalar tree: a Fraction where it is exact, else an mpmath number, real or complex, of the precision set."""
    Work.spend(1)
    if isinstance(x, Fraction):
        return x
    if isinstance(x, str):
        return CONSTANTS[x]() if x in CONSTANTS else variable(x, point)
    kind, *args = x
    if kind == "app":
        inner = evaluate(args[1], point) if isinstance(args[1], (str, Fraction)) or args[1][0] in SCALARS else args[1]
        return variable(f"{args[0]}({MP.nstr(inexact(inner), 15) if not isinstance(inner, tuple) else inner})", point)
    if kind == "fn":
        return function(args[0], [evaluate(a, point) for a in args[1:]], point)
    if kind == "unit":
        value = evaluate(args[1], point)
        return times(value, Fraction(1, 100)) if args[0] == "percent" else \
            times(value, MP.pi / 180) if args[0] == "degree" else value
    if kind not in SCALARS:
        raise ValueError(f"{kind} has no value")
    values = [evaluate(a, point) for a in args]
    if kind == "+":
        total = values[0]
        for value in values[1:]:
            exact = isinstance(total, Fraction) and isinstance(value, Fraction)
            total = fit(total + value) if exact else inexact(total) + inexact(value)
        return total
    if kind == "*":
        total = values[0]
        for value in values[1:]:
            total = times(total, value)
        return total
    if kind == "neg":
        return -values[0]
    if kind == "/":
        a, b = values
        if b == 0:
            raise ZeroDivisionError
        return fit(a / b) if isinstance(a, Fraction) and isinstance(b, Fraction) else inexact(a) / inexact(b)
    if kind == "!":
        return factorial(values[0])
    return power(*values)


def fit(x):
    """Exact as long as that is cheap."""
    return x if max(x.numerator.bit_length(), x.denominator.bit_length()) <= MAX_BITS else inexact(x)


def times(a, b):
    return fit(a * b) if isinstance(a, Fraction) and isinstance(b, Fraction) else inexact(a) * inexact(b)


@lru_cache(4096)
def variable(name, point):
    """A random value that depends on the name and the point only: in (0, 1), (1, 3) and (-3, -1), or a positive integer."""
    rng = random.Random(f"{name} {point.index}")
    if point.whole:
        return Fraction(rng.randint(2, 40))
    low, high = ((1, 9), (11, 29), (-29, -11))[point.index % 3]
    return Fraction(rng.randint(low << 30, high << 30), 10 << 30)


def check_size(x, bits):
    """mpmath computes with numbers of any size, for years if it must."""
    if x != 0 and not MP.isinf(x) and MP.mag(x) > bits:
        raise OverflowError("too large")


def power(a, b):
    if isinstance(b, Fraction) and b.denominator == 1 and isinstance(a, Fraction):
        if a == 0 and b < 0:
            raise ZeroDivisionError
        if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(b) <= MAX_BITS or abs(a) <= 1 and a.denominator == 1:
            return a ** int(b) if abs(a) != 1 else a ** int(b % 2)
    Work.spend(30)
    if isinstance(b, Fraction) and b.denominator % 2 and not inexact(a).imag and a < 0:  # a real root, as in (-8)^(1/3)
        return -power(-a, b) if b.numerator % 2 else power(-a, b)
    x, y = inexact(a), inexact(b)
    if x == 0 and y.real < 0:
        raise ZeroDivisionError
    if x != 0 and not MP.isinf(x) and not MP.isinf(y):
        check_size(y, 60)
        check_size(y * MP.mag(x), 24)  # about 2 ** (16 million)
    return MP.power(x, y)


def factorial(x):
    Work.spend(30)
    if isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 1000:
        return Fraction(integers.factorial(int(x)))
    check_size(inexact(x), 24)
    return MP.gamma(inexact(x) + 1)


def function(name, args, point):
    Work.spend(30)
    x = args[0]
    exact = isinstance(x, Fraction)
    if name == "abs":
        return abs(x)
    if name in ("floor", "ceil"):
        check_size(inexact(x), 1000)
        round_off = integers.floor if name == "floor" else integers.ceil
        return Fraction(round_off(x)) if exact else MP.floor(x) if name == "floor" else MP.ceil(x)
    if name == "binom":
        if all(isinstance(a, Fraction) and a.denominator == 1 and 0 <= a <= 5000 for a in args):
            return Fraction(integers.comb(*map(int, args)))
        n, k = map(inexact, args)
        check_size(n, 24), check_size(k, 24)
        return MP.binomial(n, k)
    if name == "root":
        n = args[1]
        if exact and n == 2 and x >= 0:
            top, bottom = integers.isqrt(x.numerator), integers.isqrt(x.denominator)
            if top * top == x.numerator and bottom * bottom == x.denominator:
                return Fraction(top, bottom)
        if n == 0:
            raise ZeroDivisionError
        return MP.sqrt(inexact(x)) if n == 2 else power(x, 1 / n if isinstance(n, Fraction) else 1 / inexact(n))
    x = inexact(x)
    if name in ("ln", "log", "log10"):
        if x == 0:
            raise ZeroDivisionError
        return MP.ln(x) / MP.ln(10) if name == "log10" or name == "log" and point.log10 else MP.ln(x)
    check_size(x, 24 if name in ("sinh", "cosh", "tanh") else 200)
    arc, name = name.startswith("arc"), name.removeprefix("arc")
    if arc:
        return MP.pi / 2 - MP.atan(x) if name == "cot" else getattr(MP, "a" + name)(x)
    return getattr(MP, name)(x)


# ---- grading a batch ---------------------------------------------------------------------------------------------

class Graded(NamedTuple):
    """A batch's grades; every entry is a list in the batch's order."""
    rewards: list     # float
    inexact: list     # bool: the text and exact fractions didn't decide, digits did
    timed_out: list   # bool: took longer than answer_limit; the reward is 0


def grade(rows, texts, finished):
    """Grade a batch in a pool of processes. rows: data rows with "task" and "answer"; texts, finished: of the responses.
    Returns Graded. Raises RuntimeError with the traceback if a reward function raises: that is a bug, not a wrong answer."""
    return start_grading(rows, texts, finished)()


def start_grading(rows, texts, finished):
    """The same without waiting. Returns a function that waits and returns Graded."""
    futures = [pool().submit(grade_one, (row["task"], text, row["answer"], end))
               for row, text, end in zip(rows, texts, finished, strict=True)]
    return lambda: Graded(*map(list, zip(*(future.result() for future in futures)))) if futures else Graded([], [], [])


@cache
def pool():
    """Threads that wait, each for a process of its own."""
    return ThreadPoolExecutor(min(16, os.cpu_count()), "grader")


Own = threading.local()


def grade_one(request):
    """(reward, inexact, timed out) from this thread's process, which is started if there is none."""
    if not hasattr(Own, "process"):
        Own.process = subprocess.Popen([sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        Own.process.stdin.write(json.dumps(request).encode() + b"\n")
        Own.process.stdin.flush()
        reply = Own.process.stdout.readline()
    except BrokenPipeError:
        reply = b""
    if not reply:  # ended by its timer or for its memory; a new one for the next answer
        process = Own.process
        del Own.process
        process.communicate()
        if process.returncode > 0:
            raise RuntimeError(f"the grading process ended with status {process.returncode}")
        return 0.0, False, True
    reply = json.loads(reply)
    if isinstance(reply, str):
        raise RuntimeError(f"a reward function raised:\n{reply}")
    return (*reply, False)


def serve():
    """A grading process: a request a line in, a grade a line out, until the other side is gone.

    The limit is a timer without a handler: when it runs out, the kernel ends the process, whatever it is doing. So there is
    nothing that can keep it alive, and nothing is left behind if the parent is killed.
    """
    import resource
    import traceback
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    for line in sys.stdin:
        task, *request = json.loads(line)
        Work.inexact = 0
        signal.setitimer(signal.ITIMER_REAL, answer_limit)
        try:
            reply = [REWARDS[task](*request), Work.inexact > 0]
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)
        except Exception:
            reply = traceback.format_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()
