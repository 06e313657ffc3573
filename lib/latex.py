r"""Final answers in LaTeX or plain text, read into trees. No text is ever run as code.

Reading takes four steps: `clean` replaces Unicode forms; Scanner makes tokens and drops what is
only looks (fonts, sizes, colours, spaces); `phrases` reads answers in words; Parser all others.

A tree has a kind, a head (whatever is no tree) and parts (trees):

  scalars   number 12   name "x"   + a ...   * a ...   / a b   ^ a b
            fn "sin" a ...           \sin a, |a|, \sqrt[n]{a}, n!
            app "f" a                f(a)
            unit (("cm", 2), ...) a  5 cm^2
            pm 1 a                   \pm a; the head of \mp a is -1
  sets of   union a ...   both a ...   minus a b
  reals
  others    list a ...               1, 2
            set a ...                \{1, 2\}
            tuple "(]" a ...         (1, 2]; "units": 5 ft 6 in
            matrix columns a ...     the entries row by row
            ratio a ...              1:2
            rel ("<", ...) a b ...   a < b ...
            mod "" n a               a \pmod{n}
            base 5 digits            12_5
            time (9, 30, "am")       9:30 a.m.
            word "area"              a word in a formula
            words ("yes", "no")      an answer in words
"""
import itertools
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple


class Work:
    """What comparisons cost. One state per process, so they are not thread-safe."""
    left = 0  # steps that the running comparison may still take

    @classmethod
    def spend(cls, steps):
        cls.left -= steps
        if cls.left < 0:
            raise RecursionError("too much work")  # no ValueError, which may only mean "different"


# ---- trees ---------------------------------------------------------------------------------------

class Tree(NamedTuple):
    kind: str
    head: object
    parts: tuple = ()


def tree(kind, *parts, head=""):
    return Tree(kind, head, parts)


def number(value):
    return Tree("number", Fraction(value))


SCALARS = {"number", "name", "+", "*", "/", "^", "fn", "app", "unit", "pm"}
REALS, INFINITY, E = Tree("name", "\\mathbbR"), Tree("name", "∞"), Tree("name", "e")
EMPTY = tree("set")
CONSTANTS = {"e", "i", "π", "∞"}  # other names are variables


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
    return x.kind == "tuple" and x.head == "()"


def negative(x):
    if x.kind in ("number", "base"):
        return x._replace(head=-x.head) if x.kind == "number" else rebuilt(x, negative)
    if x.kind in ("unit", "matrix") or is_vector(x):
        return rebuilt(x, negative)
    return tree("*", number(-1), x)


def product(factors):
    """Product of trees; a matrix or vector takes the others into its entries."""
    if len(factors) == 1:
        return factors[0]
    if any(x.kind == "word" for x in factors):
        raise ValueError("words in a formula")
    matrices = [x for x in factors if x.kind == "matrix" or is_vector(x)]
    if len(matrices) == 1:
        others = [x for x in factors if x is not matrices[0]]
        return rebuilt(matrices[0], lambda entry: product([*others, entry]))
    return tree("*", *factors)


def first_name(x):
    r"""The name with which a product begins: d of dx, \sum of \sum^n k; "" if there is none."""
    while x.kind in ("*", "^"):
        x = x.parts[0]
    return x.head if x.kind == "name" else ""


def quotient(a, b):
    """Quotient of trees; a matrix is divided entry by entry. dy/dx is a name, not y/x."""
    if first_name(a) == first_name(b) in ("d", "\\partial", "Δ") and b.kind != "name":
        return Tree("name", f"d/d {(a, b)}")
    return rebuilt(a, lambda x: quotient(x, b)) if a.kind == "matrix" else tree("/", a, b)


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
    if not signs:
        return [*x.parts] if x.kind == "list" else [x]
    if x.kind == "list":
        return [y for part in x.parts for y in both_signs(part)]
    if x.kind == "tuple" and {*signs} == {1}:  # (±3, ±2) is four points
        Work.spend(2 ** len(signs))
        return [x._replace(parts=y) for y in itertools.product(*map(both_signs, x.parts))]
    return [choose(x, 1), choose(x, -1)]


# ---- tables --------------------------------------------------------------------------------------

FUNCTIONS = """arcsinh arccosh arctanh arcsin arccos arctan arccot sinh cosh tanh coth sech csch
sin cos tan cot sec csc log ln lg exp sqrt""".split()
GREEK = dict(zip("""alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron
pi rho sigma tau upsilon phi chi psi omega""".split(), "αβγδεζηθικλμνξοπρστυφχψω", strict=True))
GREEK |= {f"var{name}": letter for name, letter in GREEK.items()}
GREEK |= {name.capitalize(): letter.upper() for name, letter in GREEK.items()}
NAMES = """hbar ell odot star partial nabla perp parallel sum prod int lim max min Pr top det gcd
deg dim""".split()
ACCENTS = "overline bar vec hat widehat tilde ddot dot overrightarrow mathbb".split()
OPERATORS = ("\\int", "\\sum", "\\prod", "\\lim", "\\nabla")  # what follows is no factor

# Each line: a token, and its other spellings.
TOKENS = {spelling: kept for kept, *spellings in map(str.split, r"""
- − – — ‐ ‑
+ ＋
* \times \cdot \ast × ✕ · ⋅ ∙ •
/ \div ÷ ⁄
: \colon ∶
^ **
! ！
\pm ± +/-
\mp ∓
\frac \dfrac \tfrac \cfrac \sfrac \nicefrac
\binom \dbinom \tbinom
| \| \lvert \rvert \vert \mid
% \%
\{ \lbrace
\} \rbrace
[ \lbrack
] \rbrack
= ==
< \lt
> \gt
≤ \le \leq \leqslant \leqq <= ⩽
≥ \ge \geq \geqslant \geqq >= ⩾
≠ \ne \neq !=
≈ \approx \simeq
≡ \equiv
∈ \in
\emptyset \varnothing ∅
\cup \bigcup ∪
\cap \bigcap ∩
\setminus \backslash \smallsetminus ∖
∨ \lor \vee
∧ \land \wedge
⌊ \lfloor
⌋ \rfloor
⌈ \lceil
⌉ \rceil
⟨ \langle
⟩ \rangle
... \ldots \dots \cdots""".strip().splitlines()) for spelling in spellings}
SEPARATORS = {",": (",", ","), ";": (",", ","), "∨": (",", "∨"), "∧": (",", "∧"),
              "and": (",", "and"), "or": (",", "or"), "to": (":", ":")}
