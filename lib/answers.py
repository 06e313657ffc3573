r"""Comparison of final answers, in LaTeX or plain text, by value.

    is_equivalent(r"\frac{1}{\sqrt2}", r"\dfrac{\sqrt{2}}{2}")   # True
    is_equivalent("x > 3", r"(3, \infty)")                       # True
    is_equivalent("0.333", r"\frac13")                           # False: near, but not equal

How two answers are compared:
  1. Answers in words are compared as words.
  2. lib/latex.py makes trees of all others. No text is ever run as code.
  3. `same` compares trees by kind: lists in any order, tuples in order, intervals and inequalities
     as sets of reals, equations up to a factor, matrices entry by entry ...
  4. That leaves pairs of numbers or formulas, which are evaluated: with exact fractions as long as
     possible; else with mpmath to 40 digits and, if these agree, to 500. Variables take random
     values. Two polynomials that agree there are equal (Schwartz-Zippel lemma); two formulas with
     roots, powers or functions whose first 450 digits agree are taken to be equal.
Every comparison has a budget of steps. What would need a guess is refused: an answer that is taken
wrongly teaches the model to give it.
"""
import itertools
import math
import random
import re
from fractions import Fraction
from functools import lru_cache, reduce
from typing import NamedTuple

from lib.latex import (CONSTANTS, DECIMAL, FUNCTIONS, INFINITY, MEANINGS, REALS, UNITS, Work,
                       as_text, choice, is_quantity, is_vector, kind, negative, nodes, normalise,
                       parse, parts, rebuilt, variables, words)

import mpmath

max_answer_chars = 20_000  # of a final answer; longer ones are only compared as text
budget = 30_000            # evaluation steps of one comparison, about a second at worst


