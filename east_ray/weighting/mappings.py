"""How uncertain the model is about a question (METHOD 4: eq. 1, section 4.3) and the weight that follows (eqs. 2 to 6).

Pure numpy. A weight needs one number from all kept questions, the mean of v^a. It is summed exactly, as an integer, so
the same questions give the same bits in any order and any split into blocks; `MappingTotals` of blocks are simply added.

    totals = sum of totals_of(values, mapping) over blocks;  fit(totals, mapping).weights(values)

Which questions are kept is `selection`'s business; reading and writing them is `weighting`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from east_ray.config.sections import WeightingConfig

# An exact sum counts units of 2^-SUM_BITS: enough for any float64 to the power of any |a| <= 10.
SUM_BITS = 12_000
MAX_BLOCK = 1 << 26  # so many 27-bit halves still add up exactly in a float64


def entropy(cluster_sizes: Sequence[int]) -> float:
    """h = -sum p ln p (eq. 1) of one question, in nats; 0 for a single cluster and for none at all."""
    sizes = np.asarray(cluster_sizes, dtype=np.int64)
    return float(entropies(sizes, np.array([0, len(sizes)]))[0])


def entropies(sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Entropy in nats of every question at once.

    `sizes` holds all questions' cluster sizes end to end; question i owns `sizes[offsets[i]:offsets[i + 1]]`. Within a
    question the terms are added from the largest cluster to the smallest, so the order they come in does not matter.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    clusters_Q = np.diff(offsets)
    result_Q = np.zeros(len(clusters_Q))
    if not len(sizes):
        return result_Q
    starts = offsets[:-1][clusters_Q > 0]
    sizes = _largest_first(np.asarray(sizes), starts)
    totals = np.add.reduceat(sizes, starts, dtype=np.int64)
    log, size_log = _logs(int(totals.max()))
    # ln n - sum m ln m / n, which would be off by a rounding error where it is 0.
    result_Q[clusters_Q > 0] = log[totals] - np.add.reduceat(size_log[sizes], starts) / totals
    result_Q[clusters_Q == 1] = 0.0
    return result_Q


def miller_madow(entropy_Q: np.ndarray, num_clusters_Q: np.ndarray, num_samples_Q: np.ndarray) -> np.ndarray:
    """Plug-in entropy plus (k - 1) / 2n, its bias to first order (Miller 1955)."""
    return entropy_Q + (np.asarray(num_clusters_Q) - 1).clip(0) / (2 * np.maximum(num_samples_Q, 1))


@dataclass(frozen=True)
class WeightMapping:
    """From a measure to a weight: `power` v^a (eq. 6), `mean` v / mean (eq. 3), `linear` A v + b of range R (eq. 4).

    `measure` is a name in `weighting.MEASURE_FUNCTIONS`. `clip` caps weights, the others rising so that the mean stays 1.
    ValueError, by the rules of WeightingConfig, names a setting that makes no sense.
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
class MappingTotals:
    """What one block of values adds to a mapping's normaliser. `+` is exact, so order and grouping never matter."""

    count: int = 0  # values that are not capped
    zeros: int = 0  # of which 0
    capped: int = 0  # values whose weight is held at the clip
    units: int = 0  # sum of v^a over the values not capped, in units of 2^-SUM_BITS
    smallest: float = math.inf
    largest: float = -math.inf

    def __add__(self, other: MappingTotals) -> MappingTotals:
        return MappingTotals(
            self.count + other.count,
            self.zeros + other.zeros,
            self.capped + other.capped,
            self.units + other.units,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )


def totals_of(values: np.ndarray, mapping: WeightMapping, previous: FittedMapping | None = None) -> MappingTotals:
    """MappingTotals of one block of kept questions' measures. With `previous`, values whose weight it caps count as capped."""
    assert len(values) <= MAX_BLOCK, "larger blocks must be split"
    values = np.asarray(values, dtype=np.float64)
    if not np.all(values >= 0) or not np.all(np.isfinite(values)):
        raise ValueError(f"{mapping.measure} must be finite and not negative")
    capped = 0
    if previous is not None and mapping.clip is not None:
        below = previous.weights(values) < mapping.clip
        capped = len(values) - int(below.sum())
        values = values[below]
    if not len(values):
        return MappingTotals(capped=capped)
    zeros = len(values) - int(np.count_nonzero(values))
    units = _exact_units(*_terms(values, mapping.exponent))
    return MappingTotals(len(values), zeros, capped, units, float(values.min()), float(values.max()))


@dataclass(frozen=True)
class FittedMapping:
    """A mapping with its normaliser: turns measures into weights whose mean over all kept questions is 1."""

    mapping: WeightMapping
    mean: Fraction  # what v^a is divided by
    capped: int = 0
    settled: bool = True  # False: some weight exceeds the clip, so fit again with totals_of(..., previous=this)
    spread: float = math.inf  # max - min, for the linear mapping; infinite where all values are equal

    @property
    def log_normaliser(self) -> float:
        """b of eq. 5: weight = exp(a ln v + b)."""
        significand, power = _float_parts(self.mean)
        return -(math.log(significand) + power * math.log(2))

    def weights(self, values: np.ndarray) -> np.ndarray:
        """One weight per value; 0 where v = 0 and a > 0."""
        values = np.asarray(values, dtype=np.float64)
        if self.mapping.mapping == "linear":
            high = float(self.mean)
            low = float(self.mean - Fraction(high))
            return np.maximum(1.0 + (self.mapping.range or 0.0) * (((values - high) - low) / self.spread), 0.0)
        significand, power = _terms(values, self.mapping.exponent)
        mean_significand, mean_power = _float_parts(self.mean)
        weights = np.ldexp(significand / mean_significand, power - mean_power)
        return weights if self.mapping.clip is None else np.minimum(weights, self.mapping.clip)