# Characters that stand for several tokens, or that NFKC would take for others.
CHARACTERS = str.maketrans({
    "º": "°", "˚": "°", "′": "'", "’": "'", "“": "", "”": "", "、": ",", "。": ".", "和": " and ",
    "与": " and ", "及": " and ", "或": " or ", "∞": "\\infty ", "√": "\\sqrt ", "∠": "\\angle ",
    "△": "\\triangle ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}"})

ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {word: n for n, word in enumerate(ONES)} | {
    ten + one: 20 + 10 * i + n for i, ten in enumerate(TENS)
    for n, one in [(0, ""), *((n, sign + ONES[n]) for n in range(1, 10) for sign in "- ")]}
FRACTION_WORDS = {word: n for n, word in enumerate(
    "half third quarter fifth sixth seventh eighth ninth tenth".split(), 2)}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
          "trillion": 10**12, "百": 100, "千": 10**3, "万": 10**4, "亿": 10**8, "兆": 10**12}
MEANINGS = {phrase: x for phrases, x in (
    ("no solution, no solutions, no real solution, no real solutions, empty set, none, 无解", EMPTY),
    ("all real numbers, all reals", REALS), ("infinity, infinite", INFINITY),
    ("dne, doesn't exist, does not exist", Tree("words", ("does not exist",))))
    for phrase in phrases.split(", ")}
# Words of which a list has an order: answers to several questions.
VERDICTS = set("""yes no true false increasing decreasing positive negative even odd left right up
down""".split())

UNITS = {spelling: names.split()[0] for names in """mm millimeter millimetre|cm centimeter centimetre
m meter metre|km kilometer kilometre|inch inches in|foot feet ft|yard yd|mile mi
second sec s|minute min|hour hr h|day|week|month|year yr
mg milligram|gram gm g|kilogram kg|pound lb|ounce oz|ton|celsius|fahrenheit
liter litre l|milliliter ml|gallon gal|dollar usd|cent|euro eur|rupee rs inr|yuan cny rmb|gbp
degree deg|percent percentage pct|radian rad|am|pm|mph|nm|ev|hz|mol|unit|j|n|w|v|a|k|c
""".strip().replace("\n", "|").split("|") for spelling in names.split()}
# Units of two letters that are units also outside \text. Others may be products: 3 mg.
SHORT_UNITS = {"mm", "cm", "km", "kg", "ft", "lb", "hr", "nm", "ev", "hz", "yr", "oz"}
CURRENCIES = {"$": "dollar", "¢": "cent", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee",
              "₽": "ruble", "usd": "dollar", "eur": "euro", "gbp": "pound", "rs": "rupee",
              "inr": "rupee", "cny": "yuan", "rmb": "yuan"}
# What may be counted without a plural s.
MEASURES = set("""people children men women feet fish sheep mice geese teeth
元 円 원 角 美元 个 人 只 本 张 岁 年 月 天 日 米 厘米 分米 毫米 千米 公里 平方米 平方厘米 立方米 小时 时
分钟 分 秒 度 棵 支 块 名 位 条 辆 件 头 朵 页 克 千克 公斤 吨 升 毫升 руб рублей м см км кг ч мин""".split())
# Words after a value that change it, as a unit doesn't.
NOT_UNITS = re.compile(r"""(?:squared|cubed|factorial|half|halves|quarters?|plus|minus|times|less
    |more|fewer|greater|least|most|below|above|negative|positive|doubled?|tripled?|divided|root
    |pi|infinity|dozens|tens|hundreds|thousands|couples?|trios?|myriads?|groups?|sets?|bn|mn|grand
    |fold|lakhs?|crores?|out|by|to|over|r\d*|remainder|be|can|cannot|may|must|not|no|is|are|does
    |false|wrong|incorrect|undefined|if|when|where|for|mod|except|or
    |(?:third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand
    |\w+illion)th)s?|\w+ill(?:i?on(?:s|es|en)?)|\w+fold|score|gross|pairs?|半)""", re.VERBOSE)


# ---- text ----------------------------------------------------------------------------------------

def either(words):
    """A regular expression for any of these words, the longest first."""
    return "|".join(sorted(words, key=len, reverse=True))


TEXT = r"\\(?:[mh]box|emph|text(?:bf|it|rm|sf|tt|up|normal)?|mathrm|operatorname\*?)\s*"
UNIT_FRACTION = re.compile(rf"\\[dtc]?frac\s*\{{\s*{TEXT}\{{([^{{}}]*)\}}\s*\}}"
                           rf"\s*\{{\s*{TEXT}\{{([^{{}}]*)\}}(\^\{{?\d\}}?)?\s*\}}")


@lru_cache(256)  # every sample of a prompt is compared with the same answer
def clean(text):
    r"""The answer with LaTeX for Unicode forms of digits and fractions, without Markdown."""
    if not text.isascii():
        for characters, new in (("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", r"^{\g<0>}"), ("[₀-₉]+", r"_{\g<0>}"),
                                ("[¼-¾⅐-⅞]", r" \g<0>")):
            text = re.sub(characters, new, text)
        text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).translate(CHARACTERS)
        text = re.sub(r"(\d+)⁄(\d+)", r"\\frac{\1}{\2}", text)
    text = " ".join(text.split())
    if found := re.fullmatch(r"(\*\*?|__|`|\")(.+)\1", text):
        text = found[2]
    text = re.sub(r"\\left\s*\\\{\s*\\begin\s*\{array\}", r"\\begin{cases}", text)
    return UNIT_FRACTION.sub(r"\\text{\1}/\\text{\2}\3", text)


# ---- tokens --------------------------------------------------------------------------------------

