"""Results side by side, in numbers: every arm against the model before training and against its own vanilla arm.

"default" is the model before training; an arm's vanilla is the one with the same loss, settings and samples but all
weights 1. Comparisons are paired question by question, and p-values corrected by Holm's method over all arms.
`verdict.py` says the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from east_ray.config.load import Arm, Config
from east_ray.evaluation.statistics import (
    combine_seeds,
    holm,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_bootstrap,
    wilson_interval,
)
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory

DEFAULT = "default"
POWER = 0.8  # chance that a difference called detectable would have shown


@dataclass(frozen=True)
class Measured:
    """One model's answers to one split. `rounds` of training lie behind it: 0 for the model before training."""

    name: str
    rounds: int
    directory: str


@dataclass(frozen=True)
class Difference:
    """An arm less its baseline, in accuracy (0.01 is one point)."""

    baseline: str
    estimate: float
    low: float
    high: float
    p_value: float
    p_adjusted: float  # Holm's, over all arms with such a baseline
    gained: float  # questions only the arm answers correctly (mean over seeds)
    lost: float  # questions only the baseline does
    detectable: float  # the smallest difference these questions would have shown in 8 of 10 tries


@dataclass(frozen=True)
class Comparison:
    """One row of the headline table."""

    name: str
    members: tuple[str, ...]  # arms that differ in their seed alone; usually one
    num_questions: int
    accuracy: float
    low: float
    high: float
    to_default: Difference | None
    to_vanilla: Difference | None


def read_measured(run: RunDirectory, config: Config, split: str) -> list[Measured]:
    """Everything evaluated on a split ("evaluation": the test questions, or "validation"), default first, then by round."""
    places = [(DEFAULT, 0, "base")]
    places += [
        (arm.name, t + 1, f"round-{t:02d}/arms/{arm.name}") for t in range(config.run.rounds) for arm in config.arms
    ]
    return [
        Measured(name, rounds, f"{place}/{split}")
        for name, rounds, place in places
        if run.exists(place, split, "metrics.json")
    ]


def vanilla_arms(config: Config) -> dict[str, str]:
    """Arm -> the arm to compare it with: all weights 1, the same training and seed. Vanilla arms map to themselves."""
    plain = [arm for arm in config.arms if _is_plain(config, arm)]
    result = {}
    for arm in config.arms:
        for strict in (True, False):  # an arm with a learning rate of its own still has the same loss to compare with
            twins = [other for other in plain if _twin_key(config, other, strict) == _twin_key(config, arm, strict)]
            if twins and arm.name not in result:
                result[arm.name] = arm.name if arm in plain else twins[0].name
    return result


def seed_groups(config: Config) -> dict[str, tuple[str, ...]]:
    """Name -> arms that differ in run.seed alone. A group of several is named by what its arms' names share."""
    groups: dict[str, list[str]] = {}
    for arm in config.arms:
        own = {key: value for key, value in arm.set.items() if key != "run.seed"}
        groups.setdefault(repr(sorted(own.items())), []).append(arm.name)
    return {_shared_name(names): tuple(names) for names in groups.values()}


def at_round(config: Config, measured: Sequence[Measured]) -> dict[str, Measured]:
    """What can be compared fairly: default, and every arm after the same number of rounds, the last that all arms have."""
    shared = min(arm.rounds or config.run.rounds for arm in config.arms)
    latest = max((m.rounds for m in measured if m.rounds <= shared), default=0)
    return {m.name: m for m in measured if m.rounds in (0, latest)}


def compare(run: RunDirectory, config: Config, measured: Mapping[str, Measured]) -> list[Comparison]:
    """One row per arm, default first, arms that differ in their seed alone pooled. `measured`: arm -> its evaluation.

    All rows answer the same questions; UserError when they do not.
    """
    correct = {name: _read_correct(run, m) for name, m in measured.items()}
    ids = next(iter(correct.values()), {}).keys()
    for name, answers in correct.items():
        if answers.keys() != ids:
            raise UserError(
                f"{measured[name].directory} and {next(iter(measured.values())).directory} were evaluated on different "
                f"questions, so they cannot be compared; use --restart-from evaluate"
            )
    vanilla = vanilla_arms(config)
    groups = {DEFAULT: (DEFAULT,), **seed_groups(config)}
    rows = []
    for name, members in groups.items():
        members = tuple(member for member in members if member in correct)
        if not members:
            continue
        answers_SQ = _matrix(correct, members, ids)
        twins = [vanilla[member] for member in members if vanilla.get(member, member) != member]
        baselines = {"default": [DEFAULT] * len(members) if name != DEFAULT else [], "vanilla": twins}
        differences = {
            baseline: difference_of(
                answers_SQ, _matrix(correct, names, ids), baseline_name, config.evaluation.confidence
            )
            for baseline, names in baselines.items()
            if len(names) == len(members) and all(other in correct for other in names)
            for baseline_name in [_shared_name(names)]
        }
        low, high = accuracy_interval(answers_SQ, config.evaluation.confidence)
        both = differences.get("default"), differences.get("vanilla")
        rows.append(Comparison(name, members, len(ids), float(answers_SQ.mean()), low, high, *both))
    return _corrected(_corrected(rows, "to_default"), "to_vanilla")


