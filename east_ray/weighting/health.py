"""Are the weights healthy? How many questions still count, who holds the weight, and whether weights follow length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from east_ray.config.sections import WeightingConfig
from east_ray.weighting.mappings import exact_mean, exact_sum

BINS_PER_OCTAVE = 64  # of the histogram behind `top1_share`: weights of one bin differ by 1.1% at most


@dataclass(frozen=True)
class WeightHealth:
    """Exact sums behind the health of one weight column; `+` merges. w is the weight, t the question's mean tokens."""

    count: int
    largest: float
    w: int
    ww: int
    wt: int
    t: int
    tt: int
    histogram: dict[int, tuple[int, int]]  # bin of log2 w -> number of weights, their sum

    @staticmethod
    def of(weights: np.ndarray, tokens: np.ndarray) -> WeightHealth:
        """The sums of one shard: w and t of its kept questions, in the same order."""
        positive = weights[weights > 0]
        bins = np.floor(np.log2(positive) * BINS_PER_OCTAVE).astype(np.int64)
        histogram = {int(b): (int((bins == b).sum()), exact_sum(positive[bins == b])) for b in np.unique(bins)}
        return WeightHealth(
            count=len(weights),
            largest=float(weights.max(initial=0.0)),
            w=exact_sum(weights),
            ww=exact_sum(weights * weights),
            wt=exact_sum(weights * tokens),
            t=exact_sum(tokens),
            tt=exact_sum(tokens * tokens),
            histogram=histogram,
        )

    def __add__(self, other: WeightHealth) -> WeightHealth:
        histogram = dict(self.histogram)
        for b, (count, total) in other.histogram.items():
            old_count, old_total = histogram.get(b, (0, 0))
            histogram[b] = (old_count + count, old_total + total)
        names = ("count", "w", "ww", "wt", "t", "tt")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return WeightHealth(**sums, largest=max(self.largest, other.largest), histogram=histogram)

    def figures(self) -> dict[str, float]:
        """See `docs/uncertainty.md`; lengths are mean completion tokens per question."""
        w, ww, wt, t, tt = (exact_mean(units, self.count) for units in (self.w, self.ww, self.wt, self.t, self.tt))
        spread = math.sqrt(max(ww - w * w, 0.0) * max(tt - t * t, 0.0))
        effective = self.count * w * w / ww
        return {
            "kept": self.count,
            "mean_weight": w,
            "effective_sample_size": effective,
            "effective_share": effective / self.count,
            "max_weight": self.largest,
            "top1_share": self._top_share(0.01),
            "length_correlation": (wt - w * t) / spread if spread > 1e-12 * t else 0.0,
            # What a token-mean loss multiplies the learning rate by: the mean weight of a token.
            "token_weight": wt / t if t else 1.0,
        }

    def _top_share(self, share: float) -> float:
        """Share of all weight held by the heaviest `share` of the questions (at least one of them)."""
        left = max(math.ceil(share * self.count), 1)
        held = 0.0
        for b in sorted(self.histogram, reverse=True):
            count, units = self.histogram[b]
            taken = min(count, left)
            held += taken * exact_mean(units, count)
            left -= taken
            if not left:
                break
        return held / (self.count * exact_mean(self.w, self.count))


def unhealthy(column: str, health: dict[str, float], limits: WeightingConfig) -> list[str]:
    """One sentence per limit that a weight column breaks."""
    found = []
    if health["effective_share"] < limits.min_effective_share:
        found.append(
            f"{column}: {health['kept']} questions weigh only as much as {health['effective_sample_size']:.1f} equal ones "
            f"({health['effective_share']:.1%}, weighting.min_effective_share = {limits.min_effective_share:g}); the "
            f"heaviest weighs {health['max_weight']:.3g}. Use an exponent nearer 0, or set weighting.clip"
        )
    if abs(health["token_weight"] - 1) > limits.max_length_effect:
        found.append(
            f"{column}: weights follow completion length (correlation {health['length_correlation']:+.2f}), so a token-mean "
            f"loss acts as with {health['token_weight']:.2f} times the learning rate (weighting.max_length_effect = "
            f'{limits.max_length_effect:g}). Set training.normalization = "sequence", or divide the learning rate by it'
        )
    return found
