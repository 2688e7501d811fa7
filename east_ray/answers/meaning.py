r"""`CanonicalAnswer`: a canonical key, and what else it takes to recognise an answer as the reference. Pure.

`canonical.py` parses text into these; this file composes them from parts and compares two of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from east_ray.answers.values import Value, fingerprint, is_rounded


@dataclass(frozen=True)
class CanonicalAnswer:
    r"""`key` identifies the answer; the other fields serve its comparison with a reference.

    `also`: further keys it may be recognised by (y = 2x + 3 as an equation; 1, 2 in this order). `alternatives`: keys of
    other answers that agree with it, but not with each other ("(B) 12" with B and with 12). `conclusions`: what an answer
    may claim, but a reference does not mean: an equation's last side, 2.5 for 2,5.
    `is_choice`: the letter of one, with `behind` as the key of the text behind it. `members`: keys of the elements
    of a set. `shape`: the key with # for each number; `numbers` and `spellings` are what stood there, so that 1.732 is recognised as a rounded \sqrt{3}.
    """

    key: str
    also: frozenset[str] = frozenset()
    alternatives: frozenset[str] = frozenset()
    conclusions: frozenset[str] = frozenset()
    is_choice: bool = False
    behind: str = ""
    members: tuple[str, ...] = ()
    shape: str = ""
    numbers: tuple[Value, ...] = ()
    spellings: tuple[str, ...] = ()


def agree(reference: CanonicalAnswer, answer: CanonicalAnswer) -> bool:
    """Is the answer the reference, exactly or as a decimal close enough to it?"""
    if (
        {reference.key, *reference.also} & {answer.key, *answer.also}
        or reference.key in answer.alternatives | answer.conclusions
        or answer.key in reference.alternatives
    ):
        return True
    if reference.shape != answer.shape or not any("." in number for number in reference.spellings + answer.spellings):
        return False
    return all(
        fingerprint(expected) == fingerprint(got) or _is_rounded(expected, written) or _is_rounded(got, original)
        for expected, original, got, written in zip(
            reference.numbers, reference.spellings, answer.numbers, answer.spellings, strict=True
        )
    )


def cluster_key(reference: CanonicalAnswer, answer: CanonicalAnswer) -> str:
    """What `answer` is grouped by: (B) 12 with 12 where the reference is no choice, with B where it is."""
    return answer.behind if answer.behind and not reference.is_choice else answer.key


_DECIMAL = re.compile(r"-?0*([0-9]*)\.([0-9]+)")
MIN_DECIMALS_OF_FRACTION = 6  # as math-verify: 0.333333 is 1/3, 0.3333 is another number
MIN_DIGITS_OF_IRRATIONAL = 4  # 1.732 is the square root of 3, 1.73 is not


def _is_rounded(exact: Value, spelling: str) -> bool:
    """Is `spelling` a decimal that rounds, or cuts off, `exact` at its last digit, the twelfth at most (a float's noise)?"""
    match = _DECIMAL.fullmatch(spelling)
    if match is None:
        return False
    whole, decimals = match.groups()
    if not decimals.strip("0"):  # 12.00 is 12 exactly
        return False
    rational = isinstance(exact, Fraction)
    if rational and len(decimals) < MIN_DECIMALS_OF_FRACTION:
        return False
    if not rational and len((whole + decimals).lstrip("0")) < MIN_DIGITS_OF_IRRATIONAL:
        return False
    written = Fraction(spelling)
    return is_rounded(exact, written, max(Fraction(1, 10 ** len(decimals)), abs(written) / 10**12))


def leaf(value: Value, spelling: str) -> CanonicalAnswer:
    """The canonical form of one value, written as `spelling`."""
    return CanonicalAnswer(fingerprint(value), shape="#", numbers=(value,), spellings=(spelling,))


def compound(form: str, parts: Sequence[CanonicalAnswer], *, ordered: bool = True, **fields: object) -> CanonicalAnswer:
    """A canonical form made of parts; `form` has one {} for all of them, joined by commas."""
    keys = [part.key for part in parts]
    return CanonicalAnswer(
        form.format(",".join(keys if ordered else sorted(keys))),
        shape=form.format(",".join(part.shape for part in parts)),
        numbers=tuple(number for part in parts for number in part.numbers),
        spellings=tuple(spelling for part in parts for spelling in part.spellings),
        **fields,  # type: ignore[arg-type]
    )


def set_of(
    elements: Sequence[CanonicalAnswer], also: frozenset[str] = frozenset(), *, repeats: bool = False
) -> CanonicalAnswer:
    """A set of some elements, or a list in any order (`repeats`), nested ones flattened; one element is itself."""
    keys = [key for element in elements for key in element.members or (element.key,)]
    members = sorted(keys if repeats else set(keys))
    key = "{" + ",".join(members) + "}" if len(members) > 1 else members[0]
    return replace(compound("{{{}}}", elements), key=key, members=tuple(members), also=also)
