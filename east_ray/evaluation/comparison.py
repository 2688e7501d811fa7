"""Paired comparison of a run's arms, in numbers: each against the model before training and against its own vanilla arm.

"default" is the model before training; an arm's vanilla is the one with the same loss and seed but all weights 1, of
equal training settings where there is one (`Difference.differs` names them where not). Comparisons are paired question
by question, and p-values corrected by Holm's method over all arms. `summary.py` says the same in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from east_ray.config.load import Config
from east_ray.evaluation.statistics import (
    accuracy_interval,
    holm,
    minimum_detectable_effect,
    paired_difference,
    sign_flip_p,
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
    detectable: float  # minimum detectable effect: found with a chance of POWER, at the corrected level
    comparisons: int = 1  # differences that the correction covers
    differs: tuple[str, ...] = ()  # training settings that differ from the baseline's besides the weights


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
    unpaired: tuple[str, ...] = ()  # members without a vanilla arm of their seed, which keeps to_vanilla empty


def read_measured(run: RunDirectory, config: Config, split: str) -> list[Measured]:
    """Everything evaluated on a split ("evaluation": the test questions, or "validation"), default first, then by round."""
    found = [(DEFAULT, 0, "base")]
    found += [
        (arm.name, t + 1, f"round-{t:02d}/arms/{arm.name}") for t in range(config.run.rounds) for arm in config.arms
    ]
    return [
        Measured(name, rounds, f"{directory}/{split}")
        for name, rounds, directory in found
        if run.exists(directory, split, "metrics.json")
    ]


def vanilla_arms(config: Config) -> dict[str, str]:
    """Arm -> the arm to compare it with: all weights 1, same loss and seed, and equal training settings if there is one.

    Vanilla arms map to themselves. `differing_settings` says what else differs.
    """
    configs = arm_configs(config)
    result = {}
    for name, own in configs.items():
        twins = [twin for twin, theirs in configs.items() if _is_plain(theirs) and _shares(own, theirs)]
        if name in twins:
            result[name] = name
        elif twins:
            result[name] = min(twins, key=lambda twin: len(differing_settings(own, configs[twin])))
    return result


def arm_configs(config: Config) -> dict[str, Config]:
    """The config of every arm by its name."""
    return {arm.name: config.for_arm(arm) for arm in config.arms}


def differing_settings(own: Config, baseline: Config) -> tuple[str, ...]:
    """Training settings of two arms that differ besides the weights, e.g. `training.epochs 10 (vanilla: 3)`."""
    mine, theirs = (flatten(arm.training.identity(), "training.") for arm in (own, baseline))
    names = [name for name in sorted(mine) if mine[name] != theirs.get(name) and name != "training.local_weight"]
    return tuple(f"{name} {mine[name]} ({baseline.arms[0].name}: {theirs.get(name)})" for name in names)


def seed_groups(config: Config) -> dict[str, tuple[str, ...]]:
    """Name -> arms that differ in run.seed alone. A group of several is named by what its arms' names share."""
    groups: dict[str, dict[int, str]] = {}
    left_out: Any = {"arms": True, "sweep": True, "reproduce": True, "run": {"seed"}}
    for arm in config.arms:
        own = config.for_arm(arm)
        key = json.dumps([arm.rounds or config.run.rounds, own.model_dump(mode="json", exclude=left_out)])
        if own.run.seed in groups.get(key, {}):  # an equal arm, not another seed of it
            key += arm.name
        groups.setdefault(key, {})[own.run.seed] = arm.name
    result: dict[str, tuple[str, ...]] = {}
    for seeds in groups.values():
        members = tuple(seeds.values())
        name = _shared_name(members)
        taken = {DEFAULT, *result, *(arm.name for arm in config.arms)} - set(members)
        result[members[0] if name in taken else name] = members
    return result


def at_round(config: Config, measured: Sequence[Measured]) -> dict[str, Measured]:
    """The models that can be compared fairly: default, and every arm after the same number of rounds, the last that all arms have."""
    shared = min(arm.rounds or config.run.rounds for arm in config.arms)
    latest = max((m.rounds for m in measured if m.rounds <= shared), default=0)
    return {m.name: m for m in measured if m.rounds in (0, latest)}


def compare(run: RunDirectory, config: Config, measured: Mapping[str, Measured]) -> list[Comparison]:
    """One row per arm, default first, arms that differ in their seed alone pooled. `measured`: arm -> its evaluation.

    All rows answer the same questions; UserError when they do not.
    """
    correct = {name: read_correct(run, m.directory) for name, m in measured.items()}
    ids = next(iter(correct.values()), {}).keys()
    for name, answers in correct.items():
        if answers.keys() != ids:
            raise UserError(
                f"{measured[name].directory} and {next(iter(measured.values())).directory} were evaluated on different "
                f"questions, so they cannot be compared; use --restart-from evaluate"
            )
    confidence, groups = config.evaluation.confidence, {DEFAULT: (DEFAULT,), **seed_groups(config)}
    groups = {name: found for name, members in groups.items() if (found := tuple(m for m in members if m in correct))}
    rows = {}
    for name, members in groups.items():
        answers_S_Q = matrix(correct, members, ids)
        low, high = accuracy_interval(answers_S_Q, confidence)
        accuracy, unpaired = float(answers_S_Q.mean()), _without_vanilla(config, members)
        rows[name] = Comparison(name, members, len(ids), accuracy, low, high, None, None, unpaired)
    configs = arm_configs(config)
    for column, baseline_of in _baselines(config, groups, correct).items():
        found = differences_of(
            {
                name: (matrix(correct, groups[name], ids), matrix(correct, twins, ids), _shared_name(twins))
                for name, twins in baseline_of.items()
            },
            confidence,
        )
        for name, d in found.items():
            own, baseline = configs[groups[name][0]], configs.get(baseline_of[name][0])
            differs = differing_settings(own, baseline) if baseline else ()
            rows[name] = replace(rows[name], **{column: replace(d, differs=differs)})
    return list(rows.values())


