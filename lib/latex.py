r"""Final answers in LaTeX or plain text, read into trees. No text is ever run as code.

`clean` replaces spellings by others (SPELLINGS), `scan` makes tokens, Parser makes the tree.

A tree has a kind, a head (whatever is no tree) and parts (trees). Its kinds are

  scalars         number 12   name "x"   + a b   * a b   / a b   ^ a b   fn "sin" a   app "f" a
                  unit ("m", "/", "s") a for 5 m/s   pm 1 a for \pm a, pm -1 a for \mp a
  sets of reals   union a b   both a b   minus a b
  sequences       list a b   set a b   tuple "(]" a b   tuple "units" a b for 5 ft 6 in
                  matrix columns a b ...   ratio a b   rel ("<",) a b for a < b and for b > a
  others          mod "" n a   base 5 digits   time (9, 30, "am")   word "not even"
"""
import itertools
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple


# ---- trees ---------------------------------------------------------------------------------------

class Tree(NamedTuple):
    kind: str
    head: object
    parts: tuple = ()


def tree(kind, *parts, head=""):
    return Tree(kind, head, parts)


SCALARS = {"number", "name", "+", "*", "/", "^", "fn", "app", "unit", "pm"}
CONSTANTS = {"e", "i", "π", "∞"}  # other names are variables
REALS, INFINITY = tree("name", head="\\mathbbR"), tree("name", head="∞")
MINUS_ONE, TWO = tree("number", head=Fraction(-1)), tree("number", head=Fraction(2))
PERCENT, DEGREE = ("%",), ("°",)


def rebuilt(x, change):
    """The tree with each of its parts changed."""
    return x._replace(parts=tuple(map(change, x.parts)))


def nodes(x):
    """The tree and all trees in it."""
    yield x
    for part in x.parts:
        yield from nodes(part)


def variables(x):
    """The trees in a tree that have a value only once a Point gives them one: x, f(2)."""
    return {y for y in nodes(x) if y.kind == "app" or y.kind == "name" and y.head not in CONSTANTS}


def is_vector(x):
    return x.head == "()"


def negative(x):
    if x.kind == "number":
        return x._replace(head=-x.head)
    if x.kind in ("unit", "matrix", "base") or is_vector(x):
        return rebuilt(x, negative)
    return tree("*", MINUS_ONE, x)


def product(factors):
    """Product of trees; a matrix or vector takes the others into its entries."""
    if len(factors) == 1:
        return factors[0]
    if any(x.kind == "word" for x in factors):  # not x
        raise ValueError("words in a formula")
    matrices = [x for x in factors if x.kind == "matrix" or is_vector(x)]
    if len(matrices) == 1:
        others = [x for x in factors if x is not matrices[0]]
        return rebuilt(matrices[0], lambda entry: product([*others, entry]))
    return tree("*", *factors)


def quotient(a, b):
    """Quotient of trees. dy/dx is a name, not y/x."""
    if first_name(a) == first_name(b) in ("d", "\\partial", "Δ") and b.kind != "name":
        return tree("name", head=f"d/d {(a, b)}")
    return tree("/", a, b)


def first_name(x):
    r"""The name with which a product begins: d of dx, \sum of \sum^n k; "" if there is none."""
    while x.kind in ("*", "^"):
        x = x.parts[0]
    return x.head if x.kind == "name" else ""


def both_signs(x):
    """The values of a list or of one value, where a value with plus-minus is two values.

    1 ± i, 2 -> [1 + i, 1 - i, 2]
    """
    def choose(x, sign):
        x = rebuilt(x, lambda part: choose(part, sign))
        if x.kind != "pm":
            return x
        return x.parts[0] if x.head == sign else negative(x.parts[0])

    signs = [y.head for y in nodes(x) if y.kind == "pm"]
    if x.kind == "list":
        return [y for part in x.parts for y in both_signs(part)]
    if x.kind == "tuple" and {*signs} == {1}:  # (±3, ±2) is four points
        if len(signs) > 8:
            raise ValueError("too many points")
        return [x._replace(parts=y) for y in itertools.product(*map(both_signs, x.parts))]
    return [choose(x, 1), choose(x, -1)] if signs else [x]


# ---- words ---------------------------------------------------------------------------------------

TRIGONOMETRIC = "sinh|cosh|tanh|coth|sech|csch|sin|cos|tan|cot|sec|csc"
FUNCTIONS = ["arcsinh", "arccosh", "arctanh", "arcsin", "arccos", "arctan", "arccot",
             *TRIGONOMETRIC.split("|"), "log", "ln", "exp", "sqrt"]
GREEK = dict(zip("""alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron
pi rho sigma tau upsilon phi chi psi omega""".split(), "αβγδεζηθικλμνξοπρστυφχψω", strict=True))
GREEK |= {f"var{name}": letter for name, letter in GREEK.items()}
GREEK |= {name.capitalize(): letter.upper() for name, letter in GREEK.items()}
NAMES = """infty R hbar ell odot star partial nabla perp parallel sum prod int lim max min Pr top
det gcd deg dim""".split()
OPERATORS = ("\\int", "\\sum", "\\prod", "\\lim", "\\nabla")  # what follows is no factor
ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {word: n for n, word in enumerate(ONES)} | {
    ten + one: 20 + 10 * i + n for i, ten in enumerate(TENS)
    for n, one in [(0, ""), *((n, sign + ONES[n]) for n in range(1, 10) for sign in "- ")]}
PARTS = "half third quarter fifth sixth seventh eighth ninth tenth".split()
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
          "trillion": 10**12, "百": 100, "千": 10**3, "万": 10**4, "亿": 10**8, "兆": 10**12}
