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
    accuracy_interval,
    holm,
    maj_at_k,
    mean_over_seeds,
    minimum_detectable_effect,
    paired_difference,
    pass_at_k,
    sign_flip_p,
)


def answers(successes: int, total: int, seeds: int = 1) -> np.ndarray:
    return np.tile(np.arange(total) < successes, (seeds, 1))


def differences(gained: int, lost: int, total: int, seeds: int = 1) -> np.ndarray:
    return np.tile(np.repeat([1.0, -1.0, 0.0], [gained, lost, total - gained - lost]), (seeds, 1))


def test_the_interval_of_one_seed_equals_newcombes_published_example_of_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    assert accuracy_interval(answers(81, 263)) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert accuracy_interval(answers(0, 20)) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_of_one_seed_equals_scipys(successes: int, total: int, confidence: float) -> None:
    successes = min(successes, total)
    theirs = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
    assert accuracy_interval(answers(successes, total), confidence) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


def test_the_interval_of_no_questions_says_nothing() -> None:
    assert accuracy_interval(answers(0, 0)) == (0.0, 1.0)


@pytest.mark.parametrize("successes", [0, 40, 194, 200])
def test_equal_seeds_are_as_sure_of_an_accuracy_as_one_seed(successes: int) -> None:
    one, three = accuracy_interval(answers(successes, 200)), accuracy_interval(answers(successes, 200, seeds=3))
    assert three == pytest.approx(one, abs=1e-3)
    assert three[1] - three[0] >= one[1] - one[0]


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_exact_test_of_one_seed_is_mcnemars(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert sign_flip_p(differences(gained, lost, 100)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_equals_a_hand_count() -> None:
    # 1 lost and 9 gained: 2 * (C(10,0) + C(10,1)) / 2^10.
    assert sign_flip_p(differences(9, 1, 20)) == pytest.approx(22 / 1024)
    assert sign_flip_p(differences(1, 9, 20)) == pytest.approx(22 / 1024)


@settings(max_examples=30)
@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_the_exact_test_of_several_seeds_equals_flipping_every_questions_sign(rows: list[list[float]]) -> None:
    difference_S_Q = np.array(rows).T
    means = difference_S_Q.mean(axis=0)
    flipped = [abs(np.dot(signs, means)) for signs in itertools.product([1, -1], repeat=len(means))]
    expected = np.mean([total >= abs(means.sum()) - 1e-9 for total in flipped])
    assert sign_flip_p(difference_S_Q) == pytest.approx(expected)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (12, 4), (30, 25)])
def test_a_paired_difference_of_one_seed_is_bonett_and_prices(gained: int, lost: int) -> None:
    # Bonett and Price 2012: (f12 - f21) / (n + 2), with variance (p12 + p21 - (p12 - p21)^2) / (n + 2).
    n, found = 400, paired_difference(differences(gained, lost, 400))
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    assert found.mean == pytest.approx(p12 - p21)
    standard_error = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert found.half_width(0.95) == pytest.approx(stats.t.ppf(0.975, n + 1) * standard_error, rel=0.002)


def test_equal_seeds_are_as_sure_of_a_difference_as_one_seed() -> None:
    for gained, lost in ((0, 0), (3, 0), (20, 9)):
        one, three = (paired_difference(differences(gained, lost, 100, seeds)) for seeds in (1, 3))
        assert (three.mean, three.half_width(0.95)) == pytest.approx((one.mean, one.half_width(0.95)))
        assert sign_flip_p(differences(gained, lost, 100, 3)) == pytest.approx(
            sign_flip_p(differences(gained, lost, 100))
        )


def test_two_seeds_that_differ_in_one_answer_still_know_their_accuracy_to_some_points() -> None:
    correct_S_Q = np.ones((2, 50), dtype=bool)
    one_seed = accuracy_interval(correct_S_Q[:1])
    correct_S_Q[1, 0] = False
    low, high = accuracy_interval(correct_S_Q)
    assert 0.8 < low < one_seed[0]
    assert high == 1.0


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


def test_a_mean_over_seeds_covers_the_truth_when_seeds_differ() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        effects = 0.03 * rng.standard_normal((4, 1)) + 0.1 * rng.standard_normal((1, 100))
        found = mean_over_seeds(0.02 + effects + 0.3 * rng.standard_normal((4, 100)))
        covered += abs(found.mean - 0.02) <= found.half_width(0.95)
    assert 0.9 <= covered / 400 <= 0.99


def test_one_seed_gives_the_ordinary_t_interval_and_test_over_questions() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    found = mean_over_seeds(values[None, :])
    low, high = stats.t.interval(0.95, 49, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(50))
    assert (found.mean - found.half_width(0.95), found.mean + found.half_width(0.95)) == pytest.approx((low, high))
    assert found.p_value() == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_a_p_value_is_where_the_interval_begins_to_leave_out_0(seed: int, seeds: int) -> None:
    found = mean_over_seeds(np.random.default_rng(seed).standard_normal((seeds, 20)))
    assert found.half_width(1 - found.p_value()) == pytest.approx(abs(found.mean), rel=1e-6)


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