def differences_of(pairs: Mapping[str, tuple[np.ndarray, np.ndarray, str]], confidence: float) -> dict[str, Difference]:
    """`difference_of` each (arm, baseline, name of the baseline), with p-values corrected over all of them."""
    found = {name: difference_of(*pair, confidence, comparisons=len(pairs)) for name, pair in pairs.items()}
    adjusted = holm([d.p_value for d in found.values()])
    return {name: replace(d, p_adjusted=p) for (name, d), p in zip(found.items(), adjusted, strict=True)}


def difference_of(
    arm_S_Q: np.ndarray, baseline_S_Q: np.ndarray, baseline: str, confidence: float, comparisons: int = 1
) -> Difference:
    """An arm less its baseline; (seeds, questions) of booleans, seed s against seed s.

    The interval is Bonett and Price's over questions and seeds; the p-value the larger of the exact test's (McNemar's
    for one seed) and of the interval's. Where p is not below 1 - confidence, the interval includes 0.
    """
    difference_S_Q = arm_S_Q.astype(float) - baseline_S_Q
    num_seeds, num_questions = difference_S_Q.shape
    found = paired_difference(difference_S_Q)
    p_value = max(found.p_value(), sign_flip_p(difference_S_Q))
    low, high = found.mean - found.half_width(confidence), found.mean + found.half_width(confidence)
    if p_value >= 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    estimate = float(difference_S_Q.mean())
    gained, lost = (float(np.mean(np.sum(difference_S_Q == sign, axis=1))) for sign in (1, -1))
    corrected = 1 - (1 - confidence) / comparisons
    if num_seeds == 1:
        share = (gained + lost) / num_questions
        detectable = minimum_detectable_effect(num_questions, share, confidence=corrected, power=POWER)
    else:
        detectable = found.detectable(corrected, POWER)
    return Difference(
        baseline,
        estimate,
        max(min(low, estimate), -1.0),
        min(max(high, estimate), 1.0),
        p_value,
        p_value,
        gained,
        lost,
        detectable if detectable < 1 else float("inf"),
        comparisons,
    )


def read_correct(run: RunDirectory, directory: str) -> dict[str, bool]:
    """Question id -> whether an evaluation directory's model answered it correctly, in the order of the questions."""
    columns = run.read_table(directory, "eval.parquet", columns=["question_id", "correct"]).to_pydict()
    return dict(zip(columns["question_id"], columns["correct"], strict=True))


def matrix(correct: Mapping[str, Mapping[str, bool]], names: Sequence[str], ids: Collection[str]) -> np.ndarray:
    """(seeds, questions) of booleans."""
    return np.array([[correct[name][question_id] for question_id in ids] for name in names])


def _baselines(
    config: Config, groups: Mapping[str, tuple[str, ...]], present: Collection[str]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Column of Comparison -> row -> the evaluated arms, one per seed, that it is compared with."""
    vanilla = vanilla_arms(config)
    twins = {name: tuple(vanilla[m] for m in members if vanilla.get(m, m) != m) for name, members in groups.items()}
    return {
        "to_default": {n: (DEFAULT,) * len(m) for n, m in groups.items() if n != DEFAULT and DEFAULT in present},
        "to_vanilla": {
            name: found
            for name, found in twins.items()
            if len(found) == len(groups[name]) and all(twin in present for twin in found)
        },
    }


def _without_vanilla(config: Config, members: Sequence[str]) -> tuple[str, ...]:
    """Those of a row's arms that have no vanilla arm of their seed, where there is one of the same loss."""
    vanilla, configs = vanilla_arms(config), arm_configs(config)
    losses = {own.training.loss for own in configs.values() if _is_plain(own)}
    return tuple(m for m in members if m in configs and m not in vanilla and configs[m].training.loss in losses)


def _is_plain(own: Config) -> bool:
    return own.weighting.mapping == "power" and own.weighting.exponent == 0 and own.training.local_weight == "none"


def _shares(own: Config, theirs: Config) -> bool:
    return (own.run.seed, own.training.loss) == (theirs.run.seed, theirs.training.loss)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shared_name(names: Sequence[str]) -> str:
    """Arm names without their `-seed1` or `seed=1+`; the first name when they then still differ."""
    stems = {re.sub(r"(^|[-_.+])seed[-_=]?\d+", "", name).strip("-_.+") for name in names}
    return stems.pop() if len(stems) == 1 and "" not in stems and len(set(names)) > 1 else names[0]
