"""Verdicts and clusters of one question's completions: a ladder of cheap exact steps, math-verify as the last.

    same string -> same normal form (`normalization`) -> same canonical form (`canonical`) -> math-verify (sandboxed)

A verdict is correct, incorrect or error (a limit was hit; counted as neither). The correct answers are one cluster and
the others group by canonical key: an equivalence by construction, independent of order, batching and workers. Errors
are recorded in the GRADES rows; a finished shard is never graded again, so a resumed run keeps them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from east_ray.answers.canonical import parse
from east_ray.answers.extraction import Extraction, continues, extract_answer, reference_answer
from east_ray.answers.meaning import CanonicalAnswer, agree, cluster_key
from east_ray.answers.normalization import normalise
from east_ray.answers.sandbox import Sandbox
from east_ray.config.sections import GradingConfig
from east_ray.records import CORRECT, ERROR, GRADES, INCORRECT

IGNORED = -1  # cluster of a completion without an answer when unanswered = "ignore"
MEMO_LIMIT = 200_000  # distinct answers remembered; some 200 MB


@dataclass(frozen=True)
class GradedQuestion:
    """One question's completions, in order, and their clusters, by size and then key.

    `clusters[i]` indexes `cluster_sizes` and `cluster_verdicts`, or is -1 (unanswered = "ignore").
    """

    answers: list[str | None]
    rules: list[str]
    verdicts: list[str]
    clusters: list[int]
    cluster_sizes: list[int]
    cluster_verdicts: list[str]
    truncated: list[bool]
    run_on: list[bool]


class ParsedAnswer(NamedTuple):
    """An answer's normal form and its canonical form (None: only the sandbox can decide)."""

    normal: str
    canonical: CanonicalAnswer | None


class Judgement(NamedTuple):
    """A verdict, and the key that answers of the same cluster share."""

    verdict: str
    key: str


class Grader(AbstractContextManager["Grader"]):
    """Grades completions; owns a sandbox, started on first use, and a memo of answers. Usable from any thread."""

    def __init__(self, grading: GradingConfig | None = None) -> None:
        self._grading = grading = grading or GradingConfig()
        self._sandbox = Sandbox(
            "east_ray.answers.math_verify_worker:compare",
            deadline_seconds=grading.deadline_seconds,
            memory_gib=grading.memory_gib,
        )
        self._parsed: dict[str, ParsedAnswer] = {}
        self._judgements: dict[tuple[str, str], Judgement] = {}

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the sandbox; grading another question starts it again."""
        self._sandbox.close()

    def equal(self, reference: str, answer: str) -> str:
        """CORRECT, INCORRECT, or ERROR when a limit was hit. A reference may be a whole solution, with #### or a box."""
        return self._judge([(reference, answer)])[reference, answer].verdict

    def judge(self, reference: str, answers: Sequence[str | None]) -> list[Judgement]:
        """The judgement on each extracted answer of one question, in order; None is incorrect."""
        judged = self._judge((reference, answer) for answer in answers)
        return [judged[reference, answer] for answer in answers]

    def grade(
        self, reference: str, completions: Sequence[str], finish_reasons: Sequence[str] | None = None
    ) -> GradedQuestion:
        """Extract, judge and cluster one question's completions; without finish_reasons none counts as truncated."""
        return self.grade_many([(reference, completions, finish_reasons or ["unknown"] * len(completions))])[0]

    def grade_many(self, questions: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> list[GradedQuestion]:
        """Grade several (reference, completions, finish_reasons), with one exchange with the sandbox for all of them."""
        rules = {name: getattr(self._grading, name) for name in ("answer_tags", "last_number", "open_thought")}
        extractions = [[extract_answer(text, **rules) for text in completions] for _, completions, _ in questions]
        judged = self._judge(
            (reference, found.answer)
            for (reference, _, _), row in zip(questions, extractions, strict=True)
            for found in row
        )
        return [
            self._graded(row, [judged[reference, found.answer] for found in row], completions, finish_reasons)
            for row, (reference, completions, finish_reasons) in zip(extractions, questions, strict=True)
        ]

    def _graded(
        self,
        extractions: Sequence[Extraction],
        judgements: Sequence[Judgement],
        completions: Sequence[str],
        finish_reasons: Sequence[str],
    ) -> GradedQuestion:
        blank = [judgement is _UNANSWERED for judgement in judgements]
        answers = [None if empty else found.answer for empty, found in zip(blank, extractions, strict=True)]
        return GradedQuestion(
            answers,
            [found.rule for found in extractions],
            [judgement.verdict for judgement in judgements],
            *group(answers, judgements, self._grading.cluster, self._grading.unanswered),
            truncated=[reason == "length" for reason in finish_reasons],
            run_on=[continues(text, found.end) for text, found in zip(completions, extractions, strict=True)],
        )

    def _judge(self, pairs: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], Judgement]:
        """The judgement on each distinct (reference, answer), as written."""
        if len(self._parsed) > MEMO_LIMIT or len(self._judgements) > MEMO_LIMIT:
            self._parsed.clear()
            self._judgements.clear()
        judgements: dict[tuple[str, str | None], Judgement] = {}
        undecided: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for reference, answer in dict.fromkeys(pairs):
            if answer is None:
                judgements[reference, answer] = _UNANSWERED
                continue
            expected, got = self._parse_reference(reference), self._parse(answer)
            normals = expected.normal, got.normal
            judgement = self._judgements.get(normals) or _by_canonical_form(expected, got, same=reference == answer)
            if judgement is None:
                undecided.setdefault(normals, []).append((reference, answer))
            else:
                judgements[reference, answer] = judgement
        outcomes = self._sandbox.run(list(undecided))
        for (normals, written), outcome in zip(undecided.items(), outcomes, strict=True):
            judgement = _by_math_verify(normals[1], self._parse_reference(written[0][0]).canonical, outcome)
            self._judgements[normals] = judgement
            judgements.update(dict.fromkeys(written, judgement))
        return judgements

    def _parse_reference(self, reference: str) -> ParsedAnswer:
        solution = "####" in reference or "boxed" in reference
        return self._parse((reference_answer(reference) if solution else None) or reference)

    def _parse(self, answer: str) -> ParsedAnswer:
        known = self._parsed.get(answer)
        if known is None:
            normal = normalise(answer)
            known = self._parsed[answer] = ParsedAnswer(normal, parse(normal))
        return known


