r"""Answer phrases: "the answer is", "**Final Answer:**", headings, "option (B) is correct", and other languages' forms.

A phrase is only trusted as far as what follows it: `explicit` tells an answer from the rest of a remark ("the answer is
correct"). Patterns are linear; at most MAX_ANSWER_CHARS after a phrase are looked at.
"""

from __future__ import annotations

import re

MAX_ANSWER_CHARS = 2_000  # a longer candidate is rejected; MATH's longest reference has 159

_BE = r"(?:is|are|was|were|be|equals|comes out to|turns out to be)(?![A-Za-z'’])"
_MODAL = r"(?:(?:should|would|must|will|can|could) +)?"
_MARKUP = r"[ \t*_]{0,8}"
_BRACKETED = r"(?:\([^()\n]{0,40}\)[ \t]*)?"
_MATHS = r"(?=\$|\\[(\[])"
# A stem that the text must contain, lower-cased, and the pattern up to where the answer begins.
_PHRASES = tuple(
    (stem, re.compile(pattern, re.IGNORECASE))
    for stem, pattern in (
        ("answer", rf"answers?{_MARKUP}{_BRACKETED}(?:{_MODAL}{_BE}|[:=：]|{_MATHS})[ \t]*[:：]?"),
        ("final", rf"final +(?:result|value|solution|choice){_MARKUP}(?:{_BE}|[:=：])[ \t]*:?"),
        ("correct", rf"correct +(?:option|choice|alternative|statement|letter){_MARKUP}(?:{_BE}|[:：])[ \t]*:?"),
        ("respuesta", rf"respuestas?(?: +(?:final|correcta))*{_MARKUP}(?:(?:es|son|sería)(?![a-zá-ú])|[:=]|{_MATHS})[ \t]*:?"),
        ("resposta", rf"respostas?(?: +(?:final|correta))*{_MARKUP}(?:(?:é|são|seria)(?![a-zá-ú])|[:=]|{_MATHS})[ \t]*:?"),
        ("risposta", rf"risposta(?: +(?:finale|corretta))*{_MARKUP}(?:è(?![a-zà-ú])|[:=]|{_MATHS})[ \t]*:?"),
        ("réponse", rf"réponse(?: +(?:finale|correcte))*{_MARKUP}(?:(?:est|sont|serait)(?![a-zà-ÿ])|[:=]|{_MATHS})(?: donc)?[ \t]*:?"),
        ("antwort", rf"(?:ist|lautet) (?:die|unsere) (?:endgültige )?antwort(?=[ :]+[-0-9$\\])[ :]*|antwort{_MARKUP}(?:(?:ist|lautet|wäre|beträgt)(?![a-zäöüß])|[:=]|{_MATHS})(?: also| daher| somit)?[ \t]*:?"),
        ("ergebnis", rf"ergebnis{_MARKUP}(?:(?:ist|lautet|beträgt)(?![a-zäöüß])|[:=])(?: also| daher| somit)?[ \t]*:?"),
        ("đáp", rf"đáp +(?:án|số)(?: +(?:cuối cùng|đúng))*{_MARKUP}(?:là|[:=]|{_MATHS})[ \t]*:?"),
        ("câu trả lời", rf"câu trả lời(?: +(?:cuối cùng|đúng))*{_MARKUP}(?:là|[:=])[ \t]*:?"),
        ("ответ", rf"ответ{_MARKUP}[:=—-][ \t]*"),
        ("答", rf"(?:答案|答)(?:应该|應該|应|應)?{_MARKUP}(?:是|为|為|[:=：])[ \t]*[:：]?"),
        ("答え", rf"答え{_MARKUP}(?:は|[:：])[ \t]*"),
    )
)  # fmt: skip
_ASCII_PHRASES = tuple((stem, pattern) for stem, pattern in _PHRASES if stem.isascii())
# A line that says "Final Answer" and nothing else; the answer is on the next line that is not blank.
_HEADING = re.compile(
    r"^[ \t#*_>]*(?:(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer|respuesta(?:[ \t]+final)?|réponse(?:[ \t]+finale)?|antwort|đáp[ \t]+(?:án|số)|最终答案|答案)"
    r"[ \t*_:：]*\n\s{0,40}",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING_STEMS = ("respuesta", "réponse", "antwort", "đáp", "答案")
_OPTION = re.compile(
    r"(?:option|choice|answer) *\(?([A-J])\)?(?= +is +(?:the +)?(?:correct|right|answer))", re.IGNORECASE
)
_FIRST = re.compile(
    r"(?<![\w)}.,/])(\$[^$\n]{1,60}\$|\\\([^\n]{1,60}?\\\)|-?\$?[0-9][0-9.,/]{0,30})\*{0,2} is the (?:final |correct |right )?answer",
    re.IGNORECASE,
)
_IS_THE_ANSWER = re.compile(r" is the (?:final |correct |right )?answer")

_FORMULAS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|[。！？]|</|\*\*")
_CONTINUES = re.compile(r" ?(?:,|(?:,? ?(?:and|or|und|oder|et|ou|y|o)\b)) ?(?:[A-Za-z] ?= ?)?(?:\$|\\\()")
_LABEL = re.compile(r"[A-Za-z][A-Za-z ]{1,30}:(?:\s|$)")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}(?![A-Za-z}])")