def last_boxed(text):
    r"""The final answer in a response: what the last `\boxed{...}` or `\fbox{...}` holds, or None.

    The last one, since a response may correct itself; the text after it is ignored. `\boxed 5`
    holds the next word. If the last box isn't closed, there is no answer, even if an earlier one
    is: the response was truncated while it corrected itself.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    command = re.compile(r"\\[a-z]+(\s*)").match(text, start)
    if not text.startswith("{", command.end()):
        word = re.compile(r"[^\s$]*").match(text, command.end())[0]
        return word if word and command[1] else None
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, command.end()):
        depth += (brace[0] == "{") - (brace[0] == "}")  # neither if it is escaped
        if depth == 0:
            return text[command.end() + 1:brace.start()]
    return None


def is_equivalent(prediction, answer):
    r"""True if two final answers, LaTeX or plain text without the \boxed, are the same by value.

    Symmetric. Raises nothing: an answer that can't be parsed is compared as text. Not thread-safe.
    """
    if prediction == answer:
        return bool(answer.strip())
    if max(len(prediction), len(answer)) > max_answer_chars:
        return False
    a, b = normalise(prediction), normalise(answer)
    if not a or not b:
        return False
    if a == b:
        return True
    if DECIMAL.fullmatch(a) and DECIMAL.fullmatch(b):
        return Fraction(a) == Fraction(b)
    (a_words, a_is_text), (b_words, b_is_text) = words(a), words(b)
    a, b = MEANINGS.get(a_words, a), MEANINGS.get(b_words, b)
    # (B) ellipse is the choice B, if the other answer is just the letter.
    one_is_a_letter = any(len("".join(w or "")) == 1 for w in (a_words, b_words))
    if one_is_a_letter and choice(a) is not None and choice(a) == choice(b):
        return True
    if (a_is_text or b_is_text) and a_words not in MEANINGS and b_words not in MEANINGS:
        return a_words is not None and a_words == b_words
    Work.left = budget
    try:
        x, y = parse(a), parse(b)
        # 108,135 is a number, but compared with a list it is a list too.
        if (kind(x) == "list") != (kind(y) == "list"):
            x = parse(a, thousands=kind(x) == "list")
            y = parse(b, thousands=kind(y) == "list")
        return same(x, y)
    except (ValueError, ArithmeticError, RecursionError):  # not readable, no value, or too large
        return as_text(a) == as_text(b)


# ---- comparison by kind --------------------------------------------------------------------------

def same(a, b):
    """True if two trees mean the same.

    Raises ValueError or ArithmeticError where a part has no value.
    """
    if a == b:
        return True
    kinds = {kind(a), kind(b)}
    if kinds == {"rel"}:
        return same_relations(a, b)
    if "rel" in kinds:
        relation, x = (a, b) if kind(a) == "rel" else (b, a)
        if kind(x) == "list" and kind(relation[-1]) not in ("list", "set", "tuple"):
            return False
        return gives(relation, x)
    if kinds & {"union", "minus", "both"}:
        return same_sets(a, b)
    if kinds == {"tuple"}:
        may_be_interval = len(parts(a)) == 2
        if may_be_interval and a[1:3] != b[1:3]:
            return False
        return same_in_order(parts(a), parts(b))
    if kinds == {"tuple", "list"}:  # a tuple without its brackets
        return ((is_vector(a) or is_vector(b)) and in_order(a) and in_order(b)
                and same_in_order(parts(a), parts(b)))
    if kinds == {"list"} and bool(labels(a)) != bool(labels(b)):  # x = 2, y = 1 is 2, 1, not 1, 2
        return in_order(a) and in_order(b) and same_in_order(parts(a), parts(b))
    if kinds & {"list", "set"}:
        return "tuple" not in kinds and same_in_any_order(members(a), members(b))
    if is_quantity(a) or is_quantity(b):
        return same_quantities(a, b)
    if kinds == {"matrix"}:
        return a[1] == b[1] and same_in_order(parts(a), parts(b))
    if kinds == {"tuple", "matrix"}:  # a vector as a row or column
        matrix, vector = (a, b) if kind(a) == "matrix" else (b, a)
        columns, rows = matrix[1], len(parts(matrix)) // matrix[1]
        return (is_vector(vector) and 1 in (columns, rows)
                and same_in_order(parts(a), parts(b)))
    if kinds == {"compound"}:
        return same_in_order(parts(a), parts(b))
    if kinds == {"mod"}:  # 3 and 8 are the same modulo 5
        steps = evaluate(("/", ("+", a[2], negative(b[2])), a[1]), Point(0))
        return same(a[1], b[1]) and isinstance(steps, Fraction) and steps.denominator == 1
    if kinds == {"ratio", "time"}:  # 9:30 and 21:30 for 9:30 p.m.
        ratio, (_, hour, minute, half) = (a, b) if kind(a) == "ratio" else (b, a)
        return parts(ratio) in ((hour, minute), (hour % 12 + 12 * (half == "p"), minute))
    if kinds == {"ratio"} or kinds == {"ratio", "scalar"}:
        return same_ratios(a, b)
    return kinds == {"scalar"} and same_numbers(a, b)


def same_ratios(a, b):
    """Two ratios, or a ratio and a number. 1:2 is 2:4 and 1/2, but 2:30 is a time and not 1:15."""
    if kind(a) == kind(b) and same_in_order(parts(a), parts(b)):
        return True
    if all(kind(x) == "ratio" and isinstance(x[2], Fraction) and x[2] >= 10 for x in (a, b)):
        return False
    if kind(a) == kind(b) and len(a) == len(b):  # 1:2:3 and 2:4:6
        return 0 not in (*a, *b) and all(same_numbers(("*", x, b[1]), ("*", y, a[1]))
                   for x, y in zip(parts(a), parts(b), strict=True))
    a, b = (("/", *parts(x)) if kind(x) == "ratio" and len(parts(x)) == 2 else x for x in (a, b))
    return kind(a) == kind(b) == "scalar" and same_numbers(a, b)


def same_in_order(xs, ys):
    return len(xs) == len(ys) and all(map(same, xs, ys))


def same_in_any_order(xs, ys):
    ys = list(ys)
    if len(xs) != len(ys):
        return False
    for x in xs:
        Work.spend(len(ys) // 16)
        if x in ys:
            ys.remove(x)
            continue
        Work.spend(len(ys))
        match = next((i for i, y in enumerate(ys) if same_if_comparable(x, y)
                      and (kind(x) == "set") == (kind(y) == "set")), None)
        if match is None:
            return False
        del ys[match]
    return True


def same_if_comparable(x, y):
    """same(), and False for two trees that can't be compared, such as 0 and x > 3."""
    try:
        return same(x, y)
    except (ValueError, ArithmeticError):
        return False


def labels(x):
    """The names in a list's equations, if there are several: ["x", "y"] of x = 1, y = 2."""
    names = [str(y[2]) for y in parts(x) if kind(y) == "rel" and y[1] == ("=",)]
    return names if len({*names}) > 1 else []


