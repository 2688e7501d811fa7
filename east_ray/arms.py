"""Arms and their policies: who trains from which model on whose samples, with which weights and losses."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from east_ray.config.load import Arm, Config, from_dict
from east_ray.records import UserError
from east_ray.runs.artifacts import Artifact
from east_ray.weighting.mappings import WeightMapping


@dataclass(frozen=True)
class Policy:
    """A model at some point of the run: where it is, and the artifact of its training (None: the model we began with)."""

    path: str
    trained: Artifact | None = None

    @property
    def inputs(self) -> dict[str, Artifact]:
        """Inputs of a step that uses this policy."""
        return {"model": self.trained} if self.trained else {}


@dataclass(frozen=True)
class Group:
    """Arms that share one policy in round t, hence one set of samples, grades, weights and examples."""

    t: int
    arms: tuple[Arm, ...]
    policy: Policy

    @property
    def directory(self) -> str:
        """Directory of what these arms share, inside the run."""
        return f"round-{self.t:02d}" if self.t == 0 else f"round-{self.t:02d}/arms/{self.arms[0].name}"

    @property
    def earlier_directories(self) -> list[str]:
        """The same in the rounds before, in order."""
        return [replace(self, t=t).directory for t in range(self.t)]


def mappings_of(config: Config, arms: Sequence[Arm]) -> list[WeightMapping]:
    """The different weight columns that these arms train with, sorted by name."""
    return sorted({weight_mapping(config, arm) for arm in arms}, key=lambda mapping: mapping.column)


def weight_mapping(config: Config, arm: Arm) -> WeightMapping:
    """An arm's mapping from uncertainty to weights, which names the column it trains with."""
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


def sweep_arms(config: Config) -> Config:
    """This config with one arm per combination of `sweep`, each named by what it sets, e.g. loss=dpo+exponent=1.5."""
    if not config.sweep:
        raise UserError('nothing to sweep: add e.g. [sweep] "weighting.exponent" = [0, 0.5, 1, 2] to the config')
    keys = sorted(config.sweep)
    combinations = itertools.product(*(config.sweep[key] for key in keys))
    return _with_arms(config, [_arm(dict(zip(keys, values, strict=True))) for values in combinations])


def paper_arms(config: Config) -> Config:
    """This config with every arm of the paper: Table 1's methods per loss, then Figures 3 (exponents), 4 (rounds) and 5
    (measures), each once per seed. Arms that two of them share are trained once.
    """
    arms = [arm.model_dump() for seed in config.reproduce.seeds for arm in _paper_arms_of_seed(config, seed)]
    return _with_arms(config, arms, rounds=config.reproduce.rounds)


def _paper_arms_of_seed(config: Config, seed: int) -> Iterator[Arm]:
    wanted = config.reproduce
    suffix = f"-seed{seed}" if len(wanted.seeds) > 1 else ""
    east = config.weighting.exponent

    def arm(name: str, rounds: int = 1, **settings: Any) -> Arm:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return Arm(name=name + suffix, set={**dotted, "run.seed": seed}, rounds=rounds)

    for loss in wanted.losses:
        rounds = wanted.rounds if loss == "sft" else 1
        yield arm(f"{loss}-vanilla", rounds, training__loss=loss, weighting__exponent=0.0)
        if wanted.local_weights:
            yield arm(f"{loss}-lw-w", training__loss=loss, weighting__exponent=0.0, training__local_weight="wpo")
            yield arm(f"{loss}-lw-p", training__loss=loss, weighting__exponent=0.0, training__local_weight="perplexity")
        yield arm(f"{loss}-east", rounds, training__loss=loss, weighting__exponent=east)
    for exponent in (a for a in wanted.exponents if a not in (0, east)):
        yield arm(f"sft-entropy-a{exponent:g}", training__loss="sft", weighting__exponent=exponent)
    for measure in wanted.measures:
        for exponent in wanted.ablation_exponents:
            yield arm(
                f"sft-{measure}-a{exponent:g}",
                training__loss="sft",
                weighting__measure=measure,
                weighting__exponent=exponent,
            )


def _arm(settings: dict[str, Any]) -> dict[str, Any]:
    """An arm that is still to be checked, named by what it sets."""
    name = "+".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items())
    return {"name": re.sub(r"[^A-Za-z0-9_.+=-]+", "-", name), "set": settings}


def _with_arms(config: Config, arms: list[dict[str, Any]], **run: Any) -> Config:
    data = config.model_dump()
    data["arms"] = arms
    data["run"].update(run)
    return from_dict(data, source="the arms made for this command")
