"""Final-answer extraction: pure string work in linear time, no mathematics.

`canonical.py` decides what an answer means, `grading.py` whether it is right. The text is untrusted model output, so
every scan here touches each character a bounded number of times.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from east_ray.answers.phrases import MAX_ANSWER_CHARS, explicit, last_phrase

MAX_NESTING = 100  # of brackets; a deeper candidate is rejected
MAX_TURNS = 3  # looked at; more would let a hostile text cost quadratic time


@dataclass(frozen=True)
class Extraction:
    """The answer as written (None: none found), the rule that found it or why none did, and how far the text was read.

    `end` counts characters. A text that is longer continues with another turn (`run_on`).
    """

    answer: str | None
    rule: str
    end: int


def extract_answer(
    text: str, *, answer_tags: bool = True, last_number: bool = False, open_thought: bool = False
) -> Extraction:
    r"""Find the final answer of a completion, by position and structure.

    Only what follows the last closed thought counts (the thought itself where nothing follows it); a thought that never
    closes has no answer unless `open_thought`. There, `<answer>` tags come first; else the last of \boxed{} (several in
    one sentence are joined), "#### 42" and "the answer is"; else a closing display formula; else, if asked, the last
    number. A new "Question:" or "User:" turn ends the text once an answer was found; a chat template's token always does.
    """
    for end, final in _turns(text):
        found = _find(text[:end] if end < len(text) else text, answer_tags, last_number and final, open_thought)
        if final or found.answer is not None:
            return Extraction(found.answer, found.rule, end)
    raise AssertionError("the last turn is final")


def continues(text: str, end: int) -> bool:
    """Does another turn follow after `end`, and not only a token of the chat template?"""
    return end < len(text) and _TEMPLATE_TOKEN.sub("", text[end:]).strip() != ""


def reference_answer(text: str) -> str | None:
    """The answer in a dataset's answer column: a bare answer, a GSM8K solution (####) or a MATH solution (boxed).

    None when a longer text holds neither.
    """
    found = _boxed(text) or _hashes(text)
    if found is not None:
        return found.answer
    bare = text.strip()
    return bare if bare and len(bare) <= MAX_ANSWER_CHARS and "\n" not in bare else None


class _Found(NamedTuple):
    answer: str | None
    rule: str
    start: int = 0
    end: int = 0


_TURN = re.compile(r"\n(?:[ \t*#]*(?:Question|User|Human|Problem|Q|Instruction)[ \t]*\d*[ \t]*:|#+ Instruction\b)")
_TEMPLATE_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>|<(?:start|end)_of_turn>|\[/?INST\]|</s>")
_THOUGHT_END = "</think>"


def _turns(text: str) -> Sequence[tuple[int, bool]]:
    """Where the completion may end, and whether it must: a token of the chat template, or the end of the text."""
    start = len(text) - len(text.lstrip())
    stop = len(text)
    if ("<" in text and ("<|" in text or "_turn>" in text or "</s>" in text)) or "INST]" in text:
        token = _TEMPLATE_TOKEN.search(text, start + 1)
        stop = token.start() if token else stop
    first = _TURN.search(text, start, stop)
    if first is None:
        return ((stop, True),)
    start = max(start, text.find(_THOUGHT_END))  # whoever speaks in a thought is no new turn
    turns = (turn.start() for turn in _TURN.finditer(text, first.start(), stop) if turn.start() > start)
    return [*((turn, False) for turn in itertools.islice(turns, MAX_TURNS)), (stop, True)]


_TAGS_ONLY = re.compile(r"(?:\s|</?[A-Za-z]+>)*")


def _find(text: str, answer_tags: bool, last_number: bool, open_thought: bool) -> _Found:
    tags = "<" in text
    if tags and "think>" in text:
        closed, opened = text.rfind(_THOUGHT_END), text.rfind("<think>")
        if opened > closed and not (
            open_thought or (answer_tags and 0 <= text.find("<answer>", opened) < text.rfind("</answer>"))
        ):
            return _Found(None, "open_thought")
        after = text[closed + len(_THOUGHT_END) :] if closed >= 0 else text
        text = text if _TAGS_ONLY.fullmatch(after) else after
    if tags and answer_tags and (tagged := _tagged(text)) is not None:
        inner = _last(tagged)
        return _bounded(inner.answer if inner and inner.answer else tagged.strip(), "answer_tags")
    found = _last(text) or _display(text)
    if found is None and last_number:
        found = _last_number(text)
    return _bounded(found.answer, found.rule) if found else _Found(None, "none")


def _last(text: str) -> _Found | None:
    """The last box, #### or phrase; after one of the others a phrase must be explicit: `\\boxed{4} ... Answer: D`."""
    found = _boxed(text)
    hashes = _hashes(text) if "####" in text else None
    if found is None or (hashes is not None and hashes.start > found.end):
        found = hashes
    start = found.end if found else 0
    rest = text[start:] if start else text
    phrase = last_phrase(rest) if len(rest) > 60 or rest.strip(" .$\n)]}*\\") else None
    if phrase is None or (found is not None and not explicit(phrase[1])):
        return found
    return _Found(phrase[1], "phrase", start + phrase[0])


