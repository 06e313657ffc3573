r"""Rewards: 1.0 for a right final answer, else 0.0. All stages grade with these functions.

    is_equivalent(r"\frac{1}{\sqrt2}", r"\dfrac{\sqrt{2}}{2}")   # True
    is_equivalent("x > 3", r"(3, \infty)")                        # True
    is_equivalent("0.333", r"\frac13")                            # False: near is not equal

How two final answers are compared, cheapest first:
  1. As text, once the spellings of LaTeX and Unicode that mean the same have become one (`clean`).
  2. As trees, which a hand-written parser makes of what answers consist of. Nothing is ever run as code.
  3. Trees are compared by kind: lists in any order, tuples in order, intervals and inequalities as sets of reals, equations
     up to a factor, matrices by entry ...
  4. That leaves pairs of numbers or formulas, and these are evaluated: exactly, as fractions, as long as that goes; else
     with mpmath to 40 digits and, where those agree, to 500. Variables take random values. Two polynomials that agree there
     are equal (Schwartz-Zippel); two closed forms that agree to 450 digits are taken to be.
sympy in place of step 4 gave the same verdicts, took 11 times as long and hung on hostile input (LOG.md). Here every
comparison has a budget of steps, and `grade` a time limit that the kernel enforces.

A tree is a Fraction, a str (variable or constant), or a tuple of a kind and its parts:
  scalars  ("+", a, ...) ("neg", a) ("*", a, ...) ("/", a, b) ("^", a, b) ("fn", name, a, ...)
           ("app", f, x): f(x)   ("unit", (word, ...), a): 5 cm   ("pm", sign, a): sign times plus-minus a
  others   ("list", a, ...): 1, 2   ("set", a, ...): {1, 2}   ("tuple", "(", "]", a, ...)   ("matrix", columns, a, ...)
           ("ratio", a, ...): 1:2   ("rel", ("<", ...), a, b, ...)   ("base", digits, base)   ("word", text)
           of sets of reals: ("union", a, b)   ("minus", a, b)   ("both", a, b, ...)
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
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache, reduce
from itertools import product as product_of
from typing import NamedTuple

import mpmath

answer_limit = 2.0         # seconds that grading one answer may take; most take 0.0001
max_answer_chars = 20_000  # of a final answer; longer ones are compared as text only
budget = 30_000            # evaluation steps of one comparison, about a second at worst


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
    r"""The final answer in a response: what the last `\boxed{...}` or `\fbox{...}` holds, or None.

    The last one, as a response may correct itself; what follows it doesn't count. Of `\boxed 5` it is the next word. A box
    that is not closed is no answer, even after one that is: the response was cut while it changed its mind.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    command = re.compile(r"\\[a-z]+(\s*)").match(text, start)
    if not text.startswith("{", command.end()):
        return re.compile(r"[^\s$]*").match(text, command.end())[0] or None if command[1] else None
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, command.end()):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[command.end() + 1:brace.start()]
    return None


# ---- grading a batch ---------------------------------------------------------------------------------------------

class Graded(NamedTuple):
    """The grades of a batch: lists in the batch's order."""
    rewards: list     # float
    inexact: list     # bool: neither text nor exact fractions decided, but digits did
    timed_out: list   # bool: it took longer than answer_limit, and the reward is 0


def grade(rows, texts, finished):
    """Grade a batch in a pool of processes. rows: data rows with "task" and "answer"; texts, finished: of the responses.

    Returns Graded. Raises RuntimeError if a reward function raises: that is a mistake in it, not in the answer.
    """
    return start_grading(rows, texts, finished)()


def start_grading(rows, texts, finished):
    """The same, begun in the background. Returns a function that waits for the grades and returns Graded."""
    futures = [pool().submit(grade_one, row["task"], text, row["answer"], end)
               for row, text, end in zip(rows, texts, finished, strict=True)]

    def wait():
        graded = Graded(*([entry[i] for entry in (future.result() for future in futures)] for i in range(3)))
        if any(graded.timed_out):
            print(f"warning: {sum(graded.timed_out)} of {len(futures)} answers took over {answer_limit:g} s to grade and count "
                  "as wrong")
        return graded
    return wait


@cache
def pool():
    """Threads, each of which talks to a process of its own. The ranks of a machine share its cores."""
    return ThreadPoolExecutor(max(1, min(16, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))), "grader")


Own = threading.local()


