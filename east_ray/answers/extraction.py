"""Final-answer extraction: pure string work in linear time, no mathematics.

`canonical.py` decides what an answer means, `grading.py` whether it is right. The text is untrusted model output, so
every scan here touches each character a bounded number of times.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ANSWER_CHARS = 2_000  # a longer candidate is rejected; MATH's longest reference has 159
MAX_NESTING = 100  # of brackets; a deeper candidate is rejected


@dataclass(frozen=True)
class Extraction:
    """The answer as written (None: none found) and the rule that found it, or why none did."""

    answer: str | None
    rule: str


def extract_answer(text: str, *, answer_tags: bool = False, last_number: bool = False) -> Extraction:
    """Find the final answer of a completion; rules in order, the last match of the first rule that matches.

    `<answer>` tags (only if asked), boxed, ####, "answer is" / "answer:", the last number (only if asked). What follows a
    new "Question:" or "User:" turn is ignored. An answer that is too long or nested too deeply is rejected.
    """
    text = _first_turn(text)
    if answer_tags and (tagged := _tagged(text)) is not None:
        inner = _boxed(tagged) or _hashes(tagged) or _phrase(tagged)
        return _bounded(inner.answer if inner and inner.answer else tagged.strip(), "answer_tags")
    found = _boxed(text) or _hashes(text) or _phrase(text)
    if found is None and last_number:
        found = _last_number(text)
    return _bounded(found.answer, found.rule) if found else Extraction(None, "none")


def reference_answer(text: str) -> str | None:
    """The answer in a dataset's answer column: a bare answer, a GSM8K solution (####) or a MATH solution (boxed).

    None when a longer text holds neither.
    """
    found = _boxed(text) or _hashes(text)
    if found is not None:
        return found.answer
    bare = text.strip()
    return bare if bare and len(bare) <= MAX_ANSWER_CHARS and "\n" not in bare else None


# A completion that continues with a question of its own: at the start of a line, never at the very start of the text.
_TURN = re.compile(
    r"\n[ \t*#]*(?:Question|User|Human|Problem|Q)[ \t]*\d*[ \t]*:|<\|(?:im_start|im_end|eot_id|endoftext)\|>"
)


def _first_turn(text: str) -> str:
    start = len(text) - len(text.lstrip())
    turn = _TURN.search(text, start)
    return text[: turn.start()] if turn else text


_TAG_END = re.compile("</answer", re.IGNORECASE)


def _tagged(text: str) -> str | None:
    """Content of the last non-empty <answer>; one that is never closed runs to the end."""
    end = len(text)
    while (start := text.rfind("<answer>", 0, end)) >= 0:
        content = _TAG_END.split(text[start + len("<answer>") : end], maxsplit=1)[0]
        if content.strip():
            return content
        end = start
    return None


_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]+(-?[0-9.,]*[0-9]|\\?[A-Za-z]+)")
_BRACES = re.compile(r"\\{1,3}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> Extraction | None:
    r"""The last balanced, non-blank \boxed{} or \fbox{}, else the last \boxed without braces, as in "\boxed 2"."""
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if last < 0:
        return None
    box = _last_box(text, last) or _last_box(text, 0)  # the last one is nearly always good
    if box is not None:
        return Extraction(text[slice(*box)].strip(), "boxed")
    bare = _BARE_BOX.findall(text)
    return Extraction(bare[-1], "boxed") if bare else None


def _last_box(text: str, start: int) -> tuple[int, int] | None:
    """Start and end of the content of the last good box that opens at `start` or later; one pass with a stack."""
    box = None
    open_braces: list[re.Match[str] | None] = []
    for match in _BRACES.finditer(text, start):
        token = match.group()
        if token == "}":
            opened = open_braces.pop() if open_braces else None
            if opened and (box is None or opened.end() > box[0]) and not _is_blank(text, opened.end(), match.start()):
                box = opened.end(), match.start()
                if start:
                    return box
        elif token.endswith("{") and not token.startswith("\\{"):
            open_braces.append(match if len(token) > 1 else None)
    return box


def _is_blank(text: str, start: int, end: int) -> bool:
    """Only the first MAX_ANSWER_CHARS are inspected: anything longer is rejected either way."""
    return text[start : min(end, start + MAX_ANSWER_CHARS)].isspace() or start == end


def _hashes(text: str) -> Extraction | None:
    for start in _last_occurrences(text, "####"):
        if (line := text[start + 4 :].split("\n", 1)[0].strip().lstrip("#").strip()) != "":
            return Extraction(line, "hashes")
    return None


def _last_occurrences(text: str, marker: str) -> list[int]:
    """Positions of the last three occurrences, last first; looking at all would take quadratic time on hostile text."""
    positions: list[int] = []
    end = len(text)
    while len(positions) < 3 and (start := text.rfind(marker, 0, end)) >= 0:
        positions.append(start)
        end = start
    return positions


_PHRASE = re.compile(
    r"answer[ \t]*(?:\([^()\n]{0,40}\)[ \t]*)?(?:(?:is|are|was|:|=)[ \t]*:?|(?=\$|\\[(\[]))", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)|</|\*\*")


def _phrase(text: str) -> Extraction | None:
    """What follows the last "answer is" or "answer:", to the end of its sentence or formula."""
    ends = [match.end() for match in _PHRASE.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] : ends[-1] + MAX_ANSWER_CHARS].lstrip(" \t\n*:")
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if rest.startswith(opening):
            inside, closed, _ = rest[len(opening) :].partition(closing)
            if closed and inside.strip() and "\n\n" not in inside:
                return Extraction(inside.strip(), "phrase")
    end = _SENTENCE_END.search(rest)
    sentence = (rest[: end.start()] if end else rest).strip()
    return Extraction(sentence, "phrase") if sentence else None


_NUMBER = re.compile(r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?", re.ASCII)


def _last_number(text: str) -> Extraction | None:
    numbers = _NUMBER.findall(text)
    return Extraction(numbers[-1], "last_number") if numbers else None


def _bounded(answer: str | None, rule: str) -> Extraction:
    if not answer:
        return Extraction(None, "none")
    if len(answer) > MAX_ANSWER_CHARS:
        return Extraction(None, "too_long")
    if len(answer) <= MAX_NESTING:
        return Extraction(answer, rule)
    depth = deepest = 0
    for character in answer:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return Extraction(answer, rule) if deepest <= MAX_NESTING else Extraction(None, "too_deep")