MEANINGS = {phrase: meaning for phrases, meaning in (
    ("no solution, no solutions, no real solution, no real solutions, empty set, none, 无解",
     tree("set")),
    ("all real numbers, all reals", REALS), ("infinity, infinite", INFINITY),
    ("dne, doesn't exist", tree("word", head="does not exist")))
    for phrase in phrases.split(", ")}
# Words of which a list has an order: answers to several questions.
VERDICTS = set("""yes no true false increasing decreasing positive negative even odd left right up
down""".split())
UNITS = {spelling: names.split()[0] for names in """mm millimeter millimetre
cm centimeter centimetre|m meter metre|km kilometer kilometre|inch inches in|foot feet ft|yard yd
mile mi|second sec s|minute min|hour hr h|day|week|month|year yr|mg milligram|gram gm g
kilogram kg|pound lb|ounce oz|ton|celsius|fahrenheit f|liter litre l|milliliter ml|gallon gal
dollar usd|cent|euro eur|rupee rs inr|yuan cny rmb|gbp|° degree deg|% percent percentage pct
radian rad|am|pm|mph|nm|ev|hz|mol|unit|j|n|w|v|a|k|c""".replace("\n", "|").split("|")
    for spelling in names.split()}
CURRENCIES = {"$": "dollar", "¢": "cent", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee",
              "₽": "ruble", "usd": "dollar", "eur": "euro", "gbp": "pound", "rs": "rupee",
              "inr": "rupee", "cny": "yuan", "rmb": "yuan"}
# Letters that are words also outside \text. Others may be products: 3 mg.
PLAIN_WORDS = {*SCALES, *CURRENCIES, *(unit for unit in UNITS if len(unit) > 2),
               *"mm cm km kg ft lb hr nm ev hz yr oz".split()}
# What may be counted without a plural s.
MEASURES = set("""people children men women feet fish sheep mice geese teeth 元 円 원 角 美元 个 人
只 本 张 岁 年 月 天 日 米 厘米 分米 毫米 千米 公里 平方米 平方厘米 立方米 小时 时 分钟 分 秒 度 棵
支 块 名 位 条 辆 件 头 朵 页 克 千克 公斤 吨 升 毫升 руб рублей м см км кг ч мин""".split())
# Words after a value that change it, as a unit doesn't.
NOT_UNITS = re.compile(r"""(?:squared|cubed|factorial|half|halves|quarters?|plus|minus|times|less
    |more|fewer|greater|least|most|below|above|negative|positive|doubled?|tripled?|divided|root
    |pi|infinity|dozens|tens|hundreds|thousands|couples?|trios?|myriads?|groups?|sets?|bn|mn|grand
    |fold|lakhs?|crores?|out|by|to|over|r\d*|remainder|be|can|cannot|may|must|not|no|is|are|does
    |false|wrong|incorrect|undefined|if|when|where|for|mod|except|or
    |(?:third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand
    |\w+illion)th)s?|\w+ill(?:i?on(?:s|es|en)?)|\w+fold|score|gross|pairs?|半)""", re.VERBOSE)


# ---- spellings -----------------------------------------------------------------------------------

def either(words):
    """A regular expression for any of these words, the longest first."""
    return "|".join(sorted(words, key=len, reverse=True))


def spelled(found):
    """Digits for a number in words: 105 for one hundred and five, \\frac{2}{3} for two-thirds."""
    hundreds, n, part = (word and word.lower() for word in found.groups())
    n = NUMBER_WORDS[n] + (100 * NUMBER_WORDS[hundreds] if hundreds else 0)
    return f"\\frac{{{n}}}{{{PARTS.index(part) + 2}}}" if part else str(n)


def mixed(found):
    """{1+\\frac{2}{3}} for 1 2/3 and 1\\frac23, but not for 1\\frac32, which is a product."""
    whole, above, below = filter(None, found.groups())
    part = f"\\frac{{{above}}}{{{below}}}"
    return f"{{{whole}+{part}}}" if 0 < int(above) < int(below) else found[0]