def last_phrase(text: str) -> tuple[int, str] | None:
    """Where the last answer phrase with something after it begins, and what follows it, to the end of its sentence."""
    lower = text.lower()
    ends: list[tuple[int, int, bool]] = []
    for stem, pattern in _ASCII_PHRASES if lower.isascii() else _PHRASES:
        if stem in lower:
            ends += [(match.end(), match.start(), False) for match in pattern.finditer(text)]
    if ends or "answer" in lower or any(stem in lower for stem in _HEADING_STEMS):
        ends += [(match.end(), match.start(), True) for match in _HEADING.finditer(text)]
    options = list(_OPTION.finditer(text)) if " is " in lower and ("option" in lower or "choice" in lower) else []
    if " is the " in lower and _IS_THE_ANSWER.search(lower):
        options = sorted([*options, *_FIRST.finditer(text)], key=re.Match.start)
    ends.sort()
    for end, start, heading in reversed(ends[-3:]):
        if options and options[-1].start() > start:
            break
        if (answer := _stated(text, end, heading)) is not None:
            return start, answer
    return (options[-1].start(), options[-1][1]) if options else None


def _stated(text: str, start: int, heading: bool) -> str | None:
    """The formula at `start`, or the rest of the sentence there; None for another label, or nothing."""
    window = text[start : start + MAX_ANSWER_CHARS]
    rest = window.lstrip(" \t\n*:：_")
    if (heading or "\n" in window[: len(window) - len(rest)]) and (_LABEL.match(rest) or rest.startswith("#")):
        return None
    for opening, closing in _FORMULAS:
        if rest.startswith(opening):
            inside, closed, after = rest[len(opening) :].partition(closing)
            money = opening == "$" and len(_PROSE.findall(inside)) > 1 and "\\" not in inside
            if closed and inside.strip() and "\n\n" not in inside and not money and not _CONTINUES.match(after):
                return inside.strip()
            break
    end = _SENTENCE_END.search(rest)
    sentence = (rest[: end.start()] if end else rest).strip().rstrip("*_").rstrip()
    return sentence or None


_EXPLICIT = re.compile(
    r"[\s*_\"'(\[{$+\-−]*(?:(?:about|approximately|exactly|therefore|thus|now|option|choice)[ ,]+)*[(\[{$£€\-−]*"
    r"(?:[0-9]|\.[0-9]|\\(?!n)|[A-J](?![A-Za-z])|[a-z] ?=|[½⅓⅔¼¾√π∞])",
    re.IGNORECASE,
)


def explicit(candidate: str) -> bool:
    """Does it begin like an answer: with a number, a formula or a choice?"""
    return len(candidate) <= 200 and _EXPLICIT.match(candidate) is not None
