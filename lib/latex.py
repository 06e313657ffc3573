r"""Final answers in LaTeX or plain text, read into trees.

`normalise` drops what is only looks (fonts, sizes, colours) and replaces Unicode by LaTeX; `words`
reads answers in words; `parse` makes a tree of any other. No text is ever run as code.

A tree is a Fraction, a str (variable or constant), or a tuple of a kind and its parts:

  scalars   ("+", a, ...)   ("neg", a)   ("*", a, ...)   ("/", a, b)   ("^", a, b)
            ("fn", name, a, ...)             \sin a, \sqrt[n]{a} ...
            ("app", f, x)                    f(x)
            ("unit", (word, ...), a)         5 cm
            ("pm", sign, a)                  \pm a if the sign is 1, \mp a if it is -1
  others    ("list", a, ...)                 1, 2
            ("set", a, ...)                  \{1, 2\}
            ("tuple", "(", "]", a, ...)      (1, 2]
            ("matrix", columns, a, ...)      the entries row by row
            ("ratio", a, ...)                1:2
            ("rel", ("<", ...), a, b, ...)   a < b ...
            ("mod", n, a)                    a \pmod{n}
            ("base", digits, base)           12_5
            ("time", hour, minute, "am")     9:30 a.m.
            ("compound", a, ...)             5 ft 6 in
            ("word", text)                   even
  sets of   ("union", a, ...)                a \cup b
  reals     ("both", a, ...)                 a \cap b
            ("minus", a, b)                  a \setminus b
"""
import itertools
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache


class Work:
    """What comparisons cost. One state per process, so they are not thread-safe."""
    left = 0  # evaluation steps that the running comparison may still take

    @classmethod
    def spend(cls, steps):
        cls.left -= steps
        if cls.left < 0:
            raise RecursionError("too much work")  # no ValueError, which may only mean "different"


# ---- text ----------------------------------------------------------------------------------------

SPELLINGS = {  # characters: what replaces each of them
    "− – — ‐ ‑": "-",        "× ✕": r"\times ",      "· ⋅ ∙ •": r"\cdot ",
    "÷": r"\div ",           "⁄": "/",               "º ˚": "°",
    "√": r"\sqrt ",          "∞": r"\infty ",        "′ ’": "'",
    "≤ ⩽": r"\le ",          "≥ ⩾": r"\ge ",         "≠": r"\ne ",
    "≈": r"\approx ",        "∈": r"\in ",           "∅": r"\emptyset ",
    "∪": r"\cup ",           "∩": r"\cap ",          "∖": r"\setminus ",
    "±": r"\pm ",            "∓": r"\mp ",           "“ ”": "",
    "⌊": r"\lfloor ",        "⌋": r"\rfloor ",       "⟨": r"\langle ",
    "⌈": r"\lceil ",         "⌉": r"\rceil ",        "⟩": r"\rangle ",
    "∠": r"\angle ",         "△": r"\triangle ",     "∘": r"\circ ",
    "ℝ": r"\mathbb{R} ",     "ℤ": r"\mathbb{Z} ",    "ℕ": r"\mathbb{N} ",
    "、": ",",               "。": ".",              "≡": r"\equiv ",
    "和 与 及": " and ",     "或": " or ",           "∶": ":",
}
UNICODE = str.maketrans({character: new for characters, new in SPELLINGS.items()
                         for character in characters.split()})
SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789-+n0123456789")
GROUP = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
TEXT = re.compile(r"\\(?:[mh]box|emph|text(?:bf|it|rm|sf|tt|up|normal)?|mathrm|operatorname\*?)"
                  r"\s*" + GROUP)
# What changes nothing but the looks of what follows, or of nothing.
LOOKS = re.compile(rf"""(?<!\\)\$ | \\[()]
    | (?<!\\)\\[\[\]]                                            # \[5\], but not \\[2pt]
    | \\(?:left|right|middle)(?![a-zA-Z])(?:\s*\.(?!\d))?
    | \\(?:[bB]igg?[lrm]?|(?:display|text|script)style|(?:no)?limits|underline|rm|bf|it|sf|tt
      |math(?:bf|it|sf|tt|normal|cal|scr|frak|op)|boldsymbol|bm|pmb|boxed|fbox|ensuremath
      |tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z])
    | ^\s*(?:\\text\s*\{{)?\s*(?:[Tt]he\ )?(?:[Ff]inal\ )?(?:[Aa]nswer(?:\ is)?|答案):?\s(?:\s*\}})?
    | ^\s*\\(?:therefore|implies|Rightarrow|rightarrow)(?![a-zA-Z])
    | \\(?:(?:text)?color(?:box)?|[hv]space|label|tag)\*?\s*{GROUP}
    | \\[hv]?phantom\s*(?:{GROUP}|.)
    | \\(?:checkmark|blacksquare|square|qed)(?![a-zA-Z])\s*$ | ^∴
    | \bnp\. | (?<=\bsq)\. | (?<=\bcu)\. | (?<=\bRs)\. | \bUS(?=\s?\\?\$)""", re.VERBOSE)
# A note behind an answer that says nothing about its value: for all x, where k is an integer.
GAP = r"(?:[\s}]|\\text\s*\{){0,6}"
NOTE = re.compile(rf"""\b(?:(?:since|because)\b.*
    |(?:for|where)\ (?:all|every|any){GAP}(?:real\ )?(?:numbers?\ )?{GAP}[a-z]?{GAP}
     (?:\\in\s*\\mathbb\s*\{{?R\}}?)?
    |(?:for|where|with){GAP}(?:some\ )?[a-z]?{GAP}(?:is\ )?(?:an\ |any\ )?integers?(?:\ [a-z])?)
    [\s)}}.]*$""", re.VERBOSE)
# Reversed brackets of an interval: ]0, 1[
INTERVAL = re.compile(r"([\[\](])([^\[\]()]{1,200}(?<!sqrt))([\[\])])")
DECIMAL = re.compile(r"-?\d{1,4000}(?:\.\d{1,4000})?")
FUNCTIONS = """arcsinh arccosh arctanh arcsin arccos arctan arccot sinh cosh tanh coth sech csch
sin cos tan cot sec csc log ln lg exp sqrt""".split()
NAMED_FUNCTION = re.compile(r"\\(?:operatorname|mathrm|text)\s*\{\s*"
                            rf"({'|'.join(FUNCTIONS)})\s*\}}")
ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {word: n for n, word in enumerate(ONES)} | {
    ten + one: 20 + 10 * i + n for i, ten in enumerate(TENS)
    for n, one in [(0, ""), *((n, sign + ONES[n]) for n in range(1, 10) for sign in "- ")]}