TEXT = r"\\(?:[mh]box|emph|text(?:bf|it|rm|sf|tt|up|normal)?|mathrm|operatorname\*?)\s*"
NTH = rf"(?:(?:st|nd|rd|th)\b|{TEXT}\{{\s*(?:st|nd|rd|th)\s*\}})"
BEFORE_NOTE = rf"[\s,(]{{0,4}}(?:{TEXT}\{{[\s,(]{{0,4}})?"
# Patterns and what replaces them, one after the other. No pattern takes more than linear time.
SPELLINGS = [(re.compile(pattern), new) for pattern, new in (
    # Notes that say nothing about the value: since x > 0, where k is an integer, (k \in Z).
    (rf"{BEFORE_NOTE}\b(?:since|because)\b.*", ""),
    (rf"{BEFORE_NOTE}\b(?:for|where|with)\b(?=.{{0,60}}\b(?:all|every|any|integers?)\b)"
     r"(?:[\s{}(),.]|\\(?:text|in|mathbb *\{?R)(?![a-zA-Z])"
     r"|(?:for|where|with|all|every|any|some|real|numbers?|is|an|integers?"
     r"|[a-z])(?![a-zA-Z])){0,60}$", ""),
    (r"^((?:(?!\\(?:[lgn]eq?|[lg]t|in)(?![a-z])|[<>≤≥≠∈]).)+)"
     r"[,(]\s*[a-zA-Z]\s*(?:\\in|∈)\s*\\mathbb\s*\{?Z\}?\s*\)?$", r"\1"),
    # Looks.
    (r"^(\*\*?|__|`|\")(.+)\1$", r"\2"),                                        # **5**
    (r"\bUS\s?\\?\$", r"\\$"),
    (r"\\(?:(?:text)?color(?:box)?|[hv]space|label|tag)\*?\s*\{[^{}]*\}", ""),   # \color{red}
    (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|.)", ""),
    (r"\\left\s*\\\{\s*\\begin\s*\{array\}", r"\\begin{cases}"),
    (r"(?<!\\)(?:\$|\\[()\[\]])|\\(?:left|right|middle)(?![a-zA-Z])(?:\s*\.(?!\d))?", ""),
    (r"\\(?:[bB]igg?[lrm]?|(?:display|text|script)style|(?:no)?limits|underline|rm|bf|it|sf|tt|tiny"
     r"|math(?:bf|it|sf|tt|normal|cal|scr|frak|op)|boldsymbol|bm|pmb|f?boxe?d?|ensuremath|smash"
     r"|small|normalsize|[lL]arge|LARGE|[hH]uge|checkmark|blacksquare|square|qed)(?![a-zA-Z])", ""),
    (r"  +", " "),
    (r"(?i)^ ?(?:\\text\s*\{)?\s*(?:the )?(?:final )?(?:answer\b(?: is\b)?|答案) ?:?\s*\}?", ""),
    (r"^ ?(?:\\(?:therefore|implies|[rR]ightarrow|approx)(?![a-zA-Z])|[∴=≈])", ""),
    # Functions, and numbers in words.
    (rf"\\[dtc]?frac\s*\{{\s*({TEXT}\{{[^{{}}]*\}})\s*\}}\s*\{{\s*({TEXT}\{{[^{{}}]*\}}(?:\^\d)?)"
     r"\s*\}", r"\1/\2"),                                                       # \frac{\text{m}}...
    (rf"{TEXT}\{{\s*({either(FUNCTIONS)})\s*\}}", r"\\\1 "),                     # \mathrm{log}
    (rf"(?<!\d)(?<!\d ){TEXT}\{{\s*(?!and\b|or\b)([a-zA-Z]+)\s*\}}\s*(?=\()", r"\\name{\1}"),
    (rf"(?i)(?<![a-z])(?:({either(ONES[1:10])}) hundred (?:and )?)?({either(NUMBER_WORDS)})"
     rf"(?:[ -]({either(PARTS)})s?)?(?![a-z])", spelled),
    (r"\{([^{}]*)\\over ([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose ([^{}]*)\}", r"\\binom{\1}{\2}"),
    (rf"\\?({TRIGONOMETRIC})\s*\^\s*(?:\{{\s*-\s*1\s*\}}|-1)", r"\\arc\1 "),     # \sin^{-1} x
    (r"\b([fg])\s*\^\s*(?:\{\s*-\s*1\s*\}|-1)\s*(?=\()", r"\\name{inverse \1}"),  # f^{-1}(x)
    (r"\\lg(?![a-z])", r"\\log_{10}"),
    (r"(?<![\w.^}])(?<!\\sqrt )(?<!\\log_\d )(\d{1,99})"
     r"(?: ?\\[dtc]?frac ?(?:\{(\d{1,99})\}|(\d)) ?(?:\{(\d{1,99})\}|(\d))"
     r"| (\d{1,99})/(\d{1,99})(?![\d.]))", mixed),
    (r"\b(?:minus|negative) (?=[\d\\])", "-"),
    # Signs.
    (rf"(?<=\d)\s*\^?\s*(?:{NTH}|\{{\s*{NTH}\s*\}})", ""),                       # 5^{\text{th}}
    (r"\\prime(?![a-zA-Z])\s*", "'"), ('"', "''"), (r"\^\s*(?:\{\s*('+)\s*\}|('+))", r"\1\2"),
    (r"\^\s*(?:\{\s*(?:\\circ|°)\s*\}|°|\\circ(?![a-zA-Z]))|\^?\s*\\degree(?![a-zA-Z])"
     r"|(?<=\d)\s*\\deg(?![a-zA-Z])", "°"),
    (rf"°\s*(?:{TEXT}\{{\s*)?([CF])\b(?:(?<=\{{[CF])\s*\}})?", r"°\\text{\1}"),  # 20°C
    (r"(?<=\d)(?=[aApP]\.?\s?[mM]\b)", " "), (r"([aApP])\.\s?[mM]\b\.?", r"\1m"),  # 9 a.m.
    (r"(?<=\d) ([hmsgld]) (?=\d)", r"\\text{ \1 }"),                            # 2 h 30 min
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*"),                                     # 3 x 10^8
    (r"(?<=[)\]])\s*U\s*(?=[\[(\\])", r"\\cup "),                               # [0, 1] U [2, 3]
    # Brackets and separators.
    (r"(?<![\d})])(?<![\d})] )\](?=\s*[^\s,;\[\]()][^,;\[\]()]*[,;][^\[\]()]*[\[\]])", "("),
    (r"([\[(](?=[^\[\]()]*[,;])[^\[\]()]*)(?<!sqrt)\[", r"\1)"),                # ]0, 1[
    (rf"{TEXT}\{{\s*to\s*\}}|(?<=\d) to (?=\d)", ":"),                          # 3 to 4
    (r"\+ ?/ ?-|(?:^|(?<=[=<>(\[{,]))\s*\+-", r"\\pm "),  # between two terms +- are two signs
    (r"\\(?:emptyset|varnothing)(?![a-zA-Z])|∅", r"\\{\\}"),
    (rf"\(?\s*(?:\\[pb]?mod(?![a-zA-Z])|\bmod(?:ulo)?\b|{TEXT}\{{\s*mod(?:ulo)?\s*\}})", r"\\mod "),
    (r",?\s*&\s*(?:\\text\s*\{\s*(?:if|when|for)\s*\})?", "&"),
    (r"\s*(?:\(base (\d+)\)|\bbase (\d+)|\\text\s*\{\s*base\s*\}\s*(\d+))", r"_{\1\2\3}"),
)]
ROWS = [(re.compile(pattern), new) for pattern, new in (  # if there is no matrix
    (r"\\\\(?:\s*\[[\d.]+ *[a-z]+\])?\s*&?\s*=|&=", " ="),
    (r"\\\\(?:\s*\[[\d.]+ *[a-z]+\])?", ", "), ("&", ""),
    (r"\\begin\s*\{\w+\*?\}", "{"), (r"[\s,]{0,9}\\end\s*\{\w+\*?\}", "}"))]
