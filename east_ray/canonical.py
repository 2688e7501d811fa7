"""What an answer means, as a string: its normal form and, where it can be read without algebra, its canonical key.

Two answers with the same key mean the same; that is an equivalence relation by construction. Pure string work, no
sympy, linear in the (bounded) length of the answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

_CHARACTERS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        **dict.fromkeys("−–—‒﹣", "-"),
        **dict.fromkeys("\xa0\u2009\u202f\u3000\t\n\r", " "),
        **dict.fromkeys("\u200b\u2060\ufeff\x00", ""),
        "×": "\\times ",
        "·": "\\cdot ",
        "⋅": "\\cdot ",
        "÷": "/",
        "⁄": "/",
        "π": "\\pi ",
        "√": "\\sqrt ",
        "∞": "\\infty ",
        "∪": "\\cup ",
        "≤": "\\le ",
        "≥": "\\ge ",
        "≠": "\\ne ",
        "°": "^\\circ ",
        "²": "^2",
        "³": "^3",
        "½": "\\frac{1}{2}",
        "¼": "\\frac{1}{4}",
        "¾": "\\frac{3}{4}",
        "€": "",
        "£": "",
        "’": "'",
        "“": '"',
        "”": '"',
    }
)


def normalise(answer: str) -> str:
    """One spelling for what only differs in notation: delimiters, spacing, units, currency, thousands. Idempotent."""
    text = answer.translate(_CHARACTERS).strip()
    for _ in range(10):
        simpler = _simplify(text)
        if simpler == text:
            break
        text = simpler
    return text


_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"</?(?:answer|think)>", " "),
        (r"\\\$|\$|(?<!\\)\\[()\[\]]|\*\*|`", ""),
        (r",\\!\s*(?=[0-9])|\{,\}|\\!", ""),
        (r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ""),
        (r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])", ""),
        (r"\\(?:[,;: ]|quad(?![A-Za-z])|qquad(?![A-Za-z]))|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", ""),
        (r"\\?%", ""),
        (r"\s+", " "),
        (r"^\s+|[\s.,;:]+$", ""),
        (r"^\{([^{}]*)\}$", r"\1"),
        (r"^(-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?)(?![0-9,])", lambda match: match[1].replace(",", "")),
        (r"^(-?[0-9./]+) [A-Za-z ]*[A-Za-z]{2,}(?:\^\{?[23]\}?)?$", r"\1"),
    )
]


def _simplify(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_EXACT = re.compile(rf"([+-]?) ?(?:({_NUMBER})|\\frac ?\{{([+-]?[0-9]+)\}} ?\{{([0-9]+)\}}|([0-9]+) ?/ ?([0-9]+))")
_WORDS = re.compile(r"\(?[A-Za-z][A-Za-z '-]*\)?")


def key(normal: str) -> str | None:
    """Canonical key of a normalised answer that is an exact number or plain words; None for all else."""
    if match := _EXACT.fullmatch(normal):
        sign, number, over, under, left, right = match.groups()
        numerator, denominator = (over or left), (under or right)
        if numerator and not int(denominator):
            return None
        value = Fraction(int(numerator), int(denominator)) if numerator else Fraction(number)
        return f"number {-value if sign == '-' else value}"
    if _WORDS.fullmatch(normal):
        return f"words {normal.strip('()').casefold()}"
    return None
