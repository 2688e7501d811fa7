"""Statistics against published values, brute force and simulation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from east_ray.evaluation.statistics import (
    combine_seeds,
    holm,
    maj_at_k,
    mcnemar_exact,
    minimum_detectable_effect,
    paired_bootstrap,
    pass_at_k,
    wilson_interval,
)


def test_wilson_interval_equals_newcombes_published_example() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_equals_scipys(successes: int, total: int, confidence: float) -> None:
    successes = min(successes, total)
    ours = wilson_interval(successes, total, confidence)
    theirs = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_interval_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_mcnemar_equals_a_hand_count() -> None:
    # 1 lost and 9 gained: 2 * (C(10,0) + C(10,1)) / 2^10.
    assert mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_exact(1, 9) == pytest.approx(22 / 1024)


def test_mcnemar_without_or_with_balanced_disagreement_is_one() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(6, 6) == 1.0


def test_holm_equals_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_minimum_detectable_effect_has_the_power_it_promises() -> None:
    questions, discordant = 1319, 0.2
    effect = minimum_detectable_effect(questions, discordant)
    rng = np.random.default_rng(0)
    gained, lost, _ = rng.multinomial(
        questions, [(discordant + effect) / 2, (discordant - effect) / 2, 1 - discordant], size=20_000
    ).T
    # The normal test the formula is for; McNemar's exact test is a little more cautious.
    shown = np.abs(gained - lost) > stats.norm.ppf(0.975) * np.sqrt(gained + lost)
    assert shown.mean() == pytest.approx(0.8, abs=0.02)


def test_minimum_detectable_effect_is_infinite_when_nothing_could_show() -> None:
    assert minimum_detectable_effect(10, 0.1) == math.inf
    assert minimum_detectable_effect(1000, 0.0) == math.inf


def test_paired_bootstrap_agrees_with_the_normal_interval_on_many_questions() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(5000) < 0.55, rng.random(5000) < 0.5
    interval = paired_bootstrap(first, second)
    difference = first.astype(float) - second
    half = 1.96 * difference.std() / math.sqrt(5000)
    assert interval.estimate == pytest.approx(difference.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (difference.mean() - half, difference.mean() + half), abs=1e-3
    )


def test_paired_bootstrap_depends_on_the_seed_and_not_on_the_order_of_questions() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(200), rng.random(200)
    order = rng.permutation(200)
    assert paired_bootstrap(first, second, seed=5) == paired_bootstrap(first[order], second[order], seed=5)
    assert paired_bootstrap(first, second, seed=5).low != paired_bootstrap(first, second, seed=6).low


def test_paired_bootstrap_of_equal_models_is_exactly_zero() -> None:
    same = np.array([True, False, True])
    assert paired_bootstrap(same, same) == paired_bootstrap(~same, ~same)
    assert paired_bootstrap(same, same).high == 0.0


def test_paired_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        both, first_only, second_only = 0.4, 0.12, 0.08
        kind = rng.choice(4, size=300, p=[both, first_only, second_only, 1 - both - first_only - second_only])
        interval = paired_bootstrap(kind <= 1, (kind == 0) | (kind == 2), confidence=0.9, resamples=500)
        covered += interval.low <= first_only - second_only <= interval.high
    assert 0.85 <= covered / 300 <= 0.95


def test_combining_seeds_covers_the_truth_when_seeds_differ() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        effects = 0.03 * rng.standard_normal((4, 1)) + 0.1 * rng.standard_normal((1, 100))
        covered += (i := combine_seeds(0.02 + effects + 0.3 * rng.standard_normal((4, 100)))).low <= 0.02 <= i.high
    assert 0.9 <= covered / 400 <= 0.99


def test_one_seed_gives_the_ordinary_t_interval_over_questions() -> None:
    difference = np.random.default_rng(0).standard_normal(50)
    interval = combine_seeds(difference[None, :])
    expected = stats.t.interval(0.95, 49, loc=difference.mean(), scale=difference.std(ddof=1) / math.sqrt(50))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_one_question_says_nothing_about_others() -> None:
    assert combine_seeds(np.array([[1.0], [0.0]])).high == math.inf


def test_identical_seeds_that_all_agree_leave_no_interval() -> None:
    interval = combine_seeds(np.full((3, 10), 0.25))
    assert (interval.low, interval.high) == pytest.approx((0.25, 0.25))


@given(st.integers(1, 12), st.data())
def test_pass_at_k_equals_counting_all_draws(total: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, total)), data.draw(st.integers(1, total))
    draws = list(itertools.combinations([True] * correct + [False] * (total - correct), k))
    assert pass_at_k(total, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_takes_a_column_and_refuses_too_few_completions() -> None:
    assert pass_at_k(4, np.array([0, 1, 4]), 2) == pytest.approx([0, 0.5, 1])
    with pytest.raises(ValueError, match="pass@8 needs 8"):
        pass_at_k(np.array([16, 4]), np.array([1, 1]), 8)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=5), st.integers(0, 2), st.data())
def test_maj_at_k_equals_counting_all_draws_with_ties_shared(
    clusters: list[tuple[int, bool]], abstentions: int, data: st.DataObject
) -> None:
    sizes, correct = zip(*clusters, strict=True)
    k = data.draw(st.integers(1, min(sum(sizes) + abstentions, 6)))
    assert maj_at_k(sizes, correct, k, abstentions) == pytest.approx(
        _majority(sizes, correct, k, abstentions), abs=1e-12
    )


def test_maj_at_one_is_the_share_of_correct_completions() -> None:
    assert maj_at_k([60, 40, 20], [False, True, False], 1, abstentions=8) == pytest.approx(40 / 128)


def test_maj_at_n_is_the_vote_itself() -> None:
    assert maj_at_k([70, 58], [True, False], 128) == pytest.approx(1)
    assert maj_at_k([64, 64], [True, False], 128) == pytest.approx(0.5)
    assert maj_at_k([70, 58], [False, True], 128) == pytest.approx(0, abs=1e-12)


def test_maj_at_k_refuses_more_votes_than_completions() -> None:
    with pytest.raises(ValueError, match="maj@5"):
        maj_at_k([3], [True], 5, abstentions=1)


def _majority(sizes: Sequence[int], correct: Sequence[bool], k: int, abstentions: int) -> float:
    votes = [i for i, size in enumerate(sizes) for _ in range(size)] + [-1] * abstentions
    won = total = 0.0
    for draw in itertools.combinations(votes, k):
        counts = Counter(vote for vote in draw if vote >= 0)
        winners = [i for i, count in counts.items() if count == max(counts.values())]
        won += sum(correct[i] for i in winners) / max(len(winners), 1)
        total += 1
    return won / total
