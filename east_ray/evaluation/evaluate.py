"""Evaluation on questions that were not trained on: greedy accuracy, pass@k and maj@k, with intervals.

All models of a step are measured in one call, so that one pool of engines serves them, on the same rendered prompts and
with the same extraction and equivalence as the training questions. `comparison.py` compares the results.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from east_ray.config.sections import EvaluationConfig, GradingConfig, ModelConfig, SamplingConfig
from east_ray.evaluation.statistics import accuracy_interval, maj_at_k, pass_at_k
from east_ray.records import CORRECT, ERROR, UserError
from east_ray.rollouts.run import RolloutJob, run_rollouts
from east_ray.runs.directory import RunDirectory, jsonable

logger = logging.getLogger(__name__)

# One row per question. `correct` is false for errors, too: the accuracy is then too low by at most the share of errors.
EVALUATIONS = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("level", pa.string()),
        pa.field("subject", pa.string()),
    ]
)
GREEDY_SHARD = 128  # questions: with one completion each, it takes more of them to fill an engine's batch
SAMPLED = ["num_samples", "num_correct", "answers", "clusters", "cluster_sizes", "cluster_verdicts"]


@dataclass(frozen=True)
class Accuracy:
    """Share of questions answered correctly, with its Wilson interval."""

    num_questions: int
    num_correct: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationSummary:
    """metrics.json. Shares are of all questions; `pass_at_k` and `maj_at_k` are empty unless completions were sampled."""

    overall: Accuracy
    confidence: float
    mean_tokens: float
    truncated_share: float
    no_answer_share: float
    error_share: float
    by_level: dict[str, Accuracy]
    by_subject: dict[str, Accuracy]
    pass_at_k: dict[str, float]
    maj_at_k: dict[str, float]


def evaluate(
    run: RunDirectory,
    targets: Mapping[str, tuple[str, str]],
    *,
    questions: str,
    model: ModelConfig,
    sampling: SamplingConfig,
    grading: GradingConfig,
    evaluation: EvaluationConfig,
    seed: int,
    round_index: int,
) -> dict[str, EvaluationSummary]:
    """Measure every target (name -> model, output directory) on one questions file; one engine pool serves them all.

    Each output directory gets samples/, grades/, eval.parquet and metrics.json; sampled/ too when
    `evaluation.num_samples` asks for pass@k. A stopped evaluation continues after its finished shards.
    """
    shared = {"top_p": 1.0, "max_new_tokens": evaluation.max_new_tokens or sampling.max_new_tokens}
    greedy = sampling.model_copy(
        update={**shared, "num_samples": 1, "temperature": 0.0, "questions_per_shard": GREEDY_SHARD}
    )
    sampled = sampling.model_copy(
        update={**shared, "num_samples": evaluation.num_samples, "temperature": evaluation.temperature}
    )
    for settings, parent in ((greedy, ""), (sampled, "sampled/")):
        if not settings.num_samples:
            continue
        run_rollouts(
            run,
            [
                RolloutJob(path, questions, f"{output}/{parent}samples", f"{output}/{parent}grades")
                for path, output in targets.values()
            ],
            model=model,
            sampling=settings,
            grading=grading,
            seed=seed,
            round_index=round_index,
            title=f"evaluate pass@{settings.num_samples}" if parent else "evaluate",
        )
    summaries = {}
    for name, (_, output) in targets.items():
        table = collect(run, questions, output)
        grades = run.read_table(output, "sampled/grades", columns=SAMPLED) if evaluation.num_samples else None
        summaries[name] = summarise(table, evaluation.confidence, grades)
        run.write_table(table, output, "eval.parquet")
        run.write_json(jsonable(summaries[name]), output, "metrics.json")
        overall = summaries[name].overall
        logger.info("%s: %.1f%% of %s questions", name, 100 * overall.accuracy, f"{overall.num_questions:,}")
    return summaries


def collect(run: RunDirectory, questions: str, output: str) -> pa.Table:
    """EVALUATIONS rows of one target, in the order of its questions file, from its greedy samples and grades.

    A question whose completion failed is an error, never a wrong answer. UserError when a question has no row at all.
    """
    found = run.read_table(output, "grades", columns=["question_id", "answers", "verdicts", "truncated"])
    grades = {row["question_id"]: row for row in found.to_pylist()}
    lengths = run.read_table(output, "samples", columns=["question_id", "completion_tokens"]).to_pydict()
    tokens = dict(zip(lengths["question_id"], lengths["completion_tokens"], strict=True))
    rows = []
    for question in run.read_table(questions, columns=["question_id", "level", "subject"]).to_pylist():
        grade = grades.get(question["question_id"])
        if grade is None:
            raise UserError(
                f"{run.uri_of(output, 'grades')} has no row for question {question['question_id']!r} of {questions}; "
                f"delete {run.uri_of(output)} and evaluate again"
            )
        verdict, answer, truncated = next(
            zip(grade["verdicts"], grade["answers"], grade["truncated"], strict=True), (ERROR, None, False)
        )
        rows.append(
            {
                **question,
                "correct": verdict == CORRECT,
                "verdict": verdict,
                "answer": answer,
                "tokens": sum(tokens[question["question_id"]]),
                "truncated": truncated,
            }
        )
    return pa.Table.from_pylist(rows, schema=EVALUATIONS)


def summarise(table: pa.Table, confidence: float, sampled: pa.Table | None = None) -> EvaluationSummary:
    """The figures of metrics.json from EVALUATIONS rows, and from the GRADES of sampled completions if there are any."""
    correct, is_error = np.asarray(table["correct"]), np.asarray(table["verdict"]) == ERROR
    pass_at, maj_at = _at_k(sampled) if sampled is not None else ({}, {})
    return EvaluationSummary(
        overall=accuracy_of(correct, confidence),
        confidence=confidence,
        mean_tokens=float(np.mean(np.asarray(table["tokens"]))),
        truncated_share=float(np.mean(np.asarray(table["truncated"]))),
        no_answer_share=float(np.mean(np.asarray(table["answer"].is_null()) & ~is_error)),
        error_share=float(np.mean(is_error)),
        by_level=_by_group(table["level"], correct, confidence),
        by_subject=_by_group(table["subject"], correct, confidence),
        pass_at_k=pass_at,
        maj_at_k=maj_at,
    )


def accuracy_of(correct: np.ndarray, confidence: float) -> Accuracy:
    """Accuracy of a boolean per question. UserError when there is none."""
    if not len(correct):
        raise UserError("there are no questions to evaluate on; set questions.test")
    num_correct = int(np.sum(correct))
    low, high = accuracy_interval(np.asarray(correct)[None], confidence)
    return Accuracy(len(correct), num_correct, num_correct / len(correct), low, high)


def _by_group(groups: pa.ChunkedArray, correct: np.ndarray, confidence: float) -> dict[str, Accuracy]:
    """Accuracy of every level or subject, sorted by name; empty when questions have none."""
    names = np.asarray(groups.fill_null(""))
    return {str(name): accuracy_of(correct[names == name], confidence) for name in np.unique(names[names != ""])}


def _at_k(sampled: pa.Table) -> tuple[dict[str, float], dict[str, float]]:
    """pass@k and maj@k at k = 1, 2, 4, .. and n, averaged over the questions that have all n samples."""
    rows = sampled.to_pylist()
    n = max((row["num_samples"] for row in rows), default=0)
    full = [row for row in rows if row["num_samples"] == n > 0]
    if not full:
        return {}, {}
    correct = np.array([row["num_correct"] for row in full])
    votes = [_votes(row) for row in full]
    ks = sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n)})
    majority = functools.cache(maj_at_k)  # many questions have the same few clusters
    return (
        {str(k): float(np.mean(pass_at_k(n, correct, k))) for k in ks},
        {str(k): float(np.mean([majority(*vote[:2], k, vote[2]) for vote in votes])) for k in ks},
    )


def _votes(grades: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[bool, ...], int]:
    """(sizes of the clusters of answers, which of them are correct, completions that do not vote for want of an answer)."""
    silent = {c for c, answer in zip(grades["clusters"], grades["answers"], strict=True) if answer is None}
    clusters = [i for i in range(len(grades["cluster_sizes"])) if i not in silent]
    sizes = tuple(grades["cluster_sizes"][i] for i in clusters)
    right = tuple(grades["cluster_verdicts"][i] == CORRECT for i in clusters)
    return sizes, right, grades["num_samples"] - sum(sizes)
