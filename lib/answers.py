r"""Comparison of final answers, in LaTeX or plain text, by value.

    is_equivalent(r"\frac{1}{\sqrt2}", r"\dfrac{\sqrt{2}}{2}")   # True
    is_equivalent("x > 3", r"(3, \infty)")                       # True
    is_equivalent("0.333", r"\frac13")                           # False: near, but not equal

lib/latex.py reads an answer into a tree, whose kind says what it is: a list, an interval, a matrix,
a formula ... RULES says how two kinds are compared. In the end two numbers or formulas
are evaluated: with exact fractions as long as possible; else with mpmath to 40 digits and, if these
agree, to 500. Variables take random values. Two polynomials that agree there are equal (Schwartz-
Zippel lemma); two formulas with roots, powers or functions whose first 450 digits agree are taken
to be equal.

Every comparison has a budget of steps. What would need a guess is refused: an answer that is taken
wrongly teaches the model to give it.
"""
import itertools
import math
import operator
import random
import re
import warnings
from fractions import Fraction
from functools import lru_cache, partial, reduce
from typing import NamedTuple

from lib.latex import (CONSTANTS, DEGREE, FUNCTIONS, INFINITY, MINUS_ONE, PERCENT, REALS, SCALARS,
                       UNITS, VERDICTS, Tree, choice, is_vector, negative, nodes, read, rebuilt,
                       scan, tree, variables)

import mpmath

max_answer_chars = 20_000  # of a final answer; longer ones are only compared as text
budget = 30_000            # evaluation steps of one comparison, about a second at worst


class Work:
    """What comparisons cost. One state per process, so they are not thread-safe."""
    left = 0  # steps that the running comparison may still take

    @classmethod
    def spend(cls, steps):
        cls.left -= steps
        if cls.left < 0:
            raise RecursionError("too much work")  # no ValueError, which may only mean "different"


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

    Symmetric. Raises nothing: answers that can't be read are compared as tokens. Not thread-safe.
    """
    if prediction == answer:
        return bool(answer.strip())
    if max(len(prediction), len(answer)) > max_answer_chars:
        return False
    Work.left = budget
    try:
        a, b = scan(prediction), scan(answer)
        if a == b or not a or not b:
            return a == b != ()
        letters = choice(prediction), choice(answer)
        if all(letters) and letters[0][0] == letters[1][0]:
            return None in (letters[0][1], letters[1][1]) or letters[0][1] == letters[1][1]
        x, y = read(prediction), read(answer)
        if (x.kind == "list") != (y.kind == "list"):  # 108,135 is a number, or a list beside a list
            x, y = (read(text, thousands=z.kind == "list")
                    for text, z in ((prediction, x), (answer, y)))
        return same(x, y)
    except (ValueError, ArithmeticError, RecursionError):  # not readable, no value, or too large
        return False
    except Exception as e:  # a fault of this file or of latex.py; it must not end a training run
        warnings.warn(f"{prediction[:200]!r} and {answer[:200]!r} could not be compared ({e!r}), "
                      "so they count as different", stacklevel=2)
        return False


# ---- comparison by kind --------------------------------------------------------------------------

def same(a, b):
    """True if two trees mean the same. Raises ValueError or ArithmeticError where a part has no
    value."""
    if a == b:
        return True
    for (one, other), rule in RULES.items():
        for x, y in ((a, b), (b, a)):
            if group(x) == one and other in (group(y), "any"):
                return rule(x, y)
    return False


def group(x):
    """A tree's kind in RULES."""
    if x.kind in ("union", "both", "minus") or x == REALS:
        return "reals"
    return "scalar" if x.kind in SCALARS - {"unit"} else x.kind


def in_order(xs, ys):
    return len(xs) == len(ys) and all(map(same, xs, ys))


def same_shape(a, b):
    """Two tuples with the same brackets, or two matrices with as many columns."""
    return a.head == b.head and in_order(a.parts, b.parts)


def in_any_order(a, b):
    """Lists and sets. A set has each value once; a value is a list of one."""
    xs, ys = members(a), members(b)
    if len(xs) != len(ys):
        return False
    for x in xs:
        Work.spend(len(ys))
        match = next((y for y in ys if x == y or same_if_comparable(x, y)
                      and (x.kind == "set") == (y.kind == "set")), None)
        if match is None:
            return False
        ys.remove(match)
    return True


