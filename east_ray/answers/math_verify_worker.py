"""math-verify inside the sandbox, for the few answers our own parser does not understand.

The only file that imports sympy: slow, and not guaranteed to terminate. Expressions come from math-verify's LaTeX grammar;
its fallback to sympy's `parse_expr`, which is `eval` at heart, is disabled.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from functools import lru_cache
from typing import Any

import math_verify
import sympy
from math_verify import LatexExtractionConfig

from east_ray.answers.values import ParseError, fingerprint, from_digits, simplify, variable

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def compare(reference: str, answer: str) -> tuple[bool, str | None]:
    """math-verify's verdict on two normalised answers, and the answer's canonical key (None: it has no value).

    The reference goes first: math-verify is not symmetric.
    """
    return _verify(reference, answer), _key(answer)


def _verify(reference: str, answer: str) -> bool:
    parsed = _parse(reference), _parse(answer)
    try:
        return math_verify.verify(*parsed, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # two kinds of expression that sympy cannot compare
        return False


@lru_cache(maxsize=1_000)
def _parse(answer: str) -> list[Any]:
    return math_verify.parse(
        f"${answer}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=0
    )  # 0: no alarm


def _key(answer: str) -> str | None:
    """The key that `canonical.parse` would give: the value at the sample points of `values.py`."""
    expressions = [parsed for parsed in _parse(answer) if isinstance(parsed, sympy.Expr)]
    if not expressions:
        return None
    try:
        return fingerprint(simplify(_value(expressions[0].doit())))
    except (ParseError, ArithmeticError, TypeError, ValueError, AttributeError):
        return None


def _value(expression: sympy.Expr) -> Any:
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        return _number(expression)
    points = zip(*(variable(str(symbol)) for symbol in symbols), strict=True)
    return tuple(_number(expression.subs(dict(zip(symbols, point, strict=True)))) for point in points)


def _number(expression: sympy.Expr) -> Any:
    if isinstance(expression, sympy.Rational):
        return Fraction(int(expression.p), int(expression.q))
    real, imaginary = expression.evalf(40).as_real_imag()
    return from_digits(str(real), str(imaginary))
