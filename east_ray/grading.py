"""Verdicts and clusters of one question's completions: a ladder of cheap exact steps, math-verify only where they end.

A verdict is correct, incorrect or error (a limit was hit; never counted as either). The correct answers are one
cluster; the others group by canonical key, then by string: an equivalence by construction, independent of order,
batching and worker count. Decisions taken under a limit live in the GRADES rows, which are never graded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pyarrow as pa

from east_ray import answers, canonical
from east_ray.config import GradingConfig
from east_ray.records import CORRECT, ERROR, GRADES, INCORRECT
from east_ray.sandbox import Sandbox

UNANSWERED = "unanswered"  # key of the completions without an answer
IGNORED = -1  # their cluster when unanswered = "ignore"


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


class Grader:
    """Owns the sandbox and remembers what it has seen across questions. Use as a context manager, from any thread."""

    def __init__(self, grading: GradingConfig) -> None:
        self._grading = grading
        self._sandbox = Sandbox(
            "east_ray.symbolic:equal", deadline_seconds=grading.deadline_seconds, memory_gib=grading.memory_gib
        )
        self._normal: dict[str, tuple[str, str | None]] = {}
        self._verdicts: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sandbox.close()

    def equal(self, reference: str, answer: str) -> str:
        """CORRECT, INCORRECT, or ERROR when a limit was hit."""
        return self._judge([(reference, answer)])[0]

    def grade(
        self, reference: str, completions: Sequence[str], finish_reasons: Sequence[str] | None = None
    ) -> GradedQuestion:
        """Extract, judge and cluster one question's completions; without finish_reasons none counts as truncated."""
        return self.grade_many([(reference, completions, finish_reasons or ["unknown"] * len(completions))])[0]

    def grade_many(self, questions: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> list[GradedQuestion]:
        """Grade several (reference, completions, finish_reasons) with one exchange with the sandbox for all of them."""
        grading = self._grading
        extractions = [
            [
                answers.extract_answer(text, answer_tags=grading.answer_tags, last_number=grading.last_number)
                for text in completions
            ]
            for _, completions, _ in questions
        ]
        pairs = list(
            dict.fromkeys(
                (reference, found.answer)
                for (reference, _, _), row in zip(questions, extractions, strict=True)
                for found in row
                if found.answer is not None
            )
        )
        verdicts = dict(zip(pairs, self._judge(pairs), strict=True))
        return [
            self._cluster(
                row, [verdicts[reference, found.answer] if found.answer else INCORRECT for found in row], finish_reasons
            )
            for (reference, _, finish_reasons), row in zip(questions, extractions, strict=True)
        ]

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        pending: dict[tuple[str, str], None] = {}
        settled: list[str | None] = []
        for reference, answer in pairs:
            (reference_normal, reference_key), (normal, key) = self._read(reference), self._read(answer)
            verdict = self._verdicts.get((reference_normal, normal))
            if verdict is None:
                verdict = _without_algebra(reference_normal, reference_key, normal, key)
            if verdict is None:
                pending[reference_normal, normal] = None
            settled.append(verdict)
        for pair, equal in zip(pending, self._sandbox.run(list(pending)), strict=True):
            self._verdicts[pair] = ERROR if equal is None else CORRECT if equal else INCORRECT
        return [
            verdict or self._verdicts[self._read(reference)[0], self._read(answer)[0]]
            for verdict, (reference, answer) in zip(settled, pairs, strict=True)
        ]

    def _read(self, answer: str) -> tuple[str, str | None]:
        if answer not in self._normal:
            normal = canonical.normalise(answer)
            self._normal[answer] = normal, canonical.key(normal)
        return self._normal[answer]

    def _cluster(
        self, extractions: Sequence[answers.Extraction], verdicts: list[str], finish_reasons: Sequence[str]
    ) -> GradedQuestion:
        keys = []
        for found, verdict in zip(extractions, verdicts, strict=True):
            if found.answer is None:
                keys.append(UNANSWERED)
            elif self._grading.cluster == "string":
                keys.append(f"string {found.answer}")
            elif verdict == CORRECT:
                keys.append("correct")
            else:
                normal, key = self._read(found.answer)
                keys.append(f"opaque {normal}" if key is None or verdict == ERROR else key)
        counts: dict[str, int] = {}
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        if self._grading.unanswered == "ignore":
            counts.pop(UNANSWERED, None)
        ranked = sorted(counts, key=lambda key: (-counts[key], key))
        index = {key: number for number, key in enumerate(ranked)}
        verdict_of = dict(zip(keys, verdicts, strict=True))
        return GradedQuestion(
            answers=[found.answer for found in extractions],
            rules=[found.rule for found in extractions],
            verdicts=verdicts,
            clusters=[index.get(key, IGNORED) for key in keys],
            cluster_sizes=[counts[key] for key in ranked],
            cluster_verdicts=[verdict_of[key] for key in ranked],
            truncated=[reason == "length" for reason in finish_reasons],
        )


def _without_algebra(reference: str, reference_key: str | None, answer: str, answer_key: str | None) -> str | None:
    if reference == answer:
        return CORRECT
    if reference_key is None or answer_key is None:
        return None
    return CORRECT if reference_key == answer_key else INCORRECT


def grade_table(samples: pa.Table, grader: Grader) -> pa.Table:
    """records.SAMPLES -> records.GRADES, row by row, in order."""
    rows = samples.to_pylist()
    graded = grader.grade_many([(row["reference"], row["completions"], row["finish_reasons"]) for row in rows])
    return pa.Table.from_pylist([_row(*pair) for pair in zip(rows, graded, strict=True)], schema=GRADES)


def _row(sample: dict, graded: GradedQuestion) -> dict:
    verdicts, truncated, tokens = graded.verdicts, graded.truncated, sample["completion_tokens"]
    wrong = [
        size
        for size, verdict in zip(graded.cluster_sizes, graded.cluster_verdicts, strict=True)
        if verdict == INCORRECT
    ]
    return {
        "question_id": sample["question_id"],
        "answers": graded.answers,
        "rules": graded.rules,
        "verdicts": verdicts,
        "clusters": graded.clusters,
        "cluster_sizes": graded.cluster_sizes,
        "cluster_verdicts": graded.cluster_verdicts,
        "truncated": truncated,
        "num_samples": len(verdicts),
        "num_correct": verdicts.count(CORRECT),
        "num_incorrect": verdicts.count(INCORRECT),
        "num_errors": verdicts.count(ERROR),
        "num_unanswered": graded.answers.count(None),
        "num_truncated": sum(truncated),
        "num_positives": sum(verdict == CORRECT and not cut for verdict, cut in zip(verdicts, truncated, strict=True)),
        "num_negatives": sum(
            verdict == INCORRECT and bool(text.strip())
            for verdict, text in zip(verdicts, sample["completions"], strict=True)
        ),
        "largest_wrong": max(wrong, default=0),
        "mean_tokens": sum(tokens) / len(tokens) if tokens else 0.0,
        "shortfall": sample["shortfall"],
    }
