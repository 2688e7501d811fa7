"""Canonical forms of answers that are no formulas: words, times of day, numerals in other bases, remainders, commas."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from east_ray.answers.latex import evaluate
from east_ray.answers.meaning import CanonicalAnswer, compound, leaf, set_of
from east_ray.answers.values import fingerprint

EMPTY = CanonicalAnswer("{}")
REALS = compound("({})", [leaf(evaluate(end), end) for end in ("-\\infty", "\\infty")])
FUNCTION_NAME = re.compile(r"(?<![A-Za-z])(?:sqrt|pi|sin|cos|tan|sec|csc|cot|log|ln|exp)(?![a-z]{2})")
_WORDS = re.compile(
    r"[A-Za-z]{3,}(?:-[A-Za-z]{3,})*|(?=[A-Za-z ']*[A-Za-z]{3})[A-Za-z]{2,}(?:[ '-][A-Za-z]+)+|no|on|up|in"
)
_NOTHING = re.compile(
    r"(?:there (?:is|are) |(?:it|(?:the|this) (?:equation|system|inequality|problem)) has )?(?:no (?:real |such |integer |valid )?(?:solutions?|roots?|values?)(?: exists?)?|(?:the )?empty set)"
)
_EVERYTHING = re.compile(r"(?:the set of )?(?:all )?(?:the )?real numbers?|all reals|(?:the )?reals")
_SYNONYMS = {"true": "yes", "false": "no", "dne": "does not exist", "correct": "yes", "incorrect": "no"} | {
    short: day
    for day in ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    for short in (day[:3], day[:4], day[:5])
    if short in ("mon", "tue", "tues", "wed", "thu", "thur", "thurs", "fri", "sat", "sun")
}


def words(text: str) -> CanonicalAnswer | None:
    """Letters only, at least two: Monday, no solution. A single letter is a variable, or a choice: (A) and A agree."""
    if text.startswith("\\mathbb") and text.replace(" ", "").strip("{}") in ("\\mathbb{R", "\\mathbbR"):
        return REALS
    if not _WORDS.fullmatch(text) or FUNCTION_NAME.search(text):
        return None
    plain = " ".join(text.casefold().split())
    if _NOTHING.fullmatch(plain):
        return EMPTY
    if _EVERYTHING.fullmatch(plain):
        return REALS
    return CanonicalAnswer(f"words {_SYNONYMS.get(plain, plain)}")


_NUMERAL = re.compile(r"(-?)0*([0-9A-Fa-f]+(?:\.[0-9A-Fa-f]+)?) ?(?:_ ?\{? ?| base )([0-9]{1,2}) ?\}?")


def numeral(text: str) -> CanonicalAnswer | None:
    """A numeral in another base: 10_2 is not the answer 2."""
    match = _NUMERAL.fullmatch(text)
    if match is None:
        return None
    sign, digits, base = match.groups()
    if base == "10":
        return leaf(evaluate(sign + digits), sign + digits)
    return CanonicalAnswer(f"numeral {sign}{digits.upper()} base {base}")


_CLOCK = re.compile(r"(?:[Aa]t )?([0-9]{1,2})(?::([0-9]{2}))? ([ap]m)(?: .{0,20})?")


def clock(text: str) -> CanonicalAnswer | None:
    """A time of day: 7 am is 7:00 am, and agrees with 7:00."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hours, minutes = match[1], match[2] or "0"
    short = compound("ratio {}", [leaf(Fraction(part), part) for part in (hours, minutes)])
    return CanonicalAnswer(f"clock {int(hours)}:{int(minutes)} {match[3]}", alternatives=frozenset({short.key}))


_REMAINDER = re.compile(
    r"([0-9]{1,50}) ?,? ?(?:[Rr]|[Rr]em(?:ainder)?|with remainder|with a remainder of|remainder of) ?([0-9]{1,50})"
)


def remainder(text: str) -> CanonicalAnswer | None:
    match = _REMAINDER.fullmatch(text)
    return CanonicalAnswer(f"{int(match[1])} remainder {int(match[2])}") if match else None


_WITH_UNIT = re.compile(
    r"(-?[0-9]{0,50}\.[0-9]{1,50}|-?[0-9]{1,50}(?=[gL])|-?\\frac\{[0-9]{1,50}\}\{[0-9]{1,50}\})([NJWVKgL])"
)


def with_unit(text: str) -> CanonicalAnswer | None:
    """0.64N and 250g: a product, or 0.64 newtons and 250 grams."""
    match = _WITH_UNIT.fullmatch(text)
    if match is None:
        return None
    return replace(leaf(evaluate(text), text), alternatives=frozenset({fingerprint(evaluate(match[1]))}))


_AFTER = re.compile(r"(-?[0-9.]{1,50}) after (-?[0-9.]{1,50})")


def after(text: str) -> CanonicalAnswer | None:
    """60 (miles apart) after 6 (hours) may answer how far, or when; it is no answer like another."""
    match = _AFTER.fullmatch(text)
    if match is None:
        return None
    both = frozenset(fingerprint(evaluate(number)) for number in match.groups())
    return CanonicalAnswer(f"text {text}", conclusions=both)


_COMMA = re.compile(r"(-?[0-9]{1,50}),([0-9]{1,50})")


def comma(text: str) -> CanonicalAnswer | None:
    """1,234 is one number, and may be meant as two; 2,5 is two, and may be meant as 2.5; 0,111 is 0.111."""
    match = _COMMA.fullmatch(text)
    if match is None:
        return None
    whole, rest = match.groups()
    parts = [leaf(Fraction(part), part) for part in (whole, rest)]
    two = set_of(parts, frozenset({f"({parts[0].key},{parts[1].key})"}))
    decimal = leaf(Fraction(f"{whole}.{rest}"), f"{whole}.{rest}")
    digits = whole.lstrip("-")
    if len(rest) < 3 or (digits[0] != "0" and (len(rest) > 3 or len(digits) > 3)):
        return replace(two, conclusions=frozenset({decimal.key}))
    one = decimal if digits[0] == "0" else leaf(Fraction(whole + rest), whole + rest)
    return replace(one, conclusions=frozenset({two.key}))