# Thousands, with a comma only where it is no separator of a list.
GROUPED = r"""(?<![\d.,])\d{1,3}(?:(?:\s*(?:\\!\s*,\s*\\!|,\s*\\!|\\!\s*,|\\,|\\!|\{,\} COMMA)\s*
    |\ (?=\d{3}(?![\d/])))\d{3}(?!\d))+"""
SUFFIX = r"(?:st|nd|rd|th)\b"
SUFFIX = rf"{SUFFIX}|\\(?:text|mathrm)\s*\{{\s*{SUFFIX}\s*\}}"
PRIMES = r"\^\s*(?:\\prime(?![a-zA-Z])|\{\s*(?:\\prime\s*)+\})"
TOKEN = rf"""
 (?P<space>(?:[\s~]|\\[,;:!>\s]|\\q?quad(?![a-zA-Z])|\{{\s*\}})+)
|(?P<looks>\$|\\[()\[\]]|\\(?:left|right|middle)(?![a-zA-Z])(?:\s*\.(?!\d))?
   |\\(?:[bB]igg?[lrm]?|(?:display|text|script)style|(?:no)?limits|underline|rm|bf|it|sf|tt
     |math(?:bf|it|sf|tt|normal|cal|scr|frak|op)|boldsymbol|bm|pmb|boxed|fbox|ensuremath|smash
     |tiny|small|normalsize|[lL]arge|LARGE|[hH]uge
     |checkmark|blacksquare|square|qed|therefore)(?![a-zA-Z])|∴|\\[hv]?phantom\s*[^\s{{])
|(?P<dropped>\\(?:(?:text)?color(?:box)?|[hv]space|label|tag|[hv]?phantom)\*?\s*\{{)
|(?P<spelled>(?<![a-zA-Z])(?i:(?:(?P<hundreds>{either(ONES[1:10])})\ hundred\ (?:and\ )?)?
   (?P<count>{either(NUMBER_WORDS).replace(" ", "[ ]")})
   (?:[ -](?P<part>{either(FRACTION_WORDS)})s?)?(?![a-z])))
|(?P<half>(?<=[\d\s{{])[aApP](?:\.\s?)?[mM]\b\.?)                  # p.m.
|(?P<mod>\(?\s*(?:\\[pb]?mod(?![a-zA-Z])|mod(?:ulo)?\b|{TEXT}\{{\s*mod(?:ulo)?\s*\}}))
|(?P<label>{TEXT}\{{\s*(?P<only>[a-zA-Z]+)\s*\}})
|(?P<text>{TEXT}\{{)
|(?P<mixed>(?P<whole>\d+)\ (?P<above>\d+)/(?P<below>\d+)(?![\d.]))
|(?P<period>\d*\.(?:\d{{0,2}}\(\d+\)|\d*\\(?:overline|bar|dot)\s*\{{?\d+\}}?))  # 0.1(6)
|(?P<number>(?:{GROUPED}|\d+)(?:\.(?!\.)\d*)?(?:[eE][+-]?\d+)?|\.\d+)
   (?P<nth>\s*\^?\s*(?:{SUFFIX}|\{{\s*(?:{SUFFIX})\s*\}}))?       # 5^{{\text{{th}}}}
|(?P<begin>\\begin\s*\{{(?P<name>\w+)\*?\}}(?:\s*\{{[lcr|\s]*\}})?)
|(?P<end>\\end\s*\{{\w+\*?\}})
|(?P<row>\\\\(?:\s*\[[\d.]+\ *[a-z]+\])?)
|(?P<degree>(?:\^\s*(?:\\circ(?![a-zA-Z])|\{{\s*(?:\\circ|°)\s*\}}|°)|(?:\^\s*)?\\degree(?![a-zA-Z])
   |°)(?:\s*(?:{TEXT}\{{\s*)?(?P<scale>[CF])\b(?:(?<=\{{[CF])\s*\}})?)?)
|(?P<prime>{PRIMES}|'+|")
|(?P<money>(?:\bUS\s?\\?|\\)\$|[€£¥₹₽¢])
|(?P<fn>\\?(?:{either(FUNCTIONS)})(?![a-z]{{2}}))
|(?P<letters>[a-zA-Z]{{2,}}(?![_'a-zA-Z]))
|(?P<symbol>(?:[a-zA-ZΑ-Ωα-ω]|\\(?:{either([*NAMES, *GREEK, "infty", "R"])})(?![a-zA-Z])
     |\\(?:angle|triangle)\s*[A-Z](?:\s*[A-Z])*
     |\\(?:{either(ACCENTS)})\s*(?:\{{[^{{}}]*\}}|\w))            # \vec{{v}}
   (?:_(?:\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\d+|\w|\\[a-zA-Z]+)|{PRIMES}|')*)     # x_{{1}}'
|(?P<script>[^\W\d_a-zA-Z]+)
|(?P<sign>\.\.\.|\+\s?/\s?-|\+-|\*\*|[<>!=]=|\\[a-zA-Z]+|\\.|\S)"""
# With and without thousands like 1,234.
PATTERNS = [re.compile(TOKEN.replace("COMMA", comma), re.VERBOSE) for comma in ("", r"|,(?!\ )")]
WORD = re.compile(r"[a-zA-Z]+(?:['-][a-zA-Z]+)*")
ROWS = {"cases", "aligned", "align", "gathered", "split", "eqnarray"}  # no matrices
# Kinds of tokens with which a value ends.
VALUE_ENDS = {"number", "symbol", ")", "]", "}", "\\}", "°", "%", "!"}


