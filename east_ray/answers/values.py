"""Values that expressions can have, and a canonical key for each: exact fractions, 40 digits, or three sample points.

A value is a Fraction; a real or complex number to 40 digits; or, when it depends on variables, one number per fixed
point. Equal expressions have equal values at the points, and different ones have different values but for a chance
below 1e-15 (Schwartz-Zippel), so `fingerprint` is a canonical key. Every operation is bounded in time: magnitudes past
the limits raise `ParseError`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import mpmath
from mpmath.libmp import to_rational

MAX_EXACT_BITS = 10_000  # larger rationals are rounded to 40 digits; also below the length Python prints
MAX_EXPONENT = 1_000_000  # of powers and exp, and the argument of trigonometric functions
MAX_NATURAL = 5_000  # factorials, binomials, root indices
KEY_DIGITS = 16
NUM_POINTS = 3  # every variable is positive at the first two, negative at the last: that tells |x| from x

_CONTEXT = mpmath.MPContext()  # our own: mpmath.mp is shared with the rest of the process
_CONTEXT.dps = 40
_NEGLIGIBLE = _CONTEXT.mpf(10) ** -28

# Fraction | mpf | mpc | tuple[mpf | mpc | None, ...]; mpmath has no types. None: not real at the last point, for roots and
# logarithms of variables are taken to be of positive ones.
Value: TypeAlias = Any


class ParseError(ValueError):
    """The text is not an expression of our grammar, or its value is out of bounds."""


def fingerprint(value: Value) -> str:
    """Canonical key of a simplified value: equal values, equal strings."""
    if isinstance(value, tuple):
        return "value " + " ".join("undefined" if number is None else _digits(number) for number in value)
    return "number " + _digits(value)


def scale_free(value: Value, *, signed: bool) -> str | None:
    """Fingerprint of a varying value up to a constant factor (a positive one if `signed`): equations, inequalities.

    None when nothing varies, or when the value vanishes at the first point.
    """
    if not isinstance(value, tuple) or not value[0]:
        return None
    unit = absolute(value[0]) if signed else value[0]
    return fingerprint(tuple(None if number is None else simplify(divide(number, unit)) for number in value))


def simplify(value: Value) -> Value:
    """The simplest form of a value: constant where it does not vary, real where not complex, exact where rational."""
    if not isinstance(value, tuple):
        return _simplest(value)
    first, *others = (None if number is None else _CONTEXT.convert(number) for number in value)
    assert first is not None  # only the last point may be undefined
    if all(number is None or abs(first - number) <= _NEGLIGIBLE * abs(first) for number in others):
        return _simplest(first)
    return tuple(None if number is None else _simplest(number) for number in value)


def _simplest(number: Any) -> Any:
    if isinstance(number, _CONTEXT.mpc) and abs(number.imag) <= _NEGLIGIBLE * abs(number):
        number = number.real
    if not isinstance(number, _CONTEXT.mpf):
        return number
    if abs(number._mpf_[2]) > MAX_EXACT_BITS:  # the binary exponent
        return number
    exact = _as_fraction(number)
    near = exact.limit_denominator(1_000_000)
    return near if abs(exact - near) < Fraction(1, 10**28) * abs(near) or not exact else number


def _as_fraction(number: Any) -> Fraction:
    return Fraction(*to_rational(number._mpf_))


def _digits(number: Any) -> str:
    if isinstance(number, _CONTEXT.mpc):
        size = _NEGLIGIBLE * abs(number)
        return " i ".join(
            _digits(Fraction(0) if abs(part) <= size else _simplest(part)) for part in (number.real, number.imag)
        )
    return str(number if isinstance(number, Fraction) else _CONTEXT.nstr(number, KEY_DIGITS))


def is_real(value: Value) -> bool:
    return isinstance(value, Fraction | _CONTEXT.mpf)


def is_rounded(exact: Value, decimal: Fraction, unit: Fraction) -> bool:
    """Is `decimal`, a multiple of `unit`, what rounding or cutting off a real constant leaves?"""
    if not is_real(exact) or abs(exact) > 10**MAX_NATURAL:
        return False
    value = exact if isinstance(exact, Fraction) else _as_fraction(exact)
    error = abs(value) - abs(decimal)
    return (value < 0) == (decimal < 0) and -unit / 2 <= error < unit


def _each(function: Callable[..., Any], *values: Value, real: Callable[..., bool] | None = None) -> Value:
    """Apply to constants once, to varying values point by point; `real`: has it a real result at the last point?

    The function gets Fractions only, or 40-digit numbers only.
    """
    if not any(isinstance(value, tuple) for value in values):
        return _apply(function, values)
    points = list(zip(*(value if isinstance(value, tuple) else (value,) * NUM_POINTS for value in values), strict=True))
    last = points.pop()
    defined = None not in last and (real is None or real(*last))
    return (*(_apply(function, point) for point in points), _apply(function, last) if defined else None)


def _apply(function: Callable[..., Any], numbers: tuple[Any, ...]) -> Any:
    if not all(isinstance(number, Fraction) for number in numbers):
        numbers = tuple(_CONTEXT.convert(number) for number in numbers)
    result = function(*numbers)
    if isinstance(result, Fraction):
        bits = result.numerator.bit_length() + result.denominator.bit_length()
        return result if bits <= MAX_EXACT_BITS else _CONTEXT.convert(result)
    if not _CONTEXT.isfinite(result):
        raise ParseError("not finite")
    return result


def add(left: Value, right: Value) -> Value:
    return _each(_add, left, right)


def _add(a: Any, b: Any) -> Any:
    """The sum; 0 where it is so much smaller than the terms that only their rounding is left: e^{-70} itself is not 0."""
    total = a + b
    return total if isinstance(total, Fraction) or abs(total) > _NEGLIGIBLE * abs(a) else Fraction(0)


def subtract(left: Value, right: Value) -> Value:
    return simplify(_each(lambda a, b: _add(a, -b), left, right))


def multiply(left: Value, right: Value) -> Value:
    return _each(lambda a, b: a * b, left, right)


def divide(left: Value, right: Value) -> Value:
    return _each(lambda a, b: a / b, left, right)


def negate(value: Value) -> Value:
    return _each(lambda a: -a, value)


def absolute(value: Value) -> Value:
    return _each(abs, value)


def power(base: Value, exponent: Value) -> Value:
    return _each(_power, base, exponent, real=lambda a, b: not _is_negative(a) or _CONTEXT.isint(b))


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT:
        raise ParseError("exponent out of bounds")
    if not base:
        if _CONTEXT.re(exponent) <= 0:
            raise ParseError("zero to a power that is not positive")
        return Fraction(0)
    if isinstance(base, Fraction):
        bits = base.numerator.bit_length() + base.denominator.bit_length()
        if exponent.denominator == 1 and abs(exponent) * bits <= MAX_EXACT_BITS:
            return base**exponent.numerator
    if _is_negative(base) and isinstance(exponent, Fraction) and exponent.denominator % 2:
        sign = -1 if exponent.numerator % 2 else 1  # the real root: (-8)^{1/3} is -2
        return sign * _CONTEXT.power(_CONTEXT.convert(-base), _CONTEXT.convert(exponent))
    return _CONTEXT.power(_CONTEXT.convert(base), _CONTEXT.convert(exponent))


def root(value: Value, index: Value) -> Value:
    """The real root where there is one: of a negative constant, for an odd index."""
    if natural(index) < 2:
        raise ParseError("a root's index is at least 2")
    if natural(index) % 2 and is_real(value) and value < 0:
        return negate(power(-value, 1 / index))
    return power(value, 1 / index)


def _is_negative(number: Any) -> bool:
    return is_real(number) and number < 0


def logarithm(value: Value, base: Value) -> Value:
    return divide(*(_each(_context_function("ln"), v, real=lambda a: not _is_negative(a)) for v in (value, base)))


def natural(value: Value) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_NATURAL:
        raise ParseError("not a natural number within bounds")
    return int(value)


def factorial(value: Value) -> Value:
    return _each(lambda number: Fraction(math.factorial(int(number))), Fraction(natural(value)))


def binomial(total: Value, chosen: Value) -> Value:
    return Fraction(math.comb(natural(total), natural(chosen)))


def _context_function(name: str) -> Callable[[Any], Any]:
    return lambda number: getattr(_CONTEXT, name)(_CONTEXT.convert(number))


def _bounded(name: str) -> Callable[[Value], Value]:
    def function(number: Any) -> Any:
        if abs(number) > MAX_EXPONENT:
            raise ParseError("argument out of bounds")
        result = _context_function(name)(number)
        return Fraction(0) if abs(result) <= _NEGLIGIBLE and abs(number) > 1 and name != "exp" else result  # \sin\pi

    return lambda value: _each(function, value)


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    **{name: _bounded(name) for name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "exp")},
    **{f"arc{name}": _bounded(f"a{name}") for name in ("sin", "cos", "tan", "sec", "csc", "cot")},
}
PI: Value = _CONTEXT.pi + 0
DEGREE: Value = PI / 180
E: Value = _CONTEXT.e + 0
I: Value = _CONTEXT.mpc(0, 1)  # noqa: E741


def from_digits(real: str, imaginary: str) -> Value:
    """A number computed elsewhere, from its decimal digits."""
    return _CONTEXT.mpc(_CONTEXT.mpf(real), _CONTEXT.mpf(imaginary))


@functools.lru_cache(maxsize=1_000)
def variable(name: str) -> Value:
    """The variable's number at each point: fixed by its name, between 1/3 and 7/3 in size."""
    digest = hashlib.sha256(name.encode()).digest()
    first, second, last = (
        _CONTEXT.mpf(int.from_bytes(digest[8 * point : 8 * point + 8], "big")) / 2**63 + _CONTEXT.mpf(1) / 3
        for point in range(NUM_POINTS)
    )
    return first, second, -last
