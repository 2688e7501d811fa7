"""Subsampling graded completions: arrays, cluster counts, entropies, and agreement of ranks. Pure.

Shape suffixes: Q questions, N completions (padded to the most any question has), K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from east_ray.records import CORRECT, INCORRECT
from east_ray.weighting.mappings import entropies

TOP_SHARE = 0.1


@dataclass(frozen=True)
class GradedArrays:
    """Questions with their completions in the order drawn: Q questions, N the most completions of any.

    `cluster_Q_N` is -1 where a completion is ignored or there is none; `total_Q` counts completions.
    """

    ids: list[str]
    cluster_Q_N: np.ndarray
    correct_Q_N: np.ndarray
    incorrect_Q_N: np.ndarray
    total_Q: np.ndarray

    def where(self, chosen_Q: np.ndarray) -> GradedArrays:
        """Only the questions for which `chosen_Q` is true."""
        ids = [name for name, chosen in zip(self.ids, chosen_Q, strict=True) if chosen]
        arrays = (self.cluster_Q_N, self.correct_Q_N, self.incorrect_Q_N, self.total_Q)
        return GradedArrays(ids, *(array[chosen_Q] for array in arrays))

    def shuffled(self, rng: np.random.Generator) -> GradedArrays:
        """Each question's completions in a random order; padding stays at the end."""
        key_Q_N = rng.random(self.cluster_Q_N.shape)
        key_Q_N[np.arange(key_Q_N.shape[1]) >= self.total_Q[:, None]] = 2.0
        order = np.argsort(key_Q_N, axis=1)
        cluster, correct, incorrect = (
            np.take_along_axis(array, order, axis=1)
            for array in (self.cluster_Q_N, self.correct_Q_N, self.incorrect_Q_N)
        )
        return GradedArrays(self.ids, cluster, correct, incorrect, self.total_Q)

    def part(self, start: int, stop: int) -> GradedArrays:
        """Completions [start, stop) of every question."""
        position_N = np.arange(self.cluster_Q_N.shape[1])
        inside = (position_N >= start) & (position_N < stop)
        total_Q = np.maximum(np.minimum(self.total_Q, stop) - start, 0)
        cluster_Q_N = np.where(inside, self.cluster_Q_N, -1)
        return GradedArrays(self.ids, cluster_Q_N, self.correct_Q_N & inside, self.incorrect_Q_N & inside, total_Q)

    def counts(self) -> np.ndarray:
        """Completions per question and cluster, shape (Q, clusters)."""
        num_clusters = int(self.cluster_Q_N.max(initial=0)) + 1
        question, position = np.nonzero(self.cluster_Q_N >= 0)
        flat = question * num_clusters + self.cluster_Q_N[question, position]
        return np.bincount(flat, minlength=len(self.ids) * num_clusters).reshape(len(self.ids), num_clusters)

    def entropy(self) -> np.ndarray:
        """Of every question, in nats; 0 for one without completions."""
        counts = self.counts()
        return entropies(counts[counts > 0], np.append(0, np.cumsum((counts > 0).sum(axis=1))))

    def kept(self, keep: str) -> np.ndarray:
        """Which questions have a correct completion and, for keep = "mixed", an incorrect one."""
        solved_Q = np.any(self.correct_Q_N, axis=1)
        return np.logical_and(solved_Q, np.any(self.incorrect_Q_N, axis=1)) if keep == "mixed" else np.asarray(solved_Q)


def gather(rows: Sequence[dict[str, Any]]) -> GradedArrays:
    """GRADES rows (question_id, clusters, verdicts) side by side, padded to the longest."""
    total_Q = np.array([len(row["clusters"]) for row in rows], dtype=np.int64)
    shape = (len(rows), int(total_Q.max(initial=0)))
    cluster_Q_N = np.full(shape, -1, dtype=np.int64)
    correct_Q_N, incorrect_Q_N = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for i, row in enumerate(rows):
        n = len(row["clusters"])
        cluster_Q_N[i, :n] = row["clusters"]
        correct_Q_N[i, :n] = [verdict == CORRECT for verdict in row["verdicts"]]
        incorrect_Q_N[i, :n] = [verdict == INCORRECT for verdict in row["verdicts"]]
    return GradedArrays([row["question_id"] for row in rows], cluster_Q_N, correct_Q_N, incorrect_Q_N, total_Q)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; nan where either side is constant and so has no ranks."""
    varies = np.ptp(first) > 0 and np.ptp(second) > 0
    return float(stats.spearmanr(first, second).statistic) if varies else math.nan  # type: ignore[attr-defined]


def top_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the largest tenth of `second` (at least one) that is in that of `first`; earlier ones first among equals."""
    size = max(round(TOP_SHARE * len(second)), 1)
    top = [set(np.argsort(-values, kind="stable")[:size].tolist()) for values in (first, second)]
    return len(top[0] & top[1]) / size
