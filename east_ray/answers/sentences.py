# ruff: noqa: SIM905
r"""The claim of a sentence: "He is 30 years old" states 30, "It takes 3 hours to fill 5 tanks" states 3. Pure strings.

A sentence that leaves open which of its numbers is the answer is kept whole and stands for itself: "After 6 hours they
are 60 miles apart". A wrong number would put different answers into one cluster, which is the worse mistake.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LETTER = r"[^\W\d_]"
MAX_WORDS = 40  # a longer text argues
MAX_SHORT = 14  # words of a last sentence whose number may stand anywhere: So he can fill 14 bags.
MAX_UNIT = 4  # words behind a value that ends a sentence: square inches, miles apart

_WORD = re.compile(
    rf"(?<![\\\w{{^])(?:[\u4e00-\u9fff]+|(?![A-Z]{{2,3}}(?!\w)){LETTER}(?:{LETTER}|['’-](?={LETTER}))+(?![\w}}])|[aI](?= {LETTER}{{2}}))"
)
_FUNCTIONS = frozenset("sqrt sin cos tan sec csc cot log ln exp pi max min gcd lcm mod am pm base cm mm km kg".split())
_STATING = frozenset(
    "is are was were be equals equal gives give makes become becomes total yields get find obtain have that".split()
)
_HEDGING = frozenset(
    """about approximately approx around roughly nearly almost exactly only just simply precisely now then also therefore
    thus still actually equal to a the total of at value number sum an average most""".split()
)
_VERBS = frozenset(
    """is are was were be has have had will would can could should must may need needs take takes took get gets got make
    makes made cost costs earn earns pay pays save saves spend spends sell sells give gives buy buys use uses eat eats run
    runs read reads walk walks travel travels charge charges weigh weighs require requires contain contains hold holds
    produce produces receive receives collect collects become becomes equals owe owes did do does went drove
    bought sold paid spent saved found left remain remains there dug drew ate won lost wrote built grew flew caught threw rode
    drank kept gave saw met swam ran made""".split()
)
_LEADING = frozenset(  # they begin an adverbial clause, whose number is a circumstance
    """after in for with if when out of on by from at since because given assuming over during within every each per
    before until while once as between among using""".split()
)
_THEREFORE = re.compile(
    r"(?:so|therefore|thus|hence|then|finally|consequently|accordingly|as a result|that|in (?:total|conclusion|all)|overall)(?![a-z])(?:,| that)? *",
    re.IGNORECASE,
)
_WORKING = frozenset(
    "Let Let's Notice Note To Using First Okay Consider Suppose Assume Find Solving Dividing Given".split()
)
_CLAUSE = frozenset("which that where because since so when while who whose but if".split())
_JOINING = frozenset("and or plus minus times over remainder und et".split())
_CONDITIONS = frozenset("when where if since because let not cannot never".split())
_SETTING = _CONDITIONS | {"as", "with", "for", "at", "than"}  # x = 3 behind them is no result
_SUPPOSING = frozenset("Let Let's Suppose Assume If Consider Given".split())
_OPEN = frozenset("not cannot never how whether what find determine calculate compute count consider".split())
_COMPARED = frozenset("as the that his her their its more".split())
_LIMITING = frozenset("than between from every per".split())
_RANGE = frozenset("to by of through from than x".split())
_CHANGING = frozenset("than base mod hundred thousand million billion trillion dozen am pm".split())
_REASON = re.compile(
    r"(?:[,;] ?| )(?:because|since|so that|due to|given that|provided|assuming|such that|where|as an? (?:mixed|decimal|percent|fraction|improper|common)|as (?=there|it|we|the ))(?![a-z]).*$"
    r"|[,;]? ?(?:\\forall(?![A-Za-z])|for (?:all|any|every|each|some|arbitrary)(?![a-z])|for [a-z] ?(?=[<>=]|\\)).*$"
    r"|(?:[,;(]| ) ?[a-z](?:, ?[a-z]){0,3} ?\\in ?\{? ?(?:\\mathbb|\\Bbb|\\mathbf|[ZNRQ](?![A-Za-z])).*$",
    re.DOTALL,
)
_COMMENT = re.compile(r"(.*?[0-9)}%]) ?[.;] [A-Z][a-z]+ .*", re.DOTALL)
_SENTENCES = re.compile(r"(?<!Mr)(?<!Mrs)(?<!Ms)(?<!Dr)(?<!St)[.!?] +(?=[A-Z])")
_TASK = re.compile(r"(?:need|have|want|try|going) to (?:find|determine|calculate|compute|count|check)(?![a-z])[^=]*$")
_TAGS = re.compile(r"(?: ?<[/a-z ]{0,20}>?)+$")
_ASSIGNMENT = re.compile(r"([A-Za-z]) ?=")
_FACTOR = re.compile(r"(?<=[0-9)]) ?x ?(?=[0-9(])")
_NAMED = re.compile(r"(?:It|This|That|Today|[Tt]he [a-z ]{1,40})(?:'s| is| was| will be) (?:an? |the |on )?([A-Za-z]+)")
_EXISTS = re.compile(
    r"[Tt]here (?:is|are|was|were|will be|would be|must be|can be|remain|remains|exist|exists)(?![a-z])"
)


@dataclass(frozen=True)
class Token:
    kind: str  # word, number, symbol or mark
    text: str


_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMERALS = (
    {word: number for number, word in enumerate(_UNITS)}
    | {ten: 10 * number for number, ten in enumerate(_TENS, 2)}
    | {f"{ten}-{unit}": 10 * n + m for n, ten in enumerate(_TENS, 2) for m, unit in enumerate(_UNITS[:10]) if m}
)


def unqualified(text: str) -> str:
    r"""Without a reason or qualifier behind it: f(x)=2x \text{ for all real } x; 2n\pi, n\in\mathbb{Z}; 12 because ..."""
    cut = _REASON.sub("", text, count=1)
    if _SENTENCES.search(text[len(cut) :]) and len(_WORD.findall(cut)) > 2:
        return text  # what follows the reason is no part of it
    return cut if cut != text and re.search(r"[0-9=\\]|^\(?[A-J]\)?$", cut) else text


def ending(text: str, size: int) -> str:
    """Its last sentences, two or more; empty where the last `size` characters hold fewer."""
    breaks = list(_SENTENCES.finditer(text, max(0, len(text) - size)))
    return text[breaks[-2].end() :] if len(breaks) > 1 else ""


def claim(text: str) -> str:
    """The formula that the sentence states, or the text itself where it states none, or more than one."""
    words = [word for word in _WORD.finditer(text) if word[0] not in _FUNCTIONS]
    if not words or "\\begin" in text or (len(words) == 1 and words[0].start() > 0 and words[0][0] not in _STATING):
        return text
    if (match := _COMMENT.fullmatch(text)) and not any(word.end() <= match.end(1) for word in words):
        chain = match[1].count("=") > 1 or match[1].count(",") > 3 or match[1] == "1"
        return text if chain else match[1]
    if len(words) > MAX_WORDS or _SENTENCES.search(text):
        return conclusion(text) or text
    opening = _THEREFORE.match(text)
    if opening and opening.end() < len(text):
        stated = claim(text[opening.end() :])
        return text if stated == text[opening.end() :] and _WORD.search(stated) else stated
    return _stated(text, _tokens(text, words)) or conclusion(text) or text


def conclusion(text: str) -> str | None:
    """What the last sentence says that there is, or the value it ends in: so the area is 3 * 4 = 12 square cm.

    Of prose nothing else is read: a number inside a sentence may be any number.
    """
    last = _SENTENCES.split(_TAGS.sub("", text))[-1]
    if opening := _THEREFORE.match(last):
        last = last[opening.end() :]
    tokens = _tokens(last, [word for word in _WORD.finditer(last) if word[0] not in _FUNCTIONS])
    numbers = [place for place, token in enumerate(tokens) if token.kind == "number"]
    if not numbers or last.endswith("?") or tokens[0].text in _SUPPOSING - {"If"} or _TASK.search(last):
        return None
    place = numbers[-1]
    after = [token for token in tokens[place + 1 :] if token.text != "."]
    words = sum(token.kind == "word" for token in tokens)
    if (_EXISTS.match(last) and words <= MAX_WORDS) or ((opening or len(numbers) == 1) and words <= MAX_SHORT):
        multiple = len(after) > 1 and after[0].text == "times" and after[1].text in _COMPARED
        return None if multiple else _stated(last, tokens)
    start = max((at for at in range(place) if tokens[at].kind == "number" or tokens[at].text in (",", ";")), default=-1)
    is_result = "=" in tokens[place].text
    stated = [number for number in numbers if _is_stated(tokens, number)]
    if (
        not stated
        or stated[-1] != place
        or len(after) > MAX_UNIT + 2 * is_result
        or any(not token.text.isalpha() or token.text in _JOINING for token in after)
        or any(token.text.lower() in _CONDITIONS for token in tokens[start + 1 : place])
        or len({match[1] for token in tokens if (match := _ASSIGNMENT.match(token.text))}) > 1
    ):
        return None
    joined = any(token.text in ("and", "or") for token in tokens[stated[0] : place])
    equals = is_result or tokens[place - 1].text == "equals"
    if not equals and (joined or _is_circumstance(tokens[: numbers[0]])):
        return None
    return _FACTOR.sub(r"\\times ", tokens[place].text)


def _tokens(text: str, words: Sequence[re.Match[str]]) -> list[Token]:
    """Words, numbers (formulas among them) and marks, in order; numbers in words are numbers, but for a loose "one"."""
    tokens: list[Token] = []
    end = 0
    for word in words:
        tokens += _between(text[end : word.start()])
        end = word.end()
        number = NUMERALS.get(word[0].lower())
        loose = number == 1 and not (tokens and tokens[-1].text in ("only", "exactly", "is", "just"))
        tokens.append(Token("word", word[0]) if number is None or loose else Token("number", str(number)))
    return tokens + _between(text[end:])


_LEAD = re.compile(r"[\s,.;:()=*]*(?:-(?= ))?\s*")
_QUANTITY = re.compile(r"[0-9]|\\(?:frac|sqrt|pi|infty|binom)")


def _between(gap: str) -> list[Token]:
    """What stands between two words: a formula at most, and the marks around it."""
    lead = _LEAD.match(gap)
    assert lead is not None
    core = gap[lead.end() :].rstrip(" ,.;:(*-")
    trail = gap[lead.end() + len(core) :]
    if core.count(")") > core.count("("):
        core = core.removesuffix(")") if core.endswith(")") else f"({core}" if lead[0].endswith("(") else core
    middle = [Token("number" if _QUANTITY.search(core) else "symbol", core)] if core else []
    marks = [[Token("mark", mark) for mark in side if not mark.isspace()] for side in (lead[0], trail)]
    return [*marks[0], *middle, *marks[1]]


def _stated(text: str, tokens: Sequence[Token]) -> str | None:
    numbers = [place for place, token in enumerate(tokens) if token.kind == "number"]
    if not numbers:
        named = _NAMED.fullmatch(text.strip(" ."))
        return named[1] if named and named[1].lower() not in _VERBS else None
    first = numbers[0]
    if any(token.text in _SUPPOSING for token in tokens[1:]):
        return None
    if (tokens[0].text in _WORKING and "=" not in tokens[numbers[-1]].text) or (
        first == 0 and tokens[1:] and tokens[1].text == ":"
    ):
        return None
    if _EXISTS.match(text):
        between = [token for token in tokens[2:first] if token.text not in _HEDGING]
        return tokens[first].text if not between and not _joined(tokens, first) else None
    if _is_circumstance(tokens[:first]):
        return None
    stated = [place for place in numbers if _is_stated(tokens, place)]
    if stated:
        last = stated[-1]
        several = any(token.text in _JOINING for token in tokens[stated[0] : last])
        texts = [token.text for token in tokens[last : last + 4]]
        if len(texts) == 3 and texts[1] == "or" and tokens[last + 2].kind == "number":
            return " or ".join(texts[::2])  # 0.35 or 35%
        return None if several or _joined(tokens, last) else _with_time(tokens, last)
    head = [token.text.lower() for token in tokens[:first] if token.kind == "word"]
    limits = first > 0 and (tokens[first - 1].text in _LIMITING or head[-3:] == ["or", "equal", "to"])
    plain = not (limits or _OPEN.intersection(head)) and (
        set(head) <= _HEDGING
        or bool(_VERBS.intersection(head))
        or any(re.fullmatch("[a-z]{2,}ed", word) for word in head)
    )
    return _with_time(tokens, first) if plain and not _joined(tokens, first) else None


def _with_time(tokens: Sequence[Token], place: int) -> str:
    """The number; with the other one where it may be either: 60 miles apart after 6 hours."""
    for position in range(place + 1, len(tokens) - 1):
        if tokens[position].text == "after" and tokens[position + 1].kind == "number":
            return f"{tokens[place].text} after {tokens[position + 1].text}"
    return tokens[place].text


def _is_circumstance(head: Sequence[Token]) -> bool:
    """Does the number behind `head` stand in a leading clause: After 6 hours, ...?"""
    return bool(head) and head[0].text.lower() in _LEADING and not any(token.text == "," for token in head)


def _is_stated(tokens: Sequence[Token], place: int) -> bool:
    """Is it what stands behind "is" or "=", hedges aside?"""
    if "=" in tokens[place].text:
        before = tokens[place - 1].text.lower() if place else ""
        return before not in _CONDITIONS and not (before in _SETTING and _ASSIGNMENT.match(tokens[place].text))
    for before, token in reversed(list(enumerate(tokens[:place]))):
        previous = tokens[before - 1].text if before else ""
        if (previous, token.text) in (("to", "be"), ("or", "equal")) or previous in ("not", "cannot"):
            return False
        if (
            token.text in _STATING
            or token.text == "="
            or token.text[-1] in "是为為"
            or token.text.lower() in ("it's", "that's", "he's", "she's")
        ):
            return True
        if token.text not in _HEDGING:
            return False
    return False


def _joined(tokens: Sequence[Token], place: int) -> bool:
    """Is the number only a part of what is stated: 3 red and 5 blue balls, 3 to 5, 5 more than x, 5 million?"""
    rest = tokens[place + 1 :]
    if rest and (rest[0].text in _CHANGING or (len(rest) > 1 and rest[0].text in _RANGE and rest[1].kind != "word")):
        return True
    for position, token in enumerate(rest):
        follows_number = position + 1 < len(rest) and rest[position + 1].kind == "number"
        if token.kind == "mark" and token.text in ",;" and follows_number:
            return True
        if token.text in _CLAUSE or token.text in (":", ";", "-", "("):
            return False
        if token.text == "than":
            return True
        if token.text in _JOINING and any(later.kind != "mark" and later.kind != "word" for later in rest[position:]):
            return "between" not in {earlier.text for earlier in rest[:position]}
    return False