def in_order(x):
    """Whether a list names its values in alphabetical order, or doesn't name them."""
    return labels(x) == sorted(labels(x))


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
    """Two equations or inequalities: do they have the same sides, is one a multiple of the other,
    or do they hold for the same set of reals?"""
    (_, a_ops, *xs), (_, b_ops, *ys) = forwards(a), forwards(b)
    if a_ops == b_ops and same_in_order(xs, ys):
        return True
    if set(a_ops + b_ops) == {"="}:
        if xs[0] == ys[0] and (len(xs) > 2 or len(ys) > 2):  # x = 1/2 = 0.5
            return same(xs[-1], ys[-1])
        functions = [x for x in (xs[0], ys[0]) if isinstance(x, tuple) and x[0] == "app"]
        if len(functions) == 2 and functions[0][1] == functions[1][1]:  # f(x) = 2x, f(t) = 2t
            return same(renamed(xs[1], xs[0][2], "#"), renamed(ys[1], ys[0][2], "#"))
        if functions and "y" in (xs[0], ys[0]) and isinstance(functions[0][2], str):
            return same(xs[1], ys[1])  # f(x) = 2x, y = 2x
    op = a_ops[0]
    all_scalar = all(kind(x) == "scalar" for x in (*xs, *ys))
    if a_ops == b_ops and op in "=≠<≤" and len(xs) == len(ys) == 2 and all_scalar:
        f, g = ("+", xs[0], negative(xs[1])), ("+", ys[0], negative(ys[1]))
        if proportional(f, g, positive=op in "<≤"):
            return True
    return (subject(a) is not None and subject(a) == subject(b) and "=" not in a_ops + b_ops
            and same(solved(a), solved(b)))


def gives(relation, x):
    """Is x what a relation states? 5 is that of x = 10/2 = 5, (3, ∞) of x > 3, 2/3 of 2/3 ≈ 0.67.

    The sides before must be names, or equal it: 25 is not what x² = 25 states.
    """
    _, ops, *sides = relation
    if not set(ops) <= {"=", "≈"}:
        return same(solved(relation), x)
    if not is_name(sides[0]) and is_name(sides[-1]):  # 5 = x
        sides.reverse()
        ops = ops[::-1]
    exact = sides[:ops.index("≈") + 1] if "≈" in ops else sides
    if len(exact) == 1 and is_name(exact[0]):  # x ≈ 0.67
        exact = sides
    *before, value = exact
    if before[:1] == ["e"]:  # the eccentricity
        before = before[1:]
    if kind(value) == "mod":  # 7^100 = 1 (mod 5)
        before = [("mod", value[1], side) for side in before if not is_name(side)]
    return same(value, x) and all(is_name(side, value) or same_if_comparable(side, value)
                                  or in_base_10(side) == in_base_10(value) for side in before)


def in_base_10(x):
    """Of 52_8, 42; others as they are."""
    return Fraction(int(x[1], x[2])) if kind(x) == "base" and x[1].isalnum() else x


def is_name(x, value=None):
    r"""Is x letters without a number, as the left side of an equation that states a value?

    So in x = 5, f(x) = 2x, AB = 9, (x, y) = (1, 2), m + n = 113, dy/dx = 3, A \cup B = \{1\}; of a
    matrix also in A^{-1}. An integral, a sum or a limit names its value, too.
    """
    if isinstance(x, str):
        return x not in CONSTANTS and x != REALS
    match x:
        case ("^", str() as base, exponent):
            if kind(value) == "matrix":
                return base.isupper() and exponent in (-1, "T", "\\top")
            return base in "fg" and exponent == -1
        case ("rel", ("=",), str(), ("tuple", *_)):  # F(2, 3)
            return True
        case ("app" | "word", *_):
            return True
        case ("+", *terms):
            return all(is_name(y[1] if isinstance(y, tuple) and y[0] == "neg" else y)
                       for y in terms)
        case ("*" | "/" | "tuple" | "ratio" | "matrix" | "fn" | "union" | "both" | "minus", *_):
            return x[:2] != ("fn", "root") and all(map(is_name, parts(x)))
    return False


def renamed(x, old, new):
    """The tree with `new` for every tree in it that equals `old`."""
    return new if x == old else rebuilt(x, lambda part: renamed(part, old, new))


def forwards(relation):
    """The same relation with < for >."""
    name, ops, *sides = relation
    if not set(ops) <= {">", "≥"}:
        return relation
    return (name, tuple("<" if op == ">" else "≤" for op in reversed(ops)), *reversed(sides))


