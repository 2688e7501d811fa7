"""Is a difference real? Intervals and tests for accuracies on the same questions, and unbiased pass@k and maj@k. Pure.

Shape suffixes: Q questions, S seeds. Accuracies and their differences are shares (0.01 is one point).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): stays inside [0, 1] and is right even for 0 or all successes; (0, 1) if total is 0."""
    if total == 0:
        return 0.0, 1.0
    z = _normal_quantile(confidence)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired_bootstrap(
    first_Q: np.ndarray,
    second_Q: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of first - second over the same questions, with the percentile interval of resampling questions.

    Entries are booleans, or means over seeds. Equal seeds give equal intervals, whatever the order of the questions.
    """
    difference_Q = np.asarray(first_Q, dtype=np.float64) - np.asarray(second_Q, dtype=np.float64)
    # Resampling questions is drawing how often each distinct difference occurs, and there are few of them.
    values, counts = np.unique(difference_Q, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    means = drawn @ values / counts.sum()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(counts @ values / counts.sum()), float(low), float(high))


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value that questions only one model answers are as often the first's as the second's; 1 if there are none."""
    if gained + lost == 0:
        return 1.0
    return float(min(1.0, 2 * stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having tested all of these (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def minimum_detectable_effect(
    num_questions: int, discordant_share: float, *, confidence: float = 0.95, power: float = 0.8
) -> float:
    """Smallest difference in accuracy that a paired test on so many questions shows with probability `power`.

    `discordant_share` is the share of questions on which the two models differ; the difference cannot exceed it, and
    infinity means that even then it would not show (Connor 1987, the normal approximation of McNemar's test).
    """
    z_test, z_power = _normal_quantile(confidence), float(stats.norm.ppf(power))

    def needed(effect: float) -> float:
        spread = math.sqrt(max(discordant_share - effect * effect, 0.0))
        return ((z_test * math.sqrt(discordant_share) + z_power * spread) / effect) ** 2

    if discordant_share <= 0 or needed(discordant_share) > num_questions:
        return math.inf
    low, high = 0.0, discordant_share  # needed() falls with the effect
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if middle > 0 and needed(middle) <= num_questions else (middle, high)
    return high


def combine_seeds(difference_S_Q: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean difference over seeds and questions, its interval covering both which questions and which seeds were drawn.

    Two-way random effects: variance of question means + variance of seed means - the residual both contain; Student's t
    with Satterthwaite's degrees of freedom. With one seed only the questions' variance is known, and only that is used.
    """
    d = np.asarray(difference_S_Q, dtype=np.float64)
    num_seeds, num_questions = d.shape
    mean = float(d.mean())
    if num_questions == 1:
        return Interval(mean, -math.inf, math.inf)  # nothing says how questions vary
    by_question = float(np.var(d.mean(axis=0), ddof=1)) / num_questions
    variance, freedom = by_question, float(num_questions - 1)
    if num_seeds > 1:
        by_seed = float(np.var(d.mean(axis=1), ddof=1)) / num_seeds
        residual = d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + mean
        shared = float((residual**2).sum()) / ((num_seeds - 1) * (num_questions - 1)) / d.size
        variance = max(by_question + by_seed - shared, by_question, by_seed)
        if variance > 0:
            freedom = variance**2 / (by_question**2 / (num_questions - 1) + by_seed**2 / (num_seeds - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, max(freedom, 1.0))) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def pass_at_k(num_samples: np.ndarray | int, num_correct: np.ndarray | int, k: int) -> np.ndarray:
    """Chance that k of n completions, drawn without replacement, hold a correct one (Chen et al. 2021); per question.

    ValueError where k exceeds the number of completions.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if np.any(n < k):
        raise ValueError(f"pass@{k} needs {k} completions per question, some have {int(n.min())}")
    return 1.0 - stats.hypergeom.pmf(0, n, c, k)


def maj_at_k(cluster_sizes: Sequence[int], cluster_correct: Sequence[bool], k: int, abstentions: int = 0) -> float:
    """Chance that the majority answer among k of a question's n completions is correct; exact, no sampling.

    Completions are drawn without replacement from clusters of equivalent answers. Of answers tied for most votes each
    wins equally often. `abstentions` completions belong to no cluster and never vote; if all k abstain it is wrong.
    """
    sizes = np.asarray(cluster_sizes, dtype=np.int64)
    total = int(sizes.sum()) + abstentions
    if total < k:
        raise ValueError(f"maj@{k} needs {k} completions, this question has {total}")
    # Drawing k of n is drawing each with chance k/n, given that k came out: clusters become independent binomials.
    chance = k / total
    won = sum(
        stats.binom.pmf(votes, size, chance) * _others_fit(sizes, i, votes, k - votes, chance, abstentions)
        for i, size in enumerate(sizes)
        if cluster_correct[i]
        for votes in range(1, min(int(size), k) + 1)
    )
    return float(won / stats.binom.pmf(k, total, chance))


def _others_fit(sizes: np.ndarray, winner: int, votes: int, rest: int, chance: float, abstentions: int) -> float:
    """Chance that all other clusters together get `rest` votes, none over `votes`; t of them level count 1/(t + 1)."""
    others = np.delete(sizes, winner)
    small = int(others[others < votes].sum()) + abstentions  # cannot reach `votes`, so they need not be told apart
    rivals = others[others >= votes]
    # 1/(t + 1) is the integral of y^t over [0, 1], and Gauss-Legendre is exact for the degree t can reach.
    nodes, node_weights = np.polynomial.legendre.leggauss(rest // votes // 2 + 1)
    level = (nodes + 1) / 2
    ways = np.broadcast_to(stats.binom.pmf(np.arange(rest + 1), small, chance), (len(nodes), rest + 1))
    for size in rivals:
        pmf = stats.binom.pmf(np.arange(min(votes, rest) + 1), size, chance)
        total = np.zeros_like(ways)
        for got, share in enumerate(pmf):
            factor = level[:, None] if got == votes else 1.0
            total[:, got:] += share * factor * ways[:, : rest + 1 - got]
        ways = total
    return float(ways[:, rest] @ node_weights) / 2


def _normal_quantile(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))
