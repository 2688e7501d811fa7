r"""Canonical answers: one key for every way of writing the same mathematical object.

    number  words  2516_8  expression | list  (tuple]  \{set\}  interval \cup interval  matrix | equation  inequality

Equality of keys is an equivalence relation by construction. Parsing is pure and bounded (`latex.py`), and returns None
rather than guess; such an answer is opaque, equal to its own spelling only.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from east_ray.answers.latex import MAX_CHARS, evaluate
from east_ray.answers.meaning import CanonicalAnswer, compound, leaf, set_of
from east_ray.answers.normalization import words_in
from east_ray.answers.values import ParseError, divide, fingerprint, scale_free, subtract


def parse(normal: str) -> CanonicalAnswer | None:
    """The canonical form of a normalised answer; None when any part of it is not understood.

    Text that is not understood and contains words, or is longer than formulas are, stands for itself.
    """
    try:
        return _parse(normal)
    except ParseError:
        is_text = len(normal) > MAX_CHARS or words_in(normal)
        return CanonicalAnswer(f"text {normal.casefold()}") if is_text else None


def _parse(text: str) -> CanonicalAnswer:
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return leaf(Fraction(int(text)), text)
    for parser in PARSERS:
        if canonical := parser(text):
            return canonical
    value = evaluate(text)
    return leaf(_exact(value) if _FLOAT.fullmatch(text) else value, text)


_FLOAT = re.compile(r"-?[0-9]*\.[0-9]{12,}")


def _exact(printed: Fraction) -> Fraction:
    """The fraction that prints as this float: 2.6666666666666665 is 8/3."""
    near = printed.limit_denominator(1_000)
    return near if abs(near - printed) * 10**12 <= abs(printed) else printed


_INTEGER = re.compile(r"-?[0-9]{1,1000}")
_NUMERAL = re.compile(r"(-?)0*([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?) ?(?:_ ?\{? ?| base )([0-9]{1,2}) ?\}?")
_WORDS = re.compile(r"[A-Za-z]{3,}|[A-Za-z]{2,}(?:[ '-][A-Za-z]+)+|no|on|up|in")
_FUNCTION_NAME = re.compile(r"(?<![A-Za-z])(?:sqrt|pi|sin|cos|tan|sec|csc|cot|log|ln|exp)(?![a-z]{2})")


def _numeral(text: str) -> CanonicalAnswer | None:
    """A numeral in another base: 10_2 is not the answer 2."""
    match = _NUMERAL.fullmatch(text)
    if match is None:
        return None
    sign, digits, base = match.groups()
    return _parse(sign + digits) if base == "10" else CanonicalAnswer(f"numeral {sign}{digits.upper()} base {base}")


def _words(text: str) -> CanonicalAnswer | None:
    """Letters only, at least two: Monday, no solution. A single letter is a variable, or a choice: (A) and A agree."""
    if not _WORDS.fullmatch(text) or _FUNCTION_NAME.search(text):
        return None
    return CanonicalAnswer(f"words {' '.join(text.casefold().split())}")


_SEPARATOR = r"(?:[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"
_INEQUALITY = re.compile(r"[<>]|\\[lg]e(?![A-Za-z])")
_ASSIGNED = re.compile(r" ?([A-Za-z]+(?:_\{?[A-Za-z0-9]+\}?)?)=")


def _list(text: str) -> CanonicalAnswer | None:
    """Several answers, in any order; assignments to different names (x=1, y=2) stay with them, inequalities are a union."""
    parts = [part for part in _split(text, _SEPARATOR)[0] if part.strip()]
    if not parts:
        raise ParseError("nothing but commas")
    if len(parts) == 1:
        return None if parts[0] == text else _parse(parts[0])
    elements = [_parse(part) for part in parts]
    if all(_INEQUALITY.search(part) for part in parts):
        return compound("union {}", elements, ordered=False)
    names = [match[1] for part in parts if (match := _ASSIGNED.match(part))]
    in_order = frozenset({f"({','.join(element.key for element in elements)})"})
    if len(set(names)) == len(parts):
        named = sorted(f"{name}={element.key}" for name, element in zip(names, elements, strict=True))
        return CanonicalAnswer("{" + ",".join(named) + "}", also=in_order)
    return set_of(elements, in_order)


_RELATION = r"(?:\\(?:le|ge|ne|approx|in)(?![A-Za-z])|[=<>])"
_NAME = re.compile(
    r"(?:[A-Za-z]+(?: [A-Za-z]+){0,3}|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|omega)|\\(?:angle|triangle) ?[A-Za-z]+)"
    r"'?(?:_(?:\{[A-Za-z0-9]+\}|[A-Za-z0-9]))?(?:\([A-Za-z0-9,]*\))?|\([A-Za-z](?:,[A-Za-z])+\)|\|[A-Z]{2}\|"
)


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text.strip()) is not None and not _FUNCTION_NAME.search(text)


def _relation(text: str) -> CanonicalAnswer | None:
    sides, signs = _split(text, _RELATION)
    if not signs:
        return None
    if "\\approx" in signs:  # what follows it is less exact than what stands before, unless that is only a name
        end = signs.index("\\approx") + 1
        end += end == 1 and _is_name(sides[0])
        sides, signs = sides[:end], ["="] * (end - 1)
    if not signs:
        return _parse(sides[0])
    if signs == ["\\in"] and _is_name(sides[0]):
        return _parse(sides[1])
    if set(signs) == {"="}:
        return _equation(sides)
    if signs == ["\\ne"]:
        return compound("not equal {}", [_parse(side) for side in sides], ordered=False)
    return _inequality(sides, signs)


def _equation(sides: list[str]) -> CanonicalAnswer:
    """x=2 is 2; 100-98=2 and longer chains are their last side; 2x+y=3 is equal to all its multiples."""
    if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
        sides = sides[::-1]
    first, *_, last = sides
    if len(sides) > 2:
        return _parse(last)
    try:
        difference = subtract(evaluate(first), evaluate(last))
    except ParseError:
        difference = Fraction(0)
    shape = scale_free(difference, signed=False)
    if _is_name(first) or shape is None:
        value = _parse(last)
        return value if shape is None else replace(value, also=value.also | {f"equation {shape}"})
    return CanonicalAnswer(f"equation {shape}", conclusion=_parse(last).key)


def _inequality(sides: list[str], signs: list[str]) -> CanonicalAnswer:
    """A name between constants is an interval; anything else is its differences, up to positive factors."""
    if set(signs) <= {">", "\\ge"}:
        sides, signs = sides[::-1], [{">": "<", "\\ge": "\\le"}[sign] for sign in reversed(signs)]
    if not set(signs) <= {"<", "\\le"}:
        raise ParseError("mixed relations")
    values = [evaluate(side) for side in sides]
    differences = [scale_free(subtract(b, a), signed=True) for a, b in itertools.pairwise(values)]
    if None in differences:
        raise ParseError("an inequality between constants")
    key = "inequality " + ",".join(f"{sign} {difference}" for sign, difference in zip(signs, differences, strict=True))
    if len(sides) == 2 and _is_name(sides[0]):
        sides, signs = ["-\\infty", *sides], ["<", *signs]
    elif len(sides) == 2 and _is_name(sides[1]):
        sides, signs = [*sides, "\\infty"], [*signs, "<"]
    if len(sides) != 3 or not _is_name(sides[1]):
        return CanonicalAnswer(key)
    low, high = _parse(sides[0]), _parse(sides[2])
    form = ("(" if signs[0] == "<" else "[") + "{}" + (")" if signs[1] == "<" else "]")
    return compound(form, [low, high], also=frozenset({key}))


def _ratio(text: str) -> CanonicalAnswer | None:
    parts, signs = _split(text, ":")
    if len(parts) == 2 and _is_name(parts[0]):
        return _parse(parts[1])
    return compound("ratio {}", [leaf(evaluate(part), part) for part in parts]) if signs else None


def _union(text: str) -> CanonicalAnswer | None:
    parts, signs = _split(text, r"\\cup(?![A-Za-z])")
    return compound("union {}", [_parse(part) for part in parts], ordered=False) if signs else None


_EMPTY = CanonicalAnswer("{}")
_CLOSERS = {"(": ")]", "[": ")]", "\\{": ("\\}",)}


def _bracketed(text: str) -> CanonicalAnswer | None:
    """Tuples, points and intervals keep their order; with three or more elements the kind of bracket does not matter."""
    if text == "\\emptyset":
        return _EMPTY
    opening = text[:2] if text.startswith("\\{") else text[:1]
    closing = text[-2:] if text.endswith("\\}") else text[-1:]
    if closing not in _CLOSERS.get(opening, ()):
        return None
    inside = text[len(opening) : -len(closing)]
    if opening == "\\{" and not inside.strip():
        return _EMPTY
    try:
        parts, signs = _split(inside, "[,;]")
    except ParseError:
        return None  # the first bracket is not closed by the last: (x+1)(x-1)
    if opening == "\\{":
        return set_of([_parse(part) for part in parts])
    if not signs:
        return None
    form = f"{opening}{{}}{closing}" if len(parts) == 2 else "({})"
    return compound(form, [_parse(part) for part in parts])


_MATRIX = re.compile(
    r"[\[(]?\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}[\])]?", re.DOTALL
)


def _matrix(text: str) -> CanonicalAnswer | None:
    """Rows of cells, whatever the brackets; a column may also be given as a tuple."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    cells = [_parse(cell) for row in rows for cell in row]
    widths = "-".join(str(len(row)) for row in rows)
    is_column = set(map(len, rows)) == {1}
    column = frozenset({f"({','.join(cell.key for cell in cells)})"} if is_column else set[str]())
    return compound(f"matrix {widths} {{}}", cells, also=column)