def fit(totals: MappingTotals, mapping: WeightMapping, previous: FittedMapping | None = None) -> FittedMapping:
    """The normaliser that makes the mean weight 1 (eq. 2). ValueError names the measure, the count and the remedy."""
    total = totals.count + totals.capped
    if not total:
        raise ValueError("no question is kept, so there is nothing to weigh")
    if totals.zeros and mapping.exponent < 0:
        raise ValueError(
            f"{totals.zeros} of {total} kept questions have {mapping.measure} = 0, which no exponent below 0 can weigh "
            f'(exponent = {mapping.exponent:g}): set selection.keep = "mixed", or an exponent >= 0'
        )
    if mapping.mapping == "linear":
        return _fit_linear(totals, mapping)
    if mapping.clip is not None and (total - totals.zeros) * mapping.clip < total:
        raise ValueError(
            f"clip = {mapping.clip:g} cannot keep the mean weight at 1: only {total - totals.zeros} of {total} kept questions "
            f"have {mapping.measure} > 0; raise clip"
        )
    if not totals.units and not totals.capped:
        raise ValueError(
            f"{mapping.measure} is 0 for all {total} kept questions, so every weight is 0: set exponent = 0"
        )
    if not totals.units:  # everything above 0 is capped, and clip was just large enough
        assert previous is not None
        return FittedMapping(mapping, previous.mean, totals.capped)
    uncapped_weight = total - totals.capped * Fraction(mapping.clip or 0)
    mean = Fraction(totals.units, 1 << SUM_BITS) / uncapped_weight
    unchanged = previous is not None and previous.capped == totals.capped
    return FittedMapping(mapping, mean, totals.capped, settled=mapping.clip is None or unchanged)


def weights(values: np.ndarray, mapping: WeightMapping) -> np.ndarray:
    """Weights of the kept questions' measures, all in memory: mean 1, none negative (eq. 2)."""
    fitted = fit(totals_of(values, mapping), mapping)
    while not fitted.settled:
        fitted = fit(totals_of(values, mapping, fitted), mapping, fitted)
    return fitted.weights(values)


def effective_sample_size(weight_Q: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 (Kish): how many equally weighted questions would be as informative."""
    weight_Q = np.asarray(weight_Q, dtype=np.float64)
    return math.fsum(weight_Q) ** 2 / math.fsum(weight_Q**2)


def exact_sum(values: np.ndarray) -> int:
    """Sum of float64 values, not negative, in units of 2^-SUM_BITS: exact, so blocks can be added in any order."""
    return _exact_units(*_terms(np.asarray(values, dtype=np.float64), 1.0)) if len(values) else 0


def exact_mean(units: int, count: int) -> float:
    """Mean of `count` values from their `exact_sum`, correctly rounded."""
    return units / (count << SUM_BITS)


def _fit_linear(totals: MappingTotals, mapping: WeightMapping) -> FittedMapping:
    mean = Fraction(totals.units, 1 << SUM_BITS) / totals.count
    if totals.largest == totals.smallest:
        return FittedMapping(mapping, mean)
    assert mapping.range is not None
    spread = Fraction(totals.largest) - Fraction(totals.smallest)
    bound = float(spread / (mean - Fraction(totals.smallest)))
    if mapping.range > bound * (1 + 1e-12):
        raise ValueError(
            f"range = {mapping.range:g} makes weights negative for this {mapping.measure}: the largest range is {bound:.6g} "
            f"((max - min) / (mean - min), eq. 4); set weighting.range to at most that"
        )
    return FittedMapping(mapping, mean, spread=float(spread))


def _terms(values: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """v^a = significand * 2^power, computed in log space so that it neither overflows nor underflows.

    0 gives significand 0, except to the power of 0, which is 1 (plain self-training).
    """
    if exponent == 1:
        significand, power = np.frexp(values)
        return significand, power.astype(np.int64)
    if exponent == 0:
        return np.ones(len(values)), np.zeros(len(values), dtype=np.int64)
    is_zero = values == 0
    scaled = exponent * np.log2(np.where(is_zero, 1.0, values))
    power = np.floor(scaled)
    significand = np.exp2(scaled - power)
    significand[is_zero] = 0.0
    return significand, power.astype(np.int64)


def _exact_units(significand: np.ndarray, power: np.ndarray) -> int:
    """Exact sum of significand * 2^power in units of 2^-SUM_BITS, for significands in [0, 2].

    A significand is cut into two halves of at most 27 bits; halves of one power add up without rounding.
    """
    scaled = significand * 2.0**26
    high = np.floor(scaled)
    low = (scaled - high) * 2.0**27  # a significand below 1 has 53 bits behind the point
    origin = int(power.min())
    bins = power - origin
    highs = np.bincount(bins, weights=high)
    lows = np.bincount(bins, weights=low)
    shift = SUM_BITS - 53 + origin
    halves = enumerate(zip(highs, lows, strict=True))
    return sum(((int(h) << 27) + int(low)) << (shift + i) for i, (h, low) in halves)


def _float_parts(value: Fraction) -> tuple[float, int]:
    """`value` > 0 as significand in [0.5, 2) times a power of two, correctly rounded whatever its size."""
    power = value.numerator.bit_length() - value.denominator.bit_length()
    scaled = value / (1 << power) if power >= 0 else value * (1 << -power)
    return scaled.numerator / scaled.denominator, power


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
