r"""Answer normalisation: one spelling for what differs only in delimiters, spacing, units, currency or thousands.

`\text{(A)}`, `$1{,}234$`, `18 dollars.` and `So the total is 18` become `(A)`, `1234`, `18` and `18`. Strings
only: `canonical.py` parses the normal form.
"""

from __future__ import annotations

import re

_SCRIPTS = {
    "^": ("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")),
    "_": ("₀₁₂₃₄₅₆₇₈₉", str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")),
}
_SYMBOLS = r"""× \times · \cdot ⋅ \cdot ± \pm π \pi θ \theta √ sqrt ∞ \infty ∪ \cup ∈ \in ≤ \le ≥ \ge ≠ \ne ≈ \approx ° ^\circ ∅ \emptyset
    ½ \frac{1}{2} ⅓ \frac{1}{3} ⅔ \frac{2}{3} ¼ \frac{1}{4} ¾ \frac{3}{4}""".split()  # noqa: SIM905
_CHARACTERS = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
    | dict.fromkeys("−–—‒﹣", "-")
    | dict.fromkeys("\xa0\u2002\u2003\u2009\u202f\u3000\t\n\r\f\v", " ")
    | dict.fromkeys("\u200b\u2060\ufeff\x00€£", "")
    | {"。": ".", "、": ",", "∗": "*", "÷": "/", "⁄": "/", "’": "'", "‘": "'", "“": '"', "”": '"'}
    | {symbol: f" {command} " for symbol, command in zip(_SYMBOLS[::2], _SYMBOLS[1::2], strict=True)}
)
_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def normalise(answer: str) -> str:
    """The normal form; idempotent. Time is linear in the answer's length but for its nesting of braces."""
    if _PLAIN_NUMBER.fullmatch(answer):
        return answer
    text = answer
    if not text.isascii():
        for sign, (characters, digits) in _SCRIPTS.items():
            text = re.sub(f"[{characters}]+", lambda match, s=sign, d=digits: f"{s}{{{match[0].translate(d)}}}", text)
    text = text.translate(_CHARACTERS)
    while (simpler := _simplify(text)) != text:
        text = simpler
    return text