def grade_one(*request):
    """(reward, inexact, timed out) from this thread's process, which is started if it isn't there."""
    if not hasattr(Own, "process"):
        # In a session of its own, out of Ctrl-C's way. It ends when its input does.
        Own.process = subprocess.Popen([sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, start_new_session=True)
    try:
        Own.process.stdin.write(json.dumps(request).encode() + b"\n")
        Own.process.stdin.flush()
        reply = Own.process.stdout.readline()
    except BrokenPipeError:
        reply = b""
    if reply:
        reply = json.loads(reply)
        if isinstance(reply, str):
            raise RuntimeError(f"the reward of task {request[0]} raised\n{reply}")
        return (*reply, False)
    process = vars(Own).pop("process")  # killed by its timer, or for its memory; the next answer gets a new one
    process.stdin.close(), process.stdout.close()
    if process.wait() not in (-signal.SIGALRM, -signal.SIGKILL):
        raise RuntimeError(f"a grading process ended with status {process.returncode}")
    return 0.0, False, True


def serve():
    """A grading process: one request a line in, one grade a line out, until the other side is gone.

    The limit is a timer without a handler: when it runs out the kernel ends the process, whatever that is doing. So nothing
    outlives its limit, and nothing is left behind when the parent is killed.
    """
    import resource
    import traceback
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # they are for the stage, which may want this batch graded before it ends
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


# ---- final answers -----------------------------------------------------------------------------------------------

class Work:
    """Evaluation steps left to the comparison that runs, and how many comparisons of numbers were not exact so far."""
    left = inexact = 0

    @classmethod
    def spend(cls, steps):
        cls.left -= steps
        if cls.left < 0:
            raise ValueError("too much work")


def is_equivalent(prediction, answer):
    r"""True if two final answers, LaTeX or plain text without the \boxed, are the same by value.

    Symmetric. Raises nothing: what can't be read is compared as text. Not for several threads at a time.
    """
    if prediction == answer:
        return bool(answer.strip())
    if max(len(prediction), len(answer)) > max_answer_chars:
        return False
    a, b = clean(prediction), clean(answer)
    if not a or not b or a == b:
        return a == b != ""
    if DECIMAL.fullmatch(a) and DECIMAL.fullmatch(b):
        return Fraction(a) == Fraction(b)
    (a_words, a_is_text), (b_words, b_is_text) = words(a), words(b)
    a, b = MEANINGS.get(a_words, a), MEANINGS.get(b_words, b)
    if choice(a) == choice(b) is not None and any(len("".join(w or "")) == 1 for w in (a_words, b_words)):
        return True
    if (a_is_text or b_is_text) and not {a_words, b_words} & MEANINGS.keys():
        return a_words == b_words is not None
    Work.left = budget
    try:
        x, y = parse(a), parse(b)
        if (kind(x) == "list") != (kind(y) == "list"):  # beside a list, 108,135 is one too and no number
            x, y = parse(a, thousands=kind(x) == "list"), parse(b, thousands=kind(y) == "list")
        return same(x, y)
    except (ValueError, ArithmeticError, RecursionError):  # can't be read; has no value; is too large
        return plain(a) == plain(b)


# ---- text --------------------------------------------------------------------------------------------------------

UNICODE = str.maketrans({spelling: new for spellings, new in {
    "− – — ‑ －": "-", "× ✕": "\\times ", "· ⋅ ∙ •": "\\cdot ", "÷": "\\div ", "⁄": "/", "° º ˚": "^\\circ ", "√": "\\sqrt ",
    "∞": "\\infty ", "≤ ⩽": "\\le ", "≥ ⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∈": "\\in ", "∪": "\\cup ",
    "∩": "\\cap ", "∖": "\\setminus ", "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ", "ℝ": "\\mathbb{R} ", "ℤ": "\\mathbb{Z} ",
    "ℕ": "\\mathbb{N} ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ",
    "⟩": "\\rangle ", "∠": "\\angle ", "△": "\\triangle ", "′ ’": "'",
    "“ ” € £": ""}.items() for spelling in spellings.split()})
SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789-+n0123456789")
FUNCTIONS = """arcsinh arccosh arctanh arcsin arccos arctan arccot sinh cosh tanh coth sech csch sin cos tan cot sec csc log ln
lg exp sqrt""".split()


def compiled(*spellings):
    """[(pattern, replacement)] of pairs in turn. @ in a pattern: here the command ends."""
    return [(re.compile(old.replace("@", "(?![a-zA-Z])")), new) for old, new in zip(spellings[::2], spellings[1::2])]


LATEX = compiled(
    r"^\\(?:boxed|fbox)\s*\{(.*)\}$", r"\1", r"\{\}(?= *\^)", "", r"\\R@", r"\\mathbb{R}",
    r"\\(?:[dtcs]|nice)frac@", r"\\frac", r"\\[dt]binom@", r"\\binom",
    r"\\frac\s*\{(\\(?:text|mathrm)\{[^{}]*\})\}\s*\{(\\(?:text|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?)\}", r"\1/\2",     # m/s
    r"\{([^{}]*)\\over@([^{}]*)\}", r"\\frac{\1}{\2}", r"\{([^{}]*)\\choose@([^{}]*)\}", r"\\binom{\1}{\2}",
    r"(?<=\d)\s*(?:\\!\s*,\s*\\!|,\s*\\!|\\!\s*,|\\,|\\!)\s*(?=\d{3}(?!\d))", "",             # 1\!,\!234 1\,234
    r"\\\\\s*\[[\d.]+ *[a-z]+\]", r"\\\\",                                                   # rows with \\[2pt] between
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|underline|rm|bf|it)@", "",
    r"\\phantom\s*(?:\{[^{}]*\}|.)", "", r"(?<!\\)\\[,;:! \n]|\\q?quad@|\\hspace\{[^{}]*\}", " ", r"\\[()]|(?<!\\)\\[\[\]]", "",
    r"\^\s*\{?\s*\\(?:circ|degree)@\s*\}?|\\degree@", "°", r"\^\s*\{?\s*\\prime@\s*\}?", "'", r"\\%", "%",
    rf"\\(?:operatorname|mathrm|text)\s*\{{\s*({'|'.join(FUNCTIONS)})\s*\}}", r"\\\1 ",
    r"\\(?:math(?:bf|it|sf|normal)|boldsymbol|bm)\s*(?=\{[^{}]*[\d\\(])", "", r"\\[lr]?vert@|\\mid@", "|",
    r"\\lbrace@", r"\\{", r"\\rbrace@", r"\\}", r"\\(?:varnothing|emptyset)@", r"\\{\\}", r"\\in@", "∈",
    r"\\lt@", "<", r"\\gt@", ">", r"\\le(?:qslant|qq|q)?@", "≤", r"\\ge(?:qslant|qq|q)?@", "≥", r"\\neq?@", "≠",
    r"\\equiv@", "=", r"\\(?:approx|simeq)@", "≈", r"\\bigcup@", r"\\cup",
    r"\\(?:lor|vee)@", " or ", r"\\(?:land|wedge)@", " and ",
    r",? *(?:\\text\{ *)?(?:for|where) (?:all|every|any)\b.*$", "", r"^([^<>≤≥]*), *[a-z] *∈ *\\mathbb *\{?Z\}?$", r"\1")
OTHERS = compiled(
    r"(?<!\\)\$", "", r"[~ ]+", " ", r"(?<=\d)\{,\}(?=\d{3}(?!\d))", "",                      # 1{,}234
    r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", lambda found: found[0].replace(" ", ""),        # 1 234
    r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}",                             # 1 1/2
    r"<=", "≤", r">=", "≥", r"!=", "≠", r"\*\*", "^", r"\bnp\.", "", r"\b([apAP])\. ?([mM])\b\.?", r"\1\2",
    r"\b(sq|cu)\.", r"\1", r"° ?[CF]\b", "°", r"[({](\d[\dA-Z.]*)[)}](?=_)", r"\1",
    r"(?<=\d) *(?:\\text\{)? *\(?base (\d+)\)?\}?$", r"_\1", r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times ", r"\+/?-", r"\\pm ",
    r"(?<=[)\]}]) ?U ?(?=[(\[\\])", r"\\cup ")
DECIMAL = re.compile(r"-?\d{1,4000}(?:\.\d{1,4000})?")
TEXT = re.compile(r"\\(?:mbox|text(?:bf|it|rm|sf|normal)?|mathrm|operatorname)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
MEANINGS = {("no solution",): "\\{\\}", ("no solutions",): "\\{\\}", ("empty set",): "\\{\\}", ("infinity",): "\\infty",
            ("no real solution",): "\\{\\}", ("no real solutions",): "\\{\\}",
            ("all real numbers",): "\\mathbb{R}", ("all reals",): "\\mathbb{R}"}
MEANINGS |= {(word,): str(value) for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split())}


@lru_cache(256)  # the same answer comes again with every sample of its prompt
def clean(text):
    """One spelling for what LaTeX and Unicode spell in many ways, without what says nothing in an answer."""
    text = " ".join(text.split())
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", lambda found: f"^{{{found[0].translate(SMALL)}}}", text)
        text = re.sub("[₀-₉]+", lambda found: f"_{{{found[0].translate(SMALL)}}}", text)
        text = re.sub("[¼-¾⅐-⅞]", lambda found: "\\frac{%s}{%s}" % (*unicodedata.normalize("NFKC", found[0]).split("⁄"),), text)
        text = re.sub("[Α-Ωα-ω]", greek, text).translate(UNICODE)
    if not text.isalnum():
        for pattern, new in LATEX * ("\\" in text) + OTHERS:
            text = pattern.sub(new, text)
    text = text.lstrip(" ,;:").rstrip()
    return text if text.endswith("...") else text.rstrip(" .,;:\\")


def greek(found):
    *_, size, _, name = unicodedata.name(found[0]).replace("FINAL ", "").split()  # GREEK SMALL LETTER LAMDA
    return f"\\{(name.lower() if size == 'SMALL' else name.capitalize()).replace('amda', 'ambda')} "


