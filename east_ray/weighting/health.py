"""Health of a weight column: effective sample size, largest weight, and whether weights follow completion length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from east_ray.config.sections import WeightingConfig


@dataclass(frozen=True)
class WeightHealth:
    """Sums behind the health of one weight column; `+` merges. d is the weight less 1, t the question's mean tokens."""

    count: int
    largest: float
    d: float
    dd: float
    dt: float
    t: float
    tt: float

    @staticmethod
    def of(weights: np.ndarray, tokens: np.ndarray) -> WeightHealth:
        """The sums of one shard: weights and tokens of its kept questions, in the same order."""
        d = weights - 1.0
        sums = (float(d.sum()), float(d @ d), float(d @ tokens), float(tokens.sum()), float(tokens @ tokens))
        return WeightHealth(len(weights), float(weights.max(initial=0.0)), *sums)

    def __add__(self, other: WeightHealth) -> WeightHealth:
        sums = (getattr(self, name) + getattr(other, name) for name in ("d", "dd", "dt", "t", "tt"))
        return WeightHealth(self.count + other.count, max(self.largest, other.largest), *sums)

    def figures(self) -> dict[str, float]:
        """See `docs/uncertainty.md`; lengths are mean completion tokens per question."""
        d, dd, dt, t, tt = (total / self.count for total in (self.d, self.dd, self.dt, self.t, self.tt))
        spread = math.sqrt(max(dd - d * d, 0.0) * max(tt - t * t, 0.0))
        effective_share = (1 + d) ** 2 / (1 + 2 * d + dd)
        return {
            "kept": self.count,
            "mean_weight": 1 + d,
            "effective_sample_size": self.count * effective_share,
            "effective_share": effective_share,
            "max_weight": self.largest,
            "length_correlation": (dt - d * t) / spread if spread > 1e-12 * t else 0.0,
            # What a token-mean loss multiplies the learning rate by: the mean weight of a token.
            "token_weight": 1 + dt / t if t else 1.0,
        }


def unhealthy(column: str, health: dict[str, float], limits: WeightingConfig) -> list[str]:
    """One sentence per limit that a weight column breaks."""
    found = []
    if health["effective_share"] < limits.min_effective_share:
        found.append(
            f"{column}: effective sample size {health['effective_sample_size']:.1f} of {health['kept']} "
            f"({health['effective_share']:.1%}, weighting.min_effective_share = {limits.min_effective_share:g}), max "
            f"weight {health['max_weight']:.3g}. Use an exponent nearer 0, or set weighting.clip"
        )
    if abs(health["token_weight"] - 1) > limits.max_length_effect:
        found.append(
            f"{column}: weights follow completion length (correlation {health['length_correlation']:+.2f}), which multiplies the "
            f"learning rate of a token-mean loss by {health['token_weight']:.2f} (weighting.max_length_effect = "
            f'{limits.max_length_effect:g}). Set training.normalization = "sequence", or divide the learning rate by it'
        )
    return found