class Scanner:
    """Makes tokens (kind, text) of an answer. There is a method for each group of TOKEN."""

    def __init__(self, text, thousands):
        self.text, self.tokens = text, []
        self.braces = []        # of each open {: "text", "math", or the token from which on to drop
        self.brackets = []      # [whether a comma followed] of each open ( [ \{
        self.environments = []  # of each open \begin: whether its rows are a list's, not a matrix's
        self.at, self.spaced = 0, True  # whether the next token follows a space
        while self.at < len(text):
            found = PATTERNS[thousands and not self.brackets].match(text, self.at)
            kind = found.lastgroup
            word = self.in_text and kind in ("fn", "letters", "symbol") and WORD.match(text, self.at)
            self.at = (word or found).end()
            if word:
                self.text_word(word[0])
            elif kind != "looks":
                getattr(self, "read_" + kind)(found)
            if kind != "looks":
                self.spaced = kind == "space"

    def add(self, kind, text=""):
        self.tokens.append((kind, text))

    @property
    def in_text(self):
        return self.braces[-1:] == ["text"]

    @property
    def before(self):
        """The kind of the last token."""
        return self.tokens[-1][0] if self.tokens else ""

    @property
    def after(self):
        """The next characters."""
        return self.text[self.at:self.at + 20].lstrip()

    def read_space(self, found):
        pass

    def read_dropped(self, found):
        self.braces.append(len(self.tokens))

    def read_text(self, found):
        self.braces.append("text")

    def read_spelled(self, found):  # one hundred and five, two-thirds
        count, part = NUMBER_WORDS[found["count"].lower()], found["part"]
        if found["hundreds"]:
            count += 100 * NUMBER_WORDS[found["hundreds"].lower()]
        self.add("number", f"{count}/{FRACTION_WORDS[part.lower()]}" if part else str(count))

    def read_half(self, found):
        letters = re.sub(r"\W", "", found[0])
        self.add("word" if self.before in ("number", "word") else "letters", letters.lower())

    def read_mod(self, found):
        self.add("mod")

    def read_label(self, found):
        """A single word in \\text{}"""
        if found["only"].lower() in NUMBER_WORDS:
            self.add("number", str(NUMBER_WORDS[found["only"].lower()]))
        elif found["only"] in FUNCTIONS:
            self.add("fn", found["only"])
        elif self.after.startswith("(") and self.before != "number":  # \text{Var}(X)
            self.add("symbol", found["only"])
        else:
            self.text_word(found["only"], alone=True)

    def text_word(self, word, alone=False):
        """A word in \\text{}: a separator, a unit, a variable or just a word."""
        low, after_value = word.lower(), self.before in VALUE_ENDS
        is_unit = low in UNITS and word not in ("e", "i") and (after_value or word.islower())
        if word in SEPARATORS and (alone or word != "to"):
            self.tokens.append(SEPARATORS[word])
        elif low in ("minus", "negative"):
            self.add("-")
        elif low in CURRENCIES or alone and is_unit:
            self.add("word", word)
        elif len(word) == 1 and (alone or self.before not in ("word", "number")):
            self.add("symbol", word)
        elif re.fullmatch("[A-Z]{2,5}", word) and not after_value:
            self.add("letters", word)
        else:
            self.add("word", word)

    def read_mixed(self, found):  # 1 1/2
        whole, above, below = (int(found[name]) for name in ("whole", "above", "below"))
        if above >= below:
            raise ValueError("two numbers in a row")
        self.add("number", f"{whole * below + above}/{below}")

    def read_number(self, found):
        self.add("number", re.sub(r"[^\d.eE+-]|\.$", "", found["number"]))

    read_nth = read_number  # 5th is 5

    def read_period(self, found):
        self.add("number", str(periodic(found[0])))

    def read_begin(self, found):
        name = found["name"]
        rest = self.text[self.at:max(self.at, self.text.find("\\end", self.at))]
        is_list = name in ROWS and (name != "cases" or "&" not in rest)
        self.environments.append(is_list)
        self.add(*(("{", "{") if is_list else ("begin", name)))

    def read_end(self, found):
        while self.before == ",":  # of a row that is empty
            self.tokens.pop()
        self.add("}" if self.environments and self.environments.pop() else "end")

    def read_row(self, found):
        if not all(self.environments[-1:]):
            self.add("\\\\")
        elif not re.match(r"&?\s*=", self.after):  # x &= 2 + 3 \\ &= 5 is one equation
            self.add(",", ",")

    def read_degree(self, found):
        self.add("°")
        if found["scale"]:
            self.add("word", "celsius" if found["scale"] == "C" else "fahrenheit")

    def read_prime(self, found):
        self.add("'", '"' if found[0] in ('"', "''") else "'")

    def read_money(self, found):
        self.add("money", CURRENCIES[found[0][-1]])

    def read_fn(self, found):
        self.add("fn", found[0].lstrip("\\"))

    def read_letters(self, found):
        """Letters outside \\text{}: a separator, a word, or a product of variables."""
        run, low = found[0], found[0].lower()
        unit = low if low in UNITS else low.removesuffix("s")
        is_unit = (unit in UNITS and len(unit) > 2 or unit in SHORT_UNITS or low in CURRENCIES
                   or self.spaced and unit in ("am", "pm", "sq", "cu", "in"))
        alphabetical = list(run) == sorted(run)  # abcd is a product
        is_word = len(run) > 3 and run.islower() and not alphabetical and (
            self.spaced or self.before == "}")
        if run in SEPARATORS:
            self.tokens.append(SEPARATORS[run])
        elif low in ("pi", "inf", "infinity", "oo"):
            self.add("symbol", "π" if low == "pi" else "∞")
        elif low in ("minus", "negative"):
            self.add("-")
        elif self.before == "word" or low in SCALES or is_unit or is_word:
            self.add("word", run)
        else:
            self.add("letters", run)

    def read_symbol(self, found):
        token = found[0]
        after_number = self.before == "number"
        if token == "\\deg" and after_number:
            self.add("°")
        elif token in ("x", "X") and after_number and re.match(r"10\s*\^", self.after):  # 3 x 10^8
            self.add("*")
        elif token == "U" and self.before in (")", "]") and self.after[:1] in ("(", "[", "\\"):
            self.add("\\cup")
        elif after_number and self.spaced and token.lower() in UNITS and self.after[:1].isdigit():
            self.add("word", token)  # 2 h 30 min
        else:
            self.add("symbol", symbol(token))

    def read_script(self, found):  # 5千万元
        run = found[0]
        scales = "" if run in MEASURES else re.match("[百千万亿兆]*", run)[0]
        for word in filter(None, (*scales, run[len(scales):])):
            self.add("word", word)

    def read_sign(self, found):
        token = re.sub(r"(?<=\S) ", "", found[0])
        token = TOKENS.get(token, token)
        if token == "{":
            self.braces.append("math")
            self.add("{")
        elif token == "}" and self.braces:
            mode = self.braces.pop()
            if mode == "math":
                self.add("}")
            elif mode != "text":
                del self.tokens[mode:]
        elif token in ("(", "[", "\\{", ")", "]", "\\}"):
            self.bracket(token)
        elif token in SEPARATORS:
            self.tokens.append(SEPARATORS[token])
            if self.brackets:
                self.brackets[-1] = True
        elif token == "\\emptyset":
            self.tokens += [("\\{", ""), ("\\}", "")]
        elif token in tuple("<>=≤≥≠≈≡∈"):
            self.add("rel", "=" if token == "≡" else token)
        elif token == "." and self.before == "word":  # sq. cm
            pass
        elif token != "&" or not self.environments or not self.environments[-1]:
            self.add(token, found[0] if token == "*" else "")

    def bracket(self, token):
        """( [ \\{ or their closing ones, also reversed, as in ]0, 1["""
        if token == "]" and not self.brackets:
            token = "("
        elif token == "[" and self.brackets[-1:] == [True] and self.before in VALUE_ENDS:
            token = ")"
        if token in ("(", "[", "\\{"):
            self.brackets.append(False)
        elif self.brackets:
            self.brackets.pop()
        self.add(token)