_TAG_END = re.compile("< ?/ ?answer", re.IGNORECASE)
_LOST_TAG = re.compile(r"\s*(?:[<-]?answer *>)?([^<>]{1,200})</answer>", re.IGNORECASE)


def _tagged(text: str) -> str | None:
    """Content of the last non-empty <answer>; one that is never closed runs to the end, one never opened from the start."""
    end = len(text)
    while (start := text.rfind("<answer>", 0, end)) >= 0:
        content = _TAG_END.split(text[start + len("<answer>") : end], maxsplit=1)[0]
        if content.strip():
            return content
        end = start
    lost = _LOST_TAG.match(text) if "</answer" in text else None
    return lost[1] if lost and lost[1].strip() else None


_BARE_BOX = re.compile(
    r"\\(?:boxed|fbox)[ \t]+(-?[0-9.,]*[0-9]|\\?[A-Za-z]+)|(?<![A-Za-z\\])boxed ?[({]([^(){}\n]{1,100})[)}]"
)
_BRACES = re.compile(r"\\{1,3}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> _Found | None:
    r"""The last balanced, non-blank \boxed{} or \fbox{} and those it forms a list with, else one without braces."""
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if last >= 0:
        several = text.find("boxed{") < last and "}" in text[max(0, last - MAX_GAP) : last]
        boxes = (None if several else _flat_box(text, last) or _boxes(text, last)) or _boxes(text, 0)
        if boxes:
            return _joined(text, boxes)
    elif "boxed" not in text:
        return None
    bare = list(_BARE_BOX.finditer(text))
    return _Found(bare[-1][1] or bare[-1][2].strip(), "boxed", bare[-1].start(), bare[-1].end()) if bare else None


class _Box(NamedTuple):
    start: int
    content: int
    end: int  # of the content


def _flat_box(text: str, start: int) -> list[_Box]:
    """The box that opens at `start` where nothing in it is nested, as most are: a shortcut."""
    content = start + len("\\boxed{")
    end = text.find("}", content)
    inside = text[content:end]
    flat = text[content - 1] == "{" if end > content else False
    return [_Box(start, content, end)] if flat and "{" not in inside and "\\" not in inside and inside.strip() else []


def _boxes(text: str, start: int) -> list[_Box]:
    """The good boxes that open at `start` or later, in the order in which they open; one pass with a stack."""
    boxes: list[_Box] = []
    open_braces: list[re.Match[str] | None] = []
    for match in _BRACES.finditer(text, start):
        token = match.group()
        if token == "}":
            opened = open_braces.pop() if open_braces else None
            if opened and not _is_blank(text, opened.end(), match.start()):
                boxes.append(_Box(opened.start(), opened.end(), match.start()))
                if start:
                    break
        elif token.endswith("{") and not token.startswith("\\{"):
            open_braces.append(match if len(token) > 1 else None)
    return sorted(boxes, key=lambda box: box.start)


MAX_GAP = 80  # characters between two boxes of one list
_TYPESETTING = re.compile(r"\\(?:text|mbox|mathrm|quad|qquad|[,;:! ()\[\]])|[\s$*{}()\[\]~]+|[A-Za-z](?:_\{?\w\}?)? ?=")
_JOINING = re.compile(r"([A-Za-z]{2,12})?(,|;|&|、|,?(?:and|or|und|oder|et|ou|y|và|和|或))")


def _joined(text: str, boxes: list[_Box]) -> _Found:
    """The last box; with those before it where only "and", "or" or a comma stands between: x = 1 or x = 2."""
    last = first = boxes[-1]
    contents = [text[last.content : last.end].strip()]
    joint = ", "
    for box in reversed(boxes[:-1]):
        if box.end >= first.start:
            continue  # this one is around it
        gap = text[box.end + 1 : first.start]
        joining = _JOINING.fullmatch(_TYPESETTING.sub("", gap)) if len(gap) <= MAX_GAP else None
        if joining is None and gap:
            break
        joint = " or " if joining and joining[2].endswith(("or", "oder", "ou", "或")) else joint
        first = box
        if (content := text[box.content : box.end].strip()) not in contents:
            contents.append(content)
    return _Found(joint.join(reversed(contents)), "boxed", first.start, last.end + 1)


def _is_blank(text: str, start: int, end: int) -> bool:
    """Only the first MAX_ANSWER_CHARS are inspected: anything longer is rejected either way."""
    return text[start : min(end, start + MAX_ANSWER_CHARS)].isspace() or start == end


_MARK = re.compile("####")
_HEADING = re.compile(r"[0-9]{1,2}[.):] *[A-Za-z]{3}")


def _hashes(text: str) -> _Found | None:
    """What follows the last #### on its line, if that is an answer and not the heading of a section."""
    for mark in reversed(list(_MARK.finditer(text))[-3:]):  # looking at all would take quadratic time on hostile text
        line = text[mark.end() : mark.end() + MAX_ANSWER_CHARS].split("\n", 1)[0].strip().lstrip("#").strip()
        if explicit(line.lstrip("*")) and not _HEADING.match(line):
            return _Found(line, "hashes", mark.start(), mark.end() + len(line))
    return None


_DISPLAY = re.compile(r"(?:\\\[([^$\[\]]{1,200})\\\]|\$\$([^$]{1,200})\$\$)[\s.]{0,9}\Z")


def _display(text: str) -> _Found | None:
    """A display formula that ends the text and states a value: x = 5, and no longer chain or system."""
    match = _DISPLAY.search(text, max(0, len(text) - 220))
    if match is None:
        return None
    formula = (match[1] or match[2]).strip()
    name, equals, value = formula.partition("=")
    stated = explicit(value or name) and "=" not in value and (not equals or len(name.strip()) == 1)
    stated = stated and not re.search(r"&|\\\\|\\text", formula)
    return _Found(formula, "display", match.start(), match.end()) if stated else None


_NUMBER = re.compile(r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?", re.ASCII)


def _last_number(text: str) -> _Found | None:
    numbers = _NUMBER.findall(text)
    return _Found(numbers[-1], "last_number") if numbers else None


def _bounded(answer: str | None, rule: str) -> _Found:
    if not answer:
        return _Found(None, "none")
    if len(answer) > MAX_ANSWER_CHARS:
        return _Found(None, "too_long")
    if sum(map(answer.count, "{([")) <= MAX_NESTING:
        return _Found(answer, rule)
    depths = itertools.accumulate((character in "{([") - (character in "})]") for character in answer)
    return _Found(answer, rule) if max(depths) <= MAX_NESTING else _Found(None, "too_deep")
