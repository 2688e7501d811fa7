r"""Answers meant to hang, exhaust, crash or take over whoever grades them. `answers(canary)` gives them by name.

An answer is put into \boxed{} by the tests; `completions` are whole texts, for the extraction. Code among them tries to
create the file `canary`.
"""

from __future__ import annotations

from pathlib import Path


def answers(canary: Path) -> dict[str, str]:
    code = f"open({str(canary)!r}, 'w').close()"
    shell = f"__import__('os').system('touch {canary}')"
    return {
        **_numbers(),
        **_algebra(),
        **_calculus(),
        **_structure(),
        **_characters(),
        "code open": code,
        "code shell": shell,
        "code eval": f"eval({shell!r})",
        "code exec": f"exec({shell!r})",
        "code lambda": f"(lambda: {shell})()",
        "code dunder": f"().__class__.__base__.__subclasses__()[0].__init__.__globals__['os'].system('touch {canary}')",
        "code sympify": f"sympify({shell!r})",
        "code parse_expr": f"parse_expr({shell!r})",
        "code in operatorname": rf"\operatorname{{{shell}}}(2)",
        "code in text": rf"\text{{{shell}}}",
        "code in arithmetic": f"1+{shell}+1",
        "code as list": f"[{shell}, 2]",
        "code walrus": f"(x := {shell})",
        "code latex shell": rf"\immediate\write18{{touch {canary}}}",
        "code input": r"\input{/etc/passwd}",
        "code template": "{{7*7}} ${7*7} #{7*7}",
        "code format": "{0.__class__.__mro__}",
        "code pickle": "cos\nsystem\n(S'true'\ntR.",
    }


def _numbers() -> dict[str, str]:
    return {
        "tower of four": "9^{9^{9^{9}}}",
        "tower of ten": "2^{" * 10 + "2" + "}" * 10,
        "tower of a hundred": "2^{" * 90 + "2" + "}" * 90,
        "tower in plain text": "9**9**9**9**9",
        "tower of carets": "9^9^9^9^9^9",
        "negative tower": "9^{-9^{9^{9}}}",
        "power of a power": "((((10^{1000})^{1000})^{1000})^{1000})^{1000}",
        "huge exponent": "11^{" + "1" * 500 + "}",
        "huge base": "9" * 900 + "^{99999}",
        "fraction of towers": r"\frac{9^{9^{9}}}{9^{9^{9}}}",
        "root of a tower": r"\sqrt{9^{9^{9^{9}}}}",
        "sine of a huge number": r"\sin(10^{10^{8}})",
        "logarithm of a tower": r"\log(9^{9^{9^{9}}})",
        "exponential": r"\exp(\exp(\exp(\exp(100))))",
        "factorial": "99999999!",
        "factorial of a factorial": "((100!)!)!",
        "forty factorial signs": "3" + "!" * 40,
        "binomial": r"\binom{10^{9}}{5 \cdot 10^{8}}",
        "long integer": "7" * 1_900,
        "million digits": "7" * 1_000_000,
        "long decimal": "0." + "3" * 1_900,
        "long fraction": rf"\frac{{{'7' * 900}}}{{{'3' * 900}}}",
        "continued fraction": r"\frac{1}{1+" * 90 + "1" + "}" * 90,
        "scientific": "1e999999999",
        "small scientific": "1e-999999999",
        "digits of a base": "1" * 1_500 + "_{2}",
        "repeating decimal": r"0.\overline{" + "142857" * 300 + "}",
        "product of primes": r" \cdot ".join(str(n) for n in range(1_001, 1_400, 2)),
        "sum of powers": "+".join(f"{n}^{{{n}}}" for n in range(900, 1_080)),
        "modulus of a tower": r"7^{7^{7^{7}}} \bmod 1000",
        "gcd of towers": r"\gcd(9^{9^{9}}, 6^{6^{6^{6}}})",
    }


def _algebra() -> dict[str, str]:
    return {
        "big power of a sum": "(x+y+z+w)^{2000}",
        "nested powers of sums": "((((x+1)^{99}+1)^{99}+1)^{99}+1)^{99}",
        "product of many factors": "".join(f"(x+{n})" for n in range(300)),
        "equation of degree a million": "x^{1000000}+x+1=0",
        "many variables": "+".join(f"x_{{{n}}}^{{{n}}}" for n in range(180)),
        "nested roots": r"\sqrt{1+" * 90 + "1" + "}" * 90,
        "roots of roots of sums": r"\sqrt{\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}+\sqrt{13}}^{17}",
        "trigonometric product": "".join(rf"\sin({n}x)\cos({n}y)" for n in range(1, 90)),
        "nested trigonometry": r"\sin(" * 40 + "x" + ")" * 40,
        "matrix": r"\begin{pmatrix}" + r"\\".join("&".join("1" * 30) for _ in range(30)) + r"\end{pmatrix}",
        "power of a matrix": r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{10^{9}}",
        "symbolic matrix": r"\begin{pmatrix}"
        + r"\\".join("&".join("abcdefgh") for _ in range(8))
        + r"\end{pmatrix}^{50}",
        "inverse matrix": r"\begin{pmatrix}"
        + r"\\".join("&".join(f"x^{i}y^{j}" for j in range(6)) for i in range(6))
        + r"\end{pmatrix}^{-1}",
        "determinant": r"\det\begin{pmatrix}"
        + r"\\".join("&".join(f"a_{{{i}{j}}}" for j in range(9)) for i in range(9))
        + r"\end{pmatrix}",
        "chain of equations": "=".join(["11/12/13/14/15"] * 80),
        "division chain from a real model": "10 Calculation: " + "/".join(str(n) for n in range(11, 31)),
        "absolute values": "|" * 200 + "x" + "|" * 200,
        "inequality chain": "<".join(f"x^{{{n}}}" for n in range(150)),
    }