HUNDREDS = re.compile(rf"\b({'|'.join(ONES[1:10])}) hundred(?: and)? "
                      rf"({'|'.join(sorted(NUMBER_WORDS, key=len, reverse=True))})\b")
PARTS = "half third quarter fifth sixth seventh eighth ninth tenth".split()
MEANINGS = {text: meaning for texts, meaning in (  # answers in words: the same in symbols
    ("no solution, no solutions, no real solution, no real solutions, empty set, none, 无解",
     r"\{\}"),
    ("all real numbers, all reals", r"\mathbb{R}"), ("infinity, infinite", r"\infty"))
    for text in texts.split(", ")} | {
    f"{sign}{word}": f"{'-' * bool(sign)}{n}" for word, n in NUMBER_WORDS.items()
    for sign in ("", "negative ", "minus ")} | {
    f"{ONES[n]}{gap}{part}{'s' * (n > 1)}": rf"\frac{{{n}}}{{{d}}}" for n in range(1, 10)
    for d, part in enumerate(PARTS, 2) for gap in " -"}
MEANINGS = {(text,): meaning for text, meaning in MEANINGS.items()}  # as words() returns them
# Words of which a list has an order: answers to several questions.
VERDICTS = set("""yes no true false increasing decreasing positive negative even odd left right up
down""".split())


@lru_cache(256)  # every sample of a prompt is compared with the same answer
def normalise(text):
    """The answer in LaTeX's characters, without what changes only its looks."""
    if not text.isascii():
        text = re.sub("([⁰¹²³⁴-⁹⁻⁺ⁿ]+)", r"^{\1}", text)
        text = re.sub("([₀-₉]+)", r"_{\1}", text).translate(SMALL)
        text = re.sub("[¼-¾⅐-⅞]", fraction_sign, text).translate(UNICODE)
        text = unicodedata.normalize("NFKC", text).translate(UNICODE)
        text = re.sub("[Α-ΡΣ-Ωα-ω]", greek, text)
    text = " ".join(text.split())
    if found := re.fullmatch(r"(\*\*?|__|`|\")(.+)\1", text):  # Markdown, quotes
        text = found[2]
    text = HUNDREDS.sub(hundreds, text)
    if "{cases}" in text:
        text = re.sub(r"[,;]?\s*&\s*(?:\\text\s*\{\s*(?:if|when|for)\s*\})?", " & ", text)
    if not text.isalnum():
        if text.count("\\{") > text.count("\\}"):  # \left\{ \begin{array} ... \right.
            text = re.sub(r"\\\{\s*(?=\\begin)", "", text)
        text = LOOKS.sub("", text)
        text = NAMED_FUNCTION.sub(r"\\\1 ", text)
        text = INTERVAL.sub(interval, without_note(text))
    text = text.lstrip(" ,;:").rstrip()
    return text if text.endswith("...") else text.rstrip(" .,;:\\")


def hundreds(found):
    return str(100 * NUMBER_WORDS[found[1]] + NUMBER_WORDS[found[2]])


def without_note(text):
    found = NOTE.search(text)
    kept = text[:found.start()] if found else text
    while found and kept != (shorter := kept.rstrip(" ,;(").removesuffix("\\text{")):
        kept = shorter
    return kept or text


def interval(found):
    left, inside, right = found.groups()
    if not re.search("[,;]", inside):
        return found[0]
    return f"{'[' if left == '[' else '('}{inside}{']' if right == ']' else ')'}"


