"""Measures of uncertainty (eq. 1 and section 4.3) and the weights that follow from them (eqs. 2 to 6). Pure numpy.

A weight needs one number from all kept questions, the mean of v^a. Blocks of questions add up in log space, so that
nothing overflows; the mean weight is 1 to about 1e-15 for any exponent and any split into blocks.

    totals = sum of totals_of(block, mapping) over blocks;  fit(totals, mapping).weights(block)

`keep` decides which questions are kept; `weigh` reads and writes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from east_ray.config.sections import WeightingConfig

CHUNK = 2048  # questions whose clusters fit the processor's cache, and whose arrays malloc keeps: a third of the time of 8,192


def entropy(cluster_sizes: Sequence[int]) -> float:
    """h = -sum p ln p (eq. 1) of one question, in nats; 0 for a single cluster and for none at all."""
    sizes = np.asarray(cluster_sizes, dtype=np.int64)
    return float(entropies(sizes, np.array([0, len(sizes)]))[0])


def entropies(sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Entropy in nats of every question at once.

    `sizes` holds all questions' cluster sizes end to end; question i owns `sizes[offsets[i]:offsets[i + 1]]`. A
    question's terms are added from its largest cluster to its smallest, so the order of clusters changes no bit.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    result_Q = np.empty(len(offsets) - 1)
    for i in range(0, len(result_Q), CHUNK):
        ends = offsets[i : i + CHUNK + 1]
        result_Q[i : i + CHUNK] = _entropies(sizes[ends[0] : ends[-1]], ends - ends[0])
    return result_Q


def _entropies(sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    clusters_Q = np.diff(offsets)
    result_Q = np.zeros(len(clusters_Q))
    if not len(sizes):
        return result_Q
    starts = offsets[:-1][clusters_Q > 0]
    sizes = _largest_first(np.asarray(sizes), starts)
    ends = np.cumsum(sizes, dtype=np.int32).take(
        np.append(starts[1:], len(sizes)) - 1
    )  # may wrap: differences are right
    totals = np.diff(ends, prepend=np.int32(0))
    log, size_log = _logs(int(totals.max()))
    # ln n - sum m ln m / n, which would be off by a rounding error where it is 0. `take` is three times as fast as [].
    result_Q[clusters_Q > 0] = log.take(totals) - np.add.reduceat(size_log.take(sizes), starts) / totals
    result_Q[clusters_Q == 1] = 0.0
    return result_Q


@dataclass(frozen=True)
class WeightMapping:
    """From a measure to a weight: `power` v^a (eq. 6), `mean` v / mean (eq. 3), `linear` A v + b of range R (eq. 4).

    `measure` is a name in `weighting.MEASURE_FUNCTIONS`. `clip` caps weights; the others rise so that the mean stays 1.
    ValueError, by the rules of WeightingConfig, names a setting that is not valid.
    """

    measure: str = "entropy"
    mapping: str = "power"
    exponent: float = 1.0
    range: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        WeightingConfig.model_validate(  # one home for the rules
            {"mapping": self.mapping, "exponent": self.exponent, "range": self.range, "clip": self.clip}
        )
        if self.mapping != "power":
            object.__setattr__(self, "exponent", 1.0)

    @property
    def column(self) -> str:
        """Name of the weight column, e.g. weight_entropy_power_1 or weight_entropy_power_3_clip_10."""
        size = {"power": f"_{self.exponent:.12g}", "mean": "", "linear": f"_{self.range or 0:.12g}"}[self.mapping]
        clip = "" if self.clip is None else f"_clip_{self.clip:.12g}"
        return f"weight_{self.measure}_{self.mapping}{size}{clip}"


@dataclass(frozen=True)
class MeasureBlock:
    """One measure of a block of kept questions, and what all exponents need of it."""

    values: np.ndarray
    logs: np.ndarray  # ln v, -inf where v = 0
    zeros: int
    smallest: float
    largest: float

    @staticmethod
    def of(values: np.ndarray, measure: str = "the measure") -> MeasureBlock:
        """ValueError where a value is negative or not finite."""
        values = np.asarray(values, dtype=np.float64)
        smallest, largest = float(values.min(initial=math.inf)), float(values.max(initial=0.0))
        if not (smallest >= 0 and largest < math.inf):  # either is nan where a value is
            raise ValueError(f"{measure} must be finite and not negative")
        zeros = len(values) - int(np.count_nonzero(values)) if smallest == 0 else 0
        with np.errstate(divide="ignore"):
            return MeasureBlock(values, np.log(values), zeros, smallest, largest)


@dataclass(frozen=True)
class MappingTotals:
    """Contributions of blocks of questions to a mapping's normaliser; `+` merges. The sum of v^a is `scaled_sum` * exp(`log_scale`)."""

    count: int = 0
    zeros: int = 0
    capped: int = 0  # values whose weight is held at the clip; they are not in the sum
    log_scale: float = -math.inf
    scaled_sum: float = 0.0
    smallest: float = math.inf
    largest: float = 0.0
    excess: float = 0.0  # sum of v - smallest, for the linear mapping

    def __add__(self, other: MappingTotals) -> MappingTotals:
        log_scale, smallest = max(self.log_scale, other.log_scale), min(self.smallest, other.smallest)
        both = (self, other)
        return MappingTotals(
            self.count + other.count,
            self.zeros + other.zeros,
            self.capped + other.capped,
            log_scale,
            sum(t.scaled_sum * math.exp(t.log_scale - log_scale) for t in both if t.scaled_sum),
            smallest,
            max(self.largest, other.largest),
            sum(t.excess + t.count * (t.smallest - smallest) for t in both if t.count),
        )


