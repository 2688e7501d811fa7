"""Graded completions of many questions as arrays: subsamples of them, their clusters, entropies and intervals. Pure.

Shape suffixes: Q questions, N completions (padded to the most any question has), K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import xlogy

from east_ray.records import CORRECT, INCORRECT

RESAMPLES = 200  # bootstrap resamples per question


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
        """Each question's completions in a random order of their own; the empty places stay at the end."""
        key_Q_N = rng.random(self.cluster_Q_N.shape)
        key_Q_N[np.arange(key_Q_N.shape[1]) >= self.total_Q[:, None]] = 2.0
        order = np.argsort(key_Q_N, axis=1)
        cluster, correct, incorrect = (
            np.take_along_axis(array, order, axis=1)
            for array in (self.cluster_Q_N, self.correct_Q_N, self.incorrect_Q_N)
        )
        return GradedArrays(self.ids, cluster, correct, incorrect, self.total_Q)

    def part(self, start: int, stop: int | np.ndarray) -> GradedArrays:
        """Completions [start, stop) of every question; `stop` may differ by question."""
        place_N = np.arange(self.cluster_Q_N.shape[1])
        inside = (place_N >= start) & (place_N < np.reshape(stop, (-1, 1)))
        total_Q = np.minimum(self.total_Q, stop) - start
        cluster_Q_N = np.where(inside, self.cluster_Q_N, -1)
        return GradedArrays(self.ids, cluster_Q_N, self.correct_Q_N & inside, self.incorrect_Q_N & inside, total_Q)

    def counts(self) -> np.ndarray:
        """Completions per question and cluster, shape (Q, clusters)."""
        num_clusters = int(self.cluster_Q_N.max(initial=0)) + 1
        question, place = np.nonzero(self.cluster_Q_N >= 0)
        flat = question * num_clusters + self.cluster_Q_N[question, place]
        return np.bincount(flat, minlength=len(self.ids) * num_clusters).reshape(len(self.ids), num_clusters)

    def entropy(self) -> np.ndarray:
        return plug_in_entropy(self.counts())

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


def plug_in_entropy(count_Q_K: np.ndarray) -> np.ndarray:
    """Entropy of each row of counts, in nats; 0 for an empty row."""
    total = np.maximum(count_Q_K.sum(axis=1), 1)
    return np.maximum(np.log(total) - xlogy(count_Q_K, count_Q_K).sum(axis=1) / total, 0.0)


def entropy_intervals(
    count_Q_K: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Basic bootstrap interval of every question's entropy, in nats.

    Resampled are the clusters and one more completion with a new answer: what was not seen may still exist. The basic
    form (estimate + estimate - quantile) takes out the bias that a smaller sample of clusters has.
    """
    rng = np.random.default_rng(seed)
    low, high = np.empty(len(count_Q_K)), np.empty(len(count_Q_K))
    for i, counts in enumerate(count_Q_K):
        seen = counts[counts > 0]
        total = int(seen.sum())
        if not total:
            low[i], high[i] = 0.0, np.inf
            continue
        widened = np.append(seen, 1)
        drawn = plug_in_entropy(rng.multinomial(total, widened / widened.sum(), size=resamples))
        below, above = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        both = plug_in_entropy(seen[None])[0] + plug_in_entropy(widened[None])[0]
        low[i], high[i] = max(both - above, 0.0), both - below
    return low, high