def group(
    answers: Sequence[str | None], judgements: Sequence[Judgement], cluster: str, unanswered: str
) -> tuple[list[int], list[int], list[str]]:
    """The cluster of each completion (-1: ignored), the clusters' sizes and verdicts; numbered by size, then key.

    `cluster` and `unanswered` are as in GradingConfig.
    """
    keys = [
        f"string {answer}" if cluster == "string" and answer is not None else judgement.key
        for answer, judgement in zip(answers, judgements, strict=True)
    ]
    sizes = Counter(keys)
    if unanswered == "ignore":
        sizes.pop(_UNANSWERED.key, None)
    ranked = sorted(sizes, key=lambda key: (-sizes[key], key))
    number_of = {key: number for number, key in enumerate(ranked)}
    verdict_of = {key: judgement.verdict for key, judgement in zip(keys, judgements, strict=True)}
    return (
        [number_of.get(key, IGNORED) for key in keys],
        [sizes[key] for key in ranked],
        [verdict_of[key] for key in ranked],
    )


_CORRECT = Judgement(CORRECT, "correct")
_UNANSWERED = Judgement(INCORRECT, "unanswered")


def _by_canonical_form(reference: ParsedAnswer, answer: ParsedAnswer, *, same: bool) -> Judgement | None:
    """The judgement where normal or canonical forms decide it; `same`: they are the same string."""
    if same or (reference.normal == answer.normal and answer.normal):
        return _CORRECT
    if not answer.normal:
        return _UNANSWERED
    if reference.canonical is None or answer.canonical is None:
        return None
    if agree(reference.canonical, answer.canonical):
        return _CORRECT
    return Judgement(INCORRECT, cluster_key(reference.canonical, answer.canonical))


def _by_math_verify(normal: str, reference: CanonicalAnswer | None, outcome: Any) -> Judgement:
    """The judgement from the sandbox's outcome; None: a limit was hit."""
    if outcome is None:
        return Judgement(ERROR, f"undecided {normal}")
    equal, key = outcome
    if equal or (reference is not None and key == reference.key):
        return _CORRECT
    return Judgement(INCORRECT, key or f"opaque {normal}")


def grade_table(samples: pa.Table, grader: Grader) -> pa.Table:
    """records.SAMPLES -> records.GRADES, row by row, in order."""
    rows = samples.to_pylist()
    graded = grader.grade_many([(row["reference"], row["completions"], row["finish_reasons"]) for row in rows])
    return pa.Table.from_pylist([_grades_row(*pair) for pair in zip(rows, graded, strict=True)], schema=GRADES)


def _grades_row(sample: dict[str, Any], graded: GradedQuestion) -> dict[str, Any]:
    verdicts, tokens = graded.verdicts, sample["completion_tokens"]
    clusters = zip(graded.cluster_sizes, graded.cluster_verdicts, strict=True)
    eligible = list(zip(verdicts, graded.run_on, graded.truncated, sample["completions"], strict=True))
    return {
        **vars(graded),
        "question_id": sample["question_id"],
        "num_samples": len(verdicts),
        "num_correct": verdicts.count(CORRECT),
        "num_incorrect": verdicts.count(INCORRECT),
        "num_errors": verdicts.count(ERROR),
        "num_unanswered": graded.answers.count(None),
        "num_truncated": sum(graded.truncated),
        "num_positives": sum(v == CORRECT and not run_on and not cut for v, run_on, cut, _ in eligible),
        "num_negatives": sum(v == INCORRECT and not run_on and bool(text.strip()) for v, run_on, _, text in eligible),
        "largest_wrong": max((size for size, verdict in clusters if verdict == INCORRECT), default=0),
        "mean_tokens": sum(tokens) / len(tokens) if tokens else 0.0,
        "shortfall": sample["shortfall"],
    }
