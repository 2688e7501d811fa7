"""Arms and their policies: who trains from which model on whose samples, with which weights and losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from east_ray.config.load import Arm, Config
from east_ray.runs.steps import Part
from east_ray.weighting.mappings import WeightMapping


@dataclass(frozen=True)
class Policy:
    """A model at some point of the run: where it is, and the part that trained it (None: the model we began with)."""

    path: str
    trained: Part | None = None

    @property
    def needs(self) -> dict[str, Part]:
        """What a step that uses this policy has to wait for."""
        return {"model": self.trained} if self.trained else {}


@dataclass(frozen=True)
class Group:
    """Arms that share one policy in round t, hence one set of samples, grades, weights and examples."""

    t: int
    arms: tuple[Arm, ...]
    policy: Policy

    @property
    def place(self) -> str:
        """Directory of what these arms share, inside the run."""
        return f"round-{self.t:02d}" if self.t == 0 else f"round-{self.t:02d}/arms/{self.arms[0].name}"


def mappings_of(config: Config, arms: Sequence[Arm]) -> list[WeightMapping]:
    """The different weight columns that these arms train with, sorted by name."""
    return sorted({weight_mapping(config, arm) for arm in arms}, key=lambda mapping: mapping.column)


def weight_mapping(config: Config, arm: Arm) -> WeightMapping:
    """How an arm maps uncertainty to weights, hence which column it trains with."""
    w = config.for_arm(arm).weighting
    return WeightMapping(w.measure, w.mapping, w.exponent, w.range, w.clip)


def losses_of(config: Config, arms: Sequence[Arm]) -> list[str]:
    """The losses that these arms need examples for, sorted by name."""
    return sorted({config.for_arm(arm).training.loss for arm in arms})


def splits_to_evaluate(config: Config) -> Iterator[str]:
    """The held-out questions when there are any, then the test questions when there are any."""
    if config.questions.validation_share > 0:
        yield "validation"
    if config.questions.test:
        yield "test"
