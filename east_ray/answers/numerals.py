"""Numbers in words, in English: four, twenty-one, two hundred and five, three million."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
NUMERALS = {word: number for number, word in enumerate(_UNITS)} | {ten: 10 * n for n, ten in enumerate(_TENS, 2)}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def spelled(words: Sequence[str]) -> tuple[int, int]:
    """The number that the first words spell, and how many words that takes; (0, 0) when they spell none."""
    total = group = used = 0
    room, scale_limit = 100, 10**15  # what follows must be less: 10 after twenty, 100 after two hundred
    for place, word in enumerate(words):
        for part in word.lower().split("-"):
            value, scale = NUMERALS.get(part), SCALES.get(part)
            if value is not None and value < room and (value or not used):
                group += value
                room = 10 if value >= 20 else 0
            elif scale == 100 and 0 < group < 100:
                group, room = group * 100, 100
            elif scale and group and 100 < scale < scale_limit:
                total, group, room, scale_limit = total + group * scale, 0, 100, scale
            elif not (part == "and" and used and room == 100):
                return total + group, used
        if word.lower() != "and":
            used = place + 1
    return total + group, used


def in_digits(text: str) -> str:
    """A text that spells a number and nothing else in digits; any other text as it is."""
    words = text.split()
    if not words or words[0].partition("-")[0].lower() not in NUMERALS:
        return text
    number, used = spelled(words)
    return str(number) if used == len(words) else text