def symbol(token):
    r"""A variable's name: x_1 for x_{1}, \vecv for \vec{v}, y'' for y^{\prime\prime}, α for \alpha."""
    token = re.sub(r"\\(?:text|mathrm)(?![a-zA-Z])|[{}\s^]", "", token.replace("\\prime", "'"))
    head, *subscript = token.split("_", 1)
    bare = head.rstrip("'")
    kept = {"\\R": "\\mathbbR", "\\infty": "∞"}.get(bare) or GREEK.get(bare[1:], bare)
    return "_".join([kept + head[len(bare):], *(part.replace("\\", "") for part in subscript)])


def periodic(text):
    r"""The value of 0.1\overline{6} or 0.1(6)."""
    mantissa, period = re.split(r"\\\w+\s*|\(", text)
    digits, places = period.strip("{})"), len(mantissa.partition(".")[2])
    return Fraction(mantissa.rstrip(".") or 0) + Fraction(
        int(digits), (10 ** len(digits) - 1) * 10 ** places)


@lru_cache(256)
def scan(text, thousands=True):
    """The tokens of an answer, without notes and without punctuation at its ends.

    thousands: 1,234 is a number, unless it is in brackets.
    """
    tokens = Scanner(clean(text), thousands).tokens
    is_end = {"the", "final", "answer", "is", "答案", ":", ",", ".", "\\implies", "\\Rightarrow",
              "\\rightarrow", "\\\\"}.__contains__
    start = len([*itertools.takewhile(lambda t: is_end(t[1].lower() or t[0]), tokens)])
    tokens = without_note(tokens[start:])
    while tokens and (tokens[-1] == (",", ",") or tokens[-1][0] in (".", ":", "\\\\", "\\")):
        tokens.pop()
    return tuple(tokens)


NOTE_STARTS = {"since", "because", "where", "for", "with"}
NOTE_SUBJECTS = {"all", "every", "any", "integer", "integers"}
NOTE_WORDS = NOTE_STARTS | NOTE_SUBJECTS | set("""some real number numbers is an and ( ) , { } ∈
\\mathbbR""".split())


def without_note(tokens):
    r"""The tokens without a note behind that says nothing about the value: since x > 0, where k is
    an integer, for all x."""
    said = [text.lower() or kind for kind, text in tokens]
    at = next((i for i, word in enumerate(said) if word in NOTE_STARTS), 0)
    note = said[at:]
    if not at or not ({*note} & {"since", "because"} or {*note} & NOTE_SUBJECTS and all(
            word in NOTE_WORDS or len(word) == 1 and word.isalpha() for word in note)):
        return tokens
    while at > 1 and said[at - 1] in ("(", ","):
        at -= 1
    return tokens[:at]


# ---- answers in words ----------------------------------------------------------------------------

def phrases(tokens, anyway):
    r"""Tree of an answer in words, or None if it may be a formula: \text{not even}; true, false.

    Letters surely are words if they are in \text or are four or more. A comma, "and" or "or"
    separates phrases, whose order doesn't matter unless they answer several questions.
    """
    if not {kind for kind, _ in tokens} <= {"word", "letters", "symbol", ",", "(", ")", "{", "}"}:
        return None
    runs = [text for kind, text in tokens if kind in ("word", "letters", "symbol")]
    items = [[]]
    for kind, text in tokens:
        if kind == ",":
            items.append([])
        elif kind in ("word", "letters", "symbol"):
            items[-1].append(text.lower())
    items = [item[item[0] in ("a", "an", "the", "option", "choice") and len(item) > 1:]
             for item in items if item]
    items = [" ".join(item) for item in items]
    if any(re.search("[a-z][A-Z]|[A-Z]{2}[a-z]", run) for run in runs):  # GMmR
        return None
    are_words = [kind == "word" or kind == "letters" and len(text) > 3 for kind, text in tokens]
    is_acronym = len(runs) == 1 and re.fullmatch("[A-Z]{3,}", runs[0])
    if not (any(are_words) or VERDICTS & {*items} or is_acronym or anyway) or not runs:
        return None
    if len(items) == 1 and items[0] in MEANINGS:
        return MEANINGS[items[0]]
    in_order = VERDICTS & {*items} or tokens[0][0] == "("
    return Tree("words", tuple(items if in_order else sorted(items)))


CHOICES, NO_CHOICE = {*"ABCDEFGHIJ"}, {"not", "is", "incorrect", "wrong", "false"}


def choice(tokens):
    r"""(letter, whether more follows) of a multiple choice: B, (B), \text{B. } 12, (B) ellipse."""
    tokens = [token for token in tokens if token[0] not in "{}"]
    in_bracket = tokens[:1] == [("(", "")]
    (kind, letter), *rest = tokens[in_bracket:] or [("", "")]
    letter = letter.upper() if in_bracket else letter
    more = rest[1:]
    if kind != "symbol" or letter not in CHOICES or rest and rest[0][0] not in (")", ".", ":") or (
            more and more[0][0] not in FACTOR_STARTS - {"("} | {"word", "letters"}) or any(
            kind == "," or text in CHOICES or text.lower() in NO_CHOICE for kind, text in more):
        return None
    return letter, bool(more)