def fraction_sign(found):
    r"""\frac{1}{2} for ½, of which NFKC makes 1⁄2."""
    above, below = unicodedata.normalize("NFKC", found[0]).split("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def greek(found):
    r"""\lambda for λ, whose name in Unicode is GREEK SMALL LETTER LAMDA."""
    *_, size, _, name = unicodedata.name(found[0]).replace("FINAL ", "").split()
    name = name.lower() if size == "SMALL" else name.capitalize()
    return f"\\{name.replace('amda', 'ambda')} "


@lru_cache(256)
def words(text):
    r"""(words of an answer, whether it is surely text and no formula).

    (("even",), True) for \text{Even}; (None, False) for 2x, which isn't made of words. A comma,
    "and" or "or" separates words, whose order doesn't matter unless they answer several questions.
    Letters surely are words if they are in \text or are four or more.
    """
    bare = re.sub(r"^\s*\{(.*?)\}\s*$", r"\1", TEXT.sub(r" \1 ", text))
    if re.fullmatch(r"\S*[a-z][A-Z]\S*|[A-Z]{2,}[a-z]\S*", bare):  # GMmR
        return None, False
    if not re.fullmatch(r"(?:[^\W\d_]|[\s.,'()&]|(?<=[a-zA-Z])-(?=[a-zA-Z]))+", bare):
        return None, False
    items = [" ".join(re.findall(r"(?:[^\W\d_]|[-'])+", item))
             for item in re.split(r"[,&]|\band\b|\bor\b", bare.lower())]
    items = [re.sub(r"^(?:a|an|the|option|choice|answer) ", "", item) for item in items]
    items = ["does not exist" if item in ("dne", "doesn't exist") else item for item in items]
    was_wrapped = bare != text and "\\mathrm" not in text  # in \text{} or \{\}
    looks_like_text = re.search(r"[^\W\d_]{4}|^\(?[a-zA-Z]\)$|^[A-Z]{3}$", bare)
    is_function = re.fullmatch(f"(?:{'|'.join(FUNCTIONS)})[a-z]?", bare)
    if NUMBER_WORD.match(items[0]):
        return tuple(items), False
    items = [item for item in items if item]
    if not VERDICTS & {*items} and not bare.strip().startswith("("):
        items.sort()
    return tuple(items), bool(was_wrapped or VERDICTS & {*items}
                              or looks_like_text and not is_function)


def choice(text):
    r"""The letter of a multiple choice, else None: B for B, (B), \text{B. } 12 and (B) ellipse."""
    text = TEXT.sub(r"\1", text).strip(" {}")
    found = re.fullmatch(r"\(?([A-J])(?:[).:]?|[).:] ?([\w\\].*))", text)
    if not found or re.search(r"\b[A-J]\b|[,;]|\b(?:and|or|not|is|incorrect|wrong|false)\b",
                              found[2] or ""):
        return None  # also for (B) or (C)
    return found[1]


def as_text(text):
    """What is compared of answers that can't be parsed: without spaces, text commands and their
    case."""
    return re.sub(r"(?<!\d)\s|\s(?!\d)|(?<=[a-z])\.", "", TEXT.sub(
        lambda found: found[1].lower() if len(found[1]) > 4 else found[1], text))


# ---- tokens: (kind, text) ------------------------------------------------------------------------

COMMANDS = {alias: kept for kept, *aliases in map(str.split, r"""
\frac dfrac tfrac cfrac sfrac nicefrac
\binom dbinom tbinom
| lvert rvert vert mid |
% %
\{ lbrace
\} rbrace
[ lbrack
] rbrack
< lt
> gt
≤ le leq leqslant leqq
≥ ge geq geqslant geqq
≠ ne neq
≈ approx simeq
≡ equiv
∈ in
* times cdot ast
/ div
: colon
\cup bigcup
\cap bigcap
\setminus backslash smallsetminus
∨ lor vee
∧ land wedge""".strip().splitlines()) for alias in aliases}
SYMBOLS = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu
nu xi rho varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma
Upsilon Phi Psi Omega pi infty hbar ell odot star partial nabla perp parallel sum prod int lim
max min Pr top det gcd deg dim""".split()
UNIT_NAMES = """mm millimeter millimetre|cm centimeter centimetre|m meter metre
km kilometer kilometre|inch inches in|foot feet ft|yard yd|mile mi
second sec s|minute min|hour hr h|day|week|month|year yr
mg milligram|gram gm g|kilogram kg|pound lb|ounce oz|ton
celsius|fahrenheit|liter litre l|milliliter ml|gallon gal|dollar usd|cent|euro eur
rupee rs inr|yuan cny rmb|gbp
degree deg|percent percentage pct|radian rad|mph|am|pm
nm|ev|hz|mol|unit|j|n|w|v|a|k|c"""
UNITS = {alias: names.split()[0]  # each name of a unit: the unit's first name
         for names in UNIT_NAMES.replace("\n", "|").split("|") for alias in names.split()}
# Units of two letters that are units also outside \text; others may be products: 3 mg.
SHORT_UNITS = {"mm", "cm", "km", "kg", "ft", "lb", "hr", "nm", "ev", "hz", "yr", "oz"}
CURRENCIES = {"$": "dollar", "¢": "cent", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee",
              "₽": "ruble", "usd": "dollar", "eur": "euro", "gbp": "pound", "rs": "rupee",
              "inr": "rupee", "cny": "yuan", "rmb": "yuan"}
# Words after a value that change it, as a unit doesn't.
NOT_UNITS = re.compile(r"""(?:squared|cubed|factorial|half|halves|quarters?|plus|minus|times|less
    |more|fewer|greater|least|most|below|above|negative|positive|doubled?|tripled?|divided|root
    |pi|infinity|dozens|tens|hundreds|thousands|couples?|trios?|myriads?|groups?|sets?|bn|mn|grand
    |fold|lakhs?|crores?|out|by|to|over|r\d*|remainder|be|can|cannot|may|must|not|no|is|are|does
    |false|wrong|incorrect|undefined|if|when|where|for|mod|except|or
    |(?:third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand
    |\w+illion)th)s?|\w+ill(?:i?on(?:s|es|en)?)|\w+fold|score|gross|pairs?|半)""", re.VERBOSE)
MEASURES = set("""元 円 원 角 美元 个 人 只 本 张 岁 年 月 天 日 米 厘米 分米 毫米 千米 公里
平方米 平方厘米 立方米 小时 时 分钟 分 秒 度 棵 支 块 名 位 条 辆 件 头 朵 页 克 千克 公斤 吨
升 毫升 руб рублей м см км кг ч мин""".split())
PLURALS = "people children men women feet fish sheep mice geese teeth".split()
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
          "trillion": 10**12, "百": 100, "千": 10**3, "万": 10**4, "亿": 10**8, "兆": 10**12}
SPACE = re.compile(r"(?:[\s~]|\\[,;:!>\s]|\\q?quad(?![a-zA-Z])|(?<!\\)\{\s*\})+")
IN_TEXT, OUT = r"(?:\\(?:text|mathrm)\s*\{\s*)?", r"\s*\}?"
# Thousands, with a comma only where it is no separator of a list.
GROUPED = r"(?<![\d.,])\d{{1,3}}(?:(?:\s*(?:{})\s*| (?=\d{{3}}(?![\d/])))\d{{3}}(?!\d))+(?:\.\d+)?"
THIN = r"\\!\s*,\s*\\!|,\s*\\!|\\!\s*,|\\,|\\!|\{,\}"
THOUSANDS = [re.compile(GROUPED.format(THIN + more)) for more in ("", "|,(?! )")]
MIXED = re.compile(r"(\d+) (\d+)/(\d+)(?![\d.])")
UNIT_FRACTION = re.compile(rf"\\[dtc]?frac\s*\{{({TEXT.pattern})\}}\s*"
                           rf"\{{({TEXT.pattern}(?:\^\{{?\d\}}?)?)\}}")
NUMBER_WORD = re.compile(rf"(?:{'|'.join(sorted(NUMBER_WORDS, key=len, reverse=True))})(?![a-z])",
                         re.IGNORECASE)
PRIMES = r"\^\s*(?:\\prime(?![a-zA-Z])|\{\s*(?:\\prime\s*)+\})"
TOKEN = re.compile(rf"""
 (?P<time>(?P<hour>\d\d?)(?::(?P<minute>\d\d))?(?:\s|\\\ )*      # 9:30 a.m.
   {IN_TEXT}(?P<half>[aApP])\.?\ ?[mM]\b\.?(?:\s*\}})?)
|(?P<based>(?:\((?P<in_brackets>\d[\dA-F]*)\)|\{{(?P<in_braces>\d[\dA-F]*)\}}
     |(?P<digits>\d+(?![\d.])|\d*\.\d+(?!\d)|\d[\dA-F]*(?=_\{{?1[1-6])))
   (?:_\{{?\s*{IN_TEXT}\(?\s*(?P<base>\d+|[a-z]+)\s*\)?\s*\}}{{0,2}}   # 12_5  12_{{\text{{five}}}}
     |\s*{IN_TEXT}\(?base\s*(?:\}}\s*)?(?P<base_>\d+|[a-z]+)\)?{OUT}))
