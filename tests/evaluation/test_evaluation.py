"""Measuring models, setting them side by side, and saying honestly what that shows."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from east_ray.analysis import drift
from east_ray.config.load import Arm, Config, from_dict
from east_ray.config.sections import EvaluationConfig, GradingConfig, ModelConfig, SamplingConfig
from east_ray.evaluation.comparison import (
    Comparison,
    Difference,
    at_round,
    compare,
    difference_of,
    read_measured,
    seed_groups,
    vanilla_arms,
)
from east_ray.evaluation.evaluate import EVALUATIONS, evaluate, summarise
from east_ray.evaluation.statistics import minimum_detectable_effect
from east_ray.evaluation.summary import describe, detectable_differences, render_table
from east_ray.records import CORRECT, ERROR, INCORRECT, QUESTIONS, UserError, prompt_hash
from east_ray.report import paper
from east_ray.report.page import write_report
from east_ray.runs.directory import RunDirectory
from tests.support.run_factory import make_run

VANILLA = {"weighting.exponent": 0.0}


def evaluated(verdicts: Sequence[str], **columns: Sequence[Any]) -> pa.Table:
    rows = [
        {
            "question_id": str(i),
            "correct": verdict == CORRECT,
            "verdict": verdict,
            "answer": "1",
            "tokens": 10,
            "truncated": False,
        }
        | {name: values[i] for name, values in columns.items()}
        for i, verdict in enumerate(verdicts)
    ]
    return pa.Table.from_pylist(rows, schema=EVALUATIONS)


def config_with(*arms: Arm, **sections: Any) -> Config:
    data = {"model": {"path": "m"}, "questions": {"train": "t"}, "arms": [arm.model_dump() for arm in arms], **sections}
    return from_dict(data, "test")


def test_an_error_is_no_correct_answer_and_is_reported_beside_the_accuracy() -> None:
    summary = summarise(evaluated([CORRECT, CORRECT, INCORRECT, ERROR], answer=["1", "1", None, None]), 0.95)
    assert summary.overall.accuracy == 0.5
    assert summary.error_share == 0.25
    assert summary.no_answer_share == 0.25, "an answer that could not be graded is not a missing one"
    assert summary.pass_at_k == summary.maj_at_k == {}


def test_levels_and_subjects_partition_the_questions_and_missing_ones_are_left_out() -> None:
    table = evaluated([CORRECT, INCORRECT, CORRECT, CORRECT], level=["Level 1", "Level 1", "Level 2", None])
    summary = summarise(table, 0.95)
    assert {name: (a.num_correct, a.num_questions) for name, a in summary.by_level.items()} == {
        "Level 1": (1, 2),
        "Level 2": (1, 1),
    }
    assert summary.by_subject == {}


def test_wilson_s_interval_of_an_accuracy_matches_the_published_one() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    overall = summarise(evaluated([CORRECT] * 81 + [INCORRECT] * 182), 0.95).overall
    assert (overall.low, overall.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_pass_at_k_and_maj_at_k_agree_with_counting_all_draws() -> None:
    answers = ["7", "7", "5", None]  # 7 is right; a completion without an answer does not vote
    sampled = pa.table(
        {
            "num_samples": [4],
            "num_correct": [2],
            "answers": [answers],
            "clusters": [[0, 0, 1, 2]],
            "cluster_sizes": [[2, 1, 1]],
            "cluster_verdicts": [[CORRECT, INCORRECT, INCORRECT]],
        }
    )
    summary = summarise(evaluated([CORRECT]), 0.95, sampled)
    for k in (1, 2, 4):
        draws = list(itertools.combinations(answers, k))
        assert summary.pass_at_k[str(k)] == pytest.approx(np.mean(["7" in draw for draw in draws]))
        won = []
        for draw in draws:
            votes = {answer: draw.count(answer) for answer in draw if answer is not None}
            first = [answer for answer, n in votes.items() if n == max(votes.values())]
            won.append(("7" in first) / len(first) if first else 0)
        assert summary.maj_at_k[str(k)] == pytest.approx(np.mean(won))


def test_no_questions_at_all_is_said_plainly() -> None:
    with pytest.raises(UserError, match=r"questions\.test"):
        summarise(evaluated([]), 0.95)


def test_one_seed_is_compared_by_mcnemar_and_a_paired_interval() -> None:
    arm = np.array([[True] * 9 + [False] * 1 + [True] * 90])
    baseline = np.array([[False] * 9 + [True] * 1 + [True] * 90])
    d = difference_of(arm, baseline, "vanilla", 0.95)
    assert (d.gained, d.lost) == (9, 1)
    assert d.estimate == pytest.approx(0.08)
    assert d.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # two-sided binomial: 0 or 1 of 10
    assert d.low < d.estimate < d.high


def test_a_difference_that_seeds_do_not_repeat_is_less_certain_than_one_they_do() -> None:
    draw = np.random.default_rng(0)
    baseline = np.zeros((3, 400), bool)
    steady = draw.random((3, 400)) < 0.06
    shaky = np.stack([draw.random(400) < share for share in (0.0, 0.02, 0.16)])
    certain, uncertain = (difference_of(arm, baseline, "vanilla", 0.95) for arm in (steady, shaky))
    assert certain.estimate == pytest.approx(uncertain.estimate, abs=0.02)
    assert certain.p_value < 0.05 < uncertain.p_value
    assert certain.high - certain.low < uncertain.high - uncertain.low


@pytest.mark.parametrize("seeds", [1, 3])
def test_p_values_and_intervals_tell_the_same_story(seeds: int) -> None:
    draw = np.random.default_rng(1)
    for lift in (0.0, 0.03, 0.1):
        baseline = draw.random((seeds, 500)) < 0.4
        arm = baseline | (draw.random((seeds, 500)) < lift)
        arm &= draw.random((seeds, 500)) < 0.99
        d = difference_of(arm, baseline, "vanilla", 0.95)
        assert (d.p_value < 0.03) <= (d.low > 0 or d.high < 0)
        assert (d.p_value > 0.08) <= (d.low <= 0 <= d.high)


def test_every_arm_finds_its_own_vanilla() -> None:
    dpo = {"training.loss": "dpo"}
    config = config_with(
        Arm(name="sft-vanilla", set=VANILLA),
        Arm(name="sft-east"),
        Arm(name="sft-lw", set={**VANILLA, "training.local_weight": "perplexity"}),
        Arm(name="dpo-vanilla", set={**dpo, **VANILLA}),
        Arm(name="dpo-east", set=dpo),
        Arm(name="sft-fast", set={"training.sft.learning_rate": 1e-5}),
        Arm(name="kto-east", set={"training.loss": "kto"}),
    )
    assert vanilla_arms(config) == {
        "sft-vanilla": "sft-vanilla",
        "sft-east": "sft-vanilla",
        "sft-lw": "sft-vanilla",
        "dpo-vanilla": "dpo-vanilla",
        "dpo-east": "dpo-vanilla",
        "sft-fast": "sft-vanilla",
    }


def test_arms_that_differ_in_their_seed_alone_are_one_row() -> None:
    arms = [
        Arm(name=f"{name}-seed{s}", set={**settings, "run.seed": s})
        for s in (0, 1, 2)
        for name, settings in (("vanilla", VANILLA), ("east", {}))
    ]
    assert seed_groups(config_with(*arms)) == {
        "vanilla": ("vanilla-seed0", "vanilla-seed1", "vanilla-seed2"),
        "east": ("east-seed0", "east-seed1", "east-seed2"),
    }
    swept = [Arm(name=f"seed={s}+exponent=1.0", set={"run.seed": s}) for s in (0, 1)]
    assert list(seed_groups(config_with(*swept))) == ["exponent=1.0"]


def test_seeds_are_paired_with_their_own_vanilla(tmp_path: Path) -> None:
    arms = [
        Arm(name=f"{name}-seed{s}", set={**settings, "run.seed": s})
        for s in (0, 1)
        for name, settings in (("vanilla", VANILLA), ("east", {}))
    ]
    run = make_run(tmp_path, arms=arms, num_train=8, num_test=150)
    config = from_dict(run.read_json("config.json"), "test")
    rows = {row.name: row for row in compare(run, config, at_round(config, read_measured(run, config, "evaluation")))}
    assert list(rows) == ["default", "vanilla", "east"]
    accuracy = {
        arm.name: run.read_json(f"round-00/arms/{arm.name}/evaluation/metrics.json")["overall"]["accuracy"]
        for arm in arms
    }
    assert rows["east"].accuracy == pytest.approx((accuracy["east-seed0"] + accuracy["east-seed1"]) / 2)
    assert rows["east"].to_vanilla is not None
    assert rows["east"].to_vanilla.estimate == pytest.approx(rows["east"].accuracy - rows["vanilla"].accuracy)
    assert rows["east"].to_vanilla.baseline == "vanilla"
    assert rows["vanilla"].to_vanilla is None


def test_holm_s_correction_covers_all_arms(tmp_path: Path) -> None:
    arms = [Arm(name="vanilla", set=VANILLA), *(Arm(name=f"a{a}", set={"weighting.exponent": a}) for a in (0.5, 1, 2))]
    run = make_run(tmp_path, arms=arms, num_train=8, num_test=300, gains={"a2": 0.5})
    config = from_dict(run.read_json("config.json"), "test")
    rows = compare(run, config, at_round(config, read_measured(run, config, "evaluation")))
    tested = [row.to_vanilla for row in rows if row.to_vanilla is not None]
    smallest = min(tested, key=lambda d: d.p_value)
    assert smallest.p_adjusted == pytest.approx(3 * smallest.p_value)
    assert all(d.p_value <= d.p_adjusted <= 1 for d in tested)


def test_different_questions_are_never_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=8, num_test=20)
    run.write_table(evaluated([CORRECT] * 5), "base", "evaluation", "eval.parquet")
    config = from_dict(run.read_json("config.json"), "test")
    with pytest.raises(UserError, match="different questions"):
        compare(run, config, at_round(config, read_measured(run, config, "evaluation")))


def row(name: str, accuracy: float, difference: float | None, p_value: float, detectable: float = 0.03) -> Comparison:
    def less(baseline: str, by: float) -> Difference:
        return Difference(baseline, by, by - 0.02, by + 0.02, p_value, p_value, 10, 5, detectable)

    to_default = None if name == "default" else less("default", accuracy - 0.1)
    to_vanilla = None if difference is None else less("vanilla", difference)
    return Comparison(name, (name,), 1000, accuracy, accuracy - 0.03, accuracy + 0.03, to_default, to_vanilla)


DEFAULT_ROW, VANILLA_ROW = row("default", 0.1, None, 1.0), row("vanilla", 0.4, None, 1e-9)


def test_a_difference_within_noise_is_called_just_that() -> None:
    verdict = describe([DEFAULT_ROW, VANILLA_ROW, row("east", 0.404, 0.004, 0.8, detectable=0.029)], 0.95)
    assert verdict.headline == "No significant difference between east and vanilla (+0.4 points)"
    assert verdict.sentences == (
        "vanilla: 10.0% → 40.0% (+30.0 points over the base model, 95% CI [+28.0, +32.0], p < 0.001).",
        "east − vanilla = +0.4 points, 95% CI [−1.6, +2.4]: not significant (minimum detectable effect 2.9 points).",
    )


def test_a_significant_loss_is_not_dressed_up() -> None:
    verdict = describe([DEFAULT_ROW, VANILLA_ROW, row("east", 0.35, -0.05, 1e-5)], 0.95)
    assert verdict.headline == "east falls behind vanilla by 5.0 points"
    assert verdict.sentences[1] == "east − vanilla = −5.0 points, 95% CI [−7.0, −3.0], p < 0.001."


def test_the_confidence_of_the_config_decides_what_counts_as_significant() -> None:
    rows = [DEFAULT_ROW, VANILLA_ROW, row("east", 0.44, 0.04, 0.03)]
    assert "beats" in describe(rows, 0.95).headline
    assert "No significant difference" in describe(rows, 0.99).headline
    assert "99% CI" in describe(rows, 0.99).sentences[1]


def test_arms_that_answer_alike_are_said_to() -> None:
    same = row("east", 0.4, 0.0, 1.0)
    assert same.to_vanilla is not None
    same = replace(same, to_vanilla=replace(same.to_vanilla, gained=0.0, lost=0.0))
    assert (
        "answer the same of 1,000 questions correctly" in describe([DEFAULT_ROW, VANILLA_ROW, same], 0.95).sentences[1]
    )


def test_many_arms_get_one_headline_and_no_winner_out_of_noise() -> None:
    rows = [DEFAULT_ROW, VANILLA_ROW, *(row(f"a{i}", 0.4, i / 1000, 0.5) for i in range(-3, 4))]
    verdict = describe(rows, 0.95)
    assert verdict.headline == "None of 7 weighted arms differs significantly from plain self-training"
    assert len(verdict.sentences) == 2
    mixed = [*rows, row("good", 0.5, 0.1, 1e-6), row("bad", 0.3, -0.1, 1e-6)]
    assert describe(mixed, 0.95).headline == "Of 9 weighted arms, 1 beats plain self-training and 1 falls behind"


def test_a_run_without_weighted_arms_says_what_training_did() -> None:
    assert describe([DEFAULT_ROW, VANILLA_ROW], 0.95).headline == "Training moved accuracy from 10.0% to 40.0%"
    unclear = describe([DEFAULT_ROW, row("vanilla", 0.11, None, 0.6)], 0.95)
    assert unclear.headline == "No significant difference to the base model (+1.0 points)"
    assert unclear.sentences[0].endswith("p = 0.6): not significant.")
    same = row("vanilla", 0.1, None, 1.0)
    assert same.to_default is not None
    same = replace(same, to_default=replace(same.to_default, gained=0.0, lost=0.0))
    assert "answers the same of 1,000 questions" in describe([DEFAULT_ROW, same], 0.95).sentences[0]
    alone = replace(VANILLA_ROW, to_default=None)
    assert describe([alone], 0.95).headline == "After training: 40.0% of 1,000 questions"


@pytest.mark.parametrize(("by", "words"), [(0.1, "beat"), (-0.1, "fall behind")])
def test_arms_that_all_differ_one_way_are_counted_together(by: float, words: str) -> None:
    rows = [DEFAULT_ROW, VANILLA_ROW, row("a", 0.4 + by, by, 1e-6), row("b", 0.4 + by, by, 1e-6)]
    assert describe(rows, 0.95).headline == f"2 of 2 weighted arms {words} plain self-training"


def test_questions_that_could_have_shown_nothing_are_said_to() -> None:
    few = row("east", 0.41, 0.01, 1.0, detectable=math.inf)
    assert "disagree on too few questions" in describe([DEFAULT_ROW, VANILLA_ROW, few], 0.95).sentences[1]
    others = [row(f"a{i}", 0.41, 0.01, 1.0, detectable=0.05) for i in range(3)]
    many = describe([DEFAULT_ROW, VANILLA_ROW, few, *others], 0.95)
    assert "minimum detectable effect 5.0 points or more" in many.sentences[1]


def test_what_the_test_questions_can_show_is_said_beforehand_and_grows_with_them() -> None:
    sizes = [
        [float(size) for size in re.findall(r"([\d.]+) points (?:on|if)", detectable_differences(n, 0.95))]
        for n in (1000, 4000)
    ]
    assert len(sizes[0]) == 4
    # Connor (1987): the smallest visible difference falls with the root of the number of questions.
    assert sizes[0] == pytest.approx([2 * size for size in sizes[1]], rel=0.1)
    assert detectable_differences(1, 0.95) == "1 test question: too few to show a difference"
    assert "on 30 test questions" in detectable_differences(30, 0.95)


def test_the_terminal_s_table_fits_eighty_columns_and_ends_with_the_verdict(tmp_path: Path) -> None:
    run = make_run(tmp_path, num_train=8, num_test=100)
    table = render_table(run)
    assert table is not None
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert re.search(r"default\s+\d+\.\d% \[\d+\.\d, \d+\.\d\]", text)
    assert "95% CI" in text


def test_there_is_no_table_before_anything_is_evaluated(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_json(config_with(Arm(name="east")).model_dump(mode="json"), "config.json")
    assert render_table(run) is None


def graded(correct: dict[str, int], n: int = 4) -> pa.Table:
    rows = [
        {
            "question_id": name,
            "num_samples": n,
            "num_correct": c,
            "cluster_sizes": [max(c, 1), n - max(c, 1)],
            "mean_tokens": 10.0 + c,
        }
        for name, c in correct.items()
    ]
    return pa.Table.from_pylist(rows)


def test_drift_counts_the_questions_that_move() -> None:
    before = graded({"a": 0, "b": 2, "c": 4, "d": 2, "gone": 1})
    after = graded({"a": 1, "b": 4, "c": 4, "d": 0, "new": 2})
    seen = drift.describe("east", 1, after, before)
    assert (seen.solved, seen.uncertain, seen.stuck) == (2, 2, 1)
    moved = {
        (drift.STATES[a], drift.STATES[b]): n for a, r in enumerate(seen.moved or ()) for b, n in enumerate(r) if n
    }
    assert moved == {
        ("stuck", "uncertain"): 1,
        ("uncertain", "solved"): 1,
        ("solved", "solved"): 1,
        ("uncertain", "stuck"): 1,
    }
    assert seen.pass_at_1 == pytest.approx((1 + 4 + 4 + 0 + 2) / 20)
    assert seen.pass_at_k == pytest.approx(4 / 5)
    assert seen.mean_tokens == pytest.approx(10 + 11 / 5)


def test_drift_follows_every_arm_from_the_round_they_share(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=3, num_train=40, num_test=10)
    config = from_dict(run.read_json("config.json"), "test")
    rows = drift.drift(run, config)
    assert [len(found) for found in rows.values()] == [3, 3]
    assert rows["vanilla"][0].solved == rows["east"][0].solved
    for found in rows.values():
        assert found[0].moved is None
        for a, b in itertools.pairwise(found):
            assert np.sum(b.moved or (), axis=1).tolist() == [a.solved, a.uncertain, a.stuck]
            assert np.sum(b.moved or (), axis=0).tolist() == [b.solved, b.uncertain, b.stuck]


def test_the_paper_s_own_averages_follow_from_the_numbers_kept_here() -> None:
    # Table 1's AVG columns, printed there to one decimal.
    printed = {
        "1B": {"default": 37.3, "sft": 40.6, "dpo": 40.8, "kto": 41.5},
        "8B": {"default": 66.6, "sft": 68.6, "dpo": 68.1, "kto": 68.1},
    }
    for size, averages in printed.items():
        columns = [column for column in paper.COLUMNS if size in column.model]
        assert np.mean([column.default for column in columns]) == pytest.approx(averages["default"], abs=0.051)
        for loss in ("sft", "dpo", "kto"):
            assert np.mean([c.accuracy(loss, "east") for c in columns]) == pytest.approx(averages[loss], abs=0.051)


def test_evaluating_two_models_with_one_engine_fills_their_directories(
    tmp_path: Path, tiny_model: Path, tiny_questions: Path, ray_session: None
) -> None:
    run = RunDirectory(str(tmp_path))
    questions = tiny_test_questions(tiny_model, tiny_questions, 24)
    run.write_table(questions, "questions", "test.parquet")
    settings = {
        "questions": "questions/test.parquet",
        "model": ModelConfig(path=str(tiny_model), dtype="float32"),
        "sampling": SamplingConfig(num_samples=64, max_new_tokens=80, kv_cache_gib=1),
        "grading": GradingConfig(),
        "evaluation": EvaluationConfig(num_samples=4),
        "seed": 0,
        "round_index": 0,
    }
    targets = {name: (str(tiny_model), f"{name}/evaluation") for name in ("default", "twin")}
    summaries = evaluate(run, targets, **settings)

    tables = [run.read_table(name, "evaluation", "eval.parquet") for name in targets]
    assert tables[0].equals(tables[1]), "the same weights answer the same greedily"
    assert tables[0].schema.equals(EVALUATIONS)
    assert tables[0]["question_id"].to_pylist() == questions["question_id"].to_pylist()
    completions = run.read_table("default", "evaluation/samples")["completions"].to_pylist()
    for row_, text in zip(tables[0].to_pylist(), completions, strict=True):
        reference = questions["reference"].to_pylist()[questions["question_id"].to_pylist().index(row_["question_id"])]
        assert row_["correct"] == text[0].rstrip().endswith(f"\\boxed{{{reference}}}")
    assert list(summaries["default"].pass_at_k) == ["1", "2", "4"]
    assert run.read_json("twin/evaluation/metrics.json")["overall"]["num_questions"] == 24

    assert evaluate(run, targets, **settings) == summaries, "a second call reuses what is there"


def tiny_test_questions(tiny_model: Path, tiny_questions: Path, count: int) -> pa.Table:
    from east_ray.config.sections import QuestionsConfig
    from east_ray.models import load_tokenizer
    from east_ray.questions.prompts import Prompts
    from east_ray.questions.questions import load_questions

    source = str(tiny_questions / "test.jsonl")
    rows = load_questions(source, QuestionsConfig(train=source), count)
    table = Prompts(
        load_tokenizer(ModelConfig(path=str(tiny_model))), QuestionsConfig(train="-", system_prompt="")
    ).render(rows)
    assert table.schema.equals(QUESTIONS)
    assert table["prompt_hash"][0].as_py() == prompt_hash(table["prompt_token_ids"][0].as_py())
    return table


def test_a_seed_groups_name_never_hides_another_arm(tmp_path: Path) -> None:
    arms = [
        Arm(name="east-seed0", set={"run.seed": 0}),
        Arm(name="east-seed1", set={"run.seed": 1}),
        Arm(name="east", set={"weighting.clip": 3.0}),
        Arm(name="default-seed0", set={"run.seed": 0, "weighting.exponent": 2}),
        Arm(name="default-seed1", set={"run.seed": 1, "weighting.exponent": 2}),
    ]
    assert seed_groups(config_with(*arms)) == {
        "east-seed0": ("east-seed0", "east-seed1"),
        "east": ("east",),
        "default-seed0": ("default-seed0", "default-seed1"),
    }
    run = make_run(tmp_path, num_train=40, num_test=50, arms=arms[:3])
    assert write_report(run).endswith("report.html")


def test_arms_of_other_rounds_and_equal_arms_are_no_seeds_of_each_other() -> None:
    arms = [Arm(name="east", rounds=1), Arm(name="east-long", rounds=3), Arm(name="vanilla", set=VANILLA)]
    assert list(seed_groups(config_with(*arms, run={"rounds": 3}))) == ["east", "east-long", "vanilla"]
    twice = [Arm(name="east"), Arm(name="again"), Arm(name="other", set={"run.seed": 7})]
    assert seed_groups(config_with(*twice)) == {"east": ("east", "other"), "again": ("again",)}


@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_seeds_are_as_sure_as_one_seed_even_at_0_and_at_100_percent(seeds: int) -> None:
    one, several = np.ones((1, 3), bool), np.ones((seeds, 3), bool)
    alone, pooled = (difference_of(right, ~right, "b", 0.95) for right in (one, several))
    assert pooled.p_value == pytest.approx(alone.p_value) == pytest.approx(0.25)
    assert (pooled.low, pooled.high) == pytest.approx((alone.low, alone.high))
    assert pooled.low <= 0
    assert pooled.high == 1
    assert pooled.detectable == math.inf


def test_no_interval_leaves_the_possible_differences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        arm, baseline = rng.random((2, 2, 3)) < rng.random()
        d = difference_of(arm, baseline, "b", 0.95)
        assert -1 <= d.low <= d.estimate <= d.high <= 1


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_difference_is_significant_exactly_where_its_interval_leaves_out_0(seeds: int) -> None:
    for gained in range(12):
        for lost in range(12):
            arm, baseline = np.zeros((2, seeds, 300), bool)
            arm[:, :gained] = baseline[:, gained : gained + lost] = True
            d = difference_of(arm, baseline, "b", 0.95)
            assert (d.p_value < 0.05) == (d.low > 0 or d.high < 0)


def test_a_comparison_with_other_settings_names_them(tmp_path: Path) -> None:
    fast = {"training.sft.learning_rate": 1e-3, "training.epochs": 10.0}
    arms = [Arm(name="vanilla", set=VANILLA), Arm(name="east", set=fast)]
    run = make_run(tmp_path, num_train=40, num_test=200, gains={"vanilla": 0.05, "east": 0.4}, arms=arms)
    config = from_dict(run.read_json("config.json"), "test")
    rows = compare(run, config, at_round(config, read_measured(run, config, "evaluation")))
    differs = rows[-1].to_vanilla
    assert differs is not None
    assert differs.differs == (
        "training.epochs 10.0 (vanilla: 3.0)",
        "training.sft.learning_rate 0.001 (vanilla: 2e-06)",
    )
    summary = describe(rows, 0.95)
    assert summary.headline.endswith("with other training settings")
    assert "training.epochs 10.0 (vanilla: 3.0)" in summary.sentences[-1]


def test_the_vanilla_arm_of_equal_settings_is_preferred() -> None:
    fast = {"training.epochs": 10.0}
    arms = [
        Arm(name="vanilla", set=VANILLA),
        Arm(name="fast-vanilla", set=VANILLA | fast),
        Arm(name="fast-east", set=fast),
    ]
    assert vanilla_arms(config_with(*arms))["fast-east"] == "fast-vanilla"


def test_a_detectable_effect_grows_with_the_number_of_comparisons(tmp_path: Path) -> None:
    arms = [Arm(name="vanilla", set=VANILLA), *(Arm(name=f"a{a}", set={"weighting.exponent": a}) for a in (0.5, 1, 2))]
    run = make_run(tmp_path, arms=arms, num_train=8, num_test=300)
    config = from_dict(run.read_json("config.json"), "test")
    rows = compare(run, config, at_round(config, read_measured(run, config, "evaluation")))
    for row in rows:
        if (d := row.to_vanilla) is not None:
            alone = minimum_detectable_effect(300, (d.gained + d.lost) / 300)
            assert d.comparisons == 3
            assert d.detectable > alone


def test_pass_at_k_of_the_drift_is_over_all_questions() -> None:
    counts = {"num_samples": [16] * 90 + [64] * 10, "num_correct": [16] * 90 + [0] * 10}
    table = pa.table(
        {
            "question_id": [str(i) for i in range(100)],
            **counts,
            "cluster_sizes": [[n] for n in counts["num_samples"]],
            "mean_tokens": [10.0] * 100,
        }
    )
    found = drift.describe("a", 0, table, None)
    assert (found.k, found.pass_at_1, found.pass_at_k) == (16, pytest.approx(0.9), pytest.approx(0.9))


def test_seeds_without_a_vanilla_arm_of_their_own_are_said_to_be_not_compared(tmp_path: Path) -> None:
    arms = [Arm(name="vanilla", set=VANILLA), *(Arm(name=f"east-seed{s}", set={"run.seed": s}) for s in (0, 1, 2))]
    run = make_run(tmp_path, num_train=8, num_test=60, arms=arms)
    config = from_dict(run.read_json("config.json"), "test")
    rows = compare(run, config, at_round(config, read_measured(run, config, "evaluation")))
    assert rows[-1].to_vanilla is None
    assert rows[-1].unpaired == ("east-seed1", "east-seed2")
    assert "no vanilla arm has the seed of east-seed1, east-seed2" in describe(rows, 0.95).sentences[-1]