_WRAPPER = r"\\(?:text|textrm|textnormal|textbf|textit|textsf|mbox|hbox|mathrm|mathbf|mathit|operatorname|emph) *"
_POWER = r"(?: ?\^ ?\{?[23]\}?)?"
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (
            r"</?[A-Za-z]+(?: [^<>]*|/)?>|\[/?[A-Za-z]{3,}\]|\\therefore(?![A-Za-z])|`|\"|\\\$|\$|\\textdollar(?![A-Za-z])|(?<!\\)\\[()\[\]]",
            "",
        ),
        (r"(?<![0-9A-Za-z)}])\*\*|\*\*(?![0-9A-Za-z({\\-])", ""),  # bold; else a power
        (r"\*\*", "^"),
        (r",\\!\s*(?=[0-9])|(?<=[0-9])(?:\{,\}|\\,)(?=[0-9]{3}(?![0-9]))|\\!", ""),
        (r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?)(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\varnothing", r"\\emptyset"),
        (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\leq(?:slant)?|<=", r"\\le "),
        (r"\\geq(?:slant)?|>=", r"\\ge "),
        (r"\\neq|!=", r"\\ne "),
        (r"\\equiv(?![A-Za-z])", "="),
        (r" ?\(?(?:\\p|\\b|\\)?mod(?: |\{)*[0-9]+\}?\)?$", ""),
        (r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split)\*?\}|&(?==)", ""),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (
            rf"(?<=[0-9}}])(?: */? *{_WRAPPER}\{{ *[A-Za-z](?:/[A-Za-z]{{1,3}})? *\}}{_POWER})+\.?$",
            "",
        ),  # one-letter units: 5\text{ m}/\text{s}
        (rf"(?<=[0-9]) [mgLsh]{_POWER}\.?$", ""),
        (rf"{_WRAPPER}\{{([^{{}}]*)\}}", r" \1 "),
        (r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"^(-?[0-9]+) ([0-9]+)/([0-9]+)$", r"\1\\frac{\2}{\3}"),
        (r"^(-?)([0-9]+)/([0-9]+) (?=[A-Za-z\\])", r"\1\\frac{\2}{\3}"),
        (r"(?<![A-Za-z\\])sqrt ?(?:([0-9]+|[A-Za-z](?![A-Za-z]))|\(([^()]*)\)|\{([^{}]*)\})", r"\\sqrt{\1\2\3}"),
        (r"(?<=[0-9]) ?([aApP])\.?[mM]\.?(?![A-Za-z])", r" \1m"),
        (r"\\%|(?<=[0-9}]) ?(?:[Pp]ercent(?:age)?|[Pp]ct)(?![A-Za-z])", "%"),
        (r"\\h?phantom\{[^{}]*\}|\\phantom(?![A-Za-z])", ""),
        (r" +", " "),
        (r" ?([-+*/^=(){}\[\]<>|,;&!%]) ?", r"\1"),
        (r"^[ .:=]*[ :=]|[ .,;:=*>]+$|\\+$", ""),
        (r"^\{([^{}]*)\}$", r"\1"),
    )
)
_DOUBLE_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z()\[\]])")  # an escaped escape; in a matrix it separates rows
_STRAY_END = re.compile(r"\\end\{[A-Za-z]+\}")
_DEGREE = re.compile(r"\^(?:\{\\circ\}|\\circ(?![A-Za-z])|\{o\}|o(?![A-Za-z]))(?: ?[CF]$)?|\\degrees?(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"sin|cos|tan|sec|csc|cot")
_THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


def _simplify(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if "\\begin" not in text:
        text = _STRAY_END.sub("", _DOUBLE_BACKSLASH.sub(r"\\", text))
    if not _TRIGONOMETRY.search(text):
        text = _DEGREE.sub("", text)
    if not text.startswith(("(", "[", "\\{")):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return _conclusion(_without_unit(_balanced(text)))


def _balanced(text: str) -> str:
    """Drop closing brackets at the end that were never opened: left over from the sentence around the answer."""
    opened = any(bracket in text for bracket in "([{")
    return text if opened else text.rstrip(")]}")


_LETTER = r"[^\W\d_]"
_UNIT = re.compile(rf"^(.*[0-9)}}%]|.*\\pi)\.?( ?)({_LETTER}(?:{_LETTER}|[ ./-])*){_POWER}\.?$", re.DOTALL)
_NO_UNIT = re.compile(  # words that change the number, or join it to another
    r"(?<![A-Za-z])(?:and|or|base|mod|to|if|for|when|where|with|dozen|hundred|thousand|million|billion|trillion|[ap]m)(?![a-z])"
    r"|sqrt|pi(?![a-z])"
)
_SHORT_UNITS = frozenset("of sq cm mm km kg ft in lb oz mi yd hr ml mL".split())  # noqa: SIM905


def _without_unit(text: str) -> str:
    r"""Drop trailing words after a number or formula: 18 dollars, 2\pi square units, 5 cm^2; but keep 2xy and 5abc."""
    match = _UNIT.match(text)
    if match is None or _NO_UNIT.search(match[3]):
        return text
    word = re.split(r"[ ./-]", match[3], maxsplit=1)[0]
    shortest = 3 if match[2] or match[1].endswith("%") else 4
    return match[1] if len(word) >= shortest or not word.isascii() or word in _SHORT_UNITS else text


_WORD = re.compile(rf"(?<![\\A-Za-z])(?:{_LETTER}{{3,}}|[ap]m(?![A-Za-z]))")
_NO_WORDS = frozenset("and base sqrt sin cos tan sec csc cot log exp".split())  # noqa: SIM905


def words_in(text: str) -> list[str]:
    """Words of prose: three letters or more (or am, pm), neither commands nor functions; none in a matrix."""
    return [] if "\\begin{" in text else [word for word in _WORD.findall(text) if word not in _NO_WORDS]


_BOUNDARY = re.compile(rf"(?<![\\A-Za-z]){_LETTER}{{2,}}|[=:]")
_NUMBER = re.compile(r"-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?")
_JOINING = frozenset("and or of than not no minus plus times by from between over base mod".split())  # noqa: SIM905
_COMMENT = re.compile(r"(.*?[0-9)}]) ?[.;] [A-Z][a-z]+ .*", re.DOTALL)
_CONCLUDING = frozenset("= : is are was be equals get gives have has".split())  # noqa: SIM905


def _conclusion(text: str) -> str:
    """A sentence's claim: the formula before a comment, or after the last word or equals sign, else its last number.

    A sentence that joins its last number to another is kept, and so is a list of things: 3 red and 5 blue balls.
    """
    if len(words_in(text)) < 2:
        return text
    if (match := _COMMENT.fullmatch(text)) and not words_in(match[1]):
        return match[1]
    *_, boundary = _BOUNDARY.finditer(text)
    a_range = boundary.group() == "to" and text[: boundary.start()].rstrip()[-1:].isdigit()
    listing = not text[0].isalpha() and boundary.group() not in _CONCLUDING
    if listing or a_range or boundary.group() in _JOINING:
        return text
    ending = text[boundary.end() :].strip(" ,.")
    if any(map(str.isdigit, ending)):
        return ending.rstrip(")") if ending.count(")") > ending.count("(") else ending
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else text