MATRIX = re.compile(r"\\begin\s*\{(?!align|gather|split|eqn|cases(?=[^&]*\\end))")
# Characters that stand for several others, or that NFKC would take for others.
CHARACTERS = str.maketrans({
    "º": "°", "˚": "°", "′": "'", "’": "'", "“": "", "”": "", "、": ",", "。": ".", "∘": r"\circ ",
    "和": " and ", "与": " and ", "及": " and ", "或": " or ", "∞": r"\infty ", "√": r"\sqrt ",
    "∠": r"\angle ", "△": r"\triangle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}"})


@lru_cache(256)  # every sample of a prompt is compared with the same answer
def clean(text):
    """The answer in LaTeX, in the spellings that `scan` knows."""
    if not text.isascii():
        for characters, new in (("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", r"^{\g<0>}"), ("[₀-₉]+", r"_{\g<0>}"),
                                ("[¼-¾⅐-⅞]", r" \g<0>")):
            text = re.sub(characters, new, text)
        text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).translate(CHARACTERS)
        text = re.sub(r"(\d{1,9})⁄(\d{1,9})", r"\\frac{\1}{\2}", text)
    text = " ".join(text.split())
    if len(text) > 25_000:  # NFKC makes 18 letters of some
        raise ValueError("too long")
    for pattern, new in SPELLINGS if MATRIX.search(text) else SPELLINGS + ROWS:
        text = pattern.sub(new, text)
    text = text.lstrip(" ,;:").rstrip()
    text = text if text.endswith("...") else text.rstrip(" .,;:\\")
    return f"\\text{{{text}}}" if is_in_words(text) else text


def is_in_words(text):
    """Does a plain answer consist of words: four letters or more, verdicts, an acronym?"""
    if not re.fullmatch(r"(?:[a-zA-Z ,.'()]|(?<=\w)-(?=\w))+", text) or re.search(
            rf"[a-z][A-Z]|[A-Z]{{2}}[a-z]|\b(?:{either(FUNCTIONS)})[a-z]?\b", text):  # GMmR, sinx
        return False
    is_long = re.search("[a-zA-Z]{4}|^[A-Z]{3}$", text) and [*text] != sorted(text)  # unlike abcd
    return is_long or VERDICTS & {*re.findall(r"\w+", text.lower())}


# ---- tokens --------------------------------------------------------------------------------------

# A token, then its other spellings.
TOKENS = {spelling: kept for line in r"""
- − – — ‐ ‑   * \cdot \ast · ⋅ ∙ •   × \times ✕   / \div ÷ ⁄   : \colon ∶   ^ **   % \%   = ==
\pm ±   \mp ∓   \frac \dfrac \tfrac \cfrac \sfrac \nicefrac   \binom \dbinom \tbinom
| \| \lvert \rvert \vert \mid   \{ \lbrace   \} \rbrace   [ \lbrack   ] \rbrack   < \lt   > \gt
≤ \le \leq \leqslant \leqq <= ⩽   ≥ \ge \geq \geqslant \geqq >= ⩾   ≠ \ne \neq !=
≈ \approx \simeq   = \equiv ≡   ∈ \in   , ;   ∨ \lor \vee
\cup \bigcup ∪   \cap \bigcap ∩   \setminus \backslash \smallsetminus ∖   ∧ \land \wedge
⌊ \lfloor   ⌋ \rfloor   ⌈ \lceil   ⌉ \rceil   ⟨ \langle   ⟩ \rangle   ... \ldots \dots \cdots
""".strip().splitlines() for kept, *spellings in map(str.split, line.split("   "))
    for spelling in spellings}
LETTERS = {"and": (",", "and"), "or": (",", "or"), "pi": ("symbol", "π"), "inf": ("symbol", "∞"),
           "infinity": ("symbol", "∞"), "oo": ("symbol", "∞")}
# Thousands, with a comma only where it is no separator of a list.
GROUPED = r"""(?<![\d.,])\d{1,3}(?:(?:\s*(?:\\!\s*,\s*\\!|,\s*\\!|\\!\s*,|\\,|\\!|\{,\} COMMA)\s*
    |\ (?=\d{3}(?![\d/])))\d{3}(?!\d))+"""
