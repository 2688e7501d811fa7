"""Was n enough: subsamples and reliability on answers whose distribution is known."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from east_ray.analysis.subsamples import GradedArrays, gather, rank_correlation, top_overlap
from east_ray.analysis.sufficiency import Sufficiency, assess, sufficiency
from east_ray.config.load import from_dict
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.mappings import entropy
from tests.support.graded import grades_row, write_questions, write_shards


def questions(count: int, num_samples: int, seed: int = 0) -> list[dict]:
    """Graded questions whose answers come from Dirichlet shares over a right and five wrong answers."""
    rng = np.random.default_rng(seed)
    names = ["gold", *"abcde"]
    shares = rng.dirichlet(np.full(6, 0.5), size=count)
    return [grades_row(f"q{i}", rng.choice(names, size=num_samples, p=p).tolist()) for i, p in enumerate(shares)]


def assessed(rows: list[dict]) -> Sufficiency:
    return assess(gather(rows), "mixed")


def test_a_part_counts_what_a_loop_would_count() -> None:
    rows = [grades_row("a", ["gold", "x", "gold", None, "x"]), grades_row("b", ["y", "gold"])]
    drawn = gather(rows)
    assert drawn.counts().sum(axis=1).tolist() == [5, 2]
    assert sorted(drawn.counts()[0].tolist()) == [1, 2, 2]
    part = drawn.part(1, 4)
    assert part.total_Q.tolist() == [3, 1]
    assert sorted(part.counts()[0].tolist()) == [1, 1, 1]
    assert part.kept("mixed").tolist() == [True, False]
    assert part.kept("solved").tolist() == [True, True]
    assert drawn.part(3, 5).total_Q.tolist() == [2, 0]
    assert drawn.part(3, 5).entropy() == pytest.approx([np.log(2), 0])
    assert drawn.entropy() == pytest.approx([entropy([2, 2, 1]), entropy([1, 1])])


def test_shuffling_keeps_every_questions_completions_and_leaves_the_padding_at_the_end() -> None:
    drawn = gather([*questions(30, 20), grades_row("short", ["gold", "x", None])])
    shuffled = drawn.shuffled(np.random.default_rng(0))
    assert (shuffled.counts() == drawn.counts()).all()
    assert (shuffled.cluster_Q_N[-1, 3:] == -1).all()
    assert (shuffled.cluster_Q_N != drawn.cluster_Q_N).any()


def test_ignored_completions_belong_to_no_cluster() -> None:
    row = {**grades_row("a", ["gold", "x", None]), "clusters": [0, 1, -1]}
    assert gather([row]).counts().tolist() == [[1, 1]]


def test_subsamples_agree_more_the_larger_they_are() -> None:
    found = assessed(questions(200, 128))
    assert [point.num_samples for point in found.curve] == [4, 8, 16, 32, 64]
    for name in ("rank_correlation", "top_overlap", "still_kept", "bias"):
        values = [getattr(point, name) for point in found.curve]
        assert values == sorted(values), name
    assert found.curve[-1].rank_correlation > 0.94


def test_reliability_is_the_agreement_with_another_run_on_the_same_questions() -> None:
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.full(6, 0.5), size=400)
    names = ["gold", *"abcde"]
    runs = []
    for _ in range(2):
        runs.append([grades_row(f"q{i}", rng.choice(names, 64, p=p).tolist()) for i, p in enumerate(shares)])
    first, second = (gather(rows) for rows in runs)
    kept = first.kept("mixed")
    truth = stats.spearmanr(first.where(kept).entropy(), second.where(kept).entropy()).statistic
    assert assessed(runs[0]).reliability == pytest.approx(truth, abs=0.03)


def test_the_advice_names_the_smallest_number_that_ranks_almost_as_well() -> None:
    found = assessed(questions(200, 128))
    good = next(point for point in found.curve if point.rank_correlation >= 0.95)
    assert found.advice.startswith(f"{good.num_samples} samples would rank questions almost as well")
    assert f"{128 // good.num_samples}x less sampling" in found.advice


def test_when_no_smaller_number_would_do_the_advice_says_so() -> None:
    assert assessed(questions(100, 6)).advice.startswith("Keep n = 6 or draw more")


def test_too_little_to_divide_is_an_error() -> None:
    with pytest.raises(UserError, match="too few"):
        assessed(questions(50, 4))
    with pytest.raises(UserError, match="too few"):
        assessed([grades_row(f"q{i}", ["gold"] * 20) for i in range(50)])


def make_run(directory: Path, in_test: Sequence[str] = ()) -> RunDirectory:
    run, rows = RunDirectory(str(directory)), questions(60, 32)
    write_shards(run, "round-00/grades", rows, 16)
    write_questions(run, [row["question_id"] for row in rows], in_test=in_test)
    config = from_dict({"model": {"path": "m"}, "questions": {"train": "t"}, "sampling": {"num_samples": 32}}, "test")
    run.write_json(config.model_dump(mode="json"), "config.json")
    return run


def test_a_run_gets_a_table_and_a_figure_with_its_numbers(tmp_path: Path) -> None:
    found = sufficiency(make_run(tmp_path))
    text = found.render()
    assert "kept questions with 32 completions each" in text
    assert text.splitlines()[-1] == f"Figure: {tmp_path}/report/sufficiency.png"
    assert (tmp_path / "report/sufficiency.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "report/sufficiency.csv").open()))
    assert [int(row["num_samples"]) for row in rows] == [4, 8, 16]
    assert [float(row["bias"]) for row in rows] == pytest.approx([point.bias for point in found.curve])


def test_questions_that_the_run_excludes_are_not_counted(tmp_path: Path) -> None:
    everything = sufficiency(make_run(tmp_path / "a")).questions
    excluded = [f"q{i}" for i in range(30)]
    kept = gather(questions(60, 32)).kept("mixed")
    assert everything == kept.sum()
    assert sufficiency(make_run(tmp_path / "b", in_test=excluded)).questions == kept[30:].sum()


def test_reliability_stays_within_0_and_1_and_constant_subsamples_have_no_rank_correlation() -> None:
    # One wrong answer of 64 each, but one question with two: halves anticorrelate by construction.
    rows = [grades_row(f"q{i}", ["gold"] * (63 - (i == 0)) + ["x"] * (1 + (i == 0))) for i in range(12)]
    found = assessed(rows)
    assert found.reliability == 0
    assert all(math.isnan(p.rank_correlation) or -1 <= p.rank_correlation <= 1 for p in found.curve)
    assert math.isnan(rank_correlation(np.zeros(5), np.arange(5.0)))
    assert "samples would rank" not in found.advice


def test_the_top_overlap_is_of_the_largest_tenth() -> None:
    values = np.arange(30.0)
    assert top_overlap(values, values) == 1
    assert top_overlap(-values, values) == 0
    assert top_overlap(np.array([*range(28), 0, 0.0]), values) == pytest.approx(1 / 3)


def test_a_run_without_grades_says_which_command_comes_first(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    config = from_dict({"model": {"path": "m"}, "questions": {"train": "t"}}, "test")
    run.write_json(config.model_dump(mode="json"), "config.json")
    with pytest.raises(UserError, match="east-ray verify"):
        sufficiency(run)


def test_only_chosen_questions_stay(tmp_path: Path) -> None:
    drawn = gather(questions(5, 8))
    kept: GradedArrays = drawn.where(np.array([True, False, True, False, False]))
    assert kept.ids == ["q0", "q2"]
    assert kept.entropy().tolist() == drawn.entropy()[[0, 2]].tolist()
