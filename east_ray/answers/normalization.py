r"""Answer normalisation: one spelling for what differs only in delimiters, spacing, dressing, units, currency or thousands.

`\text{(A)}`, `$1{,}234$`, `18 dollars.` and `So the total is 18` become `(A)`, `1234`, `18` and `18`. Strings
only: `spellings.py` has the rules, `prose.py` finds the claim in sentences, `canonical.py` parses the normal form.
"""

from __future__ import annotations

import re

from east_ray.answers.numerals import in_digits
from east_ray.answers.prose import claim, ending, unqualified
from east_ray.answers.sentences import LETTER
from east_ray.answers.spellings import CHARACTERS, POWER, RULES, SCRIPTS

MAX_CHARS = 500  # MATH's longest reference has 159; of longer ones only the end is read
MAX_PASSES = 4  # real answers take two or three

_PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_NUMBERS_ON_LINES = re.compile(r"(?<=[0-9]) *\n+ *(?=[0-9])")
_SENTENCE_ON_LINE = re.compile(r"(?<=[^\s.!?:;,])\s*\n\s*(?=[A-Z][a-z]+[ ,])|(?<=gn\}|n\*\})\s*(?=[A-Z][a-z]+ )")
_SOLVED = re.compile(
    r"\n[^\n]*(?<![A-Za-z\\])([A-Za-z])(?![A-Za-z])[^\n]*=[^\n]*\n\s*(\$*\1 ?= ?[-0-9.,/\\{}a-z]{1,40}\$*\.?)\s*$"
)


def normalise(answer: str) -> str:
    """The normal form; idempotent, and bounded in time: what does not settle in a few passes stays as it is."""
    if _PLAIN_NUMBER.fullmatch(answer):
        return answer
    text = answer
    if not text.isascii():
        for sign, (characters, digits) in SCRIPTS.items():
            text = re.sub(f"[{characters}]+", lambda match, s=sign, d=digits: f"{s}{{{match[0].translate(d)}}}", text)
    text = text.translate(CHARACTERS)
    if "\n" in text or "\\end{" in text:
        solved = _SOLVED.search(text[-MAX_CHARS:])  # n - 1 = 9, n = 10 on lines of their own
        text = solved[2] if solved and not solved[0].lstrip("\n $").startswith(f"{solved[1]} =") else text
        text = _SENTENCE_ON_LINE.sub(". ", _NUMBERS_ON_LINES.sub(", ", text)).replace("\n", " ")
    if len(text) > MAX_CHARS:
        last = ending(text, MAX_CHARS)
        stated = normalise(last) if last else text
        return text if len(words_in(stated)) > 1 else stated
    simple = text
    for _ in range(MAX_PASSES):
        if (simpler := _simplify(simple)) == simple:
            return simple
        simple = simpler
    return text


_DOUBLE_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z()\[\]])")  # an escaped escape; in a matrix it separates rows
_ESCAPED_IN_MATRIX = re.compile(r"\\\\(?=(?:[dt]?frac|sqrt|pi|cdot|times|text|binom|left|right|theta)(?![a-z]))")
_STRAY_END = re.compile(r"\\end\{[A-Za-z]+\}")
_DEGREE = re.compile(r"\^(?:\{\\circ\}|\\circ(?![A-Za-z])|\{o\}|o(?![A-Za-z]))(?: ?[CF]$)?|\\degrees?(?![A-Za-z])")
_TRIGONOMETRY = re.compile(r"sin|cos|tan|sec|csc|cot")
_THOUSANDS = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_PAIR = re.compile(r"[1-9][0-9]{0,2},[1-9][0-9]{2}")  # one number, or two: `canonical` knows both readings
_PLAIN = re.compile(r"[-0-9.,/{}\\()+*^=]*|-?\\frac\{[0-9]+\}\{[0-9]+\}|[A-Za-z]")


def _simplify(text: str) -> str:
    for trigger, pattern, replacement in RULES:
        if trigger in text:
            text = pattern.sub(replacement, text)
    if "\\begin" not in text:
        text = _STRAY_END.sub("", _DOUBLE_BACKSLASH.sub(r"\\", text))
    else:
        text = _ESCAPED_IN_MATRIX.sub(r"\\", text)
    if not _TRIGONOMETRY.search(text):
        text = _DEGREE.sub("", text)
    if not text.startswith(("(", "[", "\\{")) and not _PAIR.fullmatch(text):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    if _PLAIN.fullmatch(text):
        return _balanced(text)
    text = claim(unqualified(_without_remark(text)))
    return without_unit(_balanced(in_digits(text)))


def _balanced(text: str) -> str:
    """Drop closing brackets at the end that were never opened: left over from the sentence around the answer."""
    return text if re.search(r"[(\[{]", text) else text.rstrip(")]}")


_REMARK = re.compile(r" ?\(([^()]*)\)$")


def _without_remark(text: str) -> str:
    """9 (apples), 440 lbs (rounded to the nearest pound): drop what stands in brackets behind a number."""
    match = _REMARK.search(text)
    remark = match is not None and any(map(str.isdigit, text[: match.start()])) and words_in(match[1])
    return text[: match.start()] if match and remark and not text[match.start() - 1 :].startswith("_") else text


_UNIT = re.compile(rf"^(.*[0-9)}}%]|.*\\pi)\.?( ?/? ?)({LETTER}(?:{LETTER}|[ ./'-])*){POWER}\.?$", re.DOTALL)
_NO_UNIT = re.compile(  # words that change the number, or join it to another
    r"(?<![A-Za-z])(?:and|or|base|mod|to|if|for|when|where|with|remainder|than|plus|minus|dozen|hundred|thousand|million|billion|trillion|[ap]m)(?![a-z])"
    r"|sqrt|pi(?![a-z])"
)
_SHORT_UNITS = frozenset("of sq cm mm km kg ft in lb oz mi yd hr ml mL kJ kW kN Pa Hz eV".split())  # noqa: SIM905


def without_unit(text: str) -> str:
    r"""Drop trailing words after a number or formula: 18 dollars, 2\pi square units, 5 cm^2; but keep 2xy and 5abc."""
    match = _UNIT.match(text)
    if match is None or _NO_UNIT.search(match[3]) or len(words_in(match[1])) > 1:
        return text
    word = re.split(r"[ ./-]", match[3], maxsplit=1)[0]
    shortest = 3 if match[2] or match[1].endswith("%") else 4
    return match[1] if len(word) >= shortest or not word.isascii() or word in _SHORT_UNITS else text


_WORD = re.compile(rf"(?<![\\A-Za-z])(?:{LETTER}{{3,}}|[ap]m(?![A-Za-z]))")
_NO_WORDS = frozenset("and base sqrt sin cos tan sec csc cot log exp".split())  # noqa: SIM905


def words_in(text: str) -> list[str]:
    """Words of prose: three letters or more (or am, pm), neither commands nor functions; none in a matrix."""
    return [] if "\\begin{" in text else [word for word in _WORD.findall(text) if word not in _NO_WORDS]