# ---- formulas ------------------------------------------------------------------------------------

@lru_cache(256)
def read(text, thousands=True, anyway=False):
    """Tree of an answer. thousands: outside brackets, 1,234 is a number. anyway: letters are words
    wherever they can be.

    Raises ValueError if it can't be read, RecursionError on hundreds of nested braces.
    """
    tokens = scan(text, thousands)
    if found := phrases(tokens, anyway):
        return found
    parser = Parser([token for kind, text in tokens for token in (
        [("symbol", letter) for letter in text] if kind == "letters" else [(kind, text)])])
    x = parser.values()
    parser.take("")
    answers = both_signs(x) if any(y.kind == "pm" for y in nodes(x)) else [x]
    if len(answers) == 1:
        return answers[0]
    return tree("both" if x.kind == "rel" and x.head == ("≠",) else "list", *answers)  # x ≠ ±1


# Kinds of tokens with which a factor begins.
FACTOR_STARTS = {"number", "symbol", "fn", "begin", "(", "[", "{", "\\{", "money", "\\frac",
                 "\\binom", "⌊", "⌈", "⟨"}
CLOSING = {"(": (")", "]"), "[": (")", "]"), "⟨": ("⟩",), "{": ("}",), "|": ("|",), "⌊": ("⌋",),
           "⌈": ("⌉",), "\\{": ("\\}",)}


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
        """The next token's text, or its kind if it has none. Raises ValueError unless it is of one
        of these kinds."""
        kind, text = self.tokens[self.at]
        if kind not in kinds:
            raise ValueError(f"unexpected {text or kind}")
        self.at += 1
        return text or kind

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
        if len(items) > 1 and is_index(items[-1], items[:-1]):  # k\pi, k \in Z
            items.pop()
        if len(items) == 1:
            return items[0]
        if separators & {"∨", "∧"} and any(x.kind != "rel" for x in items):
            raise ValueError("statements")
        if all(x.kind == "rel" and not {"=", "≈"} & {*x.head} for x in items):
            return tree("union" if separators & {"or", "∨"} else "both", *items)  # x > 1 and x < 2
        return tree("set" if "or" in separators else "list", *items)

    def relation(self):
        r"""2 < x ≤ 3, x = 3 \pmod 5"""
        if self.tokens[self.at] in (("rel", "="), ("rel", "≈")):  # = 5
            self.at += 1
        sides, ops = [self.sets()], []
        while op := self.skip("rel"):
            ops.append(op)
            sides.append(self.sets())
        if self.skip("mod"):
            sides[-1] = tree("mod", self.sum(), sides[-1])
            self.skip(")")
        if ops == ["="] and all(map(is_vector, sides)):  # (x, y) = (1, 2)
            names, xs = (side.parts for side in sides)
            if all(x.kind == "name" for x in names):
                return tree("list", *(tree("rel", *pair, head=("=",))
                                      for pair in zip(names, xs, strict=True)))
        return tree("rel", *sides, head=tuple(ops)) if ops else sides[0]

    def sets(self):
        r"""(0, 1) \cup (2, 3), and the other operations on sets"""
        x = self.quantity()
        while op := self.skip("\\cup", "\\cap", "\\setminus"):
            name = {"\\cup": "union", "\\cap": "both", "\\setminus": "minus"}[op]
            x = tree(name, x, self.quantity())
        return x

    def quantity(self):
        """1:2, a value and its unit, or several: 5 ft 6 in"""
        items = [self.sum()]
        while self.bars == 0 and self.skip(":"):
            items.append(self.sum())
        x = items[0] if len(items) == 1 else tree("ratio", *items)
        if self.tokens[self.at] in (("word", "am"), ("word", "pm")):
            return self.time(items)
        items = [self.unit(x)]
        while items[0].kind == "unit" and self.next == "number":
            items.append(self.unit(self.sum()))
            if items[-1].kind != "unit":
                raise ValueError("two numbers, one unit")
        return items[0] if len(items) == 1 else tree("tuple", *items, head="units")

    def time(self, items):
        """9 a.m., 9:30 p.m."""
        hour, minute, *more = *(x.head for x in items), 0
        if any(x.kind != "number" or x.head.denominator > 1 for x in items) or len(more) > 1:
            raise ValueError("no time")
        return Tree("time", (hour, minute, self.take("word")))

    def unit(self, x):
        """The value x with the words after it. same_quantities() says which of them matter."""
        words, sign = [], 1  # [(word, power)]
        while self.next == "word" or words and self.next in ("/", "*", "^"):
            if self.skip("^"):
                words[-1] = words[-1][0], words[-1][1] * int(self.argument().head)
            elif self.skip("/"):
                sign = -1
                if self.next == "symbol":  # km/h
                    words.append((self.take("symbol"), sign))
            elif not self.skip("*"):
                word = self.take("word")
                if word == "mph":
                    words += [("miles", 1), ("hours", -1)]
                elif word == "per":
                    sign = -1
                else:
                    words.append((word, sign))
        while words and words[0][0].lower() in SCALES:
            x = tree("*", x, number(SCALES[words.pop(0)[0].lower()]))
        if not words:
            return x
        words = unit_words(words, x)
        return Tree("unit", x.head + words, x.parts) if x.kind == "unit" else (
            Tree("unit", words, (x,)) if words else x)

    def sum(self):
        """x - 1"""
        terms, sign = [], self.skip("+", "-", "\\pm", "\\mp", "+-")
        sign = "\\pm" if sign == "+-" else sign
        while True:
            while sign in ("+", "-", "+-") and (another := self.skip("+", "-", "+-")):  # 5 - -3
                sign = "+" if (sign == "+") == (another == "+") else "-"
            term = self.term()
            if sign in ("-", "+-") and terms and term.kind == "set":  # R - {0}
                terms[-1] = tree("minus", terms[-1], term)
            elif sign in ("-", "+-"):
                terms.append(negative(term))
            elif sign in ("\\pm", "\\mp"):
                terms.append(tree("pm", term, head=1 if sign == "\\pm" else -1))
            else:
                terms.append(term)
            if not (sign := self.skip("+", "-", "\\pm", "\\mp", "+-")):
                break
        if {x.kind for x in terms} == {"matrix"} and len(
                {(x.head, len(x.parts)) for x in terms}) == 1:
            entries = zip(*(x.parts for x in terms), strict=True)
            return terms[0]._replace(parts=tuple(tree("+", *entry) for entry in entries))
        return terms[0] if len(terms) == 1 else tree("+", *terms)

    def term(self):
        r"""2x \cdot 3/4. From left to right: 1/2x is (1/2)x.

        A whole number before a proper fraction is added to it: 6\frac{1}{6}.
        """
        above, below = [self.factor()], []
        if first_name(above[0]).startswith(OPERATORS) and self.next in FACTOR_STARTS:
            return tree("app", self.term(), head=str(above[0]))
        while True:
            before, text = self.tokens[self.at - 1]
            if self.skip("/"):
                below.append(self.signed())
                while below[-1].kind == "name" and self.next == "symbol":  # t/RC is t/(RC)
                    below.append(self.factor())
            elif sign := self.skip("*"):
                above.append(self.signed())
                if sign in ("\\times", "×") and any(x.kind == "name" and re.match(
                        r"\\(?:vec|hat|over)|[A-Z]$", x.head) for x in above[-2:]):
                    raise ValueError("a product whose order matters")
            elif self.next == "number" and before in ("°", "'"):  # 30° 15'
                return product(above)
            elif self.next in FACTOR_STARTS or self.next == "|" and not self.bars:
                if self.next == before == "number":
                    raise ValueError("two numbers in a row")
                may_be_mixed = before == "number" and text.isdigit() and self.next == "\\frac"
                if self.next == "symbol" and self.tokens[self.at][1].startswith(OPERATORS):
                    above.append(self.term())
                    continue
                factor = self.factor()
                above[-1:] = [mixed_number(above[-1], factor)] if may_be_mixed else [
                    above[-1], factor]
            else:
                above = [x for x in above if not is_index(x, above)]  # k\pi (k \in Z)
                return quotient(product(above), product(below)) if below else product(above)

    def signed(self):
        """A factor with or without a sign."""
        sign = self.skip("-", "+")
        return negative(self.factor()) if sign == "-" else self.factor()

    def factor(self):
        """x^2, n!, 50%, 30°, 12_5"""
        x = self.base()
        while True:
            if self.skip("^"):
                x = tree("^", x, self.argument())
                if x.parts[0].head in ("f", "g") and x.parts[1] == number(-1) and self.next == "(":
                    x = tree("app", self.base(), head=x.parts[0].head + "^-1")
            elif self.skip("!"):
                if self.next == "!":
                    raise ValueError("double factorial")
                x = tree("fn", x, head="factorial")
            elif self.skip("%"):
                x = Tree("unit", PERCENT, (x,))
            elif self.skip("°"):
                x = Tree("unit", DEGREE, (x,))
            elif money := self.skip("money"):
                x = Tree("unit", ((money, 1),), (x,))
            elif self.next == "'" and x.kind == "number":
                x = Tree("unit", ((self.take("'"), 1),), (x,))
            elif x.kind == "number" and (self.next == "_" or self.tokens[self.at][1] == "base"):
                self.at += 1
                x = based(x, self.argument())
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
        if kind == "number":
            return exact(text)
        if kind == "symbol":
            return self.applied(text)
        if kind == "word":
            return self.words(text)
        if kind in CLOSING:
            return self.bracketed(kind)
        if kind == "\\frac":
            return quotient(self.argument(digit=True), self.argument(digit=True))
        if kind == "\\binom":
            return tree("fn", self.argument(digit=True), self.argument(digit=True), head="binom")
        if kind == "fn":
            return self.function(text)
        if kind == "money":
            sign = self.skip("-")
            x = Tree("unit", ((text, 1),), (self.term(),))
            return negative(x) if sign else x
        if kind == "begin":
            return self.matrix(text)
        raise ValueError(f"unexpected {text or kind}")

    def words(self, text):
        """total cost; USD 5"""
        if text.lower() in CURRENCIES and self.next == "number":
            return Tree("unit", ((CURRENCIES[text.lower()], 1),), (self.term(),))
        while self.next == "word":
            text += " " + self.take("word")
        return Tree("word", text.lower())

    def bracketed(self, left):
        """(x), (1, 2], |x|, {1, 2}: what follows an opening bracket"""
        if left in ("⌊", "⌈"):
            return self.closed(left, "floor" if left == "⌊" else "ceil")
        bars, self.bars = self.bars, self.bars + 1 if left in ("|", "\\{") else 0
        x = self.braces() if left == "\\{" else self.sum() if left == "|" else self.values()
        if left == "{" and (command := self.skip("\\over", "\\choose")):
            below = self.values()
            x = quotient(x, below) if command == "\\over" else tree("fn", x, below, head="binom")
        self.bars = bars
        right = self.take(*CLOSING[left])
        if left == "|":
            return tree("fn", x, head="abs")
        if left in ("{", "\\{"):
            return x
        left = left.replace("⟨", "(") + right.replace("⟩", ")")
        if x.kind == "list":
            return Tree("tuple", left if len(x.parts) == 2 else "()", x.parts)
        if left not in ("()", "[]"):
            raise ValueError("unexpected brackets")
        return x

    def closed(self, left, name):
        x = self.sum()
        self.take(*CLOSING[left])
        return tree("fn", x, head=name)

    def braces(self):
        """What \\{1, 2\\} or \\{x : x > 1\\} hold"""
        if self.next == "\\}":
            return EMPTY
        x = self.values()
        if not self.skip("|", ":"):
            return tree("set", *both_signs(x))
        is_real = x.kind == "rel" and x.head == ("∈",) and x.parts[1] == REALS
        name = x.parts[0] if is_real else x
        condition = self.values()
        if name.kind != "name" or name not in nodes(condition):
            raise ValueError("a set of terms, or a condition on something else")
        return condition

    def applied(self, name):
        """A variable, the value of a function or a point: f(x+1), P(2), P(X > 2), A(1, 2); but
        n(n+1) and mg(h+1) are products."""
        x = Tree("name", name)
        if self.next != "(" or name in CONSTANTS:
            return x
        content, depth = [], 0
        for kind, text in self.tokens[self.at:]:
            depth += (kind == "(") - (kind in (")", "]"))
            content.append((kind, text))
            if not depth:
                break
        kinds = [kind for kind, _ in content[1:-1]]
        after_name = self.tokens[self.at - 2:self.at - 1][0][0] == "symbol" if self.at > 1 else False
        is_event = {"rel", "|", ",", "\\cap", "\\cup", "word"} & {*kinds}
        if name[0].isupper() and "," in kinds and "rel" not in kinds and not after_name and (
                name not in ("N", "U")):
            return tree("rel", x, self.base(), head=("=",))
        if kinds in (["number"], ["symbol"], ["-", "number"]) or (
                name[0] in "fg" and not after_name and not is_event):
            return tree("app", self.base(), head=name)
        if (name in ("P", "E") or len(name) > 1 and "_" not in name) and is_event:
            self.at += len(content)
            return Tree("name", name + "".join(text or kind for kind, text in content))
        return x

    def function(self, name):
        r"""\sin^2 2x, \log_2 8, \sqrt[3]{x}.

        Without brackets, the argument is a factor and all variables after it: \sin 2 \pi x \cos x.
        """
        if name == "sqrt":
            n = self.base() if self.next == "[" else number(2)
            return tree("fn", self.argument(), n, head="root")
        power = base = None
        while op := self.skip("^", "_"):
            if op == "^":
                power = self.argument()
            else:
                base = self.argument()
        minus, bracket = self.skip("-"), self.next in ("(", "[", "{", "|")
        args = [self.base() if bracket else self.factor()]
        while not bracket and self.next == "symbol":
            args.append(self.factor())
        x = negative(product(args)) if minus else product(args)
        if name == "exp":
            return tree("^", E, x)
        if power == number(-1):
            name, power = "arc" + name, None
        name = "ln" if base else "log10" if name == "lg" else name
        x = tree("fn", x, head=name)
        if base:
            x = tree("/", x, tree("fn", base, head="ln"))
        return tree("^", x, power) if power else x

    def matrix(self, name):
        r"""What follows \begin{pmatrix} or one of its relatives, up to \end."""
        if not re.fullmatch(r"[pbB]?matrix|smallmatrix|array|cases", name):
            raise ValueError(f"unexpected {name}")
        rows = [[]]
        while not self.skip("end"):
            rows[-1].append(self.relation())
            if self.skip("\\\\"):
                if self.next != "end":
                    rows.append([])
            elif self.next != "end":
                if name == "cases":
                    self.skip(",")
                self.take("&")
                if name == "cases" and self.tokens[self.at][1] in ("if", "when", "for"):
                    self.at += 1
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        if len(rows[0]) == 1 and all(row[0].kind == "rel" for row in rows):
            return tree("list", *(row[0] for row in rows))
        return tree("matrix", *(x for row in rows for x in row), head=len(rows[0]))