def totals_of(block: MeasureBlock, mapping: WeightMapping, previous: FittedMapping | None = None) -> MappingTotals:
    """Totals of one block of kept questions. Values whose weight `previous` caps are counted, but not summed."""
    count, capped, logs = len(block.values), 0, block.logs
    if previous is not None and mapping.clip is not None:
        below = previous.weights(block) < mapping.clip
        capped, logs = count - int(below.sum()), logs[below]
    log_scale = float(logs.max(initial=-math.inf) if mapping.exponent > 0 else logs.min(initial=math.inf))
    log_scale *= mapping.exponent
    if mapping.exponent == 0:
        log_scale, scaled_sum = 0.0, float(len(logs))
    elif math.isinf(log_scale):  # no value, only zeros, or a zero to a negative power, which `fit` refuses
        log_scale, scaled_sum = -math.inf, 0.0
    else:
        scaled_sum = float(_exp_linear(logs, mapping.exponent, log_scale).sum())
    excess = float((block.values - block.smallest).sum()) if mapping.mapping == "linear" and count else 0.0
    return MappingTotals(count, block.zeros, capped, log_scale, scaled_sum, block.smallest, block.largest, excess)


@dataclass(frozen=True)
class FittedMapping:
    """A mapping with its normaliser: turns measures into weights whose mean over all kept questions is 1."""

    mapping: WeightMapping
    log_mean: float  # ln of what v^a is divided by
    capped: int = 0
    settled: bool = True  # False: some weight exceeds the clip, so fit again with totals_of(..., previous=this)
    smallest: float = 0.0  # for the linear mapping, as are the next two
    mean_excess: float = 0.0  # mean - smallest
    spread: float = math.inf  # max - min; infinite where all values are equal

    @property
    def log_normaliser(self) -> float:
        """b of eq. 5: weight = exp(a ln v + b)."""
        return -self.log_mean

    def weights(self, block: MeasureBlock) -> np.ndarray:
        """One weight per value; 0 where v = 0 and a > 0."""
        if self.mapping.mapping == "linear":
            centred = (block.values - self.smallest) - self.mean_excess
            return np.maximum(1.0 + (self.mapping.range or 0.0) * (centred / self.spread), 0.0)
        if self.mapping.exponent == 0:
            return np.ones(len(block.values))
        weights = _exp_linear(block.logs, self.mapping.exponent, self.log_mean)
        return weights if self.mapping.clip is None else np.minimum(weights, self.mapping.clip)