def accuracy_interval(correct_SQ: np.ndarray, confidence: float) -> tuple[float, float]:
    """Wilson's interval of one seed; of several, the one that covers which seeds were drawn, too."""
    if len(correct_SQ) == 1:
        return wilson_interval(int(correct_SQ.sum()), correct_SQ.size, confidence)
    interval = combine_seeds(correct_SQ, confidence)
    return max(interval.low, 0.0), min(interval.high, 1.0)


def difference_of(arm_SQ: np.ndarray, baseline_SQ: np.ndarray, baseline: str, confidence: float) -> Difference:
    """An arm less its baseline; (seeds, questions) of booleans, seed s of the one beside seed s of the other.

    One seed: paired bootstrap and McNemar's exact test. Several: an interval over questions and seeds, and its p-value.
    """
    gained = float(np.mean(np.sum(arm_SQ & ~baseline_SQ, axis=1)))
    lost = float(np.mean(np.sum(baseline_SQ & ~arm_SQ, axis=1)))
    if len(arm_SQ) == 1:
        interval = paired_bootstrap(arm_SQ[0], baseline_SQ[0], confidence=confidence)
        p_value = mcnemar_exact(round(gained), round(lost))
        detectable = minimum_detectable_effect(arm_SQ.size, (gained + lost) / arm_SQ.size, confidence=confidence)
    else:
        difference_SQ = arm_SQ.astype(float) - baseline_SQ
        interval = combine_seeds(difference_SQ, confidence)
        p_value = _p_value(difference_SQ)
        z_test, z_power = stats.norm.ppf([(1 + confidence) / 2, POWER])
        detectable = (interval.high - interval.low) / 2 * (1 + z_power / z_test)
    return Difference(
        baseline, interval.estimate, interval.low, interval.high, p_value, p_value, gained, lost, float(detectable)
    )


def _p_value(difference_SQ: np.ndarray) -> float:
    """1 - the largest confidence at which the interval over questions and seeds leaves out 0."""
    excludes, includes = 0.0, 1.0
    for _ in range(40):
        middle = (excludes + includes) / 2
        interval = combine_seeds(difference_SQ, middle)
        if interval.low <= 0 <= interval.high:
            includes = middle
        else:
            excludes = middle
    return 1 - excludes


def _corrected(rows: Sequence[Comparison], field: str) -> list[Comparison]:
    """Holm's correction of one column's p-values, over the rows that have one."""
    present = [i for i, row in enumerate(rows) if getattr(row, field) is not None]
    adjusted = holm([getattr(rows[i], field).p_value for i in present])
    result = list(rows)
    for i, p_adjusted in zip(present, adjusted, strict=True):
        result[i] = replace(rows[i], **{field: replace(getattr(rows[i], field), p_adjusted=float(p_adjusted))})
    return result


def _read_correct(run: RunDirectory, measured: Measured) -> dict[str, bool]:
    columns = run.read_table(measured.directory, "eval.parquet", columns=["question_id", "correct"]).to_pydict()
    return dict(zip(columns["question_id"], columns["correct"], strict=True))


def _matrix(correct: Mapping[str, Mapping[str, bool]], names: Sequence[str], ids: Collection[str]) -> np.ndarray:
    """(seeds, questions) of booleans."""
    return np.array([[correct[name][question_id] for question_id in ids] for name in names])


def _is_plain(config: Config, arm: Arm) -> bool:
    own = config.for_arm(arm)
    return own.weighting.mapping == "power" and own.weighting.exponent == 0 and own.training.local_weight == "none"


def _twin_key(config: Config, arm: Arm, strict: bool) -> tuple[str, ...]:
    own = config.for_arm(arm)
    settings = {key: value for key, value in own.training.identity().items() if key != "local_weight"}
    return (str(own.run.seed), own.training.loss, repr(sorted(settings.items())) if strict else "")


def _shared_name(names: Sequence[str]) -> str:
    """What arm names are without their `-seed1` or `seed=1+`; the first name when they then still differ."""
    stems = {re.sub(r"(^|[-_.+])seed[-_=]?\d+", "", name).strip("-_.+") for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems and len(set(names)) > 1 else names[0]