TOKEN = rf"""
 (?P<space>(?:[\s~]|\\[,;:!>\s]|\\q?quad(?![a-zA-Z])|\{{\s*\}})+)
|(?P<text>{TEXT}\{{)
|(?P<number>\d*\.(?:\d{{0,2}}\(\d+\)|\d*\\(?:overline|bar|dot)\s*\{{?\d+\}}?)        # 0.1(6)
   |(?:{GROUPED}|\d+)(?:\.(?!\.)\d*)?(?:[eE][+-]?\d+)?|\.\d+)
|(?P<begin>\\begin\s*\{{(?P<name>\w+)\*?\}}(?:\s*\{{[lcr|\s]*\}})?)
|(?P<end>\\end\s*\{{\w+\*?\}})
|(?P<row>\\\\(?:\s*\[[\d.]+\ *[a-z]+\])?)
|(?P<money>\\\$|[€£¥₹₽¢])
|(?P<fn>\\?(?:{either(FUNCTIONS)})(?![a-z]{{2}}))
|(?P<letters>[a-zA-Z]{{2,}}(?![_'a-zA-Z]))
|(?P<symbol>(?:[a-zA-ZΑ-Ωα-ω]|\\(?:{either([*NAMES, *GREEK])})(?![a-zA-Z])
     |\\(?:angle|triangle)\s*[A-Z](?:\s*[A-Z])*
     |\\(?:overline|bar|vec|(?:wide)?hat|tilde|d?dot|overrightarrow|mathbb|name)
      \s*(?:\{{[^{{}}]*\}}|\w))                                                       # \vec{{v}}
   (?:_(?:\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\d+|\w|\\[a-zA-Z]+)|')*)                  # x_{{1}}'
|(?P<script>[^\W\d_a-zA-Z]+)
|(?P<prime>'+)
|(?P<sign>\.\.\.|\*\*|[<>!=]=|\\[a-zA-Z]+|\\.|\S)"""
# With and without thousands like 1,234.
PATTERNS = [re.compile(TOKEN.replace("COMMA", comma), re.VERBOSE) for comma in ("", r"|,(?!\ )")]
WORD = re.compile(r"(?P<letters>[a-zA-Z]+(?:['-][a-zA-Z]+)*)")  # in \text{}
VALUE_ENDS = {"number", "symbol", ")", "]", "}", "\\}", "°", "%", "!"}  # tokens that end a value


class Scanner:
    """Makes the tokens (kind, text) of a clean answer."""

    def __init__(self, text, thousands):
        self.tokens = []
        self.braces = []  # of each open {: "text" or "math"
        at, depth, self.spaced = 0, 0, True
        while at < len(text):
            found = PATTERNS[thousands and not depth].match(text, at)
            if self.braces[-1:] == ["text"]:
                found = WORD.match(text, at) or found
            at, kind = found.end(), found.lastgroup
            if kind == "text":
                self.braces.append(kind)
            elif kind == "letters":
                self.letters(found[0])
            elif kind == "script":  # 5千万元
                run = found[0]
                scales = "" if run in MEASURES else re.match("[百千万亿兆]*", run)[0]
                self.tokens += [("word", word) for word in (*scales, run[len(scales):]) if word]
            elif kind == "sign":
                depth += self.sign(TOKENS.get(found[0], found[0]))
            elif kind != "space":
                self.tokens.append((kind, symbol(found[0]) if kind == "symbol" else found[0]))
            self.spaced = kind in ("space", "text")

    @property
    def before(self):
        """The kind of the last token."""
        return self.tokens[-1][0] if self.tokens else ""

    def letters(self, run):
        """Letters: a separator, a word, or a product of variables."""
        low, after_value = run.lower(), self.before in VALUE_ENDS
        unit = low if low in UNITS else low.removesuffix("s")
        if self.braces[-1:] == ["text"]:
            is_word = len(run) > 1 or low in UNITS and run not in "ei" and (
                after_value or run.islower())
        else:
            is_long = len(run) > 3 and run.islower() and [*run] != sorted(run)  # unlike abcd
            is_word = self.before == "word" or unit in PLAIN_WORDS or self.spaced and (
                is_long or unit in ("am", "pm", "sq", "cu", "in"))
        self.tokens += [LETTERS[run]] if run in LETTERS else [("word", run)] if is_word else [
            ("symbol", letter) for letter in run]

    def sign(self, token):
        """A sign or a command. Returns how many more brackets are open after it."""
        if token == "{":
            self.braces.append("math")
        if not (token == "}" and self.braces and self.braces.pop() != "math"
                or token == "." and self.before == "word"):  # sq. cm
            self.tokens.append(("rel" if token in tuple("<>=≤≥≠≈∈") else
                                "," if token in tuple(",∨∧") else token, token))
        return (token in ("(", "[", "\\{")) - (token in (")", "]", "\\}"))


def symbol(token):
    r"""A variable's name: x_1 for x_{1}, \vecv for \vec{v}, α for \alpha."""
    token = re.sub(r"\\(?:text|mathrm)(?![a-zA-Z])|[{}\s]", "", token)
    head, *subscript = token.split("_", 1)
    bare = head.rstrip("'")
    kept = {"\\R": REALS.head, "\\infty": "∞"}.get(bare) or GREEK.get(bare[1:], bare)
    return "_".join([kept + head[len(bare):], *(part.replace("\\", "") for part in subscript)])


@lru_cache(256)
def scan(text, thousands=True):
    """The tokens of an answer. thousands: outside brackets, 1,234 is a number."""
    return tuple(Scanner(clean(text), thousands).tokens)


CHOICE = re.compile(r"(?:(?:[oO]ption|[cC]hoice) )?(?:\(([A-Ja-j])\)|([A-J])(?:[).:]|\s*$))\s*"
                    r"((?=[\w\\]).*)?")
NO_CHOICE = re.compile(r"\b[A-J]\b|[,;]|\b(?:and|or|not|is|incorrect|wrong|false)\b")


def choice(text):
    r"""(letter, what follows) of a multiple choice: B, (B), \text{B. } 12, (B) ellipse; or None."""
    found = CHOICE.fullmatch(re.sub(rf"{TEXT}\{{|[{{}}]", "", clean(text)).strip())
    if not found or NO_CHOICE.search(found[3] or ""):
        return None
    return (found[1] or found[2]).upper(), found[3]


