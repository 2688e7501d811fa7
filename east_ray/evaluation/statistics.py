"""Intervals and tests for accuracies and their paired differences, and unbiased pass@k and maj@k. Pure.

Shape suffixes: Q questions, S seeds. Accuracies and their differences are shares (0.01 is one point).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # not stats, which takes most of a second to import

# Two seeds then cover 93.7 to 98.2%, whatever their spread; 0.5 covers 91.2 to 97.3%, 1 covers 95.1 to 99.2%.
SEED_NOISE = 0.8
NEGLIGIBLE = 1e-15  # a chance that changes no printed figure
HALF_NORMAL = -special.ndtri((np.arange(200) + 0.5) / 400)  # its quantiles: how far apart two seeds may come


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds and questions: its standard error over both, and the degrees of freedom of that.

    `by_seed` and `residual` are variances of two seeds, which often look alike by chance: see `mean_over_seeds`.
    """

    mean: float
    standard_error: float
    freedom: float
    by_seed: float = 0.0
    residual: float = 0.0

    def half_width(self, confidence: float) -> float:
        """Half of the interval around the mean."""
        return self._above((1 - confidence) / 2)

    def detectable(self, confidence: float, power: float) -> float:
        """The smallest mean found to differ from 0, at this confidence, with probability `power`.

        The interval of two seeds hangs on how far apart they happen to come, so the chance is over that distance; its
        variance is taken half from what they show and half from what chance alone explains.
        """
        if not self.residual:
            return self.half_width(confidence) + self._above(1 - power)
        expected = (self.by_seed + self.residual) / 2
        within, between = _student((1 - confidence) / 2, [self.freedom, 1])
        halves = np.hypot(within * self.standard_error, between * self._between(expected * HALF_NORMAL**2))
        spread = math.hypot(self.standard_error, math.sqrt(max(expected - self.residual, 0.0)))
        most = halves.max() + 10 * spread
        return _root(lambda mean: power - float(special.ndtr((mean - halves) / spread).mean()), 0.0, most)

    def p_value(self) -> float:
        """Two-sided, that the mean is 0: 1 - the largest confidence whose interval leaves out 0."""
        if not self.standard_error:
            return 1.0 if self.mean == 0 else 0.0
        p = float(2 * special.stdtr(self.freedom, -abs(self.mean) / self.standard_error))
        if not self._between(self.by_seed):
            return p
        most, excess = math.log(0.5), lambda log_tail: self._above(math.exp(log_tail)) - abs(self.mean)
        return 2 * math.exp(_root(excess, math.log(max(p / 2, 1e-100)), most)) if p < 1 else p

    def _above(self, tail: float) -> float:
        """How far above its expectation the mean comes with this chance."""
        return math.hypot(*self.parts(tail))

    def parts(self, tail: float) -> tuple[float, float]:
        """The same, without what is between two seeds; and that alone."""
        within, between = _student(tail, [self.freedom, 1])
        return float(within) * self.standard_error, float(between) * float(self._between(self.by_seed))

    def _between(self, by_seed: float | np.ndarray) -> np.ndarray:
        """The standard error that two seeds add, whose means vary by so much."""
        return np.sqrt(np.maximum(by_seed - (1 - SEED_NOISE) * self.residual, 0.0))


def mean_over_seeds(values_S_Q: np.ndarray) -> SeedMean:
    """Two-way random effects: which questions and which seeds were drawn.

    Variances of question means, of seed means, and of the residual that both contain. The mean's is the first two less
    the third, and never less than either, so that equal seeds are as sure as one of them and no surer; Satterthwaite's
    degrees of freedom. That covers 87 to 97% for two seeds, so there both means have a Student's t of their own, and the
    intervals add up in squares (Graybill and Wang 1980); of the residual, a share of 1 - SEED_NOISE is taken off the seeds.
    """
    values = np.asarray(values_S_Q, dtype=np.float64)
    num_seeds, num_questions = values.shape
    mean = float(values.mean())
    by_question = float(np.var(values.mean(axis=0), ddof=1)) / num_questions
    if num_seeds == 1:
        return SeedMean(mean, math.sqrt(by_question), num_questions - 1)
    by_seed = float(np.var(values.mean(axis=1), ddof=1)) / num_seeds
    residual = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + mean
    shared = float((residual**2).sum()) / ((num_seeds - 1) * (num_questions - 1)) / values.size
    if num_seeds == 2:
        return SeedMean(mean, math.sqrt(by_question), num_questions - 1, by_seed, shared)
    variance = max(by_question + by_seed - shared, by_question, by_seed)
    errors = by_question**2 / (num_questions - 1) + by_seed**2 / (num_seeds - 1)
    return SeedMean(mean, math.sqrt(variance), max(variance**2 / errors, 1.0) if errors else 1.0)