def subject(relation):
    """What an inequality is about: x in 2 < x < 3; None if that isn't clear."""
    names = [side[2] if side[:2] == ("fn", "abs") else side
             for side in relation[2:] if is_name(side)]
    return names[0] if len(names) == 1 else None


# ---- sets of reals -------------------------------------------------------------------------------

# The brackets of an interval whose ends are excluded or included.
LEFT, RIGHT = {"<": "(", "≤": "["}, {"<": ")", "≤": "]"}


def same_sets(a, b):
    """Is every endpoint, and every gap between endpoints, in both sets of reals or in neither?

    Raises ValueError if one isn't a set of reals.
    """
    MP.dps, digits = PRECISIONS[-1]
    ends = endpoints(a) + endpoints(b)
    if any(map(variables, ends)):  # their order is unknown
        return kind(a) == kind(b) == "union" and same_in_any_order(parts(a), parts(b))
    values = {x: inexact(evaluate(x, Point(1))) for x in ends}
    if not all(map(is_real, values.values())):
        raise ValueError("a complex number in a set of reals")
    values = {x: value.real for x, value in values.items()}
    # The endpoints get the places 1, 3, 5 ..., in order; the gaps around them are 0, 2, 4 ...
    places = {x: -1 if value < 0 else MP.inf for x, value in values.items() if MP.isinf(value)}
    place, last = -1, None
    for x in sorted(values.keys() - places.keys(), key=values.get):
        if last is None or not close(values[x], last, digits):
            place += 2
        places[x], last = place, values[x]
    inside = [[contains(x, t, places) for t in range(place + 2)] for x in (a, b)]
    if any(kind(x) == "both" and not any(found) for x, found in zip((a, b), inside, strict=True)):
        raise ValueError("perhaps the comma is an or")
    return inside[0] == inside[1]


def endpoints(x):
    """The trees of all numbers at which a set of reals may begin or end."""
    match x:
        case ("tuple", _, _, low, high):
            return [low, high]
        case ("set", *points):
            return points
        case ("union" | "minus" | "both", *_):
            return [end for part in parts(x) for end in endpoints(part)]
    return [] if x == REALS else endpoints(solved(x))


def contains(x, t, places):
    """Is place t in a set? places: {endpoint: its place}."""
    Work.spend(1)
    match x:
        case ("tuple", left, right, low, high):
            if places[low] > places[high]:
                raise ValueError("an interval from a larger to a smaller number")
            return (places[low] < t < places[high] or t == places[low] and left == "["
                    or t == places[high] and right == "]")
        case ("set", *points):
            return any(t == places[point] for point in points)
        case ("union", *pieces):
            return any(contains(piece, t, places) for piece in pieces)
        case ("both", *pieces):
            return all(contains(piece, t, places) for piece in pieces)
        case ("minus", whole, removed):
            return contains(whole, t, places) and not contains(removed, t, places)
    return x == REALS or contains(solved(x), t, places)


def solved(x):
    """The set of reals for which a relation with a name on one side, or one of several such
    relations, holds. Raises ValueError on others."""
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


# ---- comparison by value -------------------------------------------------------------------------

MP = mpmath.mp.clone()               # its precision is changed here; mpmath.mp stays as it is
PRECISIONS = ((40, 20), (500, 450))  # (digits computed with, digits that must agree)
MAX_BITS = 100_000                   # of exact integers; larger ones are rounded
VALUES = {"e": lambda: +MP.e, "i": lambda: MP.j, "\\pi": lambda: +MP.pi,
          INFINITY: lambda: MP.inf}


class Point(NamedTuple):
    """Where formulas are evaluated: it gives every variable a value."""
    index: int            # number of the random point
    negative: str = ""    # the variable that is negative there, if there is one
    whole: bool = False   # variables are positive integers: formulas with n! or floors need them
    log10: bool = False   # log without a base is log10, not ln
    bare: str = ""        # a unit, percent or degrees, that is left out: 50% is 50, too


def real_points(free, used):
    """Points with positive variables, and with one variable at a time negative: sqrt(ab) is
    sqrt(a) sqrt(b) unless both are. used: what is computed; without roots and absolute values the
    first and the last variable are enough. Names with a subscript, like r_0, are taken to be
    positive, but not in an absolute value."""
    if not free:
        return [Point(0)]
    names = sorted(name for name in map(str, free) if "_" not in name or ("fn", "abs") in used)
    if not used & {("fn", "root"), ("fn", "abs")}:
        names = names[:1] + names[1:][-1:]
    negative = [Point(i, name) for name in names[:6] for i in (2, 4)]
    return [Point(0), Point(1), Point(3), *([Point(5)] if ("fn", "abs") in used else []), *negative]