PERCENT, DEGREE = (("percent", 1),), (("degree", 1),)


def exact(text):
    """A number's value."""
    mantissa, *exponent = re.split("[eE]", text)
    if exponent and abs(int(exponent[0])) > 5000:
        raise ValueError("too large")
    return number(Fraction(mantissa) * Fraction(10) ** int(exponent[0] if exponent else 0))


def based(digits, base):
    """12_5. It equals only the same digits in the same base: where 7 is asked for in base 5, 7 is
    a wrong answer. In base 10 it is an ordinary number."""
    if base.kind != "number" or base.head not in range(2, 37):
        raise ValueError("no base")
    return digits if base.head == 10 else tree("base", digits, head=int(base.head))


def is_index(x, others):
    r"""Is x a note that a variable of the other trees is any integer? k \in \mathbb{Z}"""
    return (x.kind == "rel" and x.head == ("∈",) and x.parts[1].head == "\\mathbbZ"
            and any(y.kind != "rel" or {*y.head} == {"="} for y in others if y is not x)
            and any(x.parts[0] in variables(y) for y in others if y is not x))


def mixed_number(whole, part):
    r"""The sum of a whole number and the fraction right after it, as in 6\frac{1}{6} and
    6\frac14\%; else their product."""
    match part:
        case Tree("/", _, (Tree("number", a), Tree("number", b))) if 0 < a < b:
            return tree("+", whole, part)
        case Tree("unit", words, (Tree("/", _, (Tree("number"), Tree("number"))) as fraction,)):
            return Tree("unit", words, (tree("+", whole, fraction),))
    return product([whole, part])


def unit_words(words, x):
    """The units ((name, power), ...) of these words after the value x: cm, right triangles, 元.

    Raises ValueError if they may say more than a unit.
    """
    last = next((word.lower() for word, power in reversed(words) if power > 0), "")
    if any(word == "k" or word.lower() in SCALES or NOT_UNITS.fullmatch(word.lower())
           or not word.isalpha() for word, _ in words) or not (
            last in UNITS or last.removesuffix("s") in UNITS or last in MEASURES or not last
            or last.isascii() and (len(last) < 4 or last.endswith("s") or x == number(1))):
        raise ValueError("words that may say more than a unit")
    if len(words) > 1 and words[0][0] in ("sq", "square", "cu", "cubic"):
        words[:2] = [(words[1][0], 2 if words[0][0][0] == "s" else 3)]
    return tuple((unit_name(word), power) for word, power in words
                 if word not in ("a", "an", "of", "the", "radian", "radians"))


def unit_name(word):
    """A unit's first name: cm for centimeters. M of MW is mega, and m of mW is milli."""
    low = word.lower()
    if re.fullmatch("M(?i:g|w|hz|j|pa|ev|v)", word):
        return word
    single = low.removesuffix("s")
    return UNITS.get(low) or UNITS.get(single) or single
