r"""Speed, accuracy and safety of grading on real responses: `python benchmarks/grading.py --data ../shared/data`.

    speed        responses per second and core, against two common ways to grade with math-verify
    agreement    our verdicts against math-verify's on the same normal forms
    equivalence  accuracy on published equivalence cases, by kind and source, every disagreement listed
    hostile      time and memory of each answer in tests/support/hostile.py
    clusters     the clusters of ten questions, to read

Process time (user + system, workers included) on one core, memo cold, the symbolic worker started beforehand.
"""

from __future__ import annotations

import argparse
import collections
import functools
import gzip
import json
import logging
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import math_verify
import psutil

from east_ray.answers.canonical import parse
from east_ray.answers.extraction import extract_answer
from east_ray.answers.grading import Grader
from east_ray.answers.normalization import normalise
from east_ray.config.sections import GradingConfig
from east_ray.records import CORRECT

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Question = tuple[str, list[str]]  # reference, completions
SETS = {"MATH": ("responses_math_ei56", True), "GSM8K": ("responses_gsm8k_pooled", True)}  # file, <answer> tags
BATCH = 32  # questions, as in one shard


def questions(data: Path, name: str, *, resampled_to: int | None = None) -> list[Question]:
    """Every question of a set with its responses, or with that many drawn from them with replacement (seed 0)."""
    with gzip.open(data / "responses" / f"{SETS[name][0]}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [(row["gold"], row["responses"]) for row in map(json.loads, lines)]
    if resampled_to is None:
        return rows
    chance = random.Random(0)
    return [(gold, chance.choices(responses, k=resampled_to)) for gold, responses in rows]


def cpu_seconds() -> float:
    """Of this process, its children, and those they have waited for."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(t.user + t.system + t.children_user + t.children_system for t in times)


def ours(rows: Sequence[Question], tags: bool) -> float:
    """Seconds to grade and cluster all of them."""
    with Grader(GradingConfig(answer_tags=tags)) as grader:
        grader.equal("1", r"\sum_{k=1}^{2} k")  # starts the sandbox
        start = cpu_seconds()
        for first in range(0, len(rows), BATCH):
            grader.grade_many([(gold, texts, ["stop"] * len(texts)) for gold, texts in rows[first : first + BATCH]])
        return cpu_seconds() - start


def verify_each_then_all_pairs(rows: Sequence[Question], tags: bool, *, distinct: bool) -> float:
    """Seconds of math-verify alone: a verdict on each answer, then union-find over all pairs; `distinct` strings only."""
    start = cpu_seconds()
    for gold, texts in rows:
        found = [answer for text in texts if (answer := extract_answer(text, answer_tags=tags).answer) is not None]
        answers = list(dict.fromkeys(found)) if distinct else found
        reference, parsed = math_verify.parse(f"${gold}$"), [math_verify.parse(f"${answer}$") for answer in answers]
        for one in parsed:
            math_verify.verify(reference, one)
        parent = list(range(len(parsed)))
        for i, left in enumerate(parsed):
            for j in range(i):
                if math_verify.verify(left, parsed[j]):
                    parent[_root(parent, i)] = _root(parent, j)
    return cpu_seconds() - start


def _root(parent: list[int], node: int) -> int:
    while parent[node] != node:
        node = parent[node]
    return node


@dataclass(frozen=True)
class Speed:
    """Process seconds: of all responses for us, and of the same few questions for all three."""

    label: str
    questions: int
    responses: int
    seconds: float
    ours: float
    each: float
    distinct: float


def measure_speed(data: Path, name: str, size: int | None, sampled: int) -> Speed:
    rows, tags = questions(data, name, resampled_to=size), SETS[name][1]
    sample = random.Random(1).sample(rows, sampled)
    return Speed(
        label=f"{name} n={size or len(rows[0][1])}",
        questions=len(rows),
        responses=sum(len(texts) for _, texts in rows),
        seconds=ours(rows, tags),
        ours=ours(sample, tags),
        each=verify_each_then_all_pairs(sample, tags, distinct=False),
        distinct=verify_each_then_all_pairs(sample, tags, distinct=True),
    )


def speed(data: Path) -> None:
    print(f"{'set':<14}{'questions':>10}{'responses':>11}{'s':>8}{'per s, core':>13}   on a sample of questions:")
    print(f"{'':<59}{'ours s':>8}{'each+pairs s':>14}{'times':>7}{'dedup+pairs s':>15}{'times':>7}")
    for name, size, sampled in (("MATH", None, 24), ("GSM8K", None, 24), ("MATH", 128, 8), ("GSM8K", 128, 8)):
        s = measure_speed(data, name, size, sampled)
        print(
            f"{s.label:<14}{s.questions:>10,}{s.responses:>11,}{s.seconds:>8.2f}{s.responses / s.seconds:>13,.0f}   "
            f"{s.ours:>8.3f}{s.each:>14.1f}{s.each / s.ours:>7,.0f}{s.distinct:>15.1f}{s.distinct / s.ours:>7,.0f}",
            flush=True,
        )


def agreement(data: Path) -> None:
    for name, (_, tags) in SETS.items():
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        unanswered = 0
        for gold, texts in questions(data, name):
            for text in texts:
                answer = extract_answer(text, answer_tags=tags).answer
                unanswered += answer is None
                if answer is not None:
                    counts[normalise(gold), normalise(answer)] += 1
        with Grader(GradingConfig()) as grader:
            verdicts = {pair: grader.equal(*pair) for pair in counts}
        differing = {
            pair: count for pair, count in counts.items() if (verdicts[pair] == CORRECT) != _math_verify(*pair)
        }
        answered, wrong = sum(counts.values()), sum(differing.values())
        print(
            f"{name}: {answered:,} answered responses ({unanswered:,} without an answer), {len(counts):,} distinct pairs; "
            f"verdicts agree with math-verify on {1 - wrong / answered:.4%}, {wrong} differ:"
        )
        for (reference, answer), count in sorted(differing.items(), key=lambda item: -item[1]):
            ours_says = verdicts[reference, answer]
            print(f"   {count:>3} x  {ours_says:<9} reference {reference[:40]!r}, answer {answer[:110]!r}")


@functools.cache
def _parsed(answer: str) -> list:
    return math_verify.parse(f"${answer}$")


def _math_verify(reference: str, answer: str) -> bool:
    return math_verify.verify(_parsed(reference), _parsed(answer))


def equivalence(data: Path) -> None:
    lines = (data / "equivalence_cases.jsonl").read_text(encoding="utf-8").strip().split("\n")
    cases = [case for case in map(json.loads, lines) if not case["ambiguous"]]
    with Grader(GradingConfig()) as grader:
        for kind in ("answer", "response"):
            chosen = [case for case in cases if case["kind"] == kind]
            say = {case["id"]: _judge(grader, case) for case in chosen}
            _score(kind, chosen, say)
        answers = [case for case in cases if case["kind"] == "answer"]
        _score(
            "answer, math-verify itself",
            answers,
            {case["id"]: _math_verify(case["gold"], case["answer"]) for case in answers},
        )


def _judge(grader: Grader, case: dict) -> bool:
    """Bare answers as they are; of free text, what is extracted from it (the text itself where no rule finds anything)."""
    pair = [case["gold"], case["answer"]]
    if case["kind"] == "response":
        pair = [extract_answer(text).answer or text for text in pair]
    return grader.equal(*pair) == CORRECT


def _score(title: str, cases: Sequence[dict], say: dict[str, bool]) -> None:
    by_source: dict[str, list[bool]] = collections.defaultdict(list)
    for case in cases:
        by_source[case["source"].split("::")[0].split(" math-t")[0]].append(say[case["id"]] == case["equal"])
    false_positives = sum(say[case["id"]] and not case["equal"] for case in cases)
    false_negatives = sum(case["equal"] and not say[case["id"]] for case in cases)
    negatives = sum(not case["equal"] for case in cases)
    right = len(cases) - false_positives - false_negatives
    print(f"\n{title}: {right} of {len(cases)} right, {right / len(cases):.1%}; {false_negatives} false negatives")
    print(
        f"   {false_positives} false positives: {false_positives / len(cases):.1%} of all, {false_positives / negatives:.1%} of the {negatives} unequal"
    )
    for source, outcomes in sorted(by_source.items(), key=lambda item: -len(item[1])):
        print(f"   {sum(outcomes):>4} of {len(outcomes):<4} {source[:90]}")
    for case in cases:
        if say[case["id"]] != case["equal"]:
            wanted = "equal" if case["equal"] else "different"
            print(
                f"   {case['id']} should be {wanted}: {case['gold'][-60:]!r} and {case['answer'][-90:]!r} {case.get('note', '')}"
            )


def hostile(_: Path) -> None:
    from tests.support import hostile as corpus

    limit = 2.0
    peak = [0]
    threading.Thread(target=_watch_memory, args=(peak,), daemon=True).start()
    with tempfile.TemporaryDirectory() as directory, Grader(GradingConfig(deadline_seconds=limit)) as grader:
        canary = Path(directory) / "canary"
        attacks = {
            name: rf"\boxed{{{answer}}}" for name, answer in corpus.answers(canary).items()
        } | corpus.completions()
        grader.equal("1", r"\sum_{k=1}^{2} k")
        verdicts: collections.Counter[str] = collections.Counter()
        worst = 0.0
        for name, text in attacks.items():
            peak[0] = 0
            start = time.perf_counter()
            graded = grader.grade("7", [text, r"\boxed{7}", r"\boxed{8}"])
            seconds = time.perf_counter() - start
            worst = max(worst, seconds)
            verdicts[graded.verdicts[0]] += 1
            others = "others right" if graded.verdicts[1:] == ["correct", "incorrect"] else "OTHERS WRONG"
            print(f"{seconds:>7.2f} s {peak[0] >> 20:>5} MiB  {graded.verdicts[0]:<9}  {name:<36} {others}", flush=True)
        print(
            f"{len(attacks)} inputs, limit {limit} s, longest {worst:.2f} s; {dict(verdicts)}; executed: {canary.exists()}"
        )


def _watch_memory(peak: list[int]) -> None:
    """Keep the largest resident size of any child process in peak[0]."""
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                peak[0] = max(peak[0], process.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.01)


def clusters(data: Path) -> None:
    rows = random.Random(3).sample(questions(data, "MATH"), 6) + random.Random(3).sample(questions(data, "GSM8K"), 4)
    with Grader(GradingConfig(answer_tags=True)) as grader:
        for gold, texts in rows:
            graded = grader.grade(gold, texts)
            canonical = parse(normalise(gold))
            print(f"\nreference {gold!r}, {canonical.key if canonical else 'not parsed'}")
            for number, (size, verdict) in enumerate(zip(graded.cluster_sizes, graded.cluster_verdicts, strict=True)):
                spellings = collections.Counter(
                    answer for answer, cluster in zip(graded.answers, graded.clusters, strict=True) if cluster == number
                )
                shown = "  ".join(f"{count}x {answer!r:.60}" for answer, count in spellings.most_common(5))
                print(f"  {size:>3} {verdict:<9} {shown}")


PARTS: dict[str, Callable[[Path], None]] = {
    part.__name__: part for part in (speed, agreement, equivalence, hostile, clusters)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with responses/ and the cases"
    )
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    for part in arguments.parts or PARTS:
        print(f"\n== {part}")
        PARTS[part](arguments.data)


if __name__ == "__main__":
    main()