def _plus_minus(text: str) -> CanonicalAnswer | None:
    if "\\pm" not in text and "\\mp" not in text:
        return None
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return set_of([_parse(upper), _parse(lower)])


def _percentage(text: str) -> CanonicalAnswer | None:
    """27% is the answer 27, as datasets write it, and may be recognised as 0.27."""
    if not text.endswith("%"):
        return None
    value = evaluate(text[:-1])
    return replace(leaf(value, text[:-1]), also=frozenset({fingerprint(divide(value, Fraction(100)))}))


def _split(text: str, pattern: str) -> tuple[list[str], list[str]]:
    """The parts between matches of `pattern` outside all brackets, and the matches."""
    parts: list[str] = []
    signs: list[str] = []
    start = depth = 0
    for match in _scanner(pattern).finditer(text):
        token = match.group()
        if match.lastgroup == "opening":
            depth += 1
        elif match.lastgroup == "closing":
            depth -= 1
            if depth < 0:
                raise ParseError("unbalanced brackets")
        elif depth == 0:
            parts.append(text[start : match.start()])
            signs.append(token)
            start = match.end()
    return [*parts, text[start:]], signs


@functools.cache
def _scanner(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<opening>\\begin|\\\{{|[(\[{{])|(?P<closing>\\end|\\\}}|[)\]}}])|(?P<sign>{pattern})")


# Tried in this order, before arithmetic: each takes a normalised text and returns None where it is not its kind.
PARSERS: list[Callable[[str], CanonicalAnswer | None]] = [
    _numeral, _words, _list, _relation, _ratio, _union, _bracketed, _matrix, _plus_minus, _percentage
]  # fmt: skip