def members(x):
    if x.kind != "set":
        return [*x.parts] if x.kind == "list" else [x]
    once = []
    for y in x.parts:
        if not any(same(y, z) for z in once):
            once.append(y)
    return once


def same_if_comparable(x, y):
    """same(), and False for two trees that can't be compared, such as 0 and x > 3."""
    try:
        return same(x, y)
    except (ValueError, ArithmeticError):
        return False


def same_lists(a, b):
    """Lists have no order, but x = 2, y = 1 is 2, 1 or (2, 1), not 1, 2. Verdicts answer several
    questions in their order."""
    if a.kind == b.kind == "list" and bool(labels(a)) == bool(labels(b)) and not (
            VERDICTS & {x.head for x in a.parts if x.kind == "word"}):
        return in_any_order(a, b)
    return (all(x.kind == "list" or is_vector(x) for x in (a, b)) and in_order(a.parts, b.parts)
            and all(labels(x) == sorted(labels(x)) for x in (a, b)))


def labels(x):
    """The names in a list's equations, if there are several: ["x", "y"] of x = 1, y = 2."""
    names = [str(y.parts[0].head) for y in x.parts if y.kind == "rel" and y.head == ("=",)]
    return names if len({*names}) > 1 else []


def word_is_product(word, x):
    """Bob without \\text is a product of letters."""
    return x.kind == "*" and word.head == "".join(str(y.head) for y in x.parts).lower()


