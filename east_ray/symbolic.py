"""What runs inside the sandbox: math-verify's verdict. The only file that imports sympy; slow, and not to be trusted to end.

Nothing here evaluates text as code: math-verify's grammar parser reads LaTeX, and its expression fallback is off.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import math_verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def equal(reference: str, answer: str) -> bool:
    """math-verify's verdict on two normalised answers; the reference goes first, it is not symmetric."""
    return math_verify.verify(_parse(reference), _parse(answer), timeout_seconds=None)


def plain_equal(reference: str, completion: str) -> bool:
    """math-verify as it comes, its own extraction included, on a whole completion: the second grader of an evaluation."""
    answer = math_verify.parse(completion, parsing_timeout=None)
    return math_verify.verify(_parse(reference), answer, timeout_seconds=None)


@lru_cache(maxsize=1000)
def _parse(answer: str) -> list[Any]:
    return math_verify.parse(f"${answer}$", parsing_timeout=None)
