r"""What a text of one sentence or more states: 12 because 3 times 4 is 12; so x = 5, which is prime. I hope this helps!

Of several sentences the last one counts, remarks behind it aside, and of that one the value it ends in. Of the rest
nothing is read: a number inside prose may be any number. `sentences.py` reads one sentence.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from east_ray.answers.numerals import NUMERALS
from east_ray.answers.sentences import (
    ASSIGNMENT,
    CONDITIONS,
    EXISTS,
    JOINING,
    PREPOSITIONS,
    STATING,
    SUPPOSING,
    WORD,
    Token,
    is_circumstance,
    is_multiple,
    is_part,
    is_stated,
    listed,
    statement,
    tokenise,
    words_of,
)

MAX_WORDS = 40  # a longer text argues
MAX_SHORT = 14  # words of a last sentence whose number may stand anywhere: So he can fill 14 bags.
MAX_UNIT = 4  # words behind a value: square inches, miles apart
MAX_TAIL = 14  # words of what follows it: weeks to save $80, which is the least number of them
MAX_REMARKS = 3  # sentences after the one that states the answer

_SENTENCES = re.compile(
    r"(?<!Mr)(?<!Mrs)(?<!Ms)(?<!Dr)(?<!St)[.!?] +(?=[A-Z])|(?<=[0-9a-z}]) (?=(?:Therefore|Thus|Hence),)"
)
_THEREFORE = re.compile(
    r"(?:so|therefore|thus|hence|then|finally|consequently|accordingly|as a result|that|in (?:total|conclusion|all)|overall"
    r"|(?:round(?:ed|ing) [a-z ]{0,20})?to the nearest [a-z -]{1,30}(?=,))(?![a-z])(?:,| that)? *",
    re.IGNORECASE,
)
_PLACE = re.compile(r"(?:Between|From|Among|Of|In|Within|For) [^,;.]{1,60}, ?(?=there (?:is|are|were|will) )")
_CONSEQUENCE = re.compile(
    r"[,;:] ?(?:and )?(?:so|thus|hence|therefore)(?! (?:that|many|much|far)(?![a-z]))[, ]+(?:that )?"
    r"| and (?:thus|hence|therefore)[, ]+"
    r"|, ?which (?:we |is |can be )?round(?:s|ed)?(?: up| down| off)? to "
    r"|, ?(?:(?:which|this|that) )?(?:means|meaning)(?: that)? "
    r"|, ?(?:for (?=a total of )|(?:which |this )?(?:makes|making|gives|giving|totals|totall?ing|adds up to|adding up to|amounts to)(?: us| him| her| them)? )"
)
_SINCE = re.compile(  # Since she has 70, she has 110 in total: what follows the comma
    r"(?:Since|Because|Given that|As) [^.;]*?, ?(?=(?:s?he|they|it|we|you|there|the|that|this|each|[A-Z][a-z]+)(?![a-z]))"
)
_REASON = re.compile(
    r"(?:[.,;] ?| )(?:(?:This|That|It) is )?because(?![a-z]).*$"
    r"|(?:[,;] ?| )(?:since|so that|due to|given that|provided|assuming|such that|where|as an? (?:mixed|decimal|percent|fraction|improper|common)|as (?=there|it|we|the ))(?![a-z]).*$"
    r"|[,;]? ?(?:\\forall(?![A-Za-z])|for (?:all|any|every|each|some|arbitrary)(?![a-z])|for [a-z] ?(?=[<>=]|\\)).*$"
    r"|(?:[,;(]| ) ?[a-z](?:, ?[a-z]){0,3} ?\\in ?\{? ?(?:\\mathbb|\\Bbb|\\mathbf|[ZNRQ](?![A-Za-z])).*$",
    re.DOTALL,
)
_COMMENT = re.compile(r"(.*?[0-9)}%]) ?[.;] [A-Z][a-z]+ .*", re.DOTALL)
_REMARK = re.compile(
    r"(?:(?:Assistant|User): ?)?(?:I(?:'m)? |You(?:'ve| got| did| are| can| have| may| will)|Hope|Let me|Nice|Great|Good|Well done|That's"
    r"|Done|Thank|Yes|Right|This is (?:the|our|my) |Because|Clearly|Please|Remember|Your |And there|Feel free|If you)"
)
_MEMBERS = re.compile(r"They|Th[eo]se|Their|An example|For example|Clearly|Namely|Here")
_TASK = re.compile(r"(?:need|have|want|try|going) to (?:find|determine|calculate|compute|count|check)(?![a-z])[^=]*$")
_TAGS = re.compile(r"(?: ?<[/a-z ]{0,20}>?)+$")
_FACTOR = re.compile(r"(?<=[0-9)]) ?x ?(?=[0-9(])")
_RATE = re.compile(r"([^,]* per [a-z]+), ?which is [0-9.,]+ per [a-z]+\.?")
_NOTHING = re.compile(r"(?:there (?:is|are)|has|have) no (?:real |integer |valid )?solutions?[.!]?$")
_LEADING_IN = frozenset("by of than from between and in for".split())  # noqa: SIM905
_CLAUSES = frozenset("which because since with as where who that".split())  # noqa: SIM905


def unqualified(text: str) -> str:
    r"""Without a reason or qualifier behind it: f(x)=2x \text{ for all real } x; 2n\pi, n\in\mathbb{Z}; 12 because ..."""
    match = _REASON.search(text)
    if match is None:
        return text
    cut = text[: match.start()]
    if _SENTENCES.search(text[match.start() + 1 :]) and len(WORD.findall(cut)) > 2:
        return text  # what follows the reason is no part of it
    return cut if re.search(r"[0-9=\\]|^\(?[A-J]\)?$", cut) else text


def ending(text: str, size: int) -> str:
    """Its last sentences, two or so; empty where the last `size` characters hold none that is whole."""
    breaks = list(_SENTENCES.finditer(text, max(0, len(text) - size)))
    return text[breaks[-2:][0].end() :] if breaks else ""


def claim(text: str) -> str:
    """The formula that the text states, or the text itself where it states none, or more than one."""
    words = words_of(text)
    if not words or "\\begin" in text:
        return text
    if len(words) == 1 and words[0].start() > 0 and words[0][0] not in STATING and not _SENTENCES.search(text):
        return text
    if (match := _COMMENT.fullmatch(text)) and not any(word.end() <= match.end(1) for word in words):
        value = match[1]
        if value.count("=") < 2 and value.count(",") + value.count(";") < 4 and value != "1":
            return value
    if rate := _RATE.fullmatch(text):  # 18 per day, which is 126 per week
        return claim(rate[1])
    if len(words) > MAX_WORDS or _SENTENCES.search(text):
        return _conclusion(text) or text
    for pattern in (_THEREFORE, _PLACE):
        opening = pattern.match(text)
        if opening and opening.end() < len(text):
            stated = claim(text[opening.end() :])
            return text if stated == text[opening.end() :] and WORD.search(stated) else stated
    if _consequence(text) != text:
        return _concluded(text) or text
    return statement(text, tokenise(text, words)) or _concluded(text) or text


def _conclusion(text: str) -> str | None:
    """What the last sentence states that is more than a remark, or which of its numbers the sentence before confirms."""
    sentences = _SENTENCES.split(_TAGS.sub("", text))
    remarks = 0
    while remarks < MAX_REMARKS and len(sentences) > 1 and _is_remark(sentences[-1], sentences[-2]):
        sentences.pop()
        remarks += 1
    last = sentences[-1]
    stated = _concluded(last, remarked=remarks > 0)
    if len(sentences) > 1 and (stated is None or " after " in stated) and not last.endswith("?"):
        before = (_concluded(sentences[-2]) or "").rpartition("=")[2].strip()
        tokens = tokenise(last, words_of(last))
        numbers = [token.text for token in tokens if token.kind == "number"]
        joined = any(
            left.text in ("and", "or") and right.kind == "number" for left, right in itertools.pairwise(tokens)
        )
        return before if before in numbers and len(numbers) == 2 and not joined else stated
    return stated


def _is_remark(sentence: str, before: str) -> bool:
    """I hope this helps! And what follows a count: They are 2, 5 and 8."""
    if _MEMBERS.match(sentence):
        opening = _THEREFORE.match(before) or _PLACE.match(before)
        return EXISTS.match(before[opening.end() :] if opening else before) is not None
    if re.search(r"[0-9\\=]", sentence):
        return False
    return _REMARK.match(sentence) is not None or (sentence.endswith("!") and len(sentence) < 40)


def _consequence(sentence: str) -> str:
    """What follows the last "so" or "which makes", where that has a number; else the whole sentence."""
    if since := _SINCE.match(sentence):
        rest = _consequence(sentence[since.end() :])
        return rest if re.search("[0-9]", rest) else sentence
    for match in reversed(list(_CONSEQUENCE.finditer(sentence))):
        rest = sentence[match.end() :]
        if re.search(r"[0-9]", rest) or any(word in NUMERALS for word in rest.lower().split()):
            return rest
    return sentence


def _concluded(sentence: str, *, remarked: bool = False) -> str | None:
    """What the sentence says that there is, or the value it ends in: so the area is 3 * 4 = 12 square cm, which is even.

    Of prose nothing else is read: a number inside a sentence may be any number.
    """
    last = sentence
    for pattern in (_THEREFORE, _THEREFORE, _PLACE):
        opened = pattern.match(last)
        last = last[opened.end() :] if opened else last
    last = unqualified(last)
    if _NOTHING.search(last):
        return "no solution"
    rest = _consequence(last)
    opening = remarked or rest != sentence
    last = rest
    tokens = tokenise(last, words_of(last))
    numbers = [place for place, token in enumerate(tokens) if token.kind == "number"]
    if not numbers or last.endswith("?") or "==" in last or tokens[0].text in SUPPOSING - {"If"} or _TASK.search(last):
        return None
    words = sum(token.kind == "word" for token in tokens)
    if (EXISTS.match(last) and words <= MAX_WORDS) or ((opening or len(numbers) == 1) and words <= MAX_SHORT):
        if is_multiple(tokens, numbers[-1]):
            return None
        if stated := statement(last, tokens):
            return _FACTOR.sub(r"\\times ", stated)
    return _final_value(tokens, numbers)


def _final_value(tokens: Sequence[Token], numbers: Sequence[int]) -> str | None:
    """The last value that "is" or "=" leads to, if nothing but its unit and a harmless tail follows."""
    stated = [number for number in numbers if is_stated(tokens, number)]
    if not stated:
        return None
    if several := listed(tokens, stated):
        return several
    place = stated[-1]
    is_result = "=" in tokens[place].text
    equals = is_result or (place > 0 and tokens[place - 1].text in ("equals", "="))
    start = max((at for at in range(place) if tokens[at].kind == "number" or tokens[at].text in (",", ";")), default=-1)
    if (
        is_part(tokens, place, compared=equals)
        or not _ends_with_unit(tokens[place + 1 :], MAX_UNIT + 2 * is_result)
        or any(token.text.lower() in CONDITIONS for token in tokens[start + 1 : place])
        or len({match[1] for token in tokens if (match := ASSIGNMENT.match(token.text))}) > 1
    ):
        return None
    joined = any(token.text in ("and", "or") for token in tokens[stated[0] : place])
    if not equals and (joined or is_circumstance(tokens[: numbers[0]])):
        return None
    return _FACTOR.sub(r"\\times ", tokens[place].text)


def _ends_with_unit(after: Sequence[Token], most: int) -> bool:
    """Are these at most a unit, and then a clause or a phrase that changes nothing: weeks to save $80, which is even?"""
    after = [token for token in after if token.text != "."]
    unit = 0
    while unit < len(after) and after[unit].text not in _CLAUSES | PREPOSITIONS and after[unit].kind != "mark":
        if not after[unit].text.isalpha() or after[unit].text in JOINING:
            return False
        unit += 1
    tail = after[unit:]
    comma = bool(tail) and tail[0].text == ","
    tail = tail[comma:]
    if not tail:
        return unit <= most
    texts = [token.text for token in tail]
    if unit > most or len(tail) > MAX_TAIL or not (texts[0] in _CLAUSES or (texts[0] in PREPOSITIONS and not comma)):
        return False
    if texts[0] in PREPOSITIONS:
        return not {"and", "but", "then", "so", "or", ",", ":", ";"}.intersection(texts)
    led = itertools.pairwise(tail)
    return texts[0] == "with" or all(before.text in _LEADING_IN for before, token in led if token.kind == "number")