def _calculus() -> dict[str, str]:
    return {
        "huge sum": r"\sum_{k=1}^{10^{12}} k^{k}",
        "infinite sum": r"\sum_{k=1}^{\infty} \frac{\sin(k^{k})}{k!}",
        "nested sums": r"\sum_{a=1}^{999}\sum_{b=1}^{999}\sum_{c=1}^{999} a^b c",
        "huge product": r"\prod_{k=1}^{10^{9}} (k+x)",
        "hard integral": r"\int_0^{\infty} \frac{e^{-x^x} \sin(x^3)}{\ln(1+x^x)} dx",
        "iterated integrals": r"\int_0^1 " * 12 + r"e^{xyzt}" + " dx" * 12,
        "derivative of a tower": r"\frac{d}{dx} x^{x^{x^{x^{x}}}}",
        "hard limit": r"\lim_{x \to 0} \frac{\sin(\tan x) - \tan(\sin x)}{x^{7^{7^{7}}}}",
    }


def _structure() -> dict[str, str]:
    return {
        "ten thousand brackets": "(" * 10_000 + "1" + ")" * 10_000,
        "ninety brackets": "(" * 90 + "1" + ")" * 90,
        "ten thousand braces": "{" * 10_000 + "1" + "}" * 10_000,
        "nested text": r"\text{" * 90 + "1" + "}" * 90,
        "nested fractions": r"\frac{" * 80 + "1" + "}{2}" * 80,
        "unclosed fractions": r"\frac{1" * 280,
        "closing only": "}" * 500 + "1",
        "signs": "-" * 1_999 + "1",
        "spaces": "1" + " " * 1_900 + "2",
        "commas": "," * 1_999,
        "thousand tuples": ",".join(f"({n},{n})" for n in range(250)),
        "nested sets": r"\{" * 60 + "1" + r"\}" * 60,
        "unions": r"\cup".join(f"({n},{n + 1})" for n in range(140)),
        "backslashes": "\\" * 1_999,
        "dollars": "$" * 1_999,
        "carets": "^" * 1_999,
        "underscores": "x" + "_x" * 900,
        "equals signs": "=" * 1_999,
        "mixed brackets": "([{" * 300 + "}])" * 300,
        "plus-minus": r"\pm 1" * 300,
        "words": "word " * 399,
        "numbers between words": "5 apples and " * 150,
        "sentence without an end": "so the answer is then " * 90,
    }


def _characters() -> dict[str, str]:
    return {
        "NUL bytes": "\x00" * 1_000 + "5" + "\x00" * 900,
        "control characters": "".join(map(chr, range(1, 32))) * 40,
        "Arabic-Indic digits": "٣٤٥",
        "full-width digits": "１２３",
        "superscripts": "2" + "⁹" * 1_500,
        "mathematical digits": "𝟙𝟚𝟛",
        "Roman numeral": "Ⅷ",
        "circled digit": "①",
        "lone surrogate": "\ud800 5",
        "right-to-left override": "\u202e12\u202c",
        "combining marks": "5" + "\u0301" * 1_500,
        "zero-width spaces": "\u200b".join("12345" * 100),
        "emoji": "🧮" * 900,
        "replacement characters": "\ufffd" * 1_900,
    }


def completions() -> dict[str, str]:
    """Whole texts that make a careless extraction take quadratic time, or more; a megabyte each."""
    return {
        "megabyte of boxes never closed": r"\boxed{" * 150_000,
        "megabyte of boxes in boxes": r"\boxed{" * 60_000 + "5" + "}" * 60_000,
        "megabyte of empty boxes": r"\boxed{}" * 130_000,
        "megabyte in one box": r"\boxed{" + "1+" * 500_000 + "1}",
        "megabyte of bare boxes": r"\boxed " * 150_000,
        "megabyte of hashes": "#" * 1_000_000,
        "megabyte of empty answers": "#### \n" * 160_000,
        "megabyte of phrases": "answer is " * 100_000,
        "megabyte of tags": "<answer>" * 125_000,
        "megabyte of closed tags": "<answer></answer>" * 60_000,
        "megabyte of turns": "\nQ" * 500_000,
        "megabyte of digits": "the answer is " + "9" * 1_000_000,
        "megabyte of spaces": "answer" + " " * 1_000_000 + "is 5",
        "megabyte of backslashes": "\\" * 1_000_000,
        "megabyte of braces": "{" * 1_000_000,
        "megabyte of NUL": "\x00" * 1_000_000,
        "megabyte of newlines": "\n" * 1_000_000,
        "megabyte of numbers": "1,234.5 " * 130_000,
    }
