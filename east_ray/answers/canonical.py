r"""Canonical answers: one key for every way of writing the same mathematical object.

    number  words  7:30 am  2516_8  choice  expression | list  (tuple]  \{set\}  interval  matrix | equation  inequality

Equality of keys is an equivalence relation by construction. Parsing is pure and bounded (`latex.py`), and returns None
rather than guess; such an answer is opaque, equal to its own spelling only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from east_ray.answers.latex import MAX_CHARS, evaluate
from east_ray.answers.literals import EMPTY, after, clock, comma, numeral, remainder, with_unit, words
from east_ray.answers.meaning import CanonicalAnswer, agree, compound, leaf, set_of
from east_ray.answers.normalization import normalise, without_unit, words_in
from east_ray.answers.structure import (
    MAX_PARTS,
    RELATION,
    bounds,
    is_below,
    is_broken,
    is_name,
    split,
    with_generic_names,
)
from east_ray.answers.values import ParseError, divide, fingerprint, scale_free, simplify, subtract

_NAME = re.compile("[A-Za-z]{2,}[0-9]*|[A-Z][0-9]+")
MAX_BARE_CHARS = 12  # of what math-verify may read though no command is in it: 2x2, x!!


def parse(normal: str) -> CanonicalAnswer | None:
    """The canonical form of a normalised answer; None when any part of it is not understood.

    What is not understood stands for itself where math-verify could not help: prose, pieces of formulas, no command in it.
    """
    if len(normal) > MAX_CHARS:
        return CanonicalAnswer(f"text {normal.casefold()}")
    try:
        return _parse(with_generic_names(normal))
    except ParseError:
        is_bare = len(normal) <= MAX_BARE_CHARS and not _NAME.fullmatch(normal)
        is_formula = "\\" in normal or "^" in normal or is_bare
        is_text = words_in(normal) or is_broken(normal) or not is_formula
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


def _elements(parts: list[str]) -> list[CanonicalAnswer]:
    """Several answers, each with its own unit: 5 cm, 12 cm."""
    return [_parse(without_unit(part.strip())) for part in parts]


_FLOAT = re.compile(r"-?[0-9]*\.[0-9]{12,}")


def _exact(printed: Fraction) -> Fraction:
    """The fraction that prints as this float: 2.6666666666666665 is 8/3."""
    near = printed.limit_denominator(1_000)
    return near if abs(near - printed) * 10**12 <= abs(printed) else printed


_INTEGER = re.compile(r"-?[0-9]{1,1000}")
_CHOICE = re.compile(
    r"\(([A-J])\) ?([\w\\(.-].*)|([A-J])[.)] ?([\w\\({\[-].*)|([A-J]): ?([\\a-z0-9(-].*)|([A-J]), ?([a-z]{2,}[ '].*)|([A-J])([^\x00-\x7f].*)",
    re.DOTALL,
)
_LETTER = re.compile(r"\(?([a-jA-J])\)?")


def _choice(text: str) -> CanonicalAnswer | None:
    """The letter of a choice, alone or with its text: (B) 12 agrees with B and with 12; c with C."""
    if match := _LETTER.fullmatch(text):
        letter = leaf(evaluate(match[1]), match[1])
        return replace(letter, is_choice=True, conclusions=frozenset({fingerprint(evaluate(match[1].upper()))}))
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    name, rest = (group for group in match.groups() if group is not None)
    content = None if _CHOICE.fullmatch(rest) else parse(normalise(rest))
    choice = replace(leaf(evaluate(name), name), is_choice=True)
    return replace(choice, alternatives=frozenset({content.key}), behind=content.key) if content else choice


_SEPARATOR = r"(?:[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"
_INEQUALITY = re.compile(r"[<>]|\\[lg]e(?![A-Za-z])")
_ASSIGNED = re.compile(r" ?([A-Za-z]+(?:_\{?[A-Za-z0-9]+\}?)?)=")


def _list(text: str) -> CanonicalAnswer | None:
    """Several answers, in any order; assignments to different names (x=1, y=2) stay with them."""
    pieces, signs = split(text, _SEPARATOR)
    parts = [part for part in pieces if part.strip()]
    if not parts:
        raise ParseError("nothing but commas")
    if len(parts) == 1:
        return None if parts[0] == text else _parse(parts[0])
    if all(_INEQUALITY.search(part) for part in parts):
        return _inequalities(parts, alternative="or" in signs)
    elements = _elements(parts)
    names = [match[1] for part in parts if (match := _ASSIGNED.match(part))]
    in_order = frozenset({f"({','.join(element.key for element in elements)})"})
    if len(set(names)) == len(parts):
        named = sorted(f"{name}={element.key}" for name, element in zip(names, elements, strict=True))
        return CanonicalAnswer("{" + ",".join(named) + "}", also=in_order)
    if "or" in signs:
        elements = _distinct(elements)
    repeats = all(element.shape == "#" for element in elements)  # 1,1,2 is not 1,2; a point is meant once
    return elements[0] if len(elements) == 1 else set_of(elements, in_order, repeats=repeats)


def _distinct(elements: Sequence[CanonicalAnswer]) -> list[CanonicalAnswer]:
    """Without those that say the same again: 0.35 or 35%. A percentage stays rather than its fraction."""
    kept: list[CanonicalAnswer] = []
    for element in sorted(elements, key=lambda element: (not element.also, element.key)):
        if not any(agree(other, element) or agree(element, other) for other in kept):
            kept.append(element)
    return kept


def _relation(text: str) -> CanonicalAnswer | None:
    sides, signs = split(text, RELATION)
    if not signs:
        return None
    if "\\approx" in signs:  # what follows it is less exact than what stands before, unless that is only a name
        end = signs.index("\\approx") + 1
        end += end == 1 and is_name(sides[0])
        sides, signs = sides[:end], ["="] * (end - 1)
    if not signs:
        return _parse(sides[0])
    if signs == ["\\in"] and is_name(sides[0]):
        return _parse(sides[1])
    if set(signs) == {"="}:
        return _equation(sides)
    if signs == ["\\ne"]:
        return compound("not equal {}", [_parse(side) for side in sides], ordered=False)
    return _inequality(sides, signs)


def _equation(sides: list[str]) -> CanonicalAnswer:
    """x=2 is 2; 100-98=2 and longer chains are their last side; 2x+y=3 is equal to all its multiples."""
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides = sides[::-1]
    first, *_, last = sides
    if len(sides) > 2:
        return _parse(last)
    implicit = len(first.strip()) == 1 and re.search(rf"(?<![A-Za-z\\]){first.strip()}(?![A-Za-z_])", last)
    try:
        difference = subtract(evaluate(first), evaluate(last))
    except ParseError:
        difference = Fraction(0)
    shape = scale_free(difference, signed=False)
    if implicit and shape:
        return CanonicalAnswer(f"equation {shape}")  # x=3x-8 is not 3x-8
    if is_name(first) or shape is None:
        value = _parse(last)
        return value if shape is None else replace(value, also=value.also | {f"equation {shape}"})
    unknowns = set(_UNKNOWN.findall(_COMMAND.sub(" ", first + last)))
    tells = len(unknowns) == 1 or not split(first, r"(?<=.)[-+]")[1]  # the value of (x+y)^2; x+y=3 is a line
    return CanonicalAnswer(f"equation {shape}", conclusions=frozenset({_parse(last).key} if tells else set[str]()))


_COMMAND = re.compile(r"\\[A-Za-z]+|sqrt|sin|cos|tan|log|ln|exp")
_UNKNOWN = re.compile(r"[A-DF-HJ-Za-df-hj-z]")


def _inequalities(parts: list[str], *, alternative: bool) -> CanonicalAnswer:
    """x > 2 and x < 5 is an interval; what is joined by "or", or does not overlap, is a union."""
    limits = [bounds(part) for part in parts]
    if not alternative and len(limits) == 2 and limits[0] and limits[1] and limits[0][0] == limits[1][0]:
        lower = next((b for b in limits if b and b[1] in (">", "\\ge")), None)
        upper = next((b for b in limits if b and b[1] in ("<", "\\le")), None)
        if lower and upper and is_below(lower[2], upper[2]):
            flipped = {">": "<", "\\ge": "\\le"}[lower[1]]
            return _inequality([lower[2], lower[0], upper[2]], [flipped, upper[1]])
    return compound("union {}", [_parse(part) for part in parts], ordered=False)


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
    if len(sides) == 2 and is_name(sides[0]):
        sides, signs = ["-\\infty", *sides], ["<", *signs]
    elif len(sides) == 2 and is_name(sides[1]):
        sides, signs = [*sides, "\\infty"], [*signs, "<"]
    if len(sides) != 3 or not is_name(sides[1]):
        return CanonicalAnswer(key)
    low, high = _parse(sides[0]), _parse(sides[2])
    form = ("(" if signs[0] == "<" else "[") + "{}" + (")" if signs[1] == "<" else "]")
    return compound(form, [low, high], also=frozenset({key}))


_TO = re.compile(r"([0-9.]{1,50}) ?to ?([0-9.]{1,50})")


def _ratio(text: str) -> CanonicalAnswer | None:
    """3:2, or 3 to 2; the quotient 3/2 agrees with it."""
    parts, signs = split(_TO.sub(r"\1:\2", text), ":")
    if len(parts) == 2 and is_name(parts[0]):
        return _parse(parts[1])
    if not signs:
        return None
    terms = [evaluate(part) for part in parts]
    quotient = {fingerprint(simplify(divide(*terms)))} if len(terms) == 2 and terms[1] else set[str]()
    form = compound("ratio {}", [leaf(term, part) for term, part in zip(terms, parts, strict=True)])
    return replace(form, alternatives=frozenset(quotient))


def _union(text: str) -> CanonicalAnswer | None:
    parts, signs = split(text, r"\\cup(?![A-Za-z])")
    return compound("union {}", [_parse(part) for part in parts], ordered=False) if signs else None


_BUILDER = re.compile(
    r"(?:\\\{)?([A-Za-z])(?:\\in ?\\mathbb ?\{?R\}?)? ?[|:] ?(.*(?:[<>=]|\\[lgn]e(?![A-Za-z])).*?)(?:\\\})?"
)


def _set_builder(text: str) -> CanonicalAnswer | None:
    r"""\{x | -2 \le x < 1\} is what its condition says."""
    match = _BUILDER.fullmatch(text)
    return _parse(match[2]) if match and match[1] in match[2] else None


_CLOSERS = {"(": ")]", "[": ")]", "\\{": ("\\}",)}


def _bracketed(text: str) -> CanonicalAnswer | None:
    """Tuples, points and intervals keep their order; with three or more elements the kind of bracket does not matter."""
    if text == "\\emptyset":
        return EMPTY
    opening = text[:2] if text.startswith("\\{") else text[:1]
    closing = text[-2:] if text.endswith("\\}") else text[-1:]
    if closing not in _CLOSERS.get(opening, ()):
        return None
    inside = text[len(opening) : -len(closing)]
    if opening == "\\{" and not inside.strip():
        return EMPTY
    try:
        parts, signs = split(inside, "[,;]")
    except ParseError:
        return None  # the first bracket is not closed by the last: (x+1)(x-1)
    if opening == "\\{":
        return set_of(_elements(parts))
    if not signs:
        return None
    form = f"{opening}{{}}{closing}" if len(parts) == 2 else "({})"
    return compound(form, _elements(parts))


_MATRIX = re.compile(
    r"(.{0,60}?)[\[(]?\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\2\}[\])]?", re.DOTALL
)


def _matrix(text: str) -> CanonicalAnswer | None:
    """Rows of cells, whatever the brackets, multiplied by a factor before them; a column may also be given as a tuple."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    factor = match[1].strip(" *").removesuffix("\\cdot")
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[3]) if row.strip()]
    if sum(map(len, rows)) > MAX_PARTS:
        raise ParseError("too many cells")
    cells = [_parse(f"({factor})({cell})" if factor else cell) for row in rows for cell in row]
    widths = "-".join(str(len(row)) for row in rows)
    is_column = set(map(len, rows)) == {1}
    column = frozenset({f"({','.join(cell.key for cell in cells)})"} if is_column else set[str]())
    return compound(f"matrix {widths} {{}}", cells, also=column)


def _plus_minus(text: str) -> CanonicalAnswer | None:
    values = [text.replace("\\pm", plus).replace("\\mp", minus) for plus, minus in ("+-", "-+")]
    return set_of([_parse(value) for value in values]) if text not in values else None


def _percentage(text: str) -> CanonicalAnswer | None:
    """27% is the answer 27, as datasets write it, and may be recognised as 0.27."""
    if not text.endswith("%"):
        return None
    value = evaluate(text[:-1])
    return replace(leaf(value, text[:-1]), also=frozenset({fingerprint(divide(value, Fraction(100)))}))


# Tried in this order, before arithmetic: each takes a normalised text and returns None where it is not its kind.
PARSERS: list[Callable[[str], CanonicalAnswer | None]] = [
    numeral, remainder, clock, words, comma, after, with_unit, _choice, _set_builder,
    _list, _relation, _ratio, _union, _bracketed, _matrix, _plus_minus, _percentage,
]  # fmt: skip
