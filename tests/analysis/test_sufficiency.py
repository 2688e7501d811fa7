"""Was n enough: subsamples, intervals and adaptive sampling on answers whose distribution is known."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from east_ray.analysis.subsamples import GradedArrays, entropy_intervals, gather
from east_ray.analysis.sufficiency import Sufficiency, assess, sufficiency
from east_ray.config.load import from_dict
from east_ray.config.sections import AdaptiveConfig
from east_ray.records import UserError
from east_ray.rollouts.adaptive import interval_widths, levels, wanted_samples
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.mappings import entropy
from tests.support.graded import grades_row, write_shards

LIMITS = {"min_samples": 16, "max_samples": 128, "width": 0.6}


def questions(count: int, num_samples: int, seed: int = 0) -> list[dict]:
    """Graded questions whose answers come from Dirichlet shares over a right and five wrong answers."""
    rng = np.random.default_rng(seed)
    names = ["gold", *"abcde"]
    shares = rng.dirichlet(np.full(6, 0.5), size=count)
    return [grades_row(f"q{i}", rng.choice(names, size=num_samples, p=p).tolist()) for i, p in enumerate(shares)]


def assessed(rows: list[dict], adaptive: AdaptiveConfig | None = None) -> Sufficiency:
    return assess(gather(rows), "mixed", adaptive or AdaptiveConfig())


def test_a_part_counts_what_a_loop_would_count() -> None:
    rows = [grades_row("a", ["gold", "x", "gold", None, "x"]), grades_row("b", ["y", "gold"])]
    drawn = gather(rows)
    assert drawn.counts().sum(axis=1).tolist() == [5, 2]
    assert sorted(drawn.counts()[0].tolist()) == [1, 2, 2]
    part = drawn.part(1, np.array([4, 2]))
    assert part.total_Q.tolist() == [3, 1]
    assert sorted(part.counts()[0].tolist()) == [1, 1, 1]
    assert part.kept("mixed").tolist() == [True, False]
    assert part.kept("solved").tolist() == [True, True]
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
    for name in ("rank_correlation", "rank_correlation_corrected", "top_overlap", "still_kept", "bias"):
        values = [getattr(point, name) for point in found.curve]
        assert values == sorted(values), name
    assert found.curve[-1].rank_correlation > 0.94
    assert all(abs(point.bias_corrected) < abs(point.bias) for point in found.curve)


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


@pytest.mark.parametrize("shares", [[0.97, 0.03], [0.8, 0.1, 0.05, 0.05], [0.5, 0.5], [1 / 8] * 8])
def test_bootstrap_intervals_cover_the_true_entropy(shares: list[float]) -> None:
    counts = np.random.default_rng(0).multinomial(128, shares, size=300)
    low, high = entropy_intervals(counts)
    truth = stats.entropy(shares)
    assert ((low <= truth) & (truth <= high)).mean() > 0.9
    assert (high - low).mean() < 0.5


def test_a_unanimous_question_has_an_interval_too() -> None:
    (low,), (high,) = entropy_intervals(np.array([[16, 0]]))
    assert low == 0
    assert 0.1 < high < 1


@pytest.mark.parametrize("counts", [[60, 40, 20, 8], [16], [8, 8], [30, 2]])
def test_the_width_is_that_of_resampled_entropies_and_twice_their_bias(counts: list[int]) -> None:
    total = sum(counts)
    widened = np.array([*counts, 1]) / (total + 1)
    surprise = -np.log(np.random.default_rng(1).choice(widened, size=(20_000, total), p=widened))
    expected = 2 * 1.96 * surprise.mean(axis=1).std() + (len(counts) - 1) / total
    assert interval_widths(np.array([counts]))[0] == pytest.approx(expected, rel=0.03)


def test_answers_that_all_differ_are_not_certain() -> None:
    few, many = interval_widths(np.array([[1] * 16, [16] + [0] * 15]))
    assert few > many


def test_widths_do_not_depend_on_the_order_of_clusters_or_on_padding() -> None:
    counts = np.array([[5, 0, 3, 0, 1], [1, 3, 5, 0, 0]])
    widths = interval_widths(counts)
    assert widths[0] == widths[1] == interval_widths(np.array([[5, 3, 1]]))[0]
    assert math.isinf(interval_widths(np.zeros((1, 3)))[0])


def test_levels_double_from_the_fewest_to_the_most() -> None:
    assert levels(16, 128) == [16, 32, 64, 128]
    assert levels(16, 100) == [16, 32, 64, 100]
    assert levels(16, 8) == [8]


def test_more_is_drawn_only_where_the_interval_is_wide() -> None:
    counts = np.array([[0, 0], [120, 8], [30, 2], [9, 7], [64, 64]])
    drawn = np.array([0, 128, 32, 16, 128])
    # By hand: 2 * 1.96 * sqrt(var(-ln p) / n) of 30 : 2 : 1 is 0.589 and of 9 : 7 : 1 it is 0.496; then 1 / n each.
    assert interval_widths(counts[2:4]) == pytest.approx([0.589464 + 1 / 32, 0.495672 + 1 / 16], abs=1e-6)
    assert wanted_samples(counts, drawn, **LIMITS).tolist() == [16, 128, 64, 16, 128]
    assert wanted_samples(counts, drawn, **{**LIMITS, "width": 1e9}).tolist() == [16, 128, 32, 16, 128]
    assert wanted_samples(counts, drawn, **{**LIMITS, "width": 1e-9}).tolist() == [16, 128, 64, 32, 128]


def test_the_replay_draws_a_prefix_and_saves_samples() -> None:
    rows = questions(150, 128)
    found = assessed(rows, AdaptiveConfig(min_samples=16, width=0.5)).replay
    assert 16 < found.mean_samples < 128
    assert found.saving == pytest.approx(128 / found.mean_samples, rel=0.01)
    everything = assessed(rows, AdaptiveConfig(min_samples=16, width=1e-9)).replay
    assert (everything.mean_samples, everything.rank_correlation, everything.weight_change) == (
        128,
        pytest.approx(1),
        0,
    )


def test_a_run_gets_a_table_a_figure_and_the_intervals_of_its_questions(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    write_shards(run, "round-00/grades", questions(60, 32), 16)
    config = from_dict({"model": {"path": "m"}, "questions": {"train": "t"}, "sampling": {"num_samples": 32}}, "test")
    run.write_json(config.model_dump(mode="json"), "config.json")
    text = sufficiency(run).render()
    assert "kept questions with 32 completions each" in text
    assert text.splitlines()[-1] == f"Figure: {tmp_path}/report/sufficiency.png"
    assert (tmp_path / "report/sufficiency.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "report/entropy_intervals.csv").open()))
    assert len(rows) == 60
    assert all(float(row["low"]) <= float(row["high"]) for row in rows)


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