@lru_cache(256)
def words(text):
    r"""(answer in words, surely not a formula) of a cleaned answer: (("even",), True) for \text{Even}, (None, False) for 2x.

    A comma, "and" or "or" makes several, in any order. Letters are surely words if they stood in \text or are four or more.
    """
    bare = re.sub(r"^\\\{(.*)\\\}$", r"\1", TEXT.sub(r" \1 ", text))
    if not re.fullmatch(r"(?:[a-zA-Z\s.,'()&]|(?<=[a-zA-Z])-(?=[a-zA-Z]))+", bare):
        return None, False
    items = [re.sub(r"^(?:a|an|the|option|choice|answer) ", "", " ".join(re.findall(r"[a-z']+", item)))
             for item in re.split(r"[,&]|\band\b|\bor\b", bare.lower())]
    is_text = bare != text and "\\mathrm" not in text or re.search(r"[a-zA-Z]{4}|^\(?[a-zA-Z]\)$|^[A-Z]{3}$", bare) and \
        not re.fullmatch(f"(?:{'|'.join(FUNCTIONS)})[a-z]?", bare)
    return tuple(sorted(item for item in items if item)), bool(is_text)


def choice(text):
    r"""B of B, (B), \text{B. } 12 and (B) ellipse, else None; also of (B) or (C)."""
    found = re.fullmatch(r"\(?([A-J])(?:[).:]?|[).:] ?([\w\\].*))", TEXT.sub(r"\1", text).strip())
    return found and not re.search(r"\([A-J]\)|,|\b(?:and|or|not|is)\b", found[2] or "") and found[1] or None


def plain(text):
    """What is compared of answers that can't be read: without case, spaces and text commands."""
    return re.sub(r"(?<!\d)\s|\s(?!\d)|(?<=[a-z])\.", "", TEXT.sub(r"\1", text).lower())


# ---- tokens: (kind, text) ----------------------------------------------------------------------------------------