def same_quantities(a, b):
    """Two values, at least one of which has a unit; 50% is 50 and 0.5, 90 degrees are 90 and pi/2.

    One may lack the unit. Two must have the same unit; of things that are counted, the words of one
    must be among the other's: 3 right triangles, 3 triangles.
    """
    (a_unit, x), (b_unit, y) = ((n[1], n[2]) if is_quantity(n) else ((), n) for n in (a, b))
    if a_unit and b_unit:
        if sorted(a_unit) == sorted(b_unit):
            return same(x, y)
        one, other = {*a_unit}, {*b_unit}
        # Three right triangles are three triangles, but a nautical mile is no mile.
        return (a_unit[-1] == b_unit[-1] and (one < other or other < one)
                and a_unit[-1].rstrip("-123") not in UNITS.values() and same(x, y)
                and not any("-" in word for word in one ^ other))
    if same(x, y):
        return True
    unit = (a_unit + b_unit)[0]
    return (unit in ("degree1", "percent1") and kind(x) == kind(y) == "scalar"
            and same_numbers(a, b))


def same_numbers(a, b):
    """Do two scalars agree, at all points if there are variables?

    `log` may mean ln or log10, and a sign of percent or degrees that only one of them has may be
    left out, whichever makes them agree.
    """
    if a == b:
        return True
    free = variables(a) | variables(b)
    (a_used, a_units), (b_used, b_units) = map(operations, (a, b))
    used = a_used | b_used
    integer_functions = {("fn", name) for name in ("factorial", "binom", "floor", "ceil")}
    discrete = bool(free) and bool(used & integer_functions)
    real = not discrete or any(x[0] in "xyztuvw" for x in free)  # the usual names of real variables
    points = real_points(free, used) if real else []
    if discrete:
        points += [Point(i, whole=True) for i in range(12)]
    # Without sums a tiny value can't be the rounding error of a difference: it must agree, too.
    relative = used <= {"*", "/", "^", "neg", "unit",
                        *(("fn", name) for name in ("root", "factorial", "binom", "abs"))}
    bare = {"percent1"} if is_quantity(a) or is_quantity(b) else set()
    if not any(("fn", name) in used for name in FUNCTIONS):
        bare.add("degree1")
    readings = itertools.product((False, True) if ("fn", "log") in used else (False,),
                                 ("", *(a_units ^ b_units) & bare))
    return any(all(same_at(a, b, point._replace(log10=log10, bare=bare), relative)
                   for point in points) for log10, bare in readings)


def operations(tree):
    """({what is computed in a scalar}, {its units})"""
    inner = [x for x in nodes(tree) if isinstance(x, tuple)]
    return ({x[:2] if x[0] == "fn" else x[0] for x in inner},
            {word for x in inner if x[0] == "unit" for word in x[1]})


def same_at(a, b, point, relative):
    """Do two scalars agree at a point? relative: see close()."""
    for precision, digits in PRECISIONS:
        MP.dps = precision
        try:
            x, y = evaluate(a, point), evaluate(b, point)
        except ArithmeticError:
            if point.negative:
                return True
            raise
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        if point.negative and not is_real(x) and not is_real(y):
            return True  # ln(x) and sqrt(x) are for positive x
        if not close(x, y, digits, relative):
            return False
    return True


def is_real(x):
    return isinstance(x, Fraction) or abs(x.imag) <= abs(x.real) * MP.mpf(10) ** -20


def close(x, y, digits, relative=False):
    """Do two numbers agree to so many digits? Of numbers below 1, digits after the point are
    counted, unless relative."""
    x, y = inexact(x), inexact(y)
    if MP.isinf(x) or MP.isinf(y):
        return x == y
    scale = max(0 if relative else 1, abs(x), abs(y))
    return bool(abs(x - y) <= MP.mpf(10) ** -digits * scale)  # False if one is not a number


