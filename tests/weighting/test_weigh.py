"""The global reduction: weights, funnel and health from graded shards, whatever the shards."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from east_ray.config.sections import SelectionConfig, WeightingConfig
from east_ray.records import GRADES, UserError
from east_ray.runs import shard_tasks
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.health import WeightHealth, unhealthy
from east_ray.weighting.mappings import WeightMapping, effective_sample_size, weights
from east_ray.weighting.weigh import MEASURE_FUNCTIONS, measure_table, weigh
from tests.support.graded import grades_row, write_shards

EXPONENTS = (-3, 0, 0.5, 1, 1.5, 3)
MAPPINGS = [
    *(WeightMapping(exponent=a) for a in EXPONENTS),
    WeightMapping("inaccuracy", "mean"),
    WeightMapping("dominant_wrong", "linear", range=0.2),
    WeightMapping(exponent=3, clip=1.2),
]


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Graded questions of every kind: mixed, all wrong, all correct, without samples."""
    r = random.Random(seed)
    pools = [["gold", "7", "8", None], ["gold", "gold", "gold", "7"], ["7", None], ["gold"], ["gold", "9", "9", "slow"]]
    return [
        grades_row(
            f"q{i}", r.choices(r.choice(pools), k=r.choice([0, 8, 8, 8])), errors=["slow"], mean_tokens=r.uniform(5, 90)
        )
        for i in range(count)
    ]


def weighed(run: RunDirectory, rows: Sequence[dict[str, Any]], per_shard: int, **settings: Any) -> pa.Table:
    write_shards(run, "grades", rows, per_shard)
    defaults: dict[str, Any] = {"mappings": MAPPINGS, "selection": SelectionConfig(), "weighting": WeightingConfig()}
    weigh(run, grades="grades", output="weights", **{**defaults, **settings})
    return run.read_table("weights")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("in_process", [0, 32])
def test_weights_equal_the_pure_functions_over_all_kept_questions(
    run: RunDirectory, in_process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_tasks, "IN_PROCESS", in_process)
    rows = questions(300)
    table = weighed(run, rows, 32)
    measures = measure_table(pa.Table.from_pylist(rows, schema=GRADES), "mixed")
    kept = measures["reason"].is_null().to_numpy()
    assert table.select(measures.column_names).equals(measures)
    for mapping in MAPPINGS:
        column = table[mapping.column].combine_chunks()
        assert column.is_null().to_numpy(False).tolist() == (~kept).tolist()
        expected = weights(measures[mapping.measure].to_numpy()[kept], mapping)
        assert column.drop_null().to_numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("ray_session")
def test_weights_have_the_same_bits_here_and_on_rays_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = questions(200)
    tables = {}
    for in_process in (0, 1000):
        monkeypatch.setattr(shard_tasks, "IN_PROCESS", in_process)
        tables[in_process] = weighed(RunDirectory(str(tmp_path / str(in_process))), rows, 1)  # more shards than tasks
    assert tables[0].equals(tables[1000])
    stored = [(tmp_path / str(n) / "weights/weights.json").read_bytes() for n in (0, 1000)]
    assert stored[0] == stored[1]


def test_other_shards_and_another_order_move_weights_by_rounding_alone(tmp_path: Path) -> None:
    rows = questions(200)
    once = weighed(RunDirectory(str(tmp_path / "a")), rows, 200).sort_by("question_id")
    random.Random(1).shuffle(rows)
    again = weighed(RunDirectory(str(tmp_path / "b")), rows, 7).sort_by("question_id")
    for mapping in MAPPINGS:
        expected = once[mapping.column].drop_null().to_numpy()
        assert again[mapping.column].drop_null().to_numpy() == pytest.approx(expected, rel=1e-12)


def test_a_measure_of_ones_own_may_read_any_column_that_weighing_reads(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASURE_FUNCTIONS, "length", lambda grades: grades["mean_tokens"].to_numpy())
    table = weighed(run, questions(30), 10, mappings=[WeightMapping("length", "mean")])
    kept = table.filter(table["reason"].is_null())
    tokens = kept["mean_tokens"].to_numpy()
    assert np.allclose(kept["weight_length_mean"].to_numpy(), tokens / tokens.mean(), rtol=1e-12)


def test_the_funnel_counts_every_question_and_completion_once(run: RunDirectory) -> None:
    rows = questions(200)
    weighed(run, rows, 16, excluded={"q0", "q1", "not a question"})
    funnel = run.read_json("weights", "weights.json")["funnel"]
    asked, drawn = funnel["questions"], funnel["completions"]
    assert asked["total"] == asked["kept"] + sum(asked["dropped"].values()) == 200
    assert drawn["total"] == drawn["kept"] + sum(drawn["dropped"].values()) == sum(row["num_samples"] for row in rows)
    assert asked["dropped"]["in test set"] == 2
    assert {"no samples", "all wrong", "all correct"} <= asked["dropped"].keys()
    judged = drawn["all"]
    assert judged["correct"] + judged["incorrect"] + judged["errors"] == drawn["total"]
    assert judged["errors"] == sum(row["num_errors"] for row in rows) > 0


def test_solved_questions_weigh_nothing_when_nothing_else_was_said(run: RunDirectory) -> None:
    rows = [grades_row("easy", ["gold"] * 4), grades_row("hard", ["gold", "1", "2", "3"])]
    table = weighed(run, rows, 1, mappings=[WeightMapping()], selection=SelectionConfig(keep="solved"))
    assert table["weight_entropy_power_1"].to_pylist() == [0.0, 2.0]