def matrix_is_vector(matrix, vector):
    """A vector may be a row or a column."""
    return (is_vector(vector) and 1 in (matrix.head, len(matrix.parts) // matrix.head)
            and in_order(matrix.parts, vector.parts))


def same_residues(a, b):
    """3 and 8 are the same modulo 5."""
    (m, x), (n, y) = a.parts, b.parts
    steps = evaluate(tree("/", tree("+", x, negative(y)), m), Point(0))
    return same(m, n) and isinstance(steps, Fraction) and steps.denominator == 1


def same_times(time, ratio):
    """9:30 and 21:30 for 9:30 p.m."""
    hour, minute, half = time.head
    return tuple(x.head for x in ratio.parts) in (
        (hour, minute), (hour % 12 + 12 * (half == "pm"), minute))


def same_ratios(a, b):
    """Two ratios, or a ratio and a number. 1:2 is 2:4 and 1/2, but 2:30 is a time and not 1:15."""
    xs, ys = a.parts, b.parts
    if a.kind != b.kind:
        a, b = (tree("/", *x.parts) if x.kind == "ratio" and len(x.parts) == 2 else x
                for x in (a, b))
        return a.kind != "ratio" != b.kind and same_numbers(a, b)
    may_be_times = all(x.kind == "number" and x.head >= 10 for x in (xs[1], ys[1]))
    return in_order(xs, ys) or (
        len(xs) == len(ys) and not may_be_times and all(x.head != 0 for x in xs + ys)
        and all(same_numbers(tree("*", x, ys[0]), tree("*", y, xs[0]))
                for x, y in zip(xs, ys, strict=True)))


def same_quantities(a, b):
    """Two values, at least one of which has a unit; 50% is 50 and 0.5, 90 degrees are 90 and pi/2.

    One may lack the unit. Two must have the same unit; of things that are counted, the words of one
    must be among the other's: 3 right triangles, 3 triangles.
    """
    (one, x), (other, y) = ((z.head, z.parts[0]) if z.kind == "unit" else ((), z) for z in (a, b))
    if one and other:
        # Three right triangles are three triangles, but a nautical mile is no mile.
        are_counted = one[-1] == other[-1] and one[-1].rstrip("23") not in UNITS.values() and (
            {*one} < {*other} or {*other} < {*one}) and "/" not in {*one} ^ {*other}
        return (one == other or are_counted) and same(x, y)
    return same(x, y) or (one + other)[:1] in (DEGREE, PERCENT) and (
        {x.kind, y.kind} <= SCALARS and same_numbers(a, b))


# ---- equations and inequalities ------------------------------------------------------------------

def same_relations(a, b):
    """Two equations or inequalities: do they have the same sides, is one a multiple of the other,
    or do they hold for the same set of reals?"""
    xs, ys, op = a.parts, b.parts, a.head[0]
    if a.head == b.head and in_order(xs, ys):
        return True
    if {*a.head, *b.head} == {"="}:
        if xs[0] == ys[0] and len(xs + ys) > 4:  # x = 1/2 = 0.5
            return same(xs[-1], ys[-1])
        functions = [x for x in (xs[0], ys[0]) if x.kind == "app"]
        if len(functions) == 2 and functions[0].head == functions[1].head:  # f(x) = 2x, f(t) = 2t
            return same(*(renamed(x[1], x[0].parts[0]) for x in (xs, ys)))
        if functions and functions[0].parts[0].kind == "name" and (
                tree("name", head="y") in (xs[0], ys[0])):  # f(x) = 2x, y = 2x
            return same(xs[1], ys[1])
    if a.head == b.head and len(xs) == len(ys) == 2 and {x.kind for x in xs + ys} <= SCALARS:
        f, g = (tree("+", x[0], negative(x[1])) for x in (xs, ys))
        if op in "=≠<≤" and proportional(f, g, positive=op in "<≤"):
            return True
    return (subject(a) is not None and subject(a) == subject(b) and "=" not in a.head + b.head
            and same_sets(a, b))


def gives(relation, x):
    """Is x what a relation states? 5 is that of x = 10/2 = 5, (3, ∞) of x > 3, 2/3 of 2/3 ≈ 0.67.

    The sides before must be names, or equal it: 25 is not what x² = 25 states.
    """
    ops, sides = [*relation.head], [*relation.parts]
    if x.kind == "list" and sides[-1].kind not in ("list", "set", "tuple"):
        return False
    if not {*ops} <= {"=", "≈"}:
        return same(real_set(relation), x)
    if not is_name(sides[0]) and is_name(sides[-1]):  # 5 = x
        sides, ops = sides[::-1], ops[::-1]
    exact = sides[:ops.index("≈") + 1] if "≈" in ops else sides
    if len(exact) == 1 and is_name(exact[0]):  # x ≈ 0.67
        exact = sides
    *before, value = exact
    if before and before[0].head == "e":  # the eccentricity
        before = before[1:]
    if value.kind == "mod":  # 7^100 = 1 (mod 5)
        before = [tree("mod", value.parts[0], side) for side in before if not is_name(side)]
    return same(value, x) and all(is_name(side, value) or same_if_comparable(side, value)
                                  or in_base_10(side) == in_base_10(value) for side in before)


def in_base_10(x):
    """42 for 52_8 and for 42; other trees as they are."""
    if x.kind == "base":
        return int(str(x.parts[0].head), x.head)
    return x.head if x.kind == "number" else x


def is_name(x, value=None):
    r"""Is x letters without a number, as the left side of an equation that states a value?

    So in x = 5, f(x) = 2x, AB = 9, (x, y) = (1, 2), m + n = 113, dy/dx = 3, A \cup B = \{1\}; of a
    matrix also in A^{-1}. An integral, a sum or a limit names its value, too.
    """
    match x:
        case Tree("name", name):
            return name not in CONSTANTS and x != REALS
        case Tree("^", _, (Tree("name", base), exponent)):
            return (value is not None and value.kind == "matrix" and base.isupper()
                    and exponent.head in (-1, "T", "\\top"))
        case Tree("rel", ("=",), (Tree("name"), Tree("tuple"))) | Tree("app" | "word"):
            return True
        case Tree("+"):  # a - b
            return all(is_name(y.parts[1] if MINUS_ONE in y.parts[:1] else y) for y in x.parts)
        case Tree("*" | "/" | "tuple" | "ratio" | "matrix" | "fn" | "union" | "both" | "minus"):
            return x.head != "root" and all(map(is_name, x.parts))
    return False


def renamed(x, old):
    """The tree with # for every tree in it that equals `old`."""
    return tree("name", head="#") if x == old else rebuilt(x, lambda part: renamed(part, old))


def subject(relation):
    """What an inequality is about: x in 2 < x < 3; None if that isn't clear."""
    names = [side.parts[0] if side.head == "abs" else side
             for side in relation.parts if is_name(side)]
    return names[0] if len(names) == 1 else None


# ---- sets of reals -------------------------------------------------------------------------------

def real_set(x):
    """A set of reals, or those for which relations hold, as intervals, sets of points, and their
    unions, intersections and differences. Raises ValueError on others."""
    match x:
        case Tree("set") | Tree("tuple", _, (_, _)) if x.head != "units":
            return x
        case Tree("name") if x == REALS:
            return interval("<", negative(INFINITY), INFINITY, "<")
        case Tree("union" | "both" | "minus"):
            return rebuilt(x, real_set)
        case Tree("list") if all(y.kind == "rel" for y in x.parts):  # x < 1, x = 2
            return tree("union", *map(real_set, x.parts))
        case Tree("rel", ("<" | "≤" as op, "<" | "≤" as op2), (low, x, high)) if is_name(x):
            return interval(op, low, high, op2)
        case Tree("rel", ("<" | "≤" as op,), (Tree("fn", "abs", (x,)), high)) if is_name(x):
            return interval(op, negative(high), high, op)
        case Tree("rel", ("<" | "≤" as op,), (low, Tree("fn", "abs", (x,)))) if is_name(x):
            return tree("union", interval("<", negative(INFINITY), negative(low), op),
                        interval(op, low, INFINITY, "<"))
        case Tree("rel", ("<" | "≤" as op,), (x, high)) if is_name(x):
            return interval("<", negative(INFINITY), high, op)
        case Tree("rel", ("<" | "≤" as op,), (low, x)) if is_name(x):
            return interval(op, low, INFINITY, "<")
        case Tree("rel", ("∈",), (x, whole)) if is_name(x):
            return real_set(whole)
        case Tree("rel", ("=" | "≠" as op,), (x, point)) if is_name(x):
            point = tree("set", point)
            return point if op == "=" else tree("minus", real_set(REALS), point)
    raise ValueError("not a set of reals")


def interval(op, low, high, op2):
    return Tree("tuple", ("(" if op == "<" else "[") + (")" if op2 == "<" else "]"), (low, high))


def same_sets(a, b):
    """Is every endpoint, and every gap between endpoints, in both sets of reals or in neither?

    Raises ValueError if one isn't a set of reals.
    """
    MP.dps, digits = PRECISIONS[-1]
    sets = real_set(a), real_set(b)
    ends = {end for x in sets for y in nodes(x) if y.kind in ("tuple", "set") for end in y.parts}
    if any(map(variables, ends)):  # their order is unknown
        return a.kind == b.kind == "union" and in_any_order(
            a._replace(kind="list"), b._replace(kind="list"))
    values = {x: inexact(evaluate(x, Point(1))) for x in ends}
    if not all(map(is_real, values.values())):
        raise ValueError("a complex number in a set of reals")
    # The endpoints get the places 1, 3, 5 ..., in order; the gaps around them are 0, 2, 4 ...
    places, place, last = {}, -1, -MP.inf
    for value, x in sorted((value.real, x) for x, value in values.items()):
        place += 2 * (not close(value, last, digits))
        places[x], last = place, value
    inside = [[contains(x, t, places) for t in range(place + 2)] for x in sets]
    if any(x.kind == "both" and not any(found) for x, found in zip(sets, inside, strict=True)):
        raise ValueError("perhaps the comma is an or")
    return inside[0] == inside[1]


def contains(x, t, places):
    """Is place t in a set? places: {endpoint: its place}."""
    Work.spend(1)
    if x.kind == "tuple":
        low, high = (places[end] for end in x.parts)
        if low > high:
            raise ValueError("an interval from a larger to a smaller number")
        return low < t < high or t == low and x.head[0] == "[" or t == high and x.head[1] == "]"
    if x.kind == "set":
        return any(t == places[point] for point in x.parts)
    inside = (contains(part, t, places) for part in x.parts)
    if x.kind == "minus":
        return next(inside) and not next(inside)
    return any(inside) if x.kind == "union" else all(inside)


# ---- comparison by value -------------------------------------------------------------------------

MP = mpmath.mp.clone()               # its precision is changed here; mpmath.mp stays as it is
PRECISIONS = ((40, 20), (500, 450))  # (digits computed with, digits that must agree)
MAX_BITS = 100_000                   # of exact integers; larger ones are rounded
VALUES = {"e": lambda: +MP.e, "i": lambda: MP.j, "π": lambda: +MP.pi, "∞": lambda: MP.inf}


class Point(NamedTuple):
    """Where formulas are evaluated: it gives every variable a value."""
    index: int            # number of the random point
    negative: str = ""    # the variable that is negative there, if there is one
    whole: bool = False   # variables are positive integers: formulas with n! or floors need them
    log10: bool = False   # log without a base is log10, not ln
    bare: tuple = ()      # a unit, percent or degrees, that is left out: 50% is 50, too


def real_points(free, used):
    """Points with positive variables, and with one variable at a time negative: sqrt(ab) is
    sqrt(a) sqrt(b) unless both are. used: what is computed; without roots and absolute values the
    first and the last variable are enough. Names with a subscript, like r_0, are taken to be
    positive, but not in an absolute value."""
    if not free:
        return [Point(0)]
    names = sorted(x.head for x in free if x.kind == "name" and (
        "_" not in x.head or "abs" in used))
    if not used & {"root", "abs"}:
        names = names[:1] + names[1:][-1:]
    return [*map(Point, (0, 1, 3, 5)[:3 + ("abs" in used)]),
            *(Point(i, name) for name in names[:6] for i in (2, 4))]


def operations(*trees):
    """What is computed in trees: kinds, names of functions, and units."""
    return {x.head if x.kind in ("fn", "unit") else x.kind for y in trees for x in nodes(y)}


def same_numbers(a, b):
    """Do two scalars agree, at all points if there are variables?

    `log` may mean ln or log10, and a sign of percent or degrees that only one of them has may be
    left out, whichever makes them agree.
    """
    free, used = variables(a) | variables(b), operations(a, b)
    discrete = bool(free) and bool(used & {"factorial", "binom", "floor", "ceil"})
    real = not discrete or any(x.head[0] in "xyztuvw" for x in free)  # usual names of reals
    points = real_points(free, used) if real else []
    if discrete:
        # The floors of n/100 and n/101 differ at large numbers; powers of these would be too large.
        large = used.isdisjoint({"^", "factorial", "binom"})
        points += [Point(i, whole=True) for i in range(18 if large else 12)]
    # Without sums a tiny value can't be the rounding error of a difference: it must agree, too.
    relative = not used & {"+", "app", "floor", "ceil", *FUNCTIONS}
    bare = {PERCENT} if "unit" in (a.kind, b.kind) else set()
    if not used & {*FUNCTIONS}:
        bare.add(DEGREE)
    readings = itertools.product((False, True) if "log" in used else (False,),
                                 ((), *(operations(a) ^ operations(b)) & bare))
    return any(all(same_at(a, b, point._replace(log10=log10, bare=bare), relative)
                   for point in points) for log10, bare in readings)


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
    points = real_points(variables(f) | variables(g), operations(f, g))
    (f0, g0), *values = [(evaluate(f, point), evaluate(g, point)) for point in points]
    if f0 == 0 or g0 == 0 or positive and (inexact(f0) / inexact(g0)).real < 0:
        return False
    return all(times(x, g0) == times(y, f0) or close(times(x, g0), times(y, f0), digits)
               for x, y in values)


def evaluate(x, point):
    """Value of a scalar at a point: a Fraction as long as it is exact, else an mpmath number, real
    or complex, at the precision MP.dps. Raises ValueError or ArithmeticError if it has none."""
    Work.spend(1)
    if x.kind not in SCALARS:
        raise ValueError(f"{x.kind} has no value")
    values = [evaluate(part, point) for part in x.parts]
    match x.kind:
        case "number":
            return x.head
        case "name":
            return VALUES[x.head]() if x.head in VALUES else variable(x.head, point)
        case "+":
            return reduce(plus, values)
        case "*":
            return reduce(times, values)
        case "/":
            return times(values[0], power(values[1], Fraction(-1)))
        case "^":
            return power(*values)
        case "fn":
            return function(x.head, values, point)
        case "app":
            return variable(f"{x.head}({MP.nstr(inexact(values[0]), 15)})", point)
        case "unit":
            factors = {PERCENT: Fraction(1, 100), DEGREE: MP.pi / 180, point.bare: Fraction(1)}
            return times(values[0], factors.get(x.head, Fraction(1)))
    raise ValueError(f"{x.kind} has no value")


@lru_cache(4096)
def variable(name, point):
    """A random value that depends on name and point only.

    In (0.1, 0.9), (1.1, 2.9) or (40, 400); or an integer, if the point is whole: up to 300 or, from
    point 12 on, up to 10^14.
    """
    rng = random.Random(f"{name} {point.index}")
    if point.whole:
        most = (8, 40, 300)[point.index % 3] if point.index < 12 else 100 ** (point.index - 10)
        return Fraction(rng.randint(1, most))
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


def arithmetic(operation, a, b):
    """A Fraction, if a and b are."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return fit(operation(a, b))
    return operation(inexact(a), inexact(b))


plus, times = partial(arithmetic, operator.add), partial(arithmetic, operator.mul)


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


def limited(x, bits):
    """x. Raises OverflowError if |x| is above 2 ** bits, since mpmath would compute functions even
    of such numbers, however long it takes."""
    if x != 0 and not MP.isinf(x) and MP.mag(x) > bits:
        raise OverflowError("too large")
    return x


def function(name, args, point):
    """Value of a function that the parser knows. args: one or two values."""
    whole = all(isinstance(a, Fraction) and a.denominator == 1 and abs(a) <= 5000 for a in args)
    Work.spend(300 if name in ("factorial", "binom") and not whole else 30)
    a, b = args[0], args[-1]
    x, y = inexact(a), inexact(b)
    match name:
        case "abs":
            return abs(a)
        case "factorial" if whole:  # n! / (n - 5)! is 0 for n = 3
            return MP.inf if a < 0 else fit(Fraction(math.factorial(int(a))))
        case "factorial":
            return MP.gamma(limited(x, 24) + 1)
        case "binom" if whole and a >= 0 and b >= 0:
            return fit(Fraction(math.comb(int(a), int(b))))
        case "binom":
            return MP.binomial(limited(x, 24), limited(y, 24))
        case "floor" | "ceil" if isinstance(a, Fraction):
            return Fraction(getattr(math, name)(a))
        case "floor" | "ceil":
            return getattr(MP, name)(limited(x, 1000))
        case "root" if b == 2 and isinstance(a, Fraction) and a >= 0 and (
                root := Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))) ** 2 == a:
            return root
        case "root":
            return MP.sqrt(x) if b == 2 else power(a, power(b, Fraction(-1)))
        case "ln" | "log" if x == 0:
            raise ZeroDivisionError
        case "ln" | "log":
            return MP.ln(x) / MP.ln(10) if name == "log" and point.log10 else MP.ln(x)
        case "arccot":
            return MP.pi / 2 - MP.atan(x)
    return getattr(MP, name.replace("arc", "a"))(limited(x, 24 if name[-1] in "hp" else 200))


RULES = {  # the kinds of two trees, see group(): whether they mean the same; the first that fits
    ("rel", "rel"): same_relations,
    ("rel", "any"): gives,
    ("reals", "any"): same_sets,
    ("tuple", "tuple"): same_shape,
    ("tuple", "set"): lambda a, b: False,
    ("tuple", "list"): same_lists,
    ("set", "any"): in_any_order,
    ("list", "list"): same_lists,
    ("list", "any"): in_any_order,
    ("unit", "any"): same_quantities,
    ("word", "scalar"): word_is_product,
    ("matrix", "matrix"): same_shape,
    ("matrix", "tuple"): matrix_is_vector,
    ("mod", "mod"): same_residues,
    ("time", "ratio"): same_times,
    ("ratio", "ratio"): same_ratios,
    ("ratio", "scalar"): same_ratios,
    ("scalar", "scalar"): same_numbers}