def fit(totals: MappingTotals, mapping: WeightMapping, previous: FittedMapping | None = None) -> FittedMapping:
    """The normaliser that makes the mean weight 1 (eq. 2). ValueError names the measure, the count and the remedy."""
    total = totals.count
    if not total:
        raise ValueError("no question is kept, so there is nothing to weigh")
    if totals.zeros and mapping.exponent < 0:
        raise ValueError(
            f"{totals.zeros} of {total} kept questions have {mapping.measure} = 0, which no exponent below 0 can weigh "
            f'(exponent = {mapping.exponent:g}): set selection.keep = "mixed" with grading.unanswered = "cluster", or an exponent >= 0'
        )
    if mapping.mapping == "linear":
        return _fit_linear(totals, mapping)
    if mapping.clip is not None and (total - totals.zeros) * mapping.clip < total:
        raise ValueError(
            f"clip = {mapping.clip:g} cannot keep the mean weight at 1: only {total - totals.zeros} of {total} kept questions "
            f"have {mapping.measure} > 0; raise clip"
        )
    if not totals.scaled_sum and not totals.capped:
        raise ValueError(
            f"{mapping.measure} is 0 for all {total} kept questions, so every weight is 0: set exponent = 0"
        )
    left = total - totals.capped * (mapping.clip or 0.0)  # weight that the values not capped share
    if not totals.scaled_sum or left <= 0:  # everything above 0 is capped, and clip was just large enough
        assert previous is not None
        return FittedMapping(mapping, previous.log_mean, totals.capped)
    log_mean = totals.log_scale + math.log(totals.scaled_sum / left)
    unchanged = previous is not None and previous.capped == totals.capped
    return FittedMapping(mapping, log_mean, totals.capped, settled=mapping.clip is None or unchanged)


def weights(values: np.ndarray, mapping: WeightMapping) -> np.ndarray:
    """Weights of the kept questions' measures, all in memory: mean 1, none negative (eq. 2)."""
    block = MeasureBlock.of(values, mapping.measure)
    fitted = fit(totals_of(block, mapping), mapping)
    while not fitted.settled:
        fitted = fit(totals_of(block, mapping, fitted), mapping, fitted)
    return fitted.weights(block)


def effective_sample_size(weight_Q: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 (Kish): how many equally weighted questions would be as informative."""
    weight_Q = np.asarray(weight_Q, dtype=np.float64)
    return math.fsum(weight_Q) ** 2 / math.fsum(weight_Q**2)


def _fit_linear(totals: MappingTotals, mapping: WeightMapping) -> FittedMapping:
    assert mapping.range is not None
    excess, spread = totals.excess / totals.count, totals.largest - totals.smallest
    log_mean = math.log(totals.smallest + excess) if totals.largest else -math.inf
    if not spread:
        return FittedMapping(mapping, log_mean, smallest=totals.smallest)
    bound = spread / excess
    if mapping.range > bound * (1 + 1e-12):
        raise ValueError(
            f"range = {mapping.range:g} makes weights negative for this {mapping.measure}: the largest range is {bound:.6g} "
            f"((max - min) / (mean - min), eq. 4); set weighting.range to at most that"
        )
    return FittedMapping(mapping, log_mean, smallest=totals.smallest, mean_excess=excess, spread=spread)


def _exp_linear(logs: np.ndarray, exponent: float, less: float) -> np.ndarray:
    """exp(a ln v - less), in one array: fresh ones cost ten times what the exponential does (numpy 2, 50,000 values)."""
    result = exponent * logs
    result -= less
    return np.exp(result, out=result)


def _largest_first(sizes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sort each question's sizes downwards; grades come so already, and then nothing is moved."""
    rising = sizes[1:] > sizes[:-1]
    rising[starts[1:] - 1] = False  # from one question to the next
    if not rising.any():
        return sizes
    question = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(sizes))))
    return sizes[np.lexsort((-sizes, question))]


@lru_cache(maxsize=8)
def _logs(largest: int) -> tuple[np.ndarray, np.ndarray]:
    """ln m and m ln m for m = 0..largest (0 for m = 0), one by one: the same bits wherever in an array they are used."""
    logs = [0.0, *(math.log(m) for m in range(1, largest + 1))]
    return np.array(logs), np.array([m * log for m, log in enumerate(logs)])