def test_a_negative_exponent_over_solved_questions_names_the_mapping_and_the_remedy(run: RunDirectory) -> None:
    rows = [grades_row("easy", ["gold"] * 4), grades_row("hard", ["gold", "1", "2", "3"])]
    with pytest.raises(UserError, match=r'weight_entropy_power_-1: 1 of 2 kept.*keep = "mixed"'):
        weighed(run, rows, 1, mappings=[WeightMapping(exponent=-1)], selection=SelectionConfig(keep="solved"))


def test_a_negative_exponent_with_ignored_completions_does_not_advise_what_is_set_already(run: RunDirectory) -> None:
    row = grades_row("q", ["gold"] * 6 + [None] * 2)
    ignored = {**row, "clusters": [0] * 6 + [-1] * 2, "cluster_sizes": [6], "cluster_verdicts": ["correct"]}
    with pytest.raises(UserError, match=r'keep = "mixed" with grading\.unanswered = "cluster"'):
        weighed(run, [ignored], 1, mappings=[WeightMapping(exponent=-1)])


def test_no_kept_question_is_an_error_with_the_funnel(run: RunDirectory) -> None:
    rows = [grades_row("a", ["gold"] * 4), grades_row("b", ["1", "2"]), grades_row("c", ["1"])]
    with pytest.raises(UserError, match=r"none of the 3 questions.*2 all wrong.*1 all correct"):
        weighed(run, rows, 2)


def test_missing_grades_say_which_command_comes_first(run: RunDirectory) -> None:
    with pytest.raises(UserError, match="east-ray verify"):
        weigh(
            run,
            grades="grades",
            output="weights",
            mappings=[],
            selection=SelectionConfig(),
            weighting=WeightingConfig(),
        )


def test_unhealthy_weights_stop_the_run_when_asked_to(run: RunDirectory) -> None:
    rows = [grades_row(f"q{i}", ["gold"] * 63 + ["1"]) for i in range(50)]
    rows.append(grades_row("one", ["gold", *map(str, range(63))]))
    strict = WeightingConfig(on_unhealthy="stop", exponent=3)
    with pytest.raises(UserError, match=r"weight_entropy_power_3: effective sample size 1\.0 of 51"):
        weighed(run, rows, 20, mappings=[WeightMapping(exponent=3)], weighting=strict)
    assert len(weighed(run, rows, 20, mappings=[WeightMapping(exponent=3)])) == 51  # by default a warning


def test_health_equals_numpy_on_the_whole_column() -> None:
    rng = np.random.default_rng(0)
    weight, tokens = weights(rng.gamma(1.0, 1.0, 5000), WeightMapping(exponent=2)), rng.uniform(10, 500, 5000)
    pieces = [WeightHealth.of(w, t) for w, t in zip(np.array_split(weight, 9), np.array_split(tokens, 9), strict=True)]
    health = sum(pieces[1:], pieces[0]).figures()
    assert health["effective_sample_size"] == pytest.approx(effective_sample_size(weight), rel=1e-12)
    assert health["effective_share"] == pytest.approx(effective_sample_size(weight) / 5000)
    assert health["max_weight"] == weight.max()
    assert health["length_correlation"] == pytest.approx(np.corrcoef(weight, tokens)[0, 1], abs=1e-9)
    assert health["token_weight"] == pytest.approx((weight * tokens).sum() / tokens.sum())


def test_token_weight_is_what_a_token_mean_loss_multiplies_the_gradient_by() -> None:
    # Every token's loss is 1: sum_i w_i sum_t 1 / sum_i |y_i| for two answers of 10 and 30 tokens.
    health = WeightHealth.of(np.array([0.5, 1.5]), np.array([10.0, 30.0])).figures()
    assert health["token_weight"] == pytest.approx((0.5 * 10 + 1.5 * 30) / 40)
    assert health["length_correlation"] == pytest.approx(1)
    (warning,) = unhealthy("w", health, WeightingConfig())
    assert "multiplies the learning rate of a token-mean loss by 1.25" in warning


def test_equal_weights_are_healthy_whatever_the_lengths() -> None:
    health = WeightHealth.of(np.ones(30), np.arange(1.0, 31.0)).figures()
    assert (health["effective_share"], health["token_weight"], health["length_correlation"]) == (1.0, 1.0, 0.0)
    assert unhealthy("w", health, WeightingConfig()) == []


def test_errors_do_not_make_a_question_look_harder() -> None:
    table = pa.Table.from_pylist([grades_row("q", ["gold", "1", "slow", "slow"], errors=["slow"])], schema=GRADES)
    assert measure_table(table, "mixed")["inaccuracy"].to_pylist() == [0.5]


def test_measures_of_a_hand_made_question() -> None:
    table = pa.Table.from_pylist([grades_row("q", ["gold"] * 4 + ["1", "1", None, "2"])], schema=GRADES)
    (row,) = measure_table(table, "mixed").to_pylist()
    assert row["entropy"] == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8))
    assert (row["num_clusters"], row["inaccuracy"], row["dominant_wrong"]) == (4, 0.5, 0.25)
    assert row["reason"] is None


def test_weights_json_is_plain_json_with_the_documented_keys(run: RunDirectory) -> None:
    weighed(run, questions(60), 16, mappings=[WeightMapping(exponent=1.5)])
    stored = json.loads(run.read_bytes("weights", "weights.json"))
    entry = stored["mappings"]["weight_entropy_power_1.5"]
    assert {"measure", "mapping", "exponent", "range", "clip", "log_normaliser", "capped", "health"} == entry.keys()
    assert stored["funnel"].keys() == {"questions", "completions", "mean_entropy"}
    assert entry["health"].keys() == {
        *("kept", "mean_weight", "effective_sample_size", "effective_share", "max_weight"),
        *("length_correlation", "token_weight"),
    }