|(?P<ordinal>(?P<nth>\d+)\s*(?:\^\s*)?\{{?\s*{IN_TEXT}(?:st|nd|rd|th)\b[\s}}]*)
|(?P<number>(?:\d+\.?\d*|\.\d+|\.(?=\\(?:overline|bar)))        # 12  .5
   (?:[eE][+-]?\d+                                              # 1e5
     |(?<=\.)\(\d+\)|(?<=\.\d)\(\d+\)|(?<=\.\d\d)\(\d+\)        # 0.1(6)
     |\\(?:overline|bar|dot)\s*\{{?\d+\}}?)?)                   # 0.\overline{{3}}
|(?P<begin>\\begin\s*\{{(?P<name>\w+)\*?\}}(?:\{{[lcr|\s]*\}})?)
|(?P<end>\\end\s*\{{\w+\*?\}})
|(?P<row>\\\\(?:\s*\[[\d.]+\ *[a-z]+\])?)
|(?P<dots>\.\.\.|\\[lcd]?dots[cb]?(?![a-zA-Z]))
|(?P<mod>\(?\s*(?:\\[pb]?mod(?![a-zA-Z])|{IN_TEXT}\s*mod(?:ulo)?\b{OUT}))
|(?P<degree>(?:\^\s*(?:\\circ(?![a-zA-Z])|\{{\s*(?:\\circ|°)\s*\}}|\\degree(?![a-zA-Z])|°)
   |°|\\degree(?![a-zA-Z]))(?:\s*(?:\\(?:text|mathrm)\s*\{{\s*)?(?P<scale>[CF])\b(?:\s*\}})?)?)
|(?P<prime>{PRIMES}|'+|")
|(?P<plusminus>\+\s?/\s?-|\+-)
|(?P<power>\*\*)
|(?P<rel>[<>!=]=|[=<>])
|(?P<money>\\?[$€£¥₹₽¢])
|(?P<fn>\\?(?:{"|".join(FUNCTIONS)})(?![a-z]{{2}}))
|(?P<letters>[a-zA-Z]{{2,}}(?![_'a-zA-Z]))
|(?P<symbol>(?:\\(?:{"|".join(SYMBOLS)})(?![a-zA-Z])
     |[a-zA-Z]
     |\\R(?![a-zA-Z])
     |\\(?:angle|triangle)\s*[A-Z](?:\s*[A-Z])*
     |\\(?:overline|bar|vec|hat|widehat|tilde|d?dot|overrightarrow|mathbb)
      \s*(?:\{{[^{{}}]*\}}|\w))                                 # \vec{{v}}
   (?:_(?:\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|\w|\\[a-zA-Z]+)     # x_{{1}}
     |{PRIMES}|')*)                                             # y'
|(?P<script>[^\W\d_a-zA-Z]+)
|(?P<other>\\[a-zA-Z]+|\\.|\S)""", re.VERBOSE)
SEPARATORS = {",": (",", ","), ";": (",", ","), "and": (",", "and"), "or": (",", "or"),
              "to": (":", ":")}
ROWS = {"cases", "aligned", "align", "gathered", "split", "eqnarray"}  # no matrices


def tokenize(text, thousands):
    """[(kind, text)] of a normalised answer. thousands: outside brackets, 1,234 is a number."""
    tokens, at, depth, spaced, environments = [], 0, 0, True, []
    while at < len(text):
        if found := SPACE.match(text, at):
            at, spaced = found.end(), True
            continue
        before = tokens[-1][0] if tokens else ""
        if found := THOUSANDS[thousands and depth == 0].match(text, at):
            tokens.append(("number", re.sub(r"[^\d.]", "", found[0])))
        elif found := UNIT_FRACTION.match(text, at):  # \frac{\text{m}}{\text{s}}
            tokens += [*tokenize(found[1], False), ("/", "/"), *tokenize(found[3], False)]
        elif (found := MIXED.match(text, at)) and int(found[2]) < int(found[3]):  # 1 1/2
            tokens += tokenize(rf"{found[1]}\frac{{{found[2]}}}{{{found[3]}}}", False)
        elif (found := TEXT.match(text, at)) and found[1].isalpha() and (
                text.startswith("(", found.end()) and before != "number"):  # \text{Var}(X)
            tokens.append(("symbol", found[1]))
        elif found := TEXT.match(text, at):
            after_value = before in ("number", "symbol", ")", "}", "°")
            tokens += text_tokens(found[1], thousands, after_value)
        elif (found := NUMBER_WORD.match(text, at)) and text[at - 1:at].isalpha() is False:
            tokens.append(("number", str(NUMBER_WORDS[found[0].lower()])))
        else:
            found = TOKEN.match(text, at)
            token = found[0]
            if found.lastgroup == "other":
                depth += (token in ("(", "[", "\\{")) - (token in (")", "]", "\\}"))
            if found.lastgroup == "end" and before == "," and environments[-1:] == [True]:
                tokens.pop()  # of a row that is empty
            after = text[found.end():found.end() + 20].lstrip()
            tokens += read_token(found, before, after, spaced, environments)
        at, spaced = found.end(), False
    return tokens


def read_token(found, before, after, spaced, environments):
    r"""The tokens of what TOKEN has found.

    before: the kind of the token before; after: the text after it; spaced: whether it follows a
    space; environments: for each open \begin whether its rows are a list's, else a matrix's.
    """
    name, token = found.lastgroup, found[0]
    as_rows = not environments or environments[-1]
    match name:
        case "time":
            return [(name, (int(found["hour"]), int(found["minute"] or 0), found["half"].lower()))]
        case "based":
            digits = found["in_brackets"] or found["in_braces"] or found["digits"]
            base = found["base"] or found["base_"]
            return [(name, (digits, int(NUMBER_WORDS.get(base, base))))]
        case "ordinal":
            return [("number", found["nth"]), ("word", "th")]
        case "begin":
            environment, rest = found["name"], found.string[found.end():].partition("\\end")[0]
            environments.append(environment in ROWS and (environment != "cases" or "&" not in rest))
            return [("{", "{") if environments[-1] else (name, environment)]
        case "end":
            return [("}", "}") if environments and environments.pop() else (name, token)]
        case "row" if as_rows and re.match(r"&?\s*=", after):  # x &= 2 + 3 \\\\ &= 5
            return []
        case "row":
            return [(",", token) if as_rows else ("\\\\", token)]
        case "degree":
            scale = {"C": "celsius", "F": "fahrenheit", None: ""}[found["scale"]]
            return [("°", token), *([("word", scale)] if scale else [])]
        case "prime":
            return [("'", '"' if token in ('"', "''") else "'")]
        case "plusminus":  # +- between two terms is two signs
            starts = "/" in token or before in ("", "rel", "(", "[", "{", ",")
            return [("\\pm", "\\pm")] if starts else [("+", "+"), ("-", "-")]
        case "power":
            return [("^", token)]
        case "rel":
            return [(name, {"<=": "≤", ">=": "≥", "!=": "≠"}.get(token, token[0]))]
        case "money":
            return [(name, CURRENCIES[token[-1]])]
        case "fn":
            return [(name, token.lstrip("\\"))]
        case "letters":
            return letter_tokens(token, spaced or before == "}", before == "word")
        case "symbol":
            if token == "\\deg" and before == "number":
                return [("°", token)]
            if token in "xX" and before == "number" and re.match(r"10\s*\^", after):  # 3 x 10^8
                return [("*", token)]
            if token == "U" and before in (")", "]") and after[:1] in ("(", "[", "\\"):
                return [("\\cup", "\\cup")]
            if token.lower() in UNITS and before == "number" and spaced and after[:1].isdigit():
                return [("word", token)]  # 2 h 30 min
            return [(name, symbol(token))]
        case "script":
            scales = "" if token in MEASURES else re.match("[百千万亿兆]*", token)[0]
            return [("word", word) for word in (*scales, token[len(scales):]) if word]
        case "other" if token == "&" and environments and as_rows:
            return []
        case "other":
            return other_tokens(token)
    return [(name, token)]


def symbol(token):
    r"""A variable's name: x_1 for x_{1}, \vecv for \vec{v}, y'' for y^{\prime\prime}."""
    token = token.replace("\\prime", "'")
    token = re.sub(r"\\(?:text|mathrm)(?![a-zA-Z])|[{}\s^]", "", token)
    head, *subscript = token.split("_", 1)
    return ("\\mathbbR" if head == "\\R" else head) + "".join(
        "_" + part.replace("\\", "") for part in subscript)


def other_tokens(token):
    """Tokens of a command or sign."""
    command, token = token, COMMANDS.get(token[1:], token) if len(token) > 1 else token
    if token in ("\\emptyset", "\\varnothing"):
        return [("\\{", token), ("\\}", token)]
    if token in SEPARATORS or token in "∨∧":
        return [SEPARATORS.get(token, (",", token))]
    if token in tuple("<>≤≥≠≈≡∈"):
        return [("rel", "=" if token == "≡" else token)]
    return [(token, command if token == "*" else token)]


def text_tokens(content, thousands, after_value):
    r"""Tokens of what \text{...} holds: words and separators, a number, letters, or a unit."""
    unit = content.strip()
    if unit in FUNCTIONS:
        return [("fn", unit)]
    is_unit = unit.lower() in UNITS and unit not in ("e", "i")
    if is_unit and (after_value or unit.islower()) or unit.lower() in CURRENCIES:
        return [("word", unit)]
    if re.fullmatch("[A-Z]{2,5}", unit) and not after_value:
        return [("symbol", letter) for letter in unit]
    if (re.fullmatch(r"\s*[a-zA-Z]?\s*|[^a-zA-Z]*", content) or NUMBER_WORD.match(unit)
            or re.search(r"(?<![a-zA-Z^-])\d|[=<>]", content)):
        return tokenize(content, thousands)
    parts = re.split(r"(,|;|\band\b|\bor\b|^\s*to\s*$)", content)
    parts = filter(None, map(str.strip, parts))
    return [SEPARATORS.get(part) or ("word", part) for part in parts]


def letter_tokens(run, after_space, after_word):
    """Tokens of two or more letters: a separator, a word, or a product of variables."""
    low = run.lower()
    unit = low if low in UNITS else low.removesuffix("s")
    if run in SEPARATORS:
        return [SEPARATORS[run]]
    if run == "pi":
        return [("symbol", "\\pi")]
    if low in ("inf", "infinity", "oo"):
        return [("symbol", "\\infty")]
    is_unit = (unit in UNITS and len(unit) > 2 or unit in SHORT_UNITS or low in CURRENCIES
               or after_space and unit in ("am", "pm", "sq", "cu", "in"))
    alphabetical = list(run) == sorted(run)  # abcd is a product
    is_word = after_space and len(run) > 3 and run.islower() and not alphabetical
    if after_word or low in SCALES or is_unit or is_word:
        return [("word", run)]
    return [("symbol", letter) for letter in run]


# ---- parser --------------------------------------------------------------------------------------

@lru_cache(256)
def parse(text, thousands=True):
    """Tree of a normalised answer. thousands: outside brackets, 1,234 is a number.

    Raises ValueError if it can't be read, RecursionError on hundreds of nested braces.
    """
    parser = Parser(tokenize(text, thousands))
    tree = parser.values()
    parser.take("")
    answers = both_signs(tree) if any(is_plus_minus(x) for x in nodes(tree)) else [tree]
    if len(answers) == 1:
        return answers[0]
    if kind(tree) == "rel" and tree[1] == ("≠",):
        return ("both", *answers)  # x ≠ ±1
    return ("list", *answers)


# Kinds of tokens with which a factor begins.
FACTOR_STARTS = {"number", "based", "symbol", "fn", "begin", "(", "[", "{", "\\{", "money",
                 "\\frac", "\\binom", "\\lfloor", "\\lceil", "\\langle"}


class Parser:
    """Recursive descent, one method for each level, from the one that binds weakest: values,
    relation, union, quantity, sum, term, factor, base. Their docstrings show what they read. They
    return trees, and raise ValueError on what they can't read."""

    def __init__(self, tokens):
        self.tokens = [*tokens, ("", "the end")]
        self.at = 0
        self.bars = 0    # how many |...| or sets are open, in which the next | closes
        self.known = {}  # {(at, bars): what base() found there}, as applied() reads a bracket twice

    @property
    def next(self):
        """The kind of the next token."""
        return self.tokens[self.at][0]

    def take(self, *kinds):
        """The next token's text. Raises ValueError unless it is of one of these kinds."""
        token, text = self.tokens[self.at]
        if token not in kinds:
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
        if len(items) > 1 and is_index(items[-1], items[:-1]):  # k\pi, k \in Z
            items.pop()
        if len(items) == 1:
            return items[0]
        if separators & {"∨", "∧"} and any(kind(x) != "rel" for x in items):
            raise ValueError("statements")
        if all(kind(x) == "rel" and not {"=", "≈"} & {*x[1]} for x in items):
            return ("union" if separators & {"or", "∨"} else "both", *items)  # x > 1 and x < 2
        return ("set" if "or" in separators else "list", *items)

    def relation(self):
        r"""2 < x ≤ 3, x = 3 \pmod 5"""
        if self.tokens[self.at] in (("rel", "="), ("rel", "≈")):  # = 5
            self.at += 1
        sides, ops = [self.union()], []
        while op := self.skip("rel"):
            ops.append(op)
            sides.append(self.union())
        if bracket := self.skip("mod"):
            sides[-1] = ("mod", self.sum(), sides[-1])
            if bracket[0] == "(":
                self.take(")")
        if ops == ["="] and all(is_vector(side) for side in sides):
            names, xs = map(parts, sides)
            if all(isinstance(x, str) for x in names):  # (x, y) = (1, 2)
                return ("list", *(("rel", ("=",), *pair) for pair in zip(names, xs, strict=True)))
        return ("rel", tuple(ops), *sides) if ops else sides[0]

    def union(self):
        r"""(0, 1) \cup (2, 3), and the other operations on sets"""
        node = self.quantity()
        while op := self.skip("\\cup", "\\cap", "\\setminus"):
            name = {"\\cup": "union", "\\cap": "both"}.get(op, "minus")
            node = (name, node, self.quantity())
        return node

    def quantity(self):
        """1:2, a value and its unit, or several: 5 ft 6 in"""
        parts = [self.sum()]
        while self.bars == 0 and self.skip(":"):
            parts.append(self.sum())
        node = self.unit(parts[0] if len(parts) == 1 else ("ratio", *parts))
        parts = [node]
        while is_quantity(node) and self.next == "number":
            parts.append(self.unit(self.sum()))
            if not is_quantity(parts[-1]):
                raise ValueError("two numbers, one unit")
        return node if len(parts) == 1 else ("compound", *parts)

    def unit(self, node):
        """The value `node` with the words after it. same_quantities() says which of them matter."""
        phrase, sign = [], ""
        while self.next == "word" or phrase and self.next in ("/", "*", "^"):
            if self.skip("^"):
                phrase[-1] += str(self.argument())
            elif not self.skip("*"):
                text = self.take("word", "/")
                is_mega = re.match("M[A-Za-z]", text) is not None
                if text == "k":
                    raise ValueError("a thousand?")
                text = text.lower().replace("mph", "miles per hour").replace("per ", "/")
                if text == "/" and self.next == "symbol":  # km/h
                    text += self.take("symbol").lower()
                text = re.sub(r"^m(?=(?:g|w|hz|j|pa|ev|v)$)", "mega", text) if is_mega else text
                for word in re.findall(r"/|[^\W\d]+(?:\^?\{?-?\d)?", text):
                    if word == "/":
                        sign = "-"
                    else:
                        phrase.append(sign + word)
        while phrase and phrase[0] in SCALES:
            node = ("*", node, Fraction(SCALES[phrase.pop(0)]))
        if phrase and not is_unit(phrase, node):
            raise ValueError("words that may say more than a unit")
        if len(phrase) > 1 and phrase[0] in ("sq", "square", "cu", "cubic"):
            phrase[:2] = [phrase[1] + ("2" if phrase[0][0] == "s" else "3")]
        phrase = tuple(unit_name(word) for word in phrase
                       if word not in ("a", "an", "of", "the", "radian", "radians"))
        if is_quantity(node):
            return ("unit", node[1] + phrase, node[2])
        return ("unit", phrase, node) if phrase else node

    def sum(self):
        """x - 1"""
        terms, sign = [], self.skip("+", "-", "\\pm", "\\mp")
        while True:
            while sign in ("+", "-") and (another := self.skip("+", "-")):  # 5 - -3
                sign = "-" if sign != another else "+"
            term = self.term()
            if sign == "-" and terms and kind(term) == "set":  # R - {0}
                terms[-1] = ("minus", terms[-1], term)
            elif sign == "-":
                terms.append(negative(term))
            elif sign in ("\\pm", "\\mp"):
                terms.append(("pm", -1 if sign == "\\mp" else 1, term))
            else:
                terms.append(term)
            if not (sign := self.skip("+", "-", "\\pm", "\\mp")):
                break
        are_matrices = all(kind(term) == "matrix" for term in terms)
        if are_matrices and len({(term[1], len(term)) for term in terms}) == 1:  # of one shape
            entries = zip(*map(parts, terms), strict=True)
            return (*terms[0][:2], *(("+", *summands) for summands in entries))
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def term(self):
        r"""2x \cdot 3/4. From left to right: 1/2x is (1/2)x.

        A whole number before a proper fraction is added to it: 6\frac{1}{6}.
        """
        above, below = [self.factor()], []
        if first_name(above[0]).startswith(OPERATORS) and self.next in FACTOR_STARTS:
            return ("app", str(above[0]), self.term())
        while True:
            before, text = self.tokens[self.at - 1]
            if self.skip("/"):
                below.append(self.signed())
                while isinstance(below[-1], str) and self.next == "symbol":  # t/RC is t/(RC)
                    below.append(self.factor())
            elif sign := self.skip("*"):
                above.append(self.signed())
                if sign == "\\times" and any(isinstance(x, str) and re.match(
                        r"\\(?:vec|hat|over)|[A-Z]$", x) for x in above[-2:]):
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
                mixed = mixed_number(above[-1], factor) if may_be_mixed else None
                if mixed:
                    above[-1] = mixed
                else:
                    above.append(factor)
            else:
                above = [x for x in above if not is_index(x, above)]  # k\pi (k \in Z)
                return quotient(product(above), product(below)) if below else product(above)

    def signed(self):
        """A factor with or without a sign."""
        return negative(self.factor()) if self.skip("-", "+") == "-" else self.factor()

    def factor(self):
        """x^2, n!, 50%, 30°"""
        node = self.base()
        while True:
            if self.skip("^"):
                node = ("^", node, self.argument())
                if node[1:] in (("f", -1), ("g", -1)) and self.next == "(":
                    node = ("app", node[1] + "^-1", self.base())
            elif self.skip("!"):
                if self.next == "!":
                    raise ValueError("double factorial")
                node = ("fn", "factorial", node)
            elif self.skip("%"):
                node = ("unit", ("percent1",), node)
            elif self.skip("°"):
                node = ("unit", ("degree1",), node)
            elif money := self.skip("money"):
                node = ("unit", (money + "1",), node)
            elif self.next == "'" and isinstance(node, Fraction):
                node = ("unit", (self.take("'") + "1",), node)
            else:
                return node

    def argument(self, digit=False):
        r"""What a command or ^ applies to: a group or the next token.

        digit: of a number only the first digit, as in \frac12.
        """
        token, text = self.tokens[self.at]
        if digit and token == "number" and text.isdigit() and len(text) > 1:
            self.tokens[self.at:self.at + 1] = [(token, text[0]), (token, text[1:])]
        return self.closed("}") if self.skip("{") else self.signed_base()

    def signed_base(self):
        return negative(self.base()) if self.skip("-") else self.base()

    def closed(self, *right):
        """The values up to a closing bracket of one of these kinds."""
        bars, self.bars = self.bars, 0
        node = self.values()
        if right == ("}",) and (command := self.skip("\\over", "\\choose")):
            below = self.values()
            node = quotient(node, below) if command == "\\over" else ("fn", "binom", node, below)
        self.bars = bars
        self.take(*right)
        return node

    def base(self):
        """A number, a name, a command with its arguments, or something in brackets."""
        key = self.at, self.bars
        if key not in self.known:
            self.known[key] = None, "unexpected brackets"
            self.known[key] = self.read_base(), self.at
        node, self.at = self.known[key]
        if node is None:
            raise ValueError(self.at)
        return node

    def read_base(self):
        token, text = self.tokens[self.at]
        self.at += 1
        match token:
            case "number":
                return number(text)
            case "based":
                return based(*text)
            case "time":
                return ("time", *text)
            case "symbol":
                return self.applied(text)
            case "word" if text.lower() in CURRENCIES and self.next == "number":  # USD 5
                return ("unit", (CURRENCIES[text.lower()] + "1",), self.term())
            case "word":
                return ("word", text.lower())
            case "(" | "[" | "\\langle":
                node = self.closed(")", "]", "\\rangle")
                closing = self.tokens[self.at - 1][0]
                left = "[" if token == "[" else "("
                right = "]" if closing == "]" else ")"
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
            case "money":
                sign = self.skip("-")
                node = ("unit", (text + "1",), self.term())
                return negative(node) if sign else node
            case "begin":
                return self.matrix(text)
        raise ValueError(f"unexpected {text}")

    def applied(self, name):
        """A variable, the value of a function or a point: f(x+1), P(2), P(X > 2), A(1, 2); but
        n(n+1) and mg(h+1) are products."""
        if self.next != "(" or name in CONSTANTS:
            return name
        start = self.at
        after_name = start >= 2 and self.tokens[start - 2][0] == "symbol"
        try:
            x = self.base()
        except ValueError:
            x = ("event",)
        if kind(x) == "tuple" and name[0].isupper() and not after_name and name not in "NU":
            return ("rel", ("=",), name, x)
        if isinstance(x, (str, Fraction)) or (
                name[0] in "fg" and not after_name and kind(x) != "event"):
            return ("app", name, x)
        self.at = start
        if (name in "PE" or len(name) > 1 and "_" not in name) and kind(x) != "scalar":
            event, depth = "", 0
            while not event or depth:
                token, text = self.tokens[self.at]
                depth += (token == "(") - (token == ")")
                event += str(text)
                self.take(*({token} - {""}))
            return ("app", name, event)
        return name

    def braces(self):
        """{1, 2} or {x : x > 1}"""
        if self.skip("\\}"):
            return ("set",)
        self.bars += 1
        node = self.values()
        if self.skip("|", ":"):
            is_real = kind(node) == "rel" and node[1] == ("∈",) and node[3] == REALS
            if not isinstance(node, str) and not is_real:
                raise ValueError("a set of terms")
            name, node = node if isinstance(node, str) else node[2], self.values()
            if name not in nodes(node):
                raise ValueError("a condition on something else")
        else:
            node = ("set", *both_signs(node))
        self.bars -= 1
        self.take("\\}")
        return node

    def function(self, name):
        r"""\sin^2 2x, \log_2 8, \sqrt[3]{x}.

        Without brackets, the argument is a factor and all variables after it: \sin 2 \pi x \cos x.
        """
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
        while not bracket and self.next == "symbol":
            args.append(self.factor())
        x = negative(product(args)) if minus else product(args)
        if name == "exp":
            return ("^", "e", x)
        if power == -1:
            name, power = "arc" + name, None
        if name == "lg":
            name = "log10"
        elif base is not None:
            name = "ln"
        node = ("fn", name, x)
        if base is not None:
            node = ("/", node, ("fn", "ln", base))
        return node if power is None else ("^", node, power)

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
                self.take("&")
        if len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different lengths")
        if len(rows[0]) == 1 and all(kind(row[0]) == "rel" for row in rows):
            return ("list", *(row[0] for row in rows))
        return ("matrix", len(rows[0]), *(x for row in rows for x in row))


# Names before which an expression is no product.
DIFFERENTIALS = ("d", "\\partial", "\\Delta")
OPERATORS = ("\\int", "\\sum", "\\prod", "\\lim", "\\nabla")


def first_name(x):
    """The name with which a product begins: d of dx, \\sum of \\sum^n k; "" if there is none."""
    while isinstance(x, tuple) and x[0] in ("*", "^"):
        x = x[1]
    return x if isinstance(x, str) else ""


def is_index(x, others):
    r"""Is x a note that a variable of the other trees is any integer? k \in \mathbb{Z}"""
    return (kind(x) == "rel" and x[1] == ("∈",) and x[3] == "\\mathbbZ"
            and any(kind(y) != "rel" or {*y[1]} == {"="} for y in others if y is not x)
            and any(x[2] in variables(y) for y in others if y is not x))


def mixed_number(whole, part):
    r"""The sum of a whole number and the fraction right after it, as in 6\frac{1}{6} and
    6\frac14\%, or None if they are a product."""
    match whole, part:
        case Fraction(), ("/", Fraction() as a, Fraction() as b) if 0 < a < b:
            return ("+", whole, part)
        case Fraction(), ("unit", words, ("/", Fraction(), Fraction()) as fraction):
            return ("unit", words, ("+", whole, fraction))
    return None


def is_unit(phrase, node):
    """Are these words a unit, or things that are counted: cm, right triangles, 元?"""
    *_, last = (word for word in phrase if not word.startswith("-")) or [""]
    last = re.sub(r"\W*-?\d$", "", last)
    return not any(word in SCALES or NOT_UNITS.fullmatch(word) for word in phrase) and (
        last in UNITS or last.removesuffix("s") in UNITS or last in MEASURES or last in PLURALS
        or last.isascii() and (len(last) < 4 or last.endswith("s") or node == 1))


def unit_name(word):
    """A unit's first name and power: cm1 for centimeters, s-2 for s^{-2} and for -s^2, which is how
    Parser.unit marks s^2 after a slash. Of other words, the word without its plural s."""
    found = re.fullmatch(r"(-?)([^\W\d]+)\W*?(-?[123]|)", word)
    if not found:
        raise ValueError(f"{word} as a unit")
    sign, word, power = found.groups()
    single = word.removesuffix("s")
    name = UNITS.get(word) or UNITS.get(single) or single or word
    return name + str(int(power or 1) * (-1 if sign else 1))


def number(text):
    r"""Exact value of 12, .5, 4.5e-3 or 0.1\overline{6}."""
    if text.isdigit():
        return Fraction(int(text))
    text, *period = re.split(r"\\\w+\s*|\(", text)
    mantissa, *exponent = re.split("[eE]", text)
    if exponent and abs(int(exponent[0])) > 5000:
        raise ValueError("too large")
    scale = Fraction(10) ** int(exponent[0] if exponent else 0)
    value = Fraction(mantissa.rstrip(".") or 0) * scale
    if not period:
        return value
    digits, places = period[0].strip("{})"), len(mantissa.partition(".")[2])
    return value + Fraction(int(digits), (10 ** len(digits) - 1) * 10 ** places)


def based(digits, base):
    """12_5. It equals only the same digits in the same base: where 7 is asked for in base 5, 7 is
    a wrong answer. In base 10 it is an ordinary number."""
    valid = all(int(digit, 36) < base for digit in digits if digit != ".")
    if not 2 <= base <= 36 or not valid:
        raise ValueError(f"{digits} in base {base}")
    return Fraction(digits) if base == 10 else ("base", digits.lstrip("0") or "0", base)


# ---- trees ---------------------------------------------------------------------------------------

SCALARS = {"+", "neg", "*", "/", "^", "fn", "app", "unit", "pm"}
# How many entries at the head of a tuple are not trees, if more than one.
HEAD_LENGTH = {"tuple": 3, "base": 3, "time": 4, "word": 2, "fn": 2, "app": 2, "unit": 2, "pm": 2,
               "rel": 2, "matrix": 2}
REALS, INFINITY = "\\mathbbR", "\\infty"
CONSTANTS = {"e", "i", "\\pi", INFINITY}  # other names are variables


def kind(x):
    """"scalar" for whatever has a value, else the tree's first entry."""
    if x == REALS:
        return "union"
    return "scalar" if not isinstance(x, tuple) or x[0] in SCALARS else x[0]


def is_quantity(x):
    """Whether a tree is a value with a unit."""
    return isinstance(x, tuple) and x[0] == "unit"


def is_vector(x):
    """Whether a tree is a tuple in round brackets."""
    return isinstance(x, tuple) and x[:3] == ("tuple", "(", ")")


def parts(x):
    """The trees in a tree."""
    return x[HEAD_LENGTH.get(x[0], 1):] if isinstance(x, tuple) else ()


def rebuilt(x, change):
    """The tree with each of its parts changed."""
    if not isinstance(x, tuple):
        return x
    return (*x[:HEAD_LENGTH.get(x[0], 1)], *map(change, parts(x)))


def nodes(x):
    """The tree and all trees in it."""
    yield x
    for part in parts(x):
        yield from nodes(part)


def variables(x):
    """The trees in a tree that have a value only once a Point gives them one: x, f(2)."""
    return {y for y in nodes(x) if isinstance(y, str) and y not in CONSTANTS
            or isinstance(y, tuple) and y[0] == "app"}


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
    if len(factors) == 1:
        return factors[0]
    if any(kind(x) == "word" for x in factors):
        raise ValueError("words in a formula")
    matrices = [x for x in factors if kind(x) == "matrix" or is_vector(x)]
    if len(matrices) == 1:
        others = [x for x in factors if x is not matrices[0]]
        return rebuilt(matrices[0], lambda entry: product([*others, entry]))
    return ("*", *factors)


def quotient(a, b):
    """Quotient of trees; a matrix is divided entry by entry. dy/dx is a name, not y/x."""
    if first_name(a) == first_name(b) in DIFFERENTIALS and not isinstance(b, str):
        return f"d/d {(a, b)}"
    return rebuilt(a, lambda x: quotient(x, b)) if kind(a) == "matrix" else ("/", a, b)


def is_plus_minus(x):
    return isinstance(x, tuple) and x[0] == "pm"


def both_signs(tree):
    """The values of a list or of one value, where a value with plus-minus is two values.

    1 ± i, 2 -> [1 + i, 1 - i, 2]
    """
    def choose(x, sign):
        x = rebuilt(x, lambda part: choose(part, sign))
        if not is_plus_minus(x):
            return x
        return x[2] if x[1] == sign else negative(x[2])

    def spread(x):
        signs = [y[1] for y in nodes(x) if is_plus_minus(y)]
        if kind(x) == "tuple" and {*signs} == {1}:  # (±3, ±2) is four points
            Work.spend(2 ** len(signs))
            return [(*x[:3], *entries) for entries in itertools.product(*map(spread, parts(x)))]
        return [choose(x, 1), choose(x, -1)] if signs else [x]

    return [y for x in (parts(tree) if kind(tree) == "list" else [tree]) for y in spread(x)]


