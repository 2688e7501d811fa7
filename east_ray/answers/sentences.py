# ruff: noqa: SIM905
r"""The claim of a sentence: "He is 30 years old" states 30, "It takes 3 hours to fill 5 tanks" states 3. Pure strings.

A sentence that leaves open which of its numbers is the answer states none: "After 6 hours they are 60 miles apart". A
wrong number would put different answers into one cluster, which is the worse mistake. `prose.py` reads longer texts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from east_ray.answers.numerals import NUMERALS, spelled

LETTER = r"[^\W\d_]"
WORD = re.compile(
    rf"(?<![\\\w{{^])(?:[\u4e00-\u9fff]+|(?![A-Z]{{2,3}}(?!\w)){LETTER}(?:{LETTER}|['’-](?={LETTER}))+(?![\w}}])|[aI](?= {LETTER}{{2}}))"
)
FUNCTIONS = frozenset("sqrt sin cos tan sec csc cot log ln exp pi max min gcd lcm mod am pm base cm mm km kg".split())
STATING = frozenset(
    """is are was were be equals equal gives give giving makes make making becomes become total totals totaling totalling
    yields get find obtain have that simplifies simplified reduces reduced evaluates amounts leaves
    leaving""".split()
)
_HEDGING = frozenset(
    """about approximately approx around roughly nearly almost exactly only just simply precisely now then also therefore
    thus still actually equal to a the total of at value number sum an average most us further
    equivalent""".split()
)
_VERBS = frozenset(
    """is are was were be has have had will would can could should must may need needs take takes took get gets got make
    makes made cost costs earn earns pay pays save saves spend spends sell sells give gives buy buys use uses eat eats run
    runs read reads walk walks travel travels charge charges weigh weighs require requires contain contains hold holds
    produce produces receive receives collect collects become becomes equals owe owes did do does went drove
    bought sold paid spent saved found left remain remains there dug drew ate won lost wrote built grew flew caught threw rode
    drank kept gave saw met swam ran cover covers slept beat brought sent grown put cut lent meant
    came rose fell taught grow grows""".split()
)
_LEADING = frozenset(  # they begin an adverbial clause, whose number is a circumstance
    """after in for with if when out of on by from at since because given assuming over during within per
    before until while once as between among using""".split()
)
_WORKING = frozenset(
    "Let Let's Notice Note To Using First Okay Consider Suppose Assume Find Solving Dividing Given".split()
)
_CLAUSE = frozenset("which that where because since so when while who whose but if".split())
JOINING = frozenset("and or plus minus times over remainder und et".split())
CONDITIONS = frozenset("when where if since because let not cannot never".split())
_SETTING = CONDITIONS | {"as", "with", "for", "at", "than"}  # x = 3 behind them is no result
SUPPOSING = frozenset("Let Let's Suppose Assume If Consider Given".split())
_OPEN = frozenset("not cannot never how whether what find determine calculate compute count consider".split())
_LIMITING = frozenset("than between from every per the these those all first last next other".split())
_RANGE = frozenset("to by of through from than x".split())
PREPOSITIONS = frozenset("in of at for to per within after over on by between during with from if out".split())
_COMPARING = frozenset(
    "more fewer less extra farther further taller older younger longer heavier faster higher earlier later".split()
)
_COMPARED = frozenset("as the that his her their its more".split())
_OPERATOR = re.compile(r"[+*/]|\\(?:times|cdot|div)")
_PRONOUNS = frozenset("he she they we you it".split())
_PRESENT = re.compile(r"(?!plus|minus|times)[a-z]{2,}[^su]s")
_COSTING = frozenset("cost costs weigh weighs take takes".split())
_GETTING = frozenset("get find obtain".split())
_CALCULATING = frozenset(
    "divide divided multiply multiplied add added subtract subtracted simplify solve sum by".split()
)
_ARTICLES = frozenset("about approximately exactly only just almost a an the".split())
_CHANGING = frozenset("than base mod hundred thousand million billion trillion dozen am pm".split())
ASSIGNMENT = re.compile(r"([A-Za-z]) ?=")
_NAMED = re.compile(r"(?:It|This|That|Today|[Tt]he [a-z ]{1,40})(?:'s| is| was| will be) (?:an? |the |on )?([A-Za-z]+)")
EXISTS = re.compile(
    r"[Tt]here (?:is|are|was|were|will be|would be|must be|can be|remain|remains|exist|exists)(?![a-z])"
)


@dataclass(frozen=True)
class Token:
    kind: str  # word, number, symbol or mark
    text: str


def words_of(text: str) -> list[re.Match[str]]:
    return [word for word in WORD.finditer(text) if word[0] not in FUNCTIONS]


def tokenise(text: str, words: Sequence[re.Match[str]]) -> list[Token]:
    """Words, numbers (formulas among them) and marks, in order; numbers in words are numbers, but for a loose "one"."""
    tokens: list[Token] = []
    end = 0
    for place, word in enumerate(words):
        if word.start() < end:
            continue  # a further word of a number
        tokens += _between(text[end : word.start()])
        end = word.end()
        if word[0].partition("-")[0].lower() in NUMERALS:
            run = [word]
            for later in words[place + 1 : place + 12]:
                if text[run[-1].end() : later.start()] not in (" ", "-"):
                    break
                run.append(later)
            number, used = spelled([part[0] for part in run])
            loose = number == 1 and not (tokens and tokens[-1].text in ("only", "exactly", "is", "just"))
            if used and not loose:
                end = run[used - 1].end()
                tokens.append(Token("number", str(number)))
                continue
        tokens.append(Token("word", word[0]))
    return tokens + _between(text[end:])


_LEAD = re.compile(r"[\s,.;:()=*]*(?:-(?= ))?\s*")
_NAMED_LIST = re.compile(r" ?([A-Za-z]): ?(?=[0-9])")
_QUANTITY = re.compile(r"[0-9]|\\(?:frac|sqrt|pi|infty|binom)")


def _between(gap: str) -> list[Token]:
    """What stands between two words: a formula at most, and the marks around it."""
    lead = _LEAD.match(gap)
    assert lead is not None
    if named := _NAMED_LIST.match(gap):
        return [Token("symbol", named[1]), Token("mark", ":"), *_between(gap[named.end() :])]
    core = gap[lead.end() :].rstrip(" ,.;:(*-")
    trail = gap[lead.end() + len(core) :]
    if core.count(")") > core.count("("):
        core = core.removesuffix(")") if core.endswith(")") else f"({core}" if lead[0].endswith("(") else core
    if "=" in core and any(core.count(opening) != core.count(closing) for opening, closing in ("()", "[]", "{}")):
        core = core[core.rindex("=") :]  # the rest of 2 hours * (3 miles / 1 hour) = 6 miles
    middle = [Token("number" if _QUANTITY.search(core) else "symbol", core)] if core else []
    marks = [[Token("mark", mark) for mark in side if not mark.isspace()] for side in (lead[0], trail)]
    return [*marks[0], *middle, *marks[1]]


def statement(text: str, tokens: Sequence[Token]) -> str | None:
    """What one sentence states; None where that is nothing, or open."""
    numbers = [place for place, token in enumerate(tokens) if token.kind == "number"]
    if not numbers:
        named = _NAMED.fullmatch(text.strip(" ."))
        return named[1] if named and named[1].lower() not in _VERBS else None
    first = numbers[0]
    if any(token.text in SUPPOSING for token in tokens[1:]):
        return None
    if (tokens[0].text in _WORKING and "=" not in tokens[numbers[-1]].text) or (
        first == 0 and tokens[1:] and tokens[1].text == ":"
    ):
        return None
    if EXISTS.match(text):
        between = [token for token in tokens[2:first] if token.text not in _HEDGING]
        return tokens[first].text if not between and not is_part(tokens, first, compared=True) else None
    if is_circumstance(tokens[:first]):
        return None
    stated = [place for place in numbers if is_stated(tokens, place)]
    if stated:
        if several := listed(tokens, stated):
            return several
        last = stated[-1]
        joined = any(token.text in JOINING for token in tokens[stated[0] : last])
        compared = "=" in tokens[last].text
        return None if joined or is_part(tokens, last, compared=compared) else _with_time(tokens, last)
    head = [token.text.lower() for token in tokens[:first] if token.kind == "word"]
    limits = first > 0 and (tokens[first - 1].text in _LIMITING or head[-3:] == ["or", "equal", "to"])
    plain = not (limits or _OPEN.intersection(head)) and (
        set(head) <= _HEDGING
        or bool(_VERBS.intersection(head))
        or any(re.fullmatch("[a-z]{2,}ed", word) for word in head)
        or (len(head) > 1 and (head[0] in _PRONOUNS or _PRESENT.fullmatch(head[-1]) is not None))
    )
    if plain and len(numbers) > 1:
        first = _subject_or_object(tokens, numbers, head)
    return (
        _with_time(tokens, first) if plain and first >= 0 and not is_part(tokens, first, compared=bool(head)) else None
    )


def _subject_or_object(tokens: Sequence[Token], numbers: Sequence[int], head: Sequence[str]) -> int:
    """Which of two numbers is stated: half a pound would cost 5, a cow that weighs 200 kg weighs 441 pounds; -1: open."""
    first, second = numbers[:2]
    before = [token.text for token in tokens[first + 1 : second]]
    while before and before[-1] in _ARTICLES:
        before.pop()
    if not head and before and "to" not in before and before[-1] not in PREPOSITIONS | JOINING and before[-1].isalpha():
        return second if len(numbers) == 2 and before[-1] in _COSTING else -1
    if {"that", "who", "which"}.intersection(head) and _VERBS.intersection(before):
        return second if len(numbers) == 2 else -1
    return first


def listed(tokens: Sequence[Token], stated: Sequence[int]) -> str | None:
    """The values that a sentence ends in, two or more, where nothing but "and", "or" and commas stands between them."""
    for start in stated:
        rest = tokens[start:]
        while rest and rest[-1].text in (".", "respectively", ","):
            rest = rest[:-1]
        between = {token.text for token in rest if token.kind != "number"}
        if len(rest) > 2 and between <= {",", "and", "or", ";"} and rest[-1].kind == "number":
            values = [token.text for token in rest if token.kind == "number"]
            alike = len({value.count("=") for value in values}) == 1
            if "or" in between:
                return " or ".join(values if alike else [value.rpartition("=")[2] for value in values])
            return ", ".join(values) if alike and len(values) > 1 else None
    return None


def _with_time(tokens: Sequence[Token], place: int) -> str:
    """The number; with the other one where it may be either: 60 miles apart after 6 hours."""
    for position in range(place + 1, len(tokens) - 1):
        if tokens[position].text == "after" and tokens[position + 1].kind == "number":
            return f"{tokens[place].text} after {tokens[position + 1].text}"
    return tokens[place].text


def is_circumstance(head: Sequence[Token]) -> bool:
    """Does the number behind `head` stand in a leading clause: After 6 hours, ...? Not in: After dividing by 2, ..."""
    working = len(head) > 1 and head[1].text.endswith("ing")
    leads = bool(head) and head[0].text.lower() in _LEADING and not working
    return leads and not any(token.text == "," for token in head)


def is_stated(tokens: Sequence[Token], place: int) -> bool:
    """Is it what stands behind "is" or "=", hedges aside? Not in "is 3 times as long"."""
    if is_multiple(tokens, place):
        return False
    if "=" in tokens[place].text:
        before = tokens[place - 1].text.lower() if place else ""
        return before not in CONDITIONS and not (before in _SETTING and ASSIGNMENT.match(tokens[place].text))
    if place and tokens[place - 1].text in ("the", "these", "those"):
        return False
    for before, token in reversed(list(enumerate(tokens[:place]))):
        previous = tokens[before - 1].text if before else ""
        if (previous, token.text) == ("or", "equal") or previous in ("not", "cannot"):
            return False
        if previous == "to" and token.kind == "word" and token.text not in _HEDGING:  # to make 4 liters of juice
            return token.text in _GETTING and any(earlier.text.lower() in _CALCULATING for earlier in tokens[:before])
        if (
            token.text in STATING
            or token.text == "="
            or token.text[-1] in "是为為"
            or token.text.lower() in ("it's", "that's", "he's", "she's")
        ):
            return True
        if token.text not in _HEDGING:
            return False
    return False


def is_multiple(tokens: Sequence[Token], place: int) -> bool:
    """Is it 3 times as long, or 10 less than a square?"""
    texts = [token.text for token in tokens[place + 1 : place + 3]]
    return len(texts) == 2 and (
        (texts[0] == "times" and texts[1] in _COMPARED | _COMPARING)
        or (texts[0] in ("less", "more", "greater") and texts[1] == "than")
    )


def is_part(tokens: Sequence[Token], place: int, *, compared: bool = False) -> bool:
    """Is the number only a part of what is stated: 3 red and 5 blue balls, 3 to 5, 5 more than x, 5 million?

    `compared`: 5 more apples than Joe is what one has.
    """
    rest = tokens[place + 1 :]
    if is_multiple(tokens, place) and rest[0].text == "times":
        return True
    if rest and (rest[0].text in _CHANGING or (len(rest) > 1 and rest[0].text in _RANGE and rest[1].kind != "word")):
        return True
    for position, token in enumerate(rest):
        follows_number = position + 1 < len(rest) and rest[position + 1].kind == "number"
        if token.kind == "mark" and token.text in ",;" and follows_number:
            return not _counts(tokens[place].text, rest[position:])
        if token.text in _CLAUSE | {":", ";", "-", "("} or (token.text == "with" and rest[position - 1].text == ","):
            return False
        if token.text == "than":
            noun = not _COMPARING.isdisjoint((rest[0].text, rest[position - 1].text)) and compared
            noun = noun and (position > 1 or rest[0].text not in ("more", "less", "fewer"))
            return not (noun and all(later.kind == "word" or later.text == "." for later in rest[position:]))
        if token.text in JOINING and _adds(rest[position:]):
            return "between" not in {earlier.text for earlier in rest[:position]}
        if token.kind == "number" and _OPERATOR.match(token.text) and rest[position - 1].kind == "word":
            return True  # 50 + 9 shirts * 9
    return False


def _counts(number: str, members: Sequence[Token]) -> bool:
    """Three values, 1, 4 and 9: does the list have as many members as it says?"""
    texts = [token.text for token in members if token.kind == "number"]
    return number == str(sum(len(re.split("[,;]", text)) for text in texts))


def _adds(rest: Sequence[Token]) -> bool:
    """Does "and" join another number, not only one that a preposition leads: and watching TV in 4 weeks?"""
    if rest[0].text in ("over", "times") or (rest[1:] and rest[1].kind == "symbol"):
        return rest[1:] != [] and rest[1].kind in ("number", "symbol")
    infinitive = next(
        (at for at, token in enumerate(rest[:-1]) if token.text == "to" and rest[at + 1].kind == "word"), None
    )
    leading = [token for token in rest[:infinitive] if token.text not in _ARTICLES]
    return any(
        token.kind == "number" and before.text not in PREPOSITIONS - {"by"}
        for before, token in itertools.pairwise(leading)
    )
