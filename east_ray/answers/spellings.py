r"""Spellings that mean the same: characters and LaTeX commands, and what each is replaced by. Data for `normalise`.

A rule is applied to texts that contain its trigger: most answers contain few. The order matters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

from east_ray.answers.numerals import SCALES

SCRIPTS = {
    "^": ("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")),
    "_": ("₀₁₂₃₄₅₆₇₈₉", str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")),
}
_SYMBOLS = r"""× \times · \cdot ⋅ \cdot ± \pm π \pi θ \theta √ sqrt ∛ \sqrt[3] ∜ \sqrt[4] ∞ \infty ∪ \cup ∩ \cap ∈ \in ≤ \le ≥ \ge ≠ \ne
    ≈ \approx ≅ \approx ≃ \approx ° ^\circ ∅ \emptyset ′ ' ∀ \forall ℝ \mathbb{R} ℤ \mathbb{Z} ½ \frac{1}{2} ⅓ \frac{1}{3}
    ⅔ \frac{2}{3} ¼ \frac{1}{4} ¾ \frac{3}{4}""".split()  # noqa: SIM905
CHARACTERS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0x1D400, 0x1D800)}  # mathematical letters
    | dict.fromkeys("−–—‒﹣", "-")
    | dict.fromkeys("\xa0\u2002\u2003\u2009\u202f\u3000\t\r\f\v", " ")
    | dict.fromkeys('\u200b\u2060\ufeff\x00€£¥₹₫`"“”', "")
    | {"。": ". ", "、": ",", "，": ",", "∗": "*", "÷": "/", "⁄": "/", "’": "'", "‘": "'", "…": "..."}
    | {symbol: f" {command} " for symbol, command in zip(_SYMBOLS[::2], _SYMBOLS[1::2], strict=True)}
)

_WRAPPER = r"\\(?:text|textrm|textup|textnormal|textbf|textit|textsf|mbox|hbox|mathrm|mathbf|mathit|operatorname|emph|boxed|fbox) *"
POWER = r"(?: ?\^ ?(?:\{ ?-?[1-4] ?\}|-?[1-4]))?"
_ONE_UNIT = rf"(?:[ ~/.*]|\\[,;: !]|\\cdot|\\times)*{_WRAPPER}\{{[ ~]*(?![ei] *\}})[A-Za-z](?:[ ~]?/ ?[A-Za-z]{{1,3}})?[ ~]*{POWER}\}}{POWER}"
_NAMED_UNIT = r"(?:km|cm|mm|kg|mg|ml|mL|kJ|kW|kPa|kN|Pa|Hz|eV|mol|min|hr|[mgsLhJNWVK])"
_COMPOUND = rf"{_NAMED_UNIT}{POWER}(?: ?(?:/|\*|\\cdot|\\times| ) ?{_NAMED_UNIT}{POWER}){{1,3}}"
_WRAPPED_UNIT = rf"\{{ ?{_WRAPPER}\{{[A-Za-z ~]+\}}{POWER} ?\}}"
_HEDGE = r"approximately|approx\.?|about|around|roughly|nearly|exactly|only|just|clearly|simply|therefore|thus|a total of|the|usd?|rs\.?"
_FONT = r"""left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?|boldsymbol|bm|pmb|bf|it|rm|sf|tt|bfseries|itshape|underline|large|Large
    |LARGE|huge|small|normalsize|mathcal|mathsf|mathtt|(?:ka)?(?:blue|green|red|purple|orange|gold|maroon|teal|pink|gr[ae]y|violet
    |cyan|magenta)[A-E]?""".replace("\n    ", "")

_COMMANDS = {  # those that mean the same
    **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"), "langle": "(", "rangle": ")", "lt": "<", "gt": ">", "equiv": "=",
    **dict.fromkeys(("simeq", "cong", "thickapprox", "approxeq"), r"\approx "), "varnothing": r"\emptyset",
}  # fmt: skip


def _repeating(match: re.Match[str]) -> str:
    r"""0.333... is 0.\overline{3}; without a repetition the dots say nothing."""
    whole, _, decimals = match[1].partition(".")
    for length in range(1, len(decimals) // 2 + 1):
        block = decimals[-length:]
        if len(set(block)) > 1 or length == 1:
            times = 1
            while decimals[: -length * times].endswith(block):
                times += 1
            if times >= (3 if length == 1 else 2):
                return f"{whole or 0}.{decimals[: -length * times]}\\overline{{{block}}}"
    return match[1]


def _scaled(match: re.Match[str]) -> str:
    """3.5 million in digits."""
    number = Fraction(match[1].replace(",", "")) * (12 if match[2] == "dozen" else SCALES[match[2]])
    return str(number) if number.denominator == 1 else match[0]


Replacement: TypeAlias = str | Callable[[re.Match[str]], str]
_TABLE: tuple[tuple[str, str, Replacement], ...] = (
    ("<<", r"<<[^<>]*>>", ""),  # GSM8K's calculator
    ("<", r"<(?: ?/ ?)?[A-Za-z][\w:-]*(?: [^<>]*|/)?>", ""),
    ("<", r"^<([^<>]*)>$", r"\1"),
    ("[", r"\[/?[A-Za-z]{3,}\]", ""),
    ("$", r"\\?\$", ""),
    ("\\", r"\\(?:therefore|textdollar)(?![A-Za-z])|(?<!\\)\\[()\[\]]", ""),
    ("space", r"\\[hv]space\*? ?\{[^{}]*\}", " "),
    ("\\", r"\\(?:text|math)(?:bf|rm|it)(?= ?[0-9])", ""),
    ("color", r"\\(?:text)?color ?(?:\[[^\[\]{}]*\] ?)?\{[^{}]*\}", ""),
    ("\\", rf"\\(?:{_FONT})(?![A-Za-z])", ""),
    ("**", r"(?<![0-9A-Za-z)}])\*\*|\*\*(?![0-9A-Za-z({\\-])", ""),  # bold; else a power
    ("*", r"^(\*+)([^*]*)\1$", r"\2"),  # Markdown
    ("_", r"^(_+)([^_]*)\1$", r"\2"),
    ("**", r"\*\*", "^"),
    ("\\!", r",\\!\s*(?=[0-9])|\\!", ""),
    ("\\,", r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ""),
    ("{,}", r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))", ""),
    ("{,}", r"(?<=[0-9])\{,\}(?=[0-9])", "."),  # a decimal comma
    ("nf", r"(?<![A-Za-z\\])[Ii]nf(?:inity)?(?![A-Za-z])", r"\\infty "),
    ("C(", r"(?<![A-Za-z0-9\\])C\(([0-9]{1,4}), ?([0-9]{1,4})\)", r"\\binom{\1}{\2}"),
    ("\\", r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])", " "),
    ("~", r"~", " "),
    ("\\", r"\\[dtc](frac|binom)", r"\\\1"),
    ("\\", r"\\([a-z]+)", lambda match: _COMMANDS.get(match[1], match[0])),
    ("\\", r"\\([lgn]e)q(?:slant)?", r"\\\1 "),
    ("\\choose", r"\{([^{}]*[^{}\\])\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    ("<=", r"<=", r"\\le "),
    (">=", r">=", r"\\ge "),
    ("!=", r"!=", r"\\ne "),
    ("mod", r" ?\(?(?:\\p|\\b|\\)?mod(?: |\{)*[0-9]+\}?\)?$", ""),
    ("{cases}", r"\\begin\{cases\}([^&]*)\\end\{cases\}", lambda match: match[1].replace("\\\\", ",")),
    ("{", r"\\(?:begin|end)\{(?:align|aligned|alignat|eqnarray|equation|gather|gathered|multline|split)\*?\}", ""),
    ("&", r"& ?(?==)|(?<==) ?&", ""),
    ("&", r"(?<![A-Za-z&\\])([A-Z])&([A-Z]s)(?![A-Za-z])", r"\1\2"),  # M&Ms
    ("\\frac", rf"(?<=[0-9}}])[ ~]*\\frac ?{_WRAPPED_UNIT} ?{_WRAPPED_UNIT}\.?$", ""),
    ("}", rf"(?<=[0-9}}])(?:{_ONE_UNIT})+\.?(?=$| ?[,;])", ""),  # 5\text{ m}/\text{s}
    (" ", rf"(?<=[0-9}}]) (?:[mgLshJNWVKF]|Pa|Hz|atm|mol){POWER}\.?$", ""),
    ("", rf"(?<=[0-9}}]) ?{_COMPOUND}\.?$", ""),
    (" (", r"(?<=[0-9}%]) \((?:[mgLsh]|cm|mm|km|kg|ft|in)\)$", ""),
    ("{", rf"{_WRAPPER}\{{([^{{}}]*)\}}", r" \1 "),
    ("root of", r"(?:times )?(?:the )?square root of ([0-9]+)", r"\\sqrt{\1}"),
    ("sqrt", r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
    ("sqrt[", r"\\sqrt\[([34])\] +([0-9]+)", r"\\sqrt[\1]{\2}"),
    (
        " and ",
        r"(?<![0-9./])([0-9]+) and (?:([0-9]+)/([0-9]+)|\\frac\{([0-9]+)\}\{([0-9]+)\})(?= [A-Za-z]{3})",
        r"\1\\frac{\2\4}{\3\5}",
    ),
    (" (", r"([A-Za-z]{2} [0-9.,]*[0-9]) \([0-9. ]+(?:(?:[-+*/]|\\times)[0-9. ]+)+\)", r"\1"),  # is 17 (8 + 9)
    ("/", r"^[+]?(-?[0-9]+) ([0-9]+)/([0-9]+)(?=$| [A-Za-z]{3})", r"\1\\frac{\2}{\3}"),
    ("/", r"^(-?)([0-9]+)/([0-9]+)(?= [A-Za-z\\])", r"\1\\frac{\2}{\3}"),
    (
        "sqrt",
        r"(?<![A-Za-z\\])sqrt ?(?:([0-9]+|[A-Za-z](?![A-Za-z]))|\(([^()]*)\)|\{([^{}]*)\})",
        r"\\sqrt{\1\2\3}",
    ),
    *((m, rf"(?<=[0-9]) ?([aApP])\.? ?{m}\.?(?![A-Za-z])", lambda match: f" {match[1].lower()}m") for m in "mM"),
    ("\\%", r"\\%", "%"),
    ("c", r"(?<=[0-9}]) *(?:[Pp]ercent(?:age)?|[Pp]er cent|[Pp]ct)(?![A-Za-z])", "%"),
    ("phantom", r"\\h?phantom\{[^{}]*\}|\\phantom(?![A-Za-z])", ""),
    ("...", r"([0-9]*\.[0-9]+)\.\.\.", _repeating),
    ("dots", r"([0-9]*\.[0-9]+)\\[lc]?dots(?![A-Za-z])", _repeating),
    ("  ", r"  +", " "),
    (", ", r"(?<=[0-9]) ?, (?=[0-9]{3}(?![0-9])|[0-9]{1,3},[0-9]{3}(?![0-9]))", ";"),  # a list, no thousands
    (" ", r" ?([-+*/^=({\[<>|,;&!]) ?| ?([)}\]%])(?: (?![A-Za-z]))?", r"\1\2"),
    ("", r"^[ .:=*]*[ :=*]|[ .,;:=*>&]+$|\\+$", ""),
    ("{", r"^\{([^{}]*,[^{}]*)\}$", lambda match: match[1].replace(",", ";")),
    ("{", r"^\{([^{}]*)\}$", r"\1"),
    ("", rf"^(?:\\approx|\\sim|(?i:{_HEDGE})(?![A-Za-z])) ?(?=[-0-9.\\(])", ""),
    ("nswer", r"^(?:\((?:the )?(?:final )?answer\)|[Aa]nswer(?: of)?(?= -?[0-9\\])) ?", ""),
    ("[", r"^\[([^\[\],;]*)\]$", r"\1"),
    ("", r"^(?i:(?:the )?(?:correct )?(?:option|choice|answer)) ?(?:is )?\(?([A-J])\)?$", r"\1"),
    (
        "",
        r"^([0-9]{1,3}(?: [0-9]{3})+|[0-9]{1,3}(?:\.[0-9]{3}){2,})(?![0-9./])",
        lambda match: re.sub("[ .]", "", match[1]),
    ),
    (
        "n",
        r"(?<![0-9.,/])([0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?) ?(hundred|thousand|million|billion|trillion|dozen)(?![A-Za-z])",
        _scaled,
    ),
    ("circ", r"([0-9]+)\^(?:\{\\circ\}|\\circ) ?([0-9]{1,2})(?:\^\{?\\prime\}?|')", r"\1\\frac{\2}{60}"),
)
RULES = tuple((trigger, re.compile(pattern), replacement) for trigger, pattern, replacement in _TABLE)
