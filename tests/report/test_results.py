"""Chapters of results: families of exponents and measures, chosen exponents, and the paper's column."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from east_ray.config.load import Arm, from_dict
from east_ray.evaluation.comparison import Comparison, Difference, vanilla_arms
from east_ray.report import paper, results
from east_ray.report.data import ReportData
from east_ray.runs.directory import RunDirectory

VANILLA = {"weighting.exponent": 0.0}
LLAMA = "meta-llama/Llama-3.2-1B-Instruct"
GSM8K, MATH = "hf://openai/gsm8k/main", "hf://DigitalLearningGmbH/MATH-lighteval"


@pytest.mark.parametrize(
    ("model", "train", "test", "column"),
    [
        (LLAMA, f"{GSM8K}:train", f"{GSM8K}:test", "Llama-3.2-1B-Instruct, GSM8K"),
        ("/models/Llama-3.1-8B-Instruct/", f"{MATH}:train", f"{MATH}:test", "Llama-3.1-8B-Instruct, MATH"),
        (LLAMA, "data/math/train.jsonl", "data/MATH_test.jsonl.gz", "Llama-3.2-1B-Instruct, MATH"),
        (LLAMA, "/home/mathias/aime.jsonl", "/home/mathias/test.jsonl", None),
        (LLAMA, "hf://meta-math/MetaMathQA:train", f"{MATH}:test", None),
        (LLAMA, f"{MATH}:train", "hf://HuggingFaceH4/MATH-500:test", None),
        (LLAMA, f"{GSM8K}:test", f"{GSM8K}:test", None),
        (LLAMA, f"{GSM8K}:train", None, None),
        ("me/Llama-3.2-1B-Instruct-tuned", f"{GSM8K}:train", f"{GSM8K}:test", None),
    ],
)
def test_the_papers_column_is_shown_for_its_own_models_and_sets_alone(
    model: str, train: str, test: str | None, column: str | None
) -> None:
    found = paper.column_for(model, train, test)
    assert (found and found.title) == column


def families_of(arms: list[Arm], accuracies: dict[str, float]) -> tuple[ReportData, tuple[Comparison, ...]]:
    """Report data of arms with these accuracies, as far as exponents and measures read it."""
    data = {"model": {"path": "m"}, "questions": {"train": "t.jsonl"}, "arms": [arm.model_dump() for arm in arms]}
    config = from_dict(data, "test")
    rows = tuple(
        Comparison(arm.name, (arm.name,), 100, a := accuracies.get(arm.name, 0.5), a, a, None, None) for arm in arms
    )
    groups = {arm.name: (arm.name,) for arm in arms}
    run = RunDirectory("/nowhere")
    return ReportData(run, config, (), {}, {}, rows, rows, vanilla_arms(config), groups), rows


def test_arms_with_a_clip_or_a_learning_rate_of_their_own_are_families_of_their_own() -> None:
    others: list[dict[str, Any]] = [{}, {"weighting.clip": 2.0}, {"training.sft.learning_rate": 1e-3}]
    arms = [Arm(name="v", set=VANILLA), Arm(name="v-fast", set={**VANILLA, **others[2]})]
    arms += [
        Arm(name=f"a{a}-{i}", set={"weighting.exponent": a, **extra})
        for i, extra in enumerate(others)
        for a in (1.0, 2.0)
    ]
    f, rows = families_of(arms, {})
    families = results.exponent_families(f, rows)
    names = {label: [point[1].label for point in points] for label, points in families.items()}
    assert names == {
        "SFT, entropy": ["v", "a1.0-0", "a2.0-0"],
        "SFT, entropy, clip 2.0": ["v", "a1.0-1", "a2.0-1"],
        "SFT, entropy, sft.learning_rate 0.001": ["v-fast", "a1.0-2", "a2.0-2"],
    }


def test_measures_are_averaged_over_arms_with_the_same_other_settings() -> None:
    arms = [
        Arm(name=f"{m}{a}", set={"weighting.measure": m, "weighting.exponent": a})
        for m in ("entropy", "inaccuracy")
        for a in (1.0, 2.0)
    ]
    fast = Arm(name="fast", set={"weighting.measure": "entropy", "training.sft.learning_rate": 1e-3})
    f, _ = families_of([*arms, fast], {"entropy1.0": 0.3, "entropy2.0": 0.4, "fast": 0.9, "inaccuracy1.0": 0.2})
    table = results.measure_table(f)
    assert table is not None
    assert [row[1:] for row in table.rows] == [("35.0%", "30.0%", "40.0%"), ("35.0%", "20.0%", "50.0%")]


@pytest.mark.parametrize(("best", "chosen"), [({}, "0"), ({"a-2.0": 0.6, "a1.0": 0.6}, "1"), ({"a-2.0": 0.6}, "-2")])
def test_of_equally_accurate_exponents_the_one_nearest_to_zero_is_chosen(best: dict[str, float], chosen: str) -> None:
    arms = [Arm(name=f"a{a}", set={"weighting.exponent": a}) for a in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    f, rows = families_of(arms, best)
    assert results.chosen_table(f, results.exponent_families(f, rows)).rows[0][1] == chosen


def test_chosen_exponents_of_several_families_share_one_holm_correction() -> None:
    arms = [Arm(name="v", set=VANILLA)]
    arms += [
        Arm(name=f"{m}{a}", set={"weighting.measure": m, "weighting.exponent": a})
        for m in ("entropy", "inaccuracy")
        for a in (1.0, 2.0)
    ]
    f, rows = families_of(arms, {"entropy1.0": 0.6, "inaccuracy2.0": 0.6})
    p_values = {"entropy1.0": 0.02, "inaccuracy2.0": 0.04}
    tested = tuple(
        replace(row, to_vanilla=Difference("v", 0.1, 0.0, 0.2, p, 1.0, 20, 10, 0.1))
        if (p := p_values.get(row.name))
        else row
        for row in rows
    )
    table = results.chosen_table(replace(f, comparisons=tested), results.exponent_families(f, rows))
    assert [row[4].rpartition(", ")[2] for row in table.rows] == ["p = 0.04", "p = 0.04"]
    assert "Holm-adjusted over these 2 choices" in table.caption


def test_arms_with_more_rounds_are_in_the_same_family() -> None:
    rounds = {0.0: 3, 1.0: 3, 2.0: 1}
    f, rows = families_of([Arm(name=f"a{a}", set={"weighting.exponent": a}, rounds=n) for a, n in rounds.items()], {})
    assert [a for a, _ in results.exponent_families(f, rows)["SFT, entropy"]] == [0.0, 1.0, 2.0]
