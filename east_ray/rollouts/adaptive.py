"""Adaptive sampling: spend completions where the entropy is still uncertain (off by default). Pure.

Every question starts with `min_samples` completions; while the interval of its entropy is wider than `width` nats it
gets twice as many, up to the most allowed. Completion i of a question depends on (seed, round, question, i) alone, so an
adaptive run draws a prefix of what a full run draws, and a replay on a full run's completions is exact.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def levels(min_samples: int, max_samples: int) -> list[int]:
    """The numbers of completions at which a question may stop: min_samples, doubled until max_samples."""
    found = [min(min_samples, max_samples)]
    while found[-1] < max_samples:
        found.append(min(2 * found[-1], max_samples))
    return found


def wanted_samples(
    count_Q_K: np.ndarray, drawn_Q: np.ndarray, *, min_samples: int, max_samples: int, width: float
) -> np.ndarray:
    """How many completions each question should have in all: as many as were drawn where its interval is narrow enough.

    `count_Q_K` holds the sizes of the clusters of the completions drawn so far, in any order, padded with zeros.
    """
    more_Q = np.minimum(np.maximum(2 * drawn_Q, min_samples), max_samples)
    enough_Q = (drawn_Q >= min_samples) & (interval_widths(count_Q_K) <= width)
    return np.where(enough_Q | (drawn_Q >= max_samples), drawn_Q, more_Q)


def interval_widths(count_Q_K: np.ndarray) -> np.ndarray:
    """Width in nats of each question's interval: how far its entropy may still be off; infinite without completions.

    The 95% interval of the normal approximation (variance of -ln p over n), with one more completion whose answer is
    new, because after n equal answers the next may still differ; and (k - 1) / n, twice the bias to first order,
    because n answers that all differ have no variance but may be few of many.
    """
    count_Q_K = np.asarray(count_Q_K, dtype=np.float64)
    drawn_Q = count_Q_K.sum(axis=1)
    # From the largest cluster down, so that equal clusters give equal bits in any order.
    widened_Q_K = -np.sort(-np.pad(count_Q_K, ((0, 0), (0, 1)), constant_values=1.0), axis=1)
    share_Q_K = widened_Q_K / (drawn_Q + 1)[:, None]
    surprise_Q_K = -np.log(np.where(share_Q_K > 0, share_Q_K, 1.0))
    mean_Q = (share_Q_K * surprise_Q_K).sum(axis=1)
    variance_Q = np.maximum((share_Q_K * surprise_Q_K**2).sum(axis=1) - mean_Q**2, 0.0)
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    n_Q = np.maximum(drawn_Q, 1)
    unseen_Q = ((count_Q_K > 0).sum(axis=1) - 1) / n_Q
    return np.where(drawn_Q > 0, 2 * z * np.sqrt(variance_Q / n_Q) + unseen_Q, math.inf)
