"""Drift of the model over rounds on its own training questions: solved, uncertain, stuck, and the moves between them.

Round t's samples come from the model after t rounds of training. The first row describes the model before training;
the last model is not sampled again and has no row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from east_ray.config.load import Config
from east_ray.evaluation.statistics import pass_at_k
from east_ray.runs.directory import RunDirectory

STATES = ("solved", "uncertain", "stuck")
COLUMNS = ["question_id", "num_samples", "num_correct", "cluster_sizes", "mean_tokens"]


@dataclass(frozen=True)
class RoundDrift:
    """One round of one arm. Counts are of questions, means over questions; `moved[a][b]`: from STATES[a] one round before."""

    arm: str
    round_index: int
    num_questions: int
    solved: int
    uncertain: int
    stuck: int
    pass_at_1: float
    pass_at_k: float
    k: int
    mean_tokens: float
    unique_answers: float
    moved: tuple[tuple[int, ...], ...] | None


def drift(run: RunDirectory, config: Config) -> dict[str, list[RoundDrift]]:
    """Per arm, one row per round whose grades exist. Round 0 is shared by all arms. Reads no completions."""
    result = {}
    for arm in config.arms:
        directories = ["round-00", *(f"round-{t:02d}/arms/{arm.name}" for t in range(1, config.run.rounds))]
        present = [directory for directory in directories if run.list(directory, "grades", suffix=".parquet")]
        tables = [run.read_table(directory, "grades", columns=COLUMNS) for directory in present]
        result[arm.name] = [
            describe(arm.name, t, table, tables[t - 1] if t else None) for t, table in enumerate(tables)
        ]
    return result


def describe(arm: str, round_index: int, grades: pa.Table, before: pa.Table | None) -> RoundDrift:
    """One round's row from its GRADES; moves are of the questions that the round before has, too."""
    samples, correct = (np.asarray(grades[name]) for name in ("num_samples", "num_correct"))
    states = states_of(grades)
    asked = samples > 0
    k = int(samples[asked].min(initial=samples.max(initial=1)))  # all questions have as many
    return RoundDrift(
        arm=arm,
        round_index=round_index,
        num_questions=len(grades),
        **{name: int(np.sum(states == i)) for i, name in enumerate(STATES)},
        pass_at_1=_mean(correct / np.maximum(samples, 1)),
        pass_at_k=_mean(pass_at_k(samples[asked], correct[asked], k)),
        k=k,
        mean_tokens=_mean(np.asarray(grades["mean_tokens"])),
        unique_answers=_mean(np.asarray(pc.list_value_length(grades["cluster_sizes"]))),  # type: ignore[attr-defined]
        moved=None if before is None else moves(before, grades),
    )


def states_of(grades: pa.Table) -> np.ndarray:
    """Index into STATES per question: every completion correct, some, or none (also when there are no samples)."""
    samples, correct = (np.asarray(grades[name]) for name in ("num_samples", "num_correct"))
    return np.where(correct == 0, STATES.index("stuck"), np.where(correct == samples, STATES.index("solved"), 1))


def moves(before: pa.Table, after: pa.Table) -> tuple[tuple[int, ...], ...]:
    """3 x 3 counts of questions by state before and after; questions found in only one of the two are left out."""
    old = dict(zip(before["question_id"].to_pylist(), states_of(before).tolist(), strict=True))
    counts = np.zeros((3, 3), int)
    for question_id, state in zip(after["question_id"].to_pylist(), states_of(after).tolist(), strict=True):
        if question_id in old:
            counts[old[question_id], state] += 1
    return tuple(tuple(row) for row in counts.tolist())


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0
