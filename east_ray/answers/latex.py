r"""LaTeX expression evaluator: a recursive-descent parser that always terminates; no sympy, no eval.

It evaluates while it parses (`values.py`) and builds no tree. Anything it does not understand raises `ParseError`;
length and nesting are bounded, and each character is visited a bounded number of times.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from east_ray.answers import values
from east_ray.answers.values import ParseError, Value

MAX_CHARS = 500  # MATH's longest reference has 159
MAX_NESTING = 30


def evaluate(text: str) -> Value:
    """Value of a whole expression; ParseError when any part of the text is not understood."""
    if len(text) > MAX_CHARS or _DERIVATIVE.search(text):
        raise ParseError("too long, or calculus")
    parser = _Parser(text)
    try:
        value = parser.sum()
        if parser.peek():
            raise ParseError(f"what is {parser.rest()!r}?")
        return values.simplify(value)
    except (ArithmeticError, ValueError) as error:
        raise ParseError(str(error)) from None


_DERIVATIVE = re.compile(r"\\frac ?\{ ?d")
_TOKEN = re.compile(r"\s*([0-9]+|\\[A-Za-z]+|\\.|[A-Za-z]+|\S|\Z)")
_NUMBER = re.compile(r"([0-9]*)(?:(\.)([0-9]*)(?:\\(?:overline|bar|dot) ?\{? ?([0-9]+) ?\}?)?)?")
_MIXED = re.compile(
    r" ?\\frac ?(?:\{ ?([0-9]+) ?\}|([0-9])) ?(?:\{ ?([0-9]+) ?\}|([0-9]))| ([0-9]+) ?/ ?([0-9]+)(?![0-9.])"
)
_SCIENTIFIC = re.compile(r"[eE]([-+]?[0-9]+)(?![0-9.])")
_DEGREE = re.compile(r" ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))")
_SUBSCRIPT = re.compile(r" ?_ ?(?:\{([^{}]*)\}|([A-Za-z0-9]|\\[A-Za-z]+))")
_BEFORE_NUMERAL = re.compile(r"(?:[)}\]]|\^ ?[0-9]+ ) *$")
_LOGARITHMS = frozenset({"log", "ln", "lg"})
_SYMBOLS = frozenset(
    r"""alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell infty""".split()  # noqa: SIM905
)
_COMMANDS = values.FUNCTIONS.keys() | _LOGARITHMS | _SYMBOLS | {"frac", "sqrt", "binom", "pi", "cdot", "times", "div"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}"}
_SHORT_WORDS = frozenset(
    """am an as at be by cm do ft go he hr if in is it kg km lb me mi mm my no of on or oz pm so to up us we yd""".split()  # noqa: SIM905
)


class _Parser:
    """A position in a text; each method parses one construct there and returns its value."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._open_bars = 0  # of |absolute values|
        self._in_function = False  # where a degree sign means pi/180

    def rest(self) -> str:
        return self._text[self._at : self._at + 20]

    def peek(self) -> str:
        """The next token, past spaces; empty at the end."""
        match = _TOKEN.match(self._text, self._at)
        assert match is not None
        self._at = match.start(1)
        return match[1]

    def take(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self._at += len(token)
        return True

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise ParseError(f"expected {token!r} before {self.rest()!r}")

    def sum(self) -> Value:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise ParseError("nested too deeply")
        value = self.signed(self.product)
        while (sign := self.peek()) in ("+", "-"):
            self._at += 1
            term = self.product()
            value = values.add(value, term if sign == "+" else values.negate(term))
        self._depth -= 1
        return value

    def signed(self, parse: Callable[[], Value]) -> Value:
        if self.take("-"):
            return values.negate(parse())
        self.take("+")
        return parse()

    def product(self) -> Value:
        """Factors with and without signs between them, from left to right: 1/2x is (1/2) x."""
        value = self.factor()
        while token := self.peek():
            if token in ("*", "\\cdot", "\\times"):
                self._at += len(token)
                value = values.multiply(value, self.signed(self.factor))
            elif token in ("/", "\\div"):
                self._at += len(token)
                value = values.divide(value, self.signed(self.factor))
            elif self._is_factor(token):
                value = values.multiply(value, self.factor())
            else:
                break
        return value

    def _is_factor(self, token: str) -> bool:
        """Can the token continue a product without a sign? A numeral only after a group or a power: 2^6 3^5, not 1 7."""
        if token == "|":
            return self._open_bars == 0
        if _is_numeral(token):
            return _BEFORE_NUMERAL.search(self._text[max(0, self._at - 20) : self._at]) is not None
        return token[0].isalpha() or token in ("(", "{", "[") or self._command(token) is not None

    def factor(self) -> Value:
        value = self.atom()
        while True:
            if self.take("!"):
                value = values.factorial(value)
            elif self.take("^"):
                if degree := _DEGREE.match(self._text, self._at):
                    self._at = degree.end()
                    value = values.multiply(value, values.DEGREE if self._in_function else Fraction(1))
                else:
                    value = values.power(value, self.exponent())
            else:
                return value

    def exponent(self) -> Value:
        """What follows ^: a group, or one atom with its sign. 10^20 is a power of twenty, as people mean it."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise ParseError("nested too deeply")
        value = self.signed(self.factor)
        self._depth -= 1
        return value

    def atom(self) -> Value:
        token = self.peek()
        if _is_numeral(token):
            return self.number()
        if token in _CLOSING:
            self._at += len(token)
            bars, self._open_bars = self._open_bars, 0
            value = self.sum()
            self._open_bars = bars
            self.expect(_CLOSING[token])
            return value
        if token == "|":
            self._at += 1
            self._open_bars += 1
            value = self.sum()
            self._open_bars -= 1
            self.expect("|")
            return values.absolute(value)
        if (command := self._command(token)) is not None:
            self._at += 1 + len(command)
            return self.named(command)
        if token.isascii() and token.isalpha():
            return self.letters(token)
        raise ParseError(f"what is {self.rest()!r}?")

    def number(self) -> Value:
        """Digits, a decimal, a repeating decimal (0.1\\overline{6}), 1.5e3, a mixed number (2\\frac{1}{3})."""
        match = _NUMBER.match(self._text, self._at)
        assert match is not None
        whole, point, decimals, repeat = (group or "" for group in match.groups())
        if not (whole or decimals or repeat):
            raise ParseError("a lone point")
        self._at = match.end()
        value: Value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
        if repeat:
            value = value + Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(decimals))
        elif scientific := _SCIENTIFIC.match(self._text, self._at):
            self._at = scientific.end()
            value = values.multiply(value, values.power(Fraction(10), Fraction(scientific[1])))
        elif not point and (mixed := _MIXED.match(self._text, self._at)):
            self._at = mixed.end()
            value = value + Fraction(*(int(digits) for digits in mixed.groups() if digits))
        return value

    def _command(self, token: str) -> str | None:
        r"""The command a token stands for: itself, or the longest one it starts with (\pir is \pi r)."""
        if token[:1] != "\\":
            return None
        return next((token[1:end] for end in range(len(token), 2, -1) if token[1:end] in _COMMANDS), None)

    def named(self, name: str) -> Value:
        """The value of the command, or function name without backslash, that was just consumed."""
        if name == "pi":
            return values.PI
        if name == "frac":
            return values.divide(self.argument(), self.argument())
        if name == "binom":
            return values.binomial(self.argument(), self.argument())
        if name == "sqrt":
            index: Value = Fraction(2)
            if self.take("["):
                index = self.sum()
                self.expect("]")
            return values.root(self.atom(), index)
        if name in _LOGARITHMS:
            base = values.E if name == "ln" else Fraction(10)
            if self.take("_"):
                base = self.argument()
            return values.logarithm(self.operand(), base)
        if name in values.FUNCTIONS:
            return self.function(name)
        if name in _SYMBOLS:
            return values.variable(name + self.subscript())
        raise ParseError(f"a {name!r} out of place")

    def argument(self) -> Value:
        """An argument of a command: a group, a command, or a single digit or letter."""
        token = self.peek()
        if token[:1].isascii() and token[:1].isalnum():
            self._at += 1
            return Fraction(int(token[0])) if token[0].isdigit() else self.letter(token[0])
        return self.atom()

    def function(self, name: str) -> Value:
        """A function's value: sin x, sin^2 x, sin^{-1} x (the inverse)."""
        exponent = self.exponent() if self.take("^") else Fraction(1)
        if exponent == -1 and f"arc{name}" in values.FUNCTIONS:
            name, exponent = f"arc{name}", Fraction(1)
        outside, self._in_function = self._in_function, True
        value = values.FUNCTIONS[name](self.operand())
        self._in_function = outside
        return value if exponent == 1 else values.power(value, exponent)

    def operand(self) -> Value:
        r"""What a function applies to: a group, or a product up to the next sign or function (\sin 2x \cos y)."""
        if self.peek() in _CLOSING:
            return self.atom()
        value = self.signed(self.factor)
        while (token := self.peek()) and self._is_factor(token):
            name = self._command(token) or token
            if name in values.FUNCTIONS or name in _LOGARITHMS or token in _CLOSING or _is_numeral(token):
                break
            value = values.multiply(value, self.factor())
        return value

    def letters(self, run: str) -> Value:
        """Letters side by side: a function's plain name first, or a product of variables. Words raise."""
        for end in range(len(run), 1, -1):
            if run[:end] in values.FUNCTIONS or run[:end] in ("sqrt", "pi", "log", "ln"):
                self._at += end
                return self.named(run[:end])
        in_order = all(ord(right) - ord(left) == 1 for left, right in itertools.pairwise(run))
        if run.lower() in _SHORT_WORDS or (len(run) > 2 and not in_order):
            raise ParseError(f"the word {run!r}")
        self._at += 1
        return self.letter(run[0])

    def letter(self, letter: str) -> Value:
        subscript = self.subscript()
        if not subscript and letter in "ei":
            return values.E if letter == "e" else values.I
        return values.variable(letter + subscript)

    def subscript(self) -> str:
        match = _SUBSCRIPT.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return "_" + (match[1] or match[2] or "").replace(" ", "")


def _is_numeral(token: str) -> bool:
    return token[:1] == "." or (token[:1].isascii() and token[:1].isdigit())
