r"""The structure of an answer: its parts outside all brackets, names, bounds, and whether it is whole. Pure strings."""

from __future__ import annotations

import functools
import re

from east_ray.answers.latex import evaluate
from east_ray.answers.literals import FUNCTION_NAME
from east_ray.answers.values import ParseError, is_real, subtract

MAX_PARTS = 50  # of a list, a chain or a matrix


def split(text: str, pattern: str) -> tuple[list[str], list[str]]:
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
    if len(parts) >= MAX_PARTS:
        raise ParseError("too many parts")
    return [*parts, text[start:]], signs


@functools.cache
def _scanner(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<opening>\\begin|\\\{{|[(\[{{])|(?P<closing>\\end|\\\}}|[)\]}}])|(?P<sign>{pattern})")


def is_broken(text: str) -> bool:
    """Is it a piece of a formula: unbalanced, or with an operator at its end?"""
    opened, closed = (sum(map(text.count, brackets)) for brackets in ("([{", ")]}"))
    return opened != closed or text[-1:] in "+-*/<=>^_&" or text[:1] in "/<>?&"


_CONSTANT = re.compile(r"(?<![A-Za-z\\])C(?=_\{?[0-9])|(?<=[+-])C$")
_PARAMETER = re.compile(r"(?<![A-Za-z])[kmn](?![A-Za-z])")


def with_generic_names(text: str) -> str:
    r"""One name for what may have any: a constant of integration is c, the integer in 2k\pi is n."""
    if "C" in text:
        text = _CONSTANT.sub("c", text)
    if "\\pi" in text and len(set(_PARAMETER.findall(text))) == 1:
        text = _PARAMETER.sub("n", text)
    return text


RELATION = r"(?:\\(?:le|ge|ne|approx|in)(?![A-Za-z])|[=<>])"
_NAME = re.compile(
    r"(?:[A-Za-z]+(?: [A-Za-z]+){0,3}|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|omega)|\\(?:angle|triangle) ?[A-Za-z]+)"
    r"'?(?:_(?:\{[A-Za-z0-9]+\}|[A-Za-z0-9]))?(?:\([A-Za-z0-9,]*\))?|\([A-Za-z](?:,[A-Za-z])+\)|\|[A-Z]{2}\|"
)


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text.strip()) is not None and not FUNCTION_NAME.search(text)


def bounds(text: str) -> tuple[str, str, str] | None:
    """Name, sign and bound of an inequality like x > 2, or 2 < x."""
    sides, signs = split(text, RELATION)
    if len(sides) != 2 or signs[0] not in (">", "<", "\\ge", "\\le"):
        return None
    if is_name(sides[0]):
        return sides[0].strip(), signs[0], sides[1]
    turned = {">": "<", "<": ">", "\\ge": "\\le", "\\le": "\\ge"}[signs[0]]
    return (sides[1].strip(), turned, sides[0]) if is_name(sides[1]) else None


def is_below(low: str, high: str) -> bool:
    width = subtract(evaluate(high), evaluate(low))
    return is_real(width) and width > 0