def proportional(f, g, positive):
    """Is f = c g with a constant c, which is > 0 if positive?"""
    if not variables(f) or not variables(g):
        return False
    MP.dps, digits = PRECISIONS[-1]
    points = real_points(variables(f) | variables(g), operations(f)[0] | operations(g)[0])
    (f0, g0), *values = [(evaluate(f, point), evaluate(g, point)) for point in points]
    if f0 == 0 or g0 == 0 or positive and (inexact(f0) / inexact(g0)).real < 0:
        return False
    return all(times(x, g0) == times(y, f0) or close(times(x, g0), times(y, f0), digits)
               for x, y in values)


def evaluate(x, point):
    """Value of a scalar at a point: a Fraction as long as it is exact, else an mpmath number, real
    or complex, at the precision MP.dps. Raises ValueError or ArithmeticError if it has none."""
    Work.spend(1)
    if isinstance(x, Fraction):
        return x
    if isinstance(x, str):
        return VALUES[x]() if x in VALUES else variable(x, point)
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
            factors = {("percent1",): Fraction(1, 100), ("degree1",): MP.pi / 180}
            words = () if words == (point.bare,) else words
            return times(values[0], factors.get(words, Fraction(1)))
    raise ValueError(f"{x[0]} has no value")


@lru_cache(4096)
def variable(name, point):
    """A random value that depends on name and point only.

    In (0.1, 0.9), (1.1, 2.9) or (40, 400); or an integer, if the point is whole.
    """
    rng = random.Random(f"{name} {point.index}")
    if point.whole:
        return Fraction(rng.randint(1, (8, 40, 300)[point.index % 3]))
    low, high = ((1, 9), (11, 29), (11, 29), (400, 4000), (400, 4000), (10**6, 10**7))[point.index]
    value = Fraction(rng.randint(low << 30, high << 30), 10 << 30)
    return -value if name == point.negative else value


def inexact(x):
    """A Fraction as an mpmath number; others as they are."""
    return MP.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x


def fit(x):
    """A Fraction, or its mpmath number if its integers have become large."""
    bits = max(x.numerator.bit_length(), x.denominator.bit_length())
    Work.spend(bits >> 8)
    return x if bits <= MAX_BITS else inexact(x)


def plus(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return fit(a + b)
    return inexact(a) + inexact(b)


def times(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return fit(a * b)
    return inexact(a) * inexact(b)


def limited(x, bits):
    """x. Raises OverflowError if |x| is above 2 ** bits, since mpmath would compute functions even
    of such numbers, however long it takes."""
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
    if isinstance(b, Fraction) and b.denominator % 2 and not x.imag and x.real < 0:
        return power(-x.real, b) * (-1) ** (b.numerator % 2)  # (-8)^(1/3) is the real root
    if x != 0 and not MP.isinf(x) and not MP.isinf(y):
        limited(limited(y, 60) * MP.mag(x), 24)  # about the logarithm of the result
    return MP.power(x, y)


def function(name, args, point):
    """Value of a function that the parser knows. args: one or two values."""
    x, y = args[0], args[-1]
    whole = all(isinstance(a, Fraction) and a.denominator == 1 and abs(a) <= 5000 for a in args)
    Work.spend(300 if name in ("factorial", "binom") and not whole else 30)
    if name == "abs":
        return abs(x)
    if name == "factorial":
        if not whole:
            return MP.gamma(limited(inexact(x), 24) + 1)
        if x < 0:
            return MP.inf  # so that n! / (n - 5)! is 0 for n = 3
        return fit(Fraction(math.factorial(int(x))))
    if name == "binom":
        if whole and x >= 0 and y >= 0:
            return fit(Fraction(math.comb(int(x), int(y))))
        return MP.binomial(limited(inexact(x), 24), limited(inexact(y), 24))
    if name in ("floor", "ceil"):
        if isinstance(x, Fraction):
            return Fraction(getattr(math, name)(x))
        return getattr(MP, name)(limited(x, 1000))
    if name == "root":
        if y != 2:
            return power(x, power(y, Fraction(-1)))
        if isinstance(x, Fraction) and x >= 0:
            root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
            if root * root == x:
                return root
        return MP.sqrt(inexact(x))
    x = inexact(x)
    if name in ("ln", "log", "log10"):
        if x == 0:
            raise ZeroDivisionError
        in_base_10 = name == "log10" or name == "log" and point.log10
        return MP.ln(x) / MP.ln(10) if in_base_10 else MP.ln(x)
    if name == "arccot":
        return MP.pi / 2 - MP.atan(x)
    return getattr(MP, name.replace("arc", "a"))(limited(x, 24 if name.endswith("h") else 200))
