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
JUDGED = {CORRECT: 1, INCORRECT: -1}


@dataclass(frozen=True)
class GradedArrays:
    """Questions with their completions in the order drawn: Q questions, N the most completions of any.

    `cluster_Q_N` is -1 where a completion is ignored or there is none; `judged_Q_N` is 1 for a correct completion, -1 for
    an incorrect one and 0 otherwise; `total_Q` counts completions.
    """

    ids: list[str]
    cluster_Q_N: np.ndarray
    judged_Q_N: np.ndarray
    total_Q: np.ndarray

    def where(self, chosen_Q: np.ndarray) -> GradedArrays:
        """Only the questions for which `chosen_Q` is true."""
        ids = [name for name, chosen in zip(self.ids, chosen_Q, strict=True) if chosen]
        return GradedArrays(ids, self.cluster_Q_N[chosen_Q], self.judged_Q_N[chosen_Q], self.total_Q[chosen_Q])

    def shuffled(self, rng: np.random.Generator) -> GradedArrays:
        """Each question's completions in a random order; padding stays at the end."""
        key_Q_N = rng.random(self.cluster_Q_N.shape)
        key_Q_N[np.arange(key_Q_N.shape[1]) >= self.total_Q[:, None]] = 2.0
        order = np.argsort(key_Q_N, axis=1)
        cluster, judged = (np.take_along_axis(array, order, axis=1) for array in (self.cluster_Q_N, self.judged_Q_N))
        return GradedArrays(self.ids, cluster, judged, self.total_Q)

    def part(self, start: int, stop: int) -> GradedArrays:
        """Completions [start, stop) of every question."""
        within = slice(start, stop)
        total_Q = np.clip(self.total_Q - start, 0, stop - start)
        return GradedArrays(self.ids, self.cluster_Q_N[:, within], self.judged_Q_N[:, within], total_Q)

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
        solved_Q, failed_Q = (self.judged_Q_N == 1).any(axis=1), (self.judged_Q_N == -1).any(axis=1)
        return solved_Q & failed_Q if keep == "mixed" else solved_Q


def gather(rows: Sequence[dict[str, Any]]) -> GradedArrays:
    """GRADES rows (question_id, clusters, verdicts) side by side, padded to the longest."""
    total_Q = np.array([len(row["clusters"]) for row in rows], dtype=np.int64)
    shape = (len(rows), int(total_Q.max(initial=0)))
    cluster_Q_N, judged_Q_N = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int8)
    for i, row in enumerate(rows):
        cluster_Q_N[i, : total_Q[i]] = row["clusters"]
        judged_Q_N[i, : total_Q[i]] = [JUDGED.get(verdict, 0) for verdict in row["verdicts"]]
    return GradedArrays([row["question_id"] for row in rows], cluster_Q_N, judged_Q_N, total_Q)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; nan where either side is constant and so has no ranks."""
    varies = np.ptp(first) > 0 and np.ptp(second) > 0
    return float(stats.spearmanr(first, second).statistic) if varies else math.nan  # type: ignore[attr-defined]


def top_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the largest tenth of `second` (at least one) that is in that of `first`; earlier ones first among equals."""
    size = max(round(TOP_SHARE * len(second)), 1)
    top = [set(np.argsort(-values, kind="stable")[:size].tolist()) for values in (first, second)]
    return len(top[0] & top[1]) / size