def accuracy_interval(correct_S_Q: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the accuracy over seeds and questions: Wilson's (1927), inside [0, 1] and right for 0 and for all correct.

    Several seeds count as the number of questions that has their interval around the mean (Korn and Graubard 1998), and
    equal seeds as one; what is between two seeds is added in squares to either side. (0, 1) without questions.
    """
    num_seeds, num_questions = correct_S_Q.shape
    if not num_questions:
        return 0.0, 1.0
    share = float(np.mean(correct_S_Q))
    ratio = float(special.ndtri((1 + confidence) / 2)) ** 2 / num_questions  # of the squared quantile to the questions
    between = 0.0
    if num_seeds > 1 and num_questions > 1 and 0 < share < 1:
        within, between = mean_over_seeds(correct_S_Q).parts((1 - confidence) / 2)
        ratio = within**2 / (share * (1 - share)) * (num_questions - 1) / num_questions
    centre, half = share + ratio / 2, math.sqrt(ratio * share * (1 - share) + ratio**2 / 4)
    below, above = share - (centre - half) / (1 + ratio), (centre + half) / (1 + ratio) - share
    return max(share - math.hypot(below, between), 0.0), min(share + math.hypot(above, between), 1.0)


def paired_difference(difference_S_Q: np.ndarray) -> SeedMean:
    """Difference of two models on the same questions, of entries -1, 0, 1, shrunk as by Bonett and Price (2012).

    Two questions are added, one that each model alone answers, which keeps the interval honest where few or no
    answers differ. Student's t over questions and seeds.
    """
    added = np.tile([1.0, -1.0], (len(difference_S_Q), 1))
    return mean_over_seeds(np.concatenate([difference_S_Q, added], axis=1))


def sign_flip_p(difference_S_Q: np.ndarray) -> float:
    """Exact two-sided p-value that every question's mean difference is as often positive as negative.

    For one seed this is McNemar's exact test. 1 where the models never differ.
    """
    totals_Q = np.abs(np.asarray(difference_S_Q).sum(axis=0).astype(int))
    ways = np.ones(1)  # chance of each sum of randomly signed differences, from the smallest sum up in steps of 2
    for size, count in zip(*np.unique(totals_Q[totals_Q > 0], return_counts=True), strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = _binomial(np.arange(count + 1), count, 0.5)
        ways = np.convolve(ways, steps)
    sums = 2 * np.arange(len(ways)) - (len(ways) - 1)
    observed = abs(int(np.asarray(difference_S_Q).sum()))
    return float(min(ways[np.abs(sums) >= observed].sum(), 1.0))


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
    z_test, z_power = special.ndtri([(1 + confidence) / 2, power])

    def excess(effect: float) -> float:  # falls with the effect
        spread = math.sqrt(max(discordant_share - effect * effect, 0.0))
        return float(z_test * math.sqrt(discordant_share) + z_power * spread - effect * math.sqrt(num_questions))

    if discordant_share <= 0 or excess(discordant_share) > 0:
        return math.inf
    return _root(excess, 0.0, discordant_share)


def pass_at_k(num_samples: np.ndarray | int, num_correct: np.ndarray | int, k: int) -> np.ndarray:
    """Chance that k of n completions, drawn without replacement, hold a correct one (Chen et al. 2021); per question.

    ValueError where k exceeds the number of completions.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if np.any(n < k):
        raise ValueError(f"pass@{k} needs {k} completions per question, some have {int(n.min())}")
    from scipy import stats

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
    chance, won = k / total, 0.0
    for i in np.flatnonzero(cluster_correct):
        shares = _binomial(np.arange(1, min(int(sizes[i]), k) + 1), int(sizes[i]), chance)
        for votes in np.flatnonzero(shares > NEGLIGIBLE) + 1:
            won += shares[votes - 1] * _others_fit(sizes, i, int(votes), int(k - votes), chance, abstentions)
    return float(won / _binomial(np.array(k), total, chance))


def _others_fit(sizes: np.ndarray, winner: int, votes: int, rest: int, chance: float, abstentions: int) -> float:
    """Chance that all other clusters together get `rest` votes, none over `votes`; t of them level count 1/(t + 1)."""
    others = np.delete(sizes, winner)
    small = int(others[others < votes].sum()) + abstentions  # cannot reach `votes`, so they need not be kept apart
    rivals = others[others >= votes]
    # 1/(t + 1) is the integral of y^t over [0, 1], and Gauss-Legendre is exact for the degree t can reach.
    nodes, node_weights = np.polynomial.legendre.leggauss(rest // votes // 2 + 1)
    level = (nodes + 1) / 2
    ways = np.broadcast_to(_binomial(np.arange(rest + 1), small, chance), (len(nodes), rest + 1))
    for size in rivals:
        pmf = _binomial(np.arange(min(votes, rest) + 1), size, chance)
        total = np.zeros_like(ways)
        for got in np.flatnonzero(pmf > NEGLIGIBLE):
            factor = pmf[got] * level[:, None] if got == votes else pmf[got]
            total[:, got:] += factor * ways[:, : rest + 1 - got]
        ways = total
    return float(ways[:, rest] @ node_weights) / 2


def _student(tail: float, freedom: Sequence[float]) -> np.ndarray:
    """Quantiles of Student's t: what it exceeds with this chance."""
    return -special.stdtrit(freedom, tail)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that is positive at `low` and falls is 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _binomial(successes: np.ndarray, trials: int, chance: float) -> np.ndarray:
    """scipy.stats.binom.pmf in a fifth of its time for so few numbers; 0 beyond `trials`."""
    k = np.minimum(successes, trials)
    logs = special.gammaln(trials + 1) - special.gammaln(k + 1) - special.gammaln(trials - k + 1)
    logs = logs + special.xlogy(k, chance) + special.xlog1py(trials - k, -chance)
    return np.where(successes <= trials, np.exp(logs), 0.0)