SYMBOLS = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma tau
upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega pi infty hbar ell odot
circ star partial nabla perp parallel sum prod int lim max min""".split()
UNITS = {alias: names.split()[0] for names in """mm millimeter millimetre|cm centimeter centimetre|m meter metre
km kilometer kilometre|inch inches in|foot feet ft|yard yd|mile mi|second sec s|minute min|hour hr h|day|week|month|year yr
mg milligram|gram gm g|kilogram kg|pound lb|ounce oz|ton|liter litre l|milliliter ml|gallon gal|dollar usd|cent|euro
degree deg|percent percentage pct|radian rad|mph|am|pm|nm|ev|hz|mol|unit|j|n|w|v|a|k|c""".replace("\n", "|").split("|")
    for alias in names.split()}
SURE_UNITS = {"mm", "cm", "km", "kg", "ft", "lb", "hr", "nm", "ev", "hz", "yr", "oz"}  # other short ones may be products: 3 mg
SAYING = set("""squared cubed factorial half halves third thirds quarter quarters fourth fourths fifths sixths eighths tenths
hundredths plus minus times less more greater least most below above negative doubled divided root pi infinity not no is are
does false wrong incorrect undefined if when where for mod except""".split())  # words that change a value, unlike units
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?")
TOKEN = re.compile(rf"""(?P<text>{TEXT.pattern})
|(?P<based>(?:\d+(?:\.\d+)?|\.\d+)_\{{?\(?\d+\)?\}}?|\d[\dA-F]*_\{{?1[1-6]\}}?)                     # 12_5 1A_{{11}}
|(?P<number>(?:\d+\.?\d*|\.\d+|\.(?=\\(?:overline|bar)))(?:[eE][+-]?\d+|\\(?:overline|bar|dot)\s*\{{?\d+\}}?)?)
|(?P<begin>\\begin\{{\w+\*?\}}(?:\{{[lcr|\s]*\}})?)|(?P<end>\\end\{{\w+\*?\}})|(?P<rel>[=<>≤≥≠≈∈])
|(?P<fn>\\?(?:{"|".join(FUNCTIONS)})(?![a-z]{{2}}))|(?P<letters>[a-zA-Z]{{2,}}(?![_'a-zA-Z]))
|(?P<name>(?:\\(?:{"|".join(SYMBOLS)})(?![a-zA-Z])|[a-zA-Z]|\\(?:angle|triangle)\s*[A-Z](?:\s*[A-Z])*
   |\\(?:overline|bar|vec|hat|widehat|tilde|d?dot|overrightarrow|math(?:bf|bb|cal|it)|boldsymbol)\s*(?:\{{[^{{}}]*\}}|\w))
   (?:_(?:\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\w|\\[a-zA-Z]+)|')*)                                     # x_{{1}} y' \vec{{v}}
|(?P<other>\\[a-zA-Z]+|\\.|\S)""", re.VERBOSE)


def tokenize(text, thousands):
    """[(kind, text)] of a cleaned answer. thousands: 1,234 is a number, unless in brackets."""
    tokens, at, depth = [], 0, 0
    while at < len(text):
        if thousands and depth == 0 and (found := THOUSANDS.match(text, at)):
            tokens.append(("number", found[0].replace(",", "")))
        elif found := TOKEN.match(text, at):
            name, token = found.lastgroup, found[0]
            if name == "text":
                tokens += text_tokens(found[2], thousands, tokens and tokens[-1][0] in ("number", "name", ")", "}", "°"))
            elif name == "letters":
                tokens += letter_tokens(token, text[at - 1:at] in ("", " ", "}"), tokens and tokens[-1][0] == "word")
            elif name == "other":
                depth += (token in ("(", "[", "\\{")) - (token in (")", "]", "\\}"))
                tokens.append((token, token))
            elif name == "name":
                head, *subscript = re.sub(r"\\(?:text|mathrm)(?![a-zA-Z])|[{}\s]", "", token).split("_", 1)
                tokens.append((name, head + "".join("_" + part.replace("\\", "") for part in subscript)))
            else:
                tokens.append((name, token.lstrip("\\") if name == "fn" else token))
        at = found.end() if found else at + 1
    return tokens


def text_tokens(content, thousands, after_value):
    r"""What stands in \text{...}: words with separators, a number, or one letter, which may be a unit: 5 \text{ m}."""
    unit = content.strip()
    if (after_value or unit.islower()) and unit not in ("e", "i") and unit.lower() in UNITS:
        return [("word", unit)]
    if unit.isupper() and unit.isalpha() and 1 < len(unit) < 6 and not after_value:
        return [("name", letter) for letter in unit]
    if re.fullmatch(r"\s*[a-zA-Z]?\s*|[^a-zA-Z]*|\d.*", content):
        return tokenize(content, thousands)
    parts = re.split(r"(,|;|\band\b|\bor\b)", content)
    return [(",", part) if part in (",", ";", "and", "or") else ("word", part.strip()) for part in parts if part.strip()]


def letter_tokens(run, after_space, after_word):
    """A run of two letters or more: a separator, words, or a product of variables."""
    low = run.lower()
    unit = low if low in UNITS else low.removesuffix("s")
    if run in ("and", "or"):
        return [(",", run)]
    if run == "pi" or low in ("inf", "infinity", "oo"):
        return [("name", "\\pi" if run == "pi" else "\\infty")]
    is_unit = unit in UNITS and len(unit) > 2 or unit in SURE_UNITS or after_space and unit in ("am", "pm", "sq", "cu")
    is_word = after_space and len(run) > 3 and run.islower() and list(run) != sorted(run)  # not abcd
    return [("word", run)] if after_word or low in SCALES or is_unit or is_word else [("name", letter) for letter in run]


# ---- parser ------------------------------------------------------------------------------------------------------

@lru_cache(256)
def parse(text, thousands=True):
    """Tree of a cleaned answer. Raises ValueError, or RecursionError on hundreds of nested braces."""
    parser = Parser(tokenize(text, thousands))
    tree = parser.values()
    parser.take("")
    answers = both_signs(tree) if "\\pm" in text or "\\mp" in text else [tree]
    if kind(tree) == "rel" and tree[1] == ("≠",) and len(answers) > 1:
        return ("both", *answers)
    return answers[0] if len(answers) == 1 else ("list", *answers)


class Parser:
    """Recursive descent, a method per level: values > relation > union > ratio > sum > term > factor > base."""

    def __init__(self, tokens):
        self.tokens, self.at = [*tokens, ("", "the end")], 0
        self.bars = 0  # how many |...| or sets are open, in which the next | closes

    @property
    def next(self):
        return self.tokens[self.at][0]

    def take(self, *kinds):
        """The next token's text. Raises ValueError unless it is of one of these kinds."""
        kind, text = self.tokens[self.at]
        if kind not in kinds:
            raise ValueError(f"unexpected {text}")
        self.at += 1
        return text

    def skip(self, *kinds):
        """The next token's text if it is of one of these kinds, else None."""
        return self.take(*kinds) if self.next in kinds else None

    def values(self):
        """1, 2 and 3"""
        items, separators = [], set()
        while not items or self.next in (",", ";"):
            while separator := self.skip(",", ";"):
                separators.add(separator)
            items.append(self.relation())
        if len(items) == 1:
            return items[0]
        if all(kind(x) == "rel" and not {"=", "≈"} & {*x[1]} for x in items):
            return ("union" if "or" in separators else "both", *items)  # x > 1 and x < 2
        return ("set" if "or" in separators else "list", *items)

    def relation(self):
        """2 < x ≤ 3"""
        if self.tokens[self.at] in (("rel", "="), ("rel", "≈")):  # = 5
            self.at += 1
        sides, ops = [self.union()], []
        while op := self.skip("rel"):
            ops.append(op)
            sides.append(self.union())
        return ("rel", tuple(ops), *sides) if ops else sides[0]

    def union(self):
        node = self.ratio()
        while op := self.skip("\\cup", "\\cap", "\\setminus", "\\backslash"):
            node = ({"\\cup": "union", "\\cap": "both"}.get(op, "minus"), node, self.ratio())
        return node

    def ratio(self):
        """1:2, or one value and its unit."""
        parts = [self.sum()]
        while self.bars == 0 and self.skip(":"):
            parts.append(self.sum())
        return self.unit(parts[0] if len(parts) == 1 else ("ratio", *parts))

    def unit(self, node):
        """The words after a value; same_quantities() says which of them matter."""
        phrase, sign = [], ""
        while self.next == "word" or phrase and self.next in ("/", "\\cdot", "^"):
            if self.skip("^"):
                phrase[-1] += str(self.argument())
            elif not self.skip("\\cdot"):
                text = self.take("word", "/").lower().replace("mph", "miles per hour").replace("per ", "/")
                text += self.take("name").lower() if text == "/" and self.next == "name" else ""  # km/h
                for word in re.findall(r"/|[^\W\d]+(?:\^?\{?-?\d)?", text):
                    sign = "-" if word == "/" else sign
                    phrase += [sign + word] if word != "/" else []
        if SAYING & {*phrase}:
            raise ValueError("words that say more than a unit")
        while phrase and phrase[0] in SCALES:
            node = ("*", node, Fraction(SCALES[phrase.pop(0)]))
        if len(phrase) > 1 and phrase[0] in ("sq", "square", "cu", "cubic"):
            phrase[:2] = [phrase[1] + ("2" if phrase[0][0] == "s" else "3")]
        phrase = tuple(unit_name(word) for word in phrase if word not in ("a", "an", "of", "the", "radian", "radians"))
        return ("unit", node[1] + phrase, node[2]) if is_quantity(node) else ("unit", phrase, node) if phrase else node

    def sum(self):
        terms, sign = [], self.skip("+", "-", "\\pm", "\\mp")
        while True:
            term = self.term()
            if sign == "-" and terms and kind(term) == "set":  # R - {0}
                terms[-1] = ("minus", terms[-1], term)
            else:
                terms.append(negative(term) if sign == "-" else ("pm", 1, term) if sign == "\\pm" else
                             ("pm", -1, term) if sign == "\\mp" else term)
            if not (sign := self.skip("+", "-", "\\pm", "\\mp")):
                break
        if len({x[:2] + (len(x),) if kind(x) == "matrix" else x for x in terms}) == 1 and kind(terms[0]) == "matrix":
            return (*terms[0][:2], *(("+", *entries) for entries in zip(*map(parts, terms))))
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def term(self):
        r"""2x \cdot 3/4. From left to right: 1/2x is (1/2)x. A whole number before a proper fraction is a sum: 6\frac{1}{6}."""
        above, below = [self.factor()], []
        while True:
            if self.skip("/", "\\div"):
                below.append(self.signed())
                while isinstance(below[-1], str) and self.next == "name":  # t/RC is t/(RC)
                    below.append(self.factor())
            elif self.skip("*", "\\cdot", "\\times"):
                above.append(self.signed())
            elif self.next in FACTORS or self.next == "|" and not self.bars:
                before, text = self.tokens[self.at - 1]
                if self.next == before == "number":
                    raise ValueError("two numbers in a row")
                mixed = before == "number" and text.isdigit() and self.next == "\\frac"
                match above[-1], self.factor():
                    case (Fraction() as whole, ("/", Fraction() as a, Fraction() as b) as part) if mixed and 0 < a < b:
                        above[-1] = ("+", whole, part)
                    case (Fraction() as whole, ("unit", words, ("/", Fraction(), Fraction()) as part)) if mixed:
                        above[-1] = ("unit", words, ("+", whole, part))
                    case (_, factor):
                        above.append(factor)
            else:
                return quotient(product(above), product(below)) if below else product(above)

    def signed(self):
        return negative(self.factor()) if self.skip("-", "+") == "-" else self.factor()

    def factor(self):
        node = self.base()
        while True:
            if self.skip("^"):
                node = ("^", node, self.argument())
            elif self.skip("!"):
                if self.next == "!":
                    raise ValueError("double factorial")
                node = ("fn", "factorial", node)
            elif sign := self.skip("%", "°", "\\$"):
                node = ("unit", ({"%": "percent1", "°": "degree1", "\\$": "dollar1"}[sign],), node)
            else:
                return node

    def argument(self, digit=False):
        r"""What a command or ^ applies to: a group or the next token. digit: of a number the first digit, as in \frac12."""
        kind, text = self.tokens[self.at]
        if digit and kind == "number" and text.isdigit() and len(text) > 1:
            self.tokens[self.at:self.at + 1] = [(kind, text[0]), (kind, text[1:])]
        return self.closed("}") if self.skip("{") else self.signed_base()

    def signed_base(self):
        return negative(self.base()) if self.skip("-") else self.base()

    def closed(self, *right):
        """The values up to a closing bracket."""
        bars, self.bars = self.bars, 0
        node = self.values()
        self.bars = bars
        self.take(*right)
        return node

    def base(self):
        token, text = self.tokens[self.at]
        self.at += 1
        match token:
            case "number":
                return number(text)
            case "based":
                return based(text)
            case "name":
                return self.applied(text)
            case "word":
                return ("word", text.lower())
            case "(" | "[" | "\\langle":
                node = self.closed(")", "]", "\\rangle")
                left, right = "[" if token == "[" else "(", "]" if self.tokens[self.at - 1][0] == "]" else ")"
                if kind(node) == "list":
                    return ("tuple", left, right, *node[1:])
                if left + right in ("()", "[]"):
                    return node
            case "{":
                return self.closed("}")
            case "\\{":
                return self.braces()
            case "|":
                self.bars += 1
                node = self.sum()
                self.bars -= 1
                self.take("|")
                return ("fn", "abs", node)
            case "\\lfloor" | "\\lceil":
                node = self.sum()
                self.take("\\r" + token[2:])
                return ("fn", token[2:], node)
            case "\\frac":
                return quotient(self.argument(digit=True), self.argument(digit=True))
            case "\\binom":
                return ("fn", "binom", self.argument(digit=True), self.argument(digit=True))
            case "fn":
                return self.function(text)
            case "\\$":
                sign = self.skip("-")
                node = ("unit", ("dollar1",), self.term())
                return negative(node) if sign else node
            case "begin":
                return self.matrix(text)
        raise ValueError(f"unexpected {text}")

    def applied(self, name):
        """A variable, or a function's value. f(x+1) and P(2) are that, n(n+1) and mg(h+1) are products."""
        if self.next == "(" and name not in CONSTANTS:
            start, alone = self.at, self.at < 2 or self.tokens[self.at - 2][0] != "name"
            x = self.base()
            if name[0] in "fg" and alone or isinstance(x, (str, Fraction)):
                return ("app", name, x)
            self.at = start
        return name

    def braces(self):
        """{1, 2} or {x : x > 1}."""
        if self.skip("\\}"):
            return ("set",)
        self.bars += 1
        node = self.values()
        if self.skip("|", ":"):
            if not (isinstance(node, str) or kind(node) == "rel" and node[1] == ("∈",) and node[3] == REALS):
                raise ValueError("a set of terms")
            node = self.values()
        else:
            node = ("set", *both_signs(node))
        self.bars -= 1
        self.take("\\}")
        return node

    def function(self, name):
        r"""\sin^2 2x, \log_2 8, \sqrt[3]{x}. Without brackets the argument goes as far as letters do: \sin 2 \pi x \cos x."""
        if name == "sqrt":
            n = self.closed("]") if self.skip("[") else Fraction(2)
            return ("fn", "root", self.argument(), n)
        power = base = None
        while op := self.skip("^", "_"):
            if op == "^":
                power = self.argument()
            else:
                base = self.argument()
        minus, bracket = self.skip("-"), self.next in ("(", "[", "{", "|")
        args = [self.base() if bracket else self.factor()]
        while not bracket and self.next == "name":
            args.append(self.factor())
        x = negative(product(args)) if minus else product(args)
        if name == "exp":
            return ("^", "e", x)
        if power == -1:
            name, power = "arc" + name, None
        node = ("fn", "log10" if name == "lg" else name if base is None else "ln", x)
        node = node if base is None else ("/", node, ("fn", "ln", base))
        return node if power is None else ("^", node, power)

    def matrix(self, begin):
        if not re.match(r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)", begin):
            raise ValueError(f"unexpected {begin}")
        rows = [[]]
        while not self.skip("end"):
            rows[-1].append(self.relation())
            if self.skip("\\\\"):
                rows += [[]] if self.next != "end" else []
            elif self.next != "end":
                self.take("&")
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        return ("matrix", len(rows[0]), *(x for row in rows for x in row))


FACTORS = {"number", "based", "name", "fn", "begin", "(", "[", "{", "\\{", "\\$", "\\frac", "\\binom", "\\lfloor", "\\lceil",
           "\\langle"}


def unit_name(word):
    """cm1 for centimeters, s-2 for s^{-2} and, after a slash, for -s^2; other words without their plural s."""
    found = re.fullmatch(r"(-?)([^\W\d]+)\W*?(-?[123]|)", word)
    if not found:
        raise ValueError(f"{word} as a unit")
    sign, word, power = found.groups()
    single = word.removesuffix("s")
    return (UNITS.get(word) or UNITS.get(single) or single or word) + str(int(power or 1) * (-1 if sign else 1))


def number(text):
    r"""Exact value of 12, .5, 4.5e-3 or 0.1\overline{6}."""
    if text.isdigit():
        return Fraction(int(text))
    text, *period = re.split(r"\\\w+\s*", text)
    mantissa, *exponent = re.split("[eE]", text)
    if exponent and abs(int(exponent[0])) > 5000:
        raise ValueError("too large")
    value = Fraction(mantissa.rstrip(".") or 0) * Fraction(10) ** int(exponent[0] if exponent else 0)
    if not period:
        return value
    digits = period[0].strip("{}")
    return value + Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** len(mantissa.partition(".")[2]))


def based(text):
    """12_5. Equal only to the same digits in the same base: asked for 7 in base 5, 7 is no answer. Base 10 is the usual."""
    digits, base = re.fullmatch(r"(.*)_\D*(\d+)\D*", text).groups()
    if not 2 <= int(base) <= 36 or any(int(digit, 36) >= int(base) for digit in digits if digit != "."):
        raise ValueError(f"{digits} in base {base}")
    return Fraction(digits) if base == "10" else ("base", digits.lstrip("0") or "0", int(base))


# ---- trees -------------------------------------------------------------------------------------------------------

SCALARS = {"+", "neg", "*", "/", "^", "fn", "app", "unit", "pm"}
HEAD = {"tuple": 3, "base": 3, "word": 2, "fn": 2, "app": 2, "unit": 2, "pm": 2, "rel": 2, "matrix": 2}  # entries, not trees
REALS, INFINITY = "\\mathbbR", "\\infty"


def kind(x):
    """"scalar" for whatever has a value, else the tree's first entry."""
    if x == REALS:
        return "union"
    return "scalar" if not isinstance(x, tuple) or x[0] in SCALARS else x[0]


def is_quantity(x):
    return isinstance(x, tuple) and x[0] == "unit"


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


def negative(x):
    match x:
        case Fraction():
            return -x
        case ("base", digits, base):
            return ("base", digits[1:] if digits[0] == "-" else "-" + digits, base)
        case ("unit" | "matrix", *_) | ("tuple", "(", ")", *_):
            return rebuilt(x, negative)
    return ("neg", x)


def product(factors):
    """Product of trees; a matrix or vector takes the others into its entries."""
    matrices = [x for x in factors if kind(x) == "matrix" or kind(x) == "tuple" and x[1:3] == ("(", ")")]
    if len(factors) > 1 and any(kind(x) == "word" for x in factors):
        raise ValueError("words in a formula")
    if len(matrices) == 1 and len(factors) > 1:
        others = [x for x in factors if x is not matrices[0]]
        return rebuilt(matrices[0], lambda x: product([*others, x]))
    return factors[0] if len(factors) == 1 else ("*", *factors)


def quotient(a, b):
    return rebuilt(a, lambda x: quotient(x, b)) if kind(a) == "matrix" else ("/", a, b)


def both_signs(tree):
    """The values of a list or of one value, where one with plus-minus is two: 1 ± i, 2 -> [1 + i, 1 - i, 2]."""
    def choose(x, sign):
        x = rebuilt(x, lambda part: choose(part, sign))
        return x if not isinstance(x, tuple) or x[0] != "pm" else x[2] if x[1] == sign else negative(x[2])

    def spread(x):
        signs = {y[1] for y in nodes(x) if isinstance(y, tuple) and y[0] == "pm"}
        if kind(x) == "tuple" and signs == {1}:  # (±3, ±2) is four points
            Work.spend(2 ** sum(isinstance(y, tuple) and y[0] == "pm" for y in nodes(x)))
            return [(*x[:3], *entries) for entries in product_of(*map(spread, parts(x)))]
        return [choose(x, 1), choose(x, -1)] if signs else [x]
    return [y for x in (parts(tree) if kind(tree) == "list" else [tree]) for y in spread(x)]


# ---- comparison by kind ------------------------------------------------------------------------------------------

def same(a, b):
    """True if two trees mean the same. Raises ValueError or ArithmeticError where a part has no value."""
    if a == b:
        return True
    kinds = {kind(a), kind(b)}
    if kinds & {"union", "minus", "both"}:
        return same_sets(a, b)
    if kinds == {"rel"}:
        return same_relations(a, b)
    if "rel" in kinds:
        a, b = (a, b) if kind(a) == "rel" else (b, a)
        return gives(a, b) if kind(b) != "list" or kind(a[-1]) in ("list", "set", "tuple") else False
    if kinds == {"tuple"}:
        return (a[1:3] == b[1:3] or len(a) > 5) and same_in_order(parts(a), parts(b))
    if kinds == {"tuple", "list"}:  # a tuple without its brackets
        return ("(", ")") in (a[1:3], b[1:3]) and labels(a) == sorted(labels(a)) and labels(b) == sorted(labels(b)) and \
            same_in_order(parts(a), parts(b))
    if kinds == {"list"} and bool(labels(a)) != bool(labels(b)):  # x = 2, y = 1 are 2, 1 but not 1, 2
        return labels(a) == sorted(labels(a)) and labels(b) == sorted(labels(b)) and same_in_order(parts(a), parts(b))
    if kinds & {"list", "set"}:
        return "tuple" not in kinds and same_in_any_order(members(a), members(b))
    if is_quantity(a) or is_quantity(b):
        return same_quantities(a, b)
    if kinds == {"matrix"}:
        return a[1] == b[1] and same_in_order(parts(a), parts(b))
    if kinds == {"tuple", "matrix"}:  # a vector as a row or column
        matrix = a if kind(a) == "matrix" else b
        return 1 in (matrix[1], len(parts(matrix)) // matrix[1]) and same_in_order(parts(a), parts(b))
    if kinds <= {"ratio", "scalar"} and "ratio" in kinds:
        if kinds == {"ratio"} and same_in_order(parts(a), parts(b)):
            return True
        clock = all(kind(x) == "ratio" and isinstance(x[2], Fraction) and x[2] >= 10 for x in (a, b))  # 2:30 is not 1:15
        a, b = (("/", *parts(x)) if kind(x) == "ratio" and len(parts(x)) == 2 else x for x in (a, b))
        return not clock and kind(a) == kind(b) == "scalar" and same_numbers(a, b)
    return kinds == {"scalar"} and same_numbers(a, b)


def same_in_order(xs, ys):
    return len(xs) == len(ys) and all(map(same, xs, ys))


def same_in_any_order(xs, ys):
    ys = list(ys)
    if len(xs) != len(ys):
        return False
    for x in xs:
        match = next((i for i, y in enumerate(ys) if same_or_unlike(x, y)), None)
        if match is None:
            return False
        del ys[match]
    return True


def same_or_unlike(x, y):
    """same(), where what can't be compared is different: 0 and x > 3."""
    try:
        return same(x, y)
    except (ValueError, ArithmeticError):
        return False


def labels(x):
    """The names in a list's equations, if there are several: ["x", "y"] of x = 1, y = 2."""
    names = [str(y[2]) for y in parts(x) if kind(y) == "rel" and y[1] == ("=",)]
    return names if len({*names}) > 1 else []


def members(x):
    """The values of a list; of a set, each once; or the one value."""
    if kind(x) != "set":
        return parts(x) if kind(x) == "list" else (x,)
    once = []
    for y in parts(x):
        if not any(same(y, z) for z in once):
            once.append(y)
    return once


def same_relations(a, b):
    """Equations and inequalities: with the same sides, one a multiple of the other, or for the same set of reals."""
    (_, ops, *xs), (_, qs, *ys) = forwards(a), forwards(b)
    if ops == qs and same_in_order(xs, ys):
        return True
    if set(ops + qs) == {"="}:
        if xs[0] == ys[0] and (len(xs) > 2 or len(ys) > 2):  # x = 1/2 = 0.5
            return same(xs[-1], ys[-1])
        functions = [x for x in (xs[0], ys[0]) if isinstance(x, tuple) and x[0] == "app"]
        if len(functions) == 2 and functions[0][1] == functions[1][1]:  # f(x) = 2x, f(t) = 2t
            return same(renamed(xs[1], xs[0][2], "#"), renamed(ys[1], ys[0][2], "#"))
        if functions and "y" in (xs[0], ys[0]) and isinstance(functions[0][2], str):          # f(x) = 2x, y = 2x
            return same(xs[1], ys[1])
    if ops == qs and ops[0] in "=≠<≤" and len(xs) == len(ys) == 2 and {*map(kind, xs), *map(kind, ys)} == {"scalar"}:
        if proportional(("+", xs[0], negative(xs[1])), ("+", ys[0], negative(ys[1])), positive=ops[0] in "<≤"):
            return True
    return subject(a) == subject(b) is not None and "=" not in ops + qs and same(solved(a), solved(b))


def gives(relation, x):
    """Is x what a relation states: 5 of x = 10/2 = 5, 2/3 or 0.67 of 2/3 ≈ 0.67, (3, ∞) of x > 3?"""
    _, ops, *sides = relation
    if not set(ops) <= {"=", "≈"}:
        return same(solved(relation), x)
    if not is_name(sides[0]) and is_name(sides[-1]):  # 5 = x
        sides.reverse()
    exact, last = sides[ops.index("≈")] if "≈" in ops else sides[-1], sides[-1]
    if not is_name(sides[0]) and any(kind(side) != "scalar" or variables(side) for side in sides):
        return False  # 2x + z = 1
    return same(exact, x) or (exact == sides[0] and is_name(exact) or near(exact, last)) and same(last, x)


def near(a, b):
    """May b stand for a after ≈?"""
    x, y = (inexact(evaluate(side, Point(0))) for side in (a, b))
    return abs(x - y) <= abs(x) / 20


def is_name(x):
    """The left side of x = 5, f(x) = 2x, AB = 9, (x, y) = (1, 2), m + n = 113, dy/dx = 3: letters without a number."""
    if isinstance(x, str):
        return x not in CONSTANTS and x != REALS
    match x:
        case ("app" | "word", *_) | ("^", "f" | "g", -1):
            return True
        case ("*" | "/" | "+" | "neg" | "tuple" | "ratio" | "matrix" | "fn", *_):
            return x[:2] != ("fn", "root") and all(map(is_name, parts(x)))
    return False


def renamed(x, old, new):
    return new if x == old else rebuilt(x, lambda part: renamed(part, old, new))


def forwards(relation):
    """The same relation with < for >."""
    name, ops, *sides = relation
    if not set(ops) <= {">", "≥"}:
        return relation
    return (name, tuple("<" if op == ">" else "≤" for op in reversed(ops)), *reversed(sides))


def subject(relation):
    """What an inequality is about: x in 2 < x < 3; None if that isn't clear."""
    names = [side[2] if side[:2] == ("fn", "abs") else side for side in relation[2:] if is_name(side)]
    return names[0] if len(names) == 1 else None


# ---- sets of reals -----------------------------------------------------------------------------------------------

def same_sets(a, b):
    """Is every endpoint, and every gap between endpoints, in both sets of reals or in neither? Raises ValueError on others."""
    MP.dps, digits = PRECISIONS[-1]
    values = {x: inexact(evaluate(x, Point(1))).real for x in endpoints(a) + endpoints(b)}
    rank, place, last = {x: -1 if value < 0 else MP.inf for x, value in values.items() if MP.isinf(value)}, -1, None
    for x in sorted(values.keys() - rank.keys(), key=values.get):  # 1, 3, 5 ... for the endpoints; the gaps are 0, 2, 4 ...
        place += 2 * (last is None or not close(values[x], last, digits))
        rank[x], last = place, values[x]
    return all(contains(a, t, rank) == contains(b, t, rank) for t in range(place + 2))


def endpoints(x):
    match x:
        case ("tuple", _, _, low, high):
            return [low, high]
        case ("set", *points):
            return points
        case ("union" | "minus" | "both", *_):
            return [end for part in parts(x) for end in endpoints(part)]
    return [] if x == REALS else endpoints(solved(x))


def contains(x, t, rank):
    """Is place t in a set? rank: the places of endpoints."""
    Work.spend(1)
    match x:
        case ("tuple", left, right, low, high):
            if rank[low] > rank[high]:
                raise ValueError("an interval from a larger to a smaller number")
            return rank[low] < t < rank[high] or t == rank[low] and left == "[" or t == rank[high] and right == "]"
        case ("set", *points):
            return any(t == rank[point] for point in points)
        case ("union", *pieces):
            return any(contains(piece, t, rank) for piece in pieces)
        case ("both", *pieces):
            return all(contains(piece, t, rank) for piece in pieces)
        case ("minus", whole, removed):
            return contains(whole, t, rank) and not contains(removed, t, rank)
    return x == REALS or contains(solved(x), t, rank)


def solved(x):
    """The set of reals for which a relation with a name on one side holds, or one of several. Raises ValueError on others."""
    match forwards(x) if kind(x) == "rel" else x:
        case ("list", *pieces) if all(kind(piece) == "rel" for piece in pieces):  # x < 1, x = 2
            return ("union", *pieces)
        case ("rel", ("∈",), name, whole) if is_name(name):
            return whole
        case ("rel", ("≠",), name, p) if is_name(name):
            return ("minus", REALS, ("set", p))
        case ("rel", ("=",), name, p) if is_name(name):
            return ("set", p)
        case ("rel", ("<" | "≤" as op,), ("fn", "abs", name), high) if is_name(name):
            return ("tuple", LEFT[op], RIGHT[op], negative(high), high)
        case ("rel", ("<" | "≤" as op,), low, ("fn", "abs", name)) if is_name(name):
            return ("union", ("tuple", "(", RIGHT[op], negative(INFINITY), negative(low)),
                    ("tuple", LEFT[op], ")", low, INFINITY))
        case ("rel", ("<" | "≤" as op,), name, high) if is_name(name):
            return ("tuple", "(", RIGHT[op], negative(INFINITY), high)
        case ("rel", ("<" | "≤" as op,), low, name) if is_name(name):
            return ("tuple", LEFT[op], ")", low, INFINITY)
        case ("rel", ("<" | "≤" as op, "<" | "≤" as op2), low, name, high) if is_name(name):
            return ("tuple", LEFT[op], RIGHT[op2], low, high)
    raise ValueError("not a set of reals")


LEFT, RIGHT = {"<": "(", "≤": "["}, {"<": ")", "≤": "]"}


# ---- comparison by value -----------------------------------------------------------------------------------------

MP = mpmath.mp.clone()               # a context of our own: nobody else's precision is touched
PRECISIONS = ((40, 20), (500, 450))  # (digits computed with, digits that must agree)
MAX_BITS = 100_000                   # of exact integers; larger ones are rounded
CONSTANTS = {"e": lambda: +MP.e, "i": lambda: MP.j, "\\pi": lambda: +MP.pi, INFINITY: lambda: MP.inf}


class Point(NamedTuple):
    """Where formulas are evaluated: it gives every variable a value."""
    index: int            # of a number of random points
    negative: str = ""    # the variable that is negative there, if there is one
    whole: bool = False   # variables are positive integers: formulas with n! or floors hold for these
    log10: bool = False   # log without a base is log10, not ln


def real_points(free):
    """Positive ones, and one with each in turn of two variables negative: sqrt(ab) is sqrt(a) sqrt(b) unless both are. Names
    with a subscript are taken to be positive: r_0."""
    names = sorted(name for name in map(str, free) if "_" not in name)
    negative = [Point(i, name) for name in {*names[:1], *names[-1:]} for i in (2, 4)]
    return [Point(0), Point(1), Point(3), *negative] if free else [Point(0)]


def same_quantities(a, b):
    """Values of which at least one has a unit. One may leave it off; two must have the same, or where not all their words are
    units, one the words of the other: 3 right triangles, 3 triangles. 50% is 50 and 0.5, and 90 degrees are 90 and pi/2."""
    (one, x), (other, y) = ((n[1], n[2]) if is_quantity(n) else ((), n) for n in (a, b))
    if one and other:
        known = {*UNITS.values()}.issuperset(word.rstrip("-123") for word in one + other)
        return ({*one} == {*other} if known else {*one} <= {*other} or {*other} <= {*one}) and same(x, y)
    return same(x, y) or (one + other)[0] in ("degree1", "percent1") and kind(x) == kind(y) == "scalar" and same_numbers(a, b)


def same_numbers(a, b):
    """Do two scalars agree, at all points if there are variables? `log` may mean ln or log10 as long as it fits."""
    if a == b:
        return True
    free = variables(a) | variables(b)
    used = {x[:2] if x[0] == "fn" else x[0] for tree in (a, b) for x in nodes(tree) if isinstance(x, tuple)}
    discrete = bool(free) and bool(used & {("fn", name) for name in ("factorial", "binom", "floor", "ceil")})
    real = not discrete or any(x[0] in "xyztuvw" for x in free)
    points = real_points(free) * real + [Point(i, whole=True) for i in range(12)] * discrete
    tiny = used <= {"*", "/", "^", "neg", "unit", *(("fn", name) for name in ("root", "factorial", "binom", "abs"))}
    return any(all(same_at(a, b, point._replace(log10=log10), tiny) for point in points)
               for log10 in ((False, True) if ("fn", "log") in used else (False,)))


def same_at(a, b, point, tiny):
    """tiny: small numbers are meant to be small, as there is no sum whose digits can have cancelled."""
    for MP.dps, digits in PRECISIONS:
        try:
            x, y = evaluate(a, point), evaluate(b, point)
        except ArithmeticError:
            if point.negative:
                return True
            raise
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        Work.inexact += 1
        if point.negative and not is_real(x) and not is_real(y):
            return True  # ln(x) and sqrt(x) are for positive x
        if not close(x, y, digits, tiny):
            return False
    return True


def is_real(x):
    return isinstance(x, Fraction) or abs(x.imag) <= abs(x.real) * MP.mpf(10) ** -20


def close(x, y, digits, tiny=False):
    x, y = inexact(x), inexact(y)
    if MP.isinf(x) or MP.isinf(y):
        return x == y
    return bool(abs(x - y) <= MP.mpf(10) ** -digits * max(0 if tiny else 1, abs(x), abs(y)))  # not where one is no number


def proportional(f, g, positive):
    """Is f = c g with a constant c, which is > 0 if positive?"""
    if not variables(f) or not variables(g):
        return False
    MP.dps, digits = PRECISIONS[-1]
    (f0, g0), *values = [(evaluate(f, p), evaluate(g, p)) for p in real_points(variables(f) | variables(g))]
    if f0 == 0 or g0 == 0 or positive and (inexact(f0) / inexact(g0)).real < 0:
        return False
    return all(times(x, g0) == times(y, f0) or close(times(x, g0), times(y, f0), digits) for x, y in values)


def evaluate(x, point):
    """Value of a scalar: a Fraction while it is exact, else an mpmath number, real or complex, at the precision that is set."""
    Work.spend(1)
    if isinstance(x, Fraction):
        return x
    if isinstance(x, str):
        return CONSTANTS[x]() if x in CONSTANTS else variable(x, point)
    values = [evaluate(part, point) for part in parts(x)] if kind(x) == "scalar" else []
    match x:
        case ("+", *_):
            return reduce(plus, values)
        case ("*", *_):
            return reduce(times, values)
        case ("neg", _):
            return -values[0]
        case ("/", _, _):
            return times(values[0], power(values[1], Fraction(-1)))
        case ("^", _, _):
            return power(*values)
        case ("fn", name, *_):
            return function(name, values, point)
        case ("app", name, _):
            return variable(f"{name}({MP.nstr(inexact(values[0]), 15)})", point)
        case ("unit", words, _):
            return times(values[0], {("percent1",): Fraction(1, 100), ("degree1",): MP.pi / 180}.get(words, Fraction(1)))
    raise ValueError(f"{x[0]} has no value")


@lru_cache(4096)
def variable(name, point):
    """A random value that depends on name and point only: in (0.1, 0.9), (1.1, 2.9) or (40, 400), or whole."""
    rng = random.Random(f"{name} {point.index}")
    if point.whole:
        return Fraction(rng.randint(1, (8, 40, 300)[point.index % 3]))
    low, high = ((1, 9), (11, 29), (11, 29), (400, 4000), (400, 4000))[point.index]
    value = Fraction(rng.randint(low << 30, high << 30), 10 << 30)
    return -value if name == point.negative else value


def inexact(x):
    return MP.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def fit(x):
    """Exact as long as that is cheap."""
    bits = max(x.numerator.bit_length(), x.denominator.bit_length())
    Work.spend(bits >> 8)
    return x if bits <= MAX_BITS else inexact(x)


def plus(a, b):
    return fit(a + b) if isinstance(a, Fraction) and isinstance(b, Fraction) else inexact(a) + inexact(b)


def times(a, b):
    return fit(a * b) if isinstance(a, Fraction) and isinstance(b, Fraction) else inexact(a) * inexact(b)


def limited(x, bits):
    """x, unless it is larger than 2 ** bits. mpmath computes with numbers of any size, for years if it must."""
    if x != 0 and not MP.isinf(x) and MP.mag(x) > bits:
        raise OverflowError("too large")
    return x


def power(a, b):
    if a == 0 and inexact(b).real < 0:
        raise ZeroDivisionError
    if isinstance(a, Fraction) and isinstance(b, Fraction) and b.denominator == 1:
        if abs(a) == 1:
            return a ** int(b % 2)
        if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) <= MAX_BITS:
            return fit(a ** int(b))
    Work.spend(30)
    x, y = inexact(a), inexact(b)
    if isinstance(b, Fraction) and b.denominator % 2 and not x.imag and x.real < 0:  # (-8)^(1/3) is the real root
        return power(-x.real, b) * (-1) ** (b.numerator % 2)
    if x != 0 and not MP.isinf(x) and not MP.isinf(y):
        limited(limited(y, 60) * MP.mag(x), 24)
    return MP.power(x, y)


def function(name, args, point):
    x, y = (*args, None)[:2]
    whole = all(isinstance(a, Fraction) and a.denominator == 1 and abs(a) <= 5000 for a in args)
    Work.spend(300 if name in ("factorial", "binom") and not whole else 30)
    if name == "abs":
        return abs(x)
    if name == "factorial":
        if whole and x < 0:
            return MP.inf  # so that n! / (n - 5)! is 0 for n = 3
        return fit(Fraction(integers.factorial(int(x)))) if whole else MP.gamma(limited(inexact(x), 24) + 1)
    if name == "binom":
        if whole and x >= 0 and y >= 0:
            return fit(Fraction(integers.comb(int(x), int(y))))
        return MP.binomial(limited(inexact(x), 24), limited(inexact(y), 24))
    if name in ("floor", "ceil"):
        return Fraction(getattr(integers, name)(x)) if isinstance(x, Fraction) else getattr(MP, name)(limited(x, 1000))
    if name == "root":
        if isinstance(x, Fraction) and y == 2 and x >= 0:
            root = Fraction(integers.isqrt(x.numerator), integers.isqrt(x.denominator))
            if root * root == x:
                return root
        return MP.sqrt(inexact(x)) if y == 2 else power(x, power(y, Fraction(-1)))
    x = inexact(x)
    if name in ("ln", "log", "log10"):
        if x == 0:
            raise ZeroDivisionError
        return MP.ln(x) / MP.ln(10) if name == "log10" or name == "log" and point.log10 else MP.ln(x)
    if name == "arccot":
        return MP.pi / 2 - MP.atan(x)
    return getattr(MP, name.replace("arc", "a"))(limited(x, 24 if name.endswith("h") else 200))


if __name__ == "__main__":
    serve()