# ---- formulas ------------------------------------------------------------------------------------

@lru_cache(256)
def read(text, thousands=True):
    """Tree of an answer. thousands: outside brackets, 1,234 is a number.

    Raises ValueError if it can't be read, RecursionError on hundreds of nested braces.
    """
    parser = Parser(scan(text, thousands))
    x = parser.values()
    parser.take("")
    answers = both_signs(x)
    if len(answers) == 1:
        return answers[0]
    return tree("both" if x.head == ("≠",) else "list", *answers)  # x ≠ ±1


BRACKETS = {  # the closing brackets, and the function that the brackets mean
    "(": ((")", "]"), ""), "[": ((")", "]"), ""), "⟨": (("⟩",), ""), "{": (("}",), ""),
    "\\{": (("\\}",), ""), "|": (("|",), "abs"), "⌊": (("⌋",), "floor"), "⌈": (("⌉",), "ceil")}
# Kinds of tokens with which a factor begins.
FACTOR_STARTS = {*BRACKETS, "number", "symbol", "fn", "begin", "money", "\\frac", "\\binom"} - {"|"}


class Parser:
    """Recursive descent, one method for each level, from the one that binds weakest: values,
    relation, sets, quantity, sum, term, factor, base. Their docstrings show what they read. They
    return trees, and raise ValueError on what they can't read."""

    def __init__(self, tokens):
        self.tokens = [*tokens, ("", "the end")]
        self.at = 0
        self.bars = 0  # how many |...| or sets are open, in which the next | closes

    @property
    def next(self):
        """The kind of the next token."""
        return self.tokens[self.at][0]

    def take(self, *kinds):
        """The next token's text. Raises ValueError unless the token is of one of these kinds."""
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
        while not items or self.next == ",":
            while separator := self.skip(","):
                separators.add(separator)
            items.append(self.relation())
        if len(items) == 1:
            return items[0]
        if separators & {"∨", "∧"} and any(x.kind != "rel" for x in items):
            raise ValueError("statements")
        if all(x.kind == "rel" and not {"=", "≈"} & {*x.head} for x in items):
            return tree("union" if separators & {"or", "∨"} else "both", *items)  # x > 1 and x < 2
        return tree("set" if "or" in separators else "list", *items)

    def relation(self):
        r"""2 < x ≤ 3, x = 3 \pmod 5"""
        sides, ops = [self.sets()], []
        while op := self.skip("rel"):
            ops.append(op)
            sides.append(self.sets())
        if {*ops} <= {">", "≥"}:  # 3 > x is read as x < 3
            ops, sides = [{">": "<", "≥": "≤"}[op] for op in ops[::-1]], sides[::-1]
        if self.skip("\\mod"):
            sides[-1] = tree("mod", self.sum(), sides[-1])
            self.skip(")")
        if ops == ["="] and all(map(is_vector, sides)) and all(
                x.kind == "name" for x in sides[0].parts):  # (x, y) = (1, 2)
            return tree("list", *(tree("rel", *pair, head=("=",)) for pair in zip(
                sides[0].parts, sides[1].parts, strict=True)))
        return tree("rel", *sides, head=tuple(ops)) if ops else sides[0]

    def sets(self):
        r"""(0, 1) \cup (2, 3), and the other operations on sets"""
        x = self.quantity()
        while op := self.skip("\\cup", "\\cap", "\\setminus"):
            kind = {"\\cup": "union", "\\cap": "both", "\\setminus": "minus"}[op]
            x = tree(kind, x, self.quantity())
        return x

    def quantity(self):
        """1:2, a value and its unit, or several: 5 ft 6 in"""
        items = [self.sum()]
        while self.bars == 0 and self.skip(":"):
            items.append(self.sum())
        items = [self.unit(tree("ratio", *items) if len(items) > 1 else items[0])]
        while items[0].kind == "unit" and self.next == "number":
            items.append(self.unit(self.sum()))
            if items[-1].kind != "unit":
                raise ValueError("two numbers, one unit")
        return items[0] if len(items) == 1 else tree("tuple", *items, head="units")

    def unit(self, x):
        """The value x with the words after it. same_quantities() says which of them matter."""
        words = []
        while self.next == "word" or words and self.next in ("/", "*", "×", "^"):
            if self.skip("^"):
                power = self.argument()
                if power.kind == "/" and {x.kind for x in power.parts} == {"number"}:  # m^{1/2}
                    power = tree("number", head=Fraction(power.parts[0].head, power.parts[1].head))
                if power.kind != "number":
                    raise ValueError("a unit to the power of something that is not a number")
                size = str(abs(power.head)) if abs(power.head) != 1 else ""  # m^1 is m
                words[-1:] = ["/"] * (power.head < 0) + [words[-1] + size]
            elif self.skip("/"):
                words += ["/", self.take("symbol")] if self.next == "symbol" else ["/"]
            elif not self.skip("*", "×"):
                word = self.take("word")
                words += {"mph": ["miles", "/", "hours"], "per": ["/"]}.get(word, [word])
        if len(words) == 1 and words[0].lower() in ("am", "pm"):
            return time(x, words[0].lower())
        while words and words[0].lower() in SCALES:
            x = tree("*", x, tree("number", head=Fraction(SCALES[words.pop(0).lower()])))
        words = unit_words(words, x) if words else ()
        if x.kind == "unit":
            return x._replace(head=x.head + words)
        return tree("unit", x, head=words) if words else x

    def sum(self):
        """x - 1"""
        terms = []
        while not terms or self.next in ("+", "-", "\\pm", "\\mp"):
            plus_minus, minus = self.skip("\\pm", "\\mp"), False
            while sign := self.skip("+", "-"):  # 5 - -3
                minus ^= sign == "-"
            x = self.term()
            if minus and terms and x.kind == "set":  # R - {0}
                terms[-1] = tree("minus", terms[-1], x)
                continue
            x = negative(x) if minus else x
            terms.append(tree("pm", x, head=1 if plus_minus == "\\pm" else -1) if plus_minus else x)
        shapes = {(x.kind, x.head, len(x.parts)) for x in terms}
        if terms[0].kind == "matrix" and len(shapes) == 1:
            entries = zip(*(x.parts for x in terms), strict=True)
            return terms[0]._replace(parts=tuple(tree("+", *entry) for entry in entries))
        return terms[0] if len(terms) == 1 else tree("+", *terms)

    def term(self):
        r"""2x \cdot 3/4. From left to right: 1/2x is (1/2)x."""
        above, below = [self.factor()], []
        while True:
            before = self.tokens[self.at - 1][0]
            if self.skip("/"):
                below.append(self.signed())
                while below[-1].kind == "name" and self.next == "symbol":  # t/RC is t/(RC)
                    below.append(self.factor())
            elif sign := self.skip("*", "×"):
                above.append(self.signed())
                if sign == "×" and any(x.kind == "name" and re.match(
                        r"\\(?:vec|hat|over)|[A-Z]$", x.head) for x in above[-2:]):
                    raise ValueError("a product whose order matters")
            elif (self.next in FACTOR_STARTS or self.next == "|" and not self.bars) and (
                    self.next != "number" or before not in ("°", "prime")):  # 30° 15'
                if self.next == before == "number":
                    raise ValueError("two numbers in a row")
                above.append(self.factor())
            else:
                return quotient(product(above), product(below)) if below else product(above)

    def signed(self):
        """A factor with or without a sign."""
        sign = self.skip("-", "+")
        return negative(self.factor()) if sign == "-" else self.factor()

    def factor(self):
        r"""x^2, n!, 50%, 30°, 12_5, \sum_k k"""
        x = self.base()
        while True:
            if self.skip("^"):
                x = tree("^", x, self.argument())
            elif self.skip("!"):
                if self.next == "!":
                    raise ValueError("double factorial")
                x = tree("fn", x, head="factorial")
            elif self.next in ("%", "°", "money") or self.next == "prime" and x.kind == "number":
                sign = self.take(self.next).removeprefix("\\")
                x = tree("unit", x, head=(CURRENCIES.get(sign, sign),))
            elif self.next == "_" and x.kind == "number":
                self.at += 1
                x = based(x, self.argument())
            elif self.next in FACTOR_STARTS and first_name(x).startswith(OPERATORS):
                return tree("app", self.term(), head=str(x))
            else:
                return x

    def argument(self, digit=False):
        r"""What a command or ^ applies to: a group or the next token.

        digit: of a number only the first digit, as in \frac12.
        """
        kind, text = self.tokens[self.at]
        if digit and kind == "number" and text.isdigit() and len(text) > 1:
            self.tokens[self.at:self.at + 1] = [(kind, text[0]), (kind, text[1:])]
        return negative(self.base()) if self.skip("-") else self.base()

    def base(self):
        """A number, a name, a command with its arguments, or something in brackets."""
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind in BRACKETS:
            return self.bracketed(kind)
        match kind:
            case "number":
                return exact(text)
            case "symbol":
                return self.applied(text)
            case "\\frac":
                return quotient(self.argument(digit=True), self.argument(digit=True))
            case "\\binom":
                return tree("fn", self.argument(True), self.argument(True), head="binom")
            case "fn":
                return self.function(text.removeprefix("\\"))
            case "begin":
                return self.matrix(re.findall(r"\w+", text)[1])
            case "money":
                sign = self.skip("-")
                x = tree("unit", self.term(), head=(CURRENCIES[text[-1]],))
                return negative(x) if sign else x
            case "word" if text.lower() in CURRENCIES and self.next == "number":  # USD 5
                return tree("unit", self.term(), head=(CURRENCIES[text.lower()],))
            case "word":
                while self.next == "word":  # total cost
                    text += " " + self.take("word")
                text = re.sub("^(?:an?|the) ", "", text.lower())
                return MEANINGS.get(text, tree("word", head=text))
        raise ValueError(f"unexpected {text}")

    def bracketed(self, left):
        r"""(x), (1, 2], |x|, {x}, \{1, 2\}, \lfloor x\rfloor"""
        closing, function = BRACKETS[left]
        bars, self.bars = self.bars, self.bars + 1 if left in ("|", "\\{") else 0
        x = self.braces() if left == "\\{" else self.sum() if function else self.values()
        self.bars = bars
        right = self.take(*closing)
        if function:
            return tree("fn", x, head=function)
        if left in ("{", "\\{"):
            return x
        brackets = left.replace("⟨", "(") + right.replace("⟩", ")")
        if x.kind == "list":
            return x._replace(kind="tuple", head=brackets if len(x.parts) == 2 else "()")
        if brackets not in ("()", "[]"):
            raise ValueError("unexpected brackets")
        return x

    def braces(self):
        r"""What \{1, 2\} or \{x : x > 1\} hold"""
        if self.next == "\\}":
            return tree("set")
        x = self.values()
        if not self.skip("|", ":"):
            return tree("set", *both_signs(x))
        if x.kind == "rel" and x.head == ("∈",) and x.parts[1] == REALS:
            x = x.parts[0]
        condition = self.values()
        if x.kind != "name" or x not in nodes(condition):
            raise ValueError("a set of terms, or a condition on something else")
        return condition

    def applied(self, name):
        """A variable, the value of a function or a point: f(x+1), P(2), P(X > 2), A(1, 2); but
        n(n+1) and mg(h+1) are products."""
        x = tree("name", head=name)
        if self.next != "(" or name in CONSTANTS:
            return x
        rest = self.tokens[self.at:self.at + 100]
        depths = itertools.accumulate((kind == "(") - (kind in (")", "]")) for kind, _ in rest)
        content = rest[:1 + next((i for i, depth in enumerate(depths) if not depth), 0)]
        kinds = [kind for kind, _ in content[1:-1]]
        after_name = self.at > 1 and self.tokens[self.at - 2][0] == "symbol"
        is_event = {"rel", "|", ",", "\\cap", "\\cup", "word"} & {*kinds}
        if name[0].isupper() and name not in "NU" and not after_name and (
                "," in kinds and "rel" not in kinds):
            return tree("rel", x, self.base(), head=("=",))
        if kinds in (["number"], ["symbol"], ["-", "number"]) or (
                name[0] in "fg" and not after_name and not is_event):
            return tree("app", self.base(), head=name)
        if is_event and (name in "PE" or len(name) > 1 and "_" not in name):
            self.at += len(content)
            return tree("name", head=name + "".join(text for _, text in content))
        return x

    def function(self, name):
        r"""\sin^2 2x, \log_2 8, \sqrt[3]{x}.

        Without brackets, the argument is a factor and all variables after it: \sin 2 \pi x \cos x.
        """
        if name == "sqrt":
            n = self.base() if self.next == "[" else TWO
            return tree("fn", self.argument(), n, head="root")
        scripts = {}
        while sign := self.skip("^", "_"):
            scripts[sign] = self.argument()
        minus, bracket = self.skip("-"), self.next in BRACKETS
        args = [self.base() if bracket else self.factor()]
        while not bracket and self.next == "symbol":
            args.append(self.factor())
        x = negative(product(args)) if minus else product(args)
        x = tree("fn", x, head="ln" if "_" in scripts else name)
        if "_" in scripts:
            x = tree("/", x, tree("fn", scripts["_"], head="ln"))
        return tree("^", x, scripts["^"]) if "^" in scripts else x

    def matrix(self, name):
        r"""What follows \begin{pmatrix} or one of its relatives, up to \end."""
        if not re.fullmatch(r"[pbB]?matrix|smallmatrix|array|cases", name):
            raise ValueError(f"unexpected {name}")
        rows = [[]]
        while not self.skip("end"):
            rows[-1].append(self.relation())
            if self.skip("row") and self.next != "end":
                rows.append([])
            elif self.next != "end":
                self.take("&")
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        if len(rows[0]) == 1 and all(row[0].kind == "rel" for row in rows):
            return tree("list", *(row[0] for row in rows))
        return tree("matrix", *(x for row in rows for x in row), head=len(rows[0]))


