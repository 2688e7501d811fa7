"""Word problems of one to four steps in plain English, with worked solutions: `python -m smollm2.word_problems DIRECTORY`.

Everything follows from the seed. A problem is a beginning, some events and perhaps a last event that brings its own
question; levels are the number of calculations, and numbers come from three ranges, so that a small model is sure of
some problems and lost in others. A solution is worked in steps or, as people in a hurry do, in one line.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SEED = 0
LEVELS = (1, 2, 3, 4)  # of the warm-up
ASKED = (1, 2, 1, 3, 2, 1, 4, 2)  # in both splits: the warmed-up model is sure of one step and lost in four
RANGES = {"small": 10, "medium": 30, "large": 90}  # the largest number of a question; factors are smaller
LARGEST_FACTOR = {"small": 5, "medium": 9, "large": 12}
LARGEST_TOTAL = 2000
IN_ONE_LINE = 0.5  # of the solutions of two steps and more
SPLITS = {"test": 1000, "train": 400}
WARM_UP = 2000

SHE = ("Ana", "Maya", "Priya", "Lena", "Grace", "Zoe", "Fatima", "Chloe", "Mrs. Lopez", "Hannah", "Yuki", "Nora")
HE = ("Tom", "Omar", "Liam", "Diego", "Mr. Chen", "Jonas", "Kofi", "Peter", "Ravi", "Sam", "Ethan", "Mr. Hill")
# things, a container of them, where they are kept, how they come, how they go
THEMES = (
    ("apples", "basket", "in the kitchen", "picks", "eats"),
    ("marbles", "bag", "in a drawer", "wins", "loses"),
    ("stickers", "sheet", "in an album", "collects", "gives away"),
    ("cookies", "tray", "on the counter", "bakes", "eats"),
    ("books", "box", "on a shelf", "buys", "lends out"),
    ("eggs", "carton", "in the barn", "collects", "sells"),
    ("pencils", "pack", "in the classroom", "buys", "hands out"),
    ("tomatoes", "crate", "in the greenhouse", "harvests", "sells"),
    ("candles", "box", "in the workshop", "makes", "sells"),
    ("shells", "bucket", "by the window", "finds", "drops"),
    ("photos", "folder", "on the computer", "takes", "deletes"),
    ("roses", "bunch", "in the shop", "orders", "sells"),
)
WHEN = (
    "On Monday,",
    "The next day,",
    "Later,",
    "After lunch,",
    "In the evening,",
    "A week later,",
    "Then",
    "After that,",
)
ASIDES = (
    "{other} is {n} years old.",
    "The shop is {n} minutes away.",
    "{name} lives at number {n}.",
    "It is {n} degrees outside.",
)


@dataclass
class Story:
    """A problem while it is being told. `expression` is the calculation so far, `sum_last` whether it ends in + or -."""

    rng: random.Random
    scale: str
    name: str
    pronoun: str
    other: str
    theme: tuple[str, str, str, str, str]
    total: int = 0
    expression: str = ""
    sum_last: bool = False
    sentences: list[str] = field(default_factory=list)
    working: list[str] = field(default_factory=list)
    question: str = ""

    def number(self, largest: int | None = None) -> int:
        return self.rng.randint(2, max(2, min(largest or RANGES[self.scale], RANGES[self.scale])))

    def factor(self) -> int:
        return self.rng.randint(2, LARGEST_FACTOR[self.scale])

    def tell(self, *ways: str, dated: bool = False, **values: object) -> None:
        """Add one of several ways to say a thing; an event (`dated`) may say when it happens."""
        sentence = self.fill(self.rng.choice(ways), values)
        if dated and self.rng.random() < 0.4:
            sentence = f"{self.rng.choice(WHEN)} {sentence}"
        self.sentences.append(sentence[0].upper() + sentence[1:])

    def ask(self, *ways: str) -> None:
        self.question = self.fill(self.rng.choice(ways), {})

    def work(self, left: int, sign: str, right: int, about: str, *, onto_total: bool = True) -> int:
        """One calculation. Off the total (`onto_total` false) it stands aside until a later step uses it."""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        about, sum_ = self.fill(about, {}), f"{left} {sign} {right} = {result}"
        self.working.append(self.rng.choice((f"{about[0].upper()}{about[1:]}: {sum_}.", f"{sum_} {about}.")))
        if onto_total:
            self.total = result
        return result

    def extend(self, sign: str, right: str) -> None:
        """The same step in the one-line calculation."""
        if sign in "*/" and self.sum_last:
            self.expression = f"({self.expression})"
        self.expression, self.sum_last = f"{self.expression} {sign} {right}", sign in "+-"

    def fill(self, text: str, values: dict[str, object]) -> str:
        things, box, place, get, lose = self.theme
        possessive = {"she": "her", "he": "his"}[self.pronoun]
        words = {"things": things, "box": box, "boxes": _plural(box), "place": place, "get": get, "lose": lose}
        people = {"name": self.name, "other": self.other, "she": self.pronoun, "her": possessive}
        return text.format(**words, **people, **values)


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("x", "sh", "ch")) else "s")


def _start(story: Story) -> None:
    n = story.number()
    story.total, story.expression = n, str(n)
    story.tell(
        "{name} has {n} {things} {place}.",
        "There are {n} {things} {place} that belong to {name}.",
        "{name} starts the week with {n} {things}.",
        "One morning {name} counts {n} {things} {place}.",
        n=n,
    )


def _start_boxes(story: Story) -> None:
    a, b = story.factor(), story.number()
    story.expression = f"{a} * {b}"
    story.tell(
        "{name} has {a} {boxes} with {b} {things} in each.",
        "{name} {get} {a} {boxes} of {things}, and every {box} holds {b}.",
        "There are {a} {boxes} {place}. Each {box} contains {b} of {name}'s {things}.",
        a=a,
        b=b,
    )
    story.work(a, "*", b, "{things} in all {boxes}")


def _more(story: Story) -> None:
    n = story.number()
    story.tell(
        "{she} {get} {n} more {things}.",
        "{other} gives {name} {n} {things}.",
        "{name} finds another {n} of them.",
        "{n} {things} are added.",
        n=n,
        dated=True,
    )
    story.work(story.total, "+", n, "{things} then")
    story.extend("+", str(n))


def _fewer(story: Story) -> None:
    n = story.number(story.total - 2)
    story.tell(
        "{she} {lose} {n} of the {things}.",
        "{name} gives {n} {things} to {other}.",
        "{other} takes {n} of them.",
        "{n} of the {things} get lost.",
        n=n,
        dated=True,
    )
    story.work(story.total, "-", n, "{things} left")
    story.extend("-", str(n))


def _times(story: Story) -> None:
    k = story.factor()
    story.tell(
        "{name} has {k} times as many {things} as before.",
        "the number of {things} grows to {k} times what it was.",
        k=k,
        dated=True,
    )
    story.work(story.total, "*", k, "{things} after that")
    story.extend("*", str(k))


def _half(story: Story) -> None:
    story.tell(
        "{she} {lose} half of the {things}.",
        "half of the {things} go to {other}, and {name} keeps the other half.",
        dated=True,
    )
    story.work(story.total, "/", 2, "{things} in the half that stays")
    story.extend("/", "2")


def _boxes_more(story: Story) -> None:
    a, b = story.factor(), story.factor()
    story.tell(
        "{she} {get} {a} more {boxes} with {b} {things} each.",
        "{other} brings {a} {boxes}, and each {box} has {b} {things} in it.",
        a=a,
        b=b,
        dated=True,
    )
    extra = story.work(a, "*", b, "{things} in the new {boxes}", onto_total=False)
    story.work(story.total, "+", extra, "{things} together")
    story.extend("+", f"{a} * {b}")


def _friends(story: Story) -> None:
    a = story.factor()
    b = story.rng.randint(2, max(2, min(LARGEST_FACTOR[story.scale], (story.total - 1) // a)))
    story.tell(
        "{name} gives {b} {things} to each of {a} friends.",
        "{a} neighbors come by, and each of them takes {b} {things}.",
        a=a,
        b=b,
        dated=True,
    )
    gone = story.work(a, "*", b, "{things} given away", onto_total=False)
    story.work(story.total, "-", gone, "{things} left")
    story.extend("-", f"{a} * {b}")


def _share(story: Story) -> None:
    k = story.rng.choice([k for k in range(2, 13) if story.total % k == 0])
    story.tell(
        "{she} puts the {things} into {k} {boxes}, the same number in each.",
        "{name} shares all the {things} equally among {k} friends.",
        k=k,
        dated=True,
    )
    friends = "friends" in story.sentences[-1]
    story.ask("How many {things} does each friend get?" if friends else "How many {things} are in one {box}?")
    story.work(story.total, "/", k, "{things} in each share")
    story.extend("/", str(k))


def _sale(story: Story) -> None:
    p = story.factor()
    story.tell(
        "{name} sells all of the {things} for ${p} each.",
        "all the {things} are sold, and each one costs ${p}.",
        p=p,
        dated=True,
    )
    story.ask("How many dollars does {name} get?", "How much money in dollars do the {things} bring in?")
    story.work(story.total, "*", p, "dollars for all")
    story.extend("*", str(p))


def _together(story: Story) -> None:
    if story.rng.random() < 0.5:
        n = story.number()
        story.tell("{other} has {n} more {things} than {name}.", n=n)
        second = story.work(story.total, "+", n, "{things} for {other}", onto_total=False)
        inner = f"({story.expression} + {n})"
    else:
        k = story.factor()
        story.tell("{other} has {k} times as many {things} as {name}.", k=k)
        second = story.work(story.total, "*", k, "{things} for {other}", onto_total=False)
        inner = f"{k} * ({story.expression})" if story.sum_last else f"{k} * {story.expression}"
    story.ask("How many {things} do the two have together?", "How many {things} do {name} and {other} have in total?")
    story.work(story.total, "+", second, "{things} together")
    story.extend("+", inner)


def _missing(story: Story) -> None:
    goal = story.total + story.number()
    story.tell("{name} wants to have {goal} {things}.", "{name} needs {goal} {things} for a party.", goal=goal)
    story.ask("How many more {things} does {name} need?", "How many {things} are still missing?")
    story.expression, story.sum_last = (
        f"{goal} - ({story.expression})" if " " in story.expression else f"{goal} - {story.expression}",
        True,
    )
    story.work(goal, "-", story.total, "{things} missing")


def _grows(story: Story, k: int) -> bool:
    return story.total * k <= LARGEST_TOTAL


@dataclass(frozen=True)
class Event:
    """A part of a story: how many calculations it takes, and on which totals it makes sense."""

    tell: Callable[[Story], None]
    steps: int
    fits: Callable[[Story], bool] = lambda story: True


STARTS = (Event(_start, 0), Event(_start_boxes, 1))
MIDDLE = (
    Event(_more, 1),
    Event(_more, 1),
    Event(_fewer, 1, lambda s: s.total > 4),
    Event(_fewer, 1, lambda s: s.total > 4),
    Event(_times, 1, lambda s: _grows(s, LARGEST_FACTOR[s.scale])),
    Event(_half, 1, lambda s: s.total % 2 == 0 and s.total > 4),
    Event(_boxes_more, 2),
    Event(_friends, 2, lambda s: s.total > 4 * LARGEST_FACTOR[s.scale]),
)
ENDS = (
    Event(_share, 1, lambda s: any(s.total % k == 0 and s.total > k for k in range(2, 13))),
    Event(_sale, 1, lambda s: _grows(s, LARGEST_FACTOR[s.scale])),
    Event(_missing, 1),
    Event(_together, 2, lambda s: _grows(s, LARGEST_FACTOR[s.scale])),
)


@dataclass(frozen=True)
class Problem:
    """A finished problem. `steps` are its worked calculations in words, `line` the same in one calculation."""

    question: str
    answer: int
    level: int
    scale: str
    steps: tuple[str, ...]
    line: str

    def solution(self, *, in_one_line: bool) -> str:
        """Worked in steps or in one line, with the answer as the default prompt asks for it."""
        work = [f"{self.line} = {self.answer}."] if in_one_line else list(self.steps)
        return " ".join([*work, f"The answer is \\boxed{{{self.answer}}}."])


def make_problem(rng: random.Random, level: int) -> Problem:
    """A problem of `level` calculations; tells stories until one has exactly that many."""
    while (problem := _tell_story(rng, level)) is None:
        pass
    return problem


def _tell_story(rng: random.Random, level: int) -> Problem | None:
    pronoun, names = rng.choice((("she", SHE), ("he", HE)))
    name, other = rng.choice(names), rng.choice(SHE + HE)
    if name == other:
        return None
    story = Story(rng, rng.choice(list(RANGES)), name, pronoun, other, rng.choice(THEMES))
    rng.choice(STARTS).tell(story)
    while len(story.working) < level and not story.question:
        left = level - len(story.working)
        events = [event for event in (*MIDDLE, *ENDS) if event.steps <= left and event.fits(story)]
        events = [event for event in events if event not in ENDS or event.steps == left]
        if not events:
            return None
        rng.choice(events).tell(story)
    if not story.question:
        now, end = ("", "in total") if len(story.sentences) == 1 else (" now", "in the end")
        story.ask(f"How many {{things}} does {{name}} have{now}?", f"How many {{things}} are there {end}?")
    if rng.random() < 0.15:
        aside = story.fill(rng.choice(ASIDES), {"n": rng.randint(11, 60)})
        story.sentences.insert(rng.randint(1, len(story.sentences)), aside)
    if len(story.working) != level or not 0 < story.total <= LARGEST_TOTAL:
        return None
    text = " ".join([*story.sentences, story.question])
    return Problem(text, story.total, level, story.scale, tuple(story.working), story.expression)


def make_problems(rng: random.Random, count: int, levels: Sequence[int], taken: set[str]) -> list[Problem]:
    """`count` problems, levels in turn, none of whose questions is in `taken`; theirs are added to it."""
    problems: list[Problem] = []
    while len(problems) < count:
        problem = make_problem(rng, levels[len(problems) % len(levels)])
        if problem.question not in taken:
            taken.add(problem.question)
            problems.append(problem)
    return problems


def warm_up_examples(seed: int = SEED + 1) -> list[tuple[str, str]]:
    """Questions, each with a worked solution in one of the two manners."""
    rng = random.Random(seed)
    problems = make_problems(rng, WARM_UP, LEVELS, set())
    return [(p.question, p.solution(in_one_line=p.level > 1 and rng.random() < IN_ONE_LINE)) for p in problems]


def make_splits(seed: int = SEED) -> dict[str, list[Problem]]:
    """The test and training problems, none of which the warm-up has seen."""
    rng, taken = random.Random(seed), {question for question, _ in warm_up_examples()}
    return {split: make_problems(rng, count, ASKED, taken) for split, count in SPLITS.items()}


def write_questions(directory: Path) -> None:
    """train.jsonl and test.jsonl with the columns of the bundled questions."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, problems in make_splits().items():
        rows = [
            {
                "id": f"word-problem-{split}-{index:05d}",
                "question": problem.question,
                "answer": str(problem.answer),
                "solution": problem.solution(in_one_line=False),
                "level": f"Level {problem.level}",
                "subject": f"{problem.scale} numbers",
            }
            for index, problem in enumerate(problems)
        ]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_questions(Path(sys.argv[1]))