def exact(text):
    r"""A number's value: 1,234, .5, 4.5e-3, 0.1\overline{6}, 0.1(6)."""
    mantissa, *period = re.split(r"\\\w+\s*|\(", text)
    mantissa, *exponent = re.split("[eE]", re.sub(r"[^\d.eE+-]", "", mantissa))
    if exponent and abs(int(exponent[0])) > 5000:
        raise ValueError("too large")
    value = Fraction(mantissa.rstrip(".") or 0) * Fraction(10) ** int((*exponent, 0)[0])
    if period:
        digits, places = period[0].strip("{})"), len(mantissa.partition(".")[2])
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** places)
    return tree("number", head=value)


def based(digits, base):
    """12_5. It equals only the same digits in the same base: where 7 is asked for in base 5, 7 is
    a wrong answer. In base 10 it is an ordinary number."""
    if base.kind != "number" or base.head not in range(2, 37):
        raise ValueError("no base")
    return digits if base.head == 10 else tree("base", digits, head=int(base.head))


def time(x, half):
    """9 a.m., 9:30 p.m."""
    numbers = [y.head for y in x.parts or (x,)]
    if {y.kind for y in x.parts or (x,)} != {"number"} or len(numbers) > 2 or any(
            n.denominator > 1 for n in numbers):
        raise ValueError("no time")
    return tree("time", head=(*numbers, 0)[:2] + (half,))


def unit_words(words, x):
    """The names of the units after the value x: cm, right triangles, 元. Raises ValueError if the
    words may say more than a unit."""
    first = words.index("/") if "/" in words else len(words)
    last = words[first - 1].lower().rstrip("23") if first else ""
    if any(word == "k" or word.lower() in SCALES or NOT_UNITS.fullmatch(word.lower())
           or "-" in word for word in words) or not (
            last in UNITS or last.removesuffix("s") in UNITS or last in MEASURES or not last
            or last.isascii() and (len(last) < 4 or last.endswith("s") or x.head == 1)):
        raise ValueError("words that may say more than a unit")
    if len(words) > 1 and words[0] in ("sq", "square", "cu", "cubic"):
        words[:2] = [words[1] + ("2" if words[0][0] == "s" else "3")]
    return tuple(unit_name(word) for word in words
                 if word not in ("a", "an", "of", "the", "radian", "radians"))


def unit_name(word):
    """A unit's first name: cm2 for centimeters2. M of MW is mega, and m of mW is milli."""
    if re.fullmatch("M(?i:g|w|hz|j|pa|ev|v)", word):
        return word
    word, power = re.fullmatch(r"(.*?)(\d*)", word.lower()).groups()
    single = word.removesuffix("s")
    return (UNITS.get(word) or UNITS.get(single) or single) + power
