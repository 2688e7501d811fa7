"""Measures and mappings: the paper's equations against other libraries, and their promised properties for any input."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from east_ray.weighting.mappings import (
    MappingTotals,
    MeasureBlock,
    WeightMapping,
    effective_sample_size,
    entropies,
    entropy,
    fit,
    totals_of,
    weights,
)

SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=30)
PAPER_EXPONENTS = (-3, -2.5, -2, -1.5, -1.25, -1, -0.5, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 2.5, 3)
VALUES = st.lists(st.floats(1e-6, 10), min_size=1, max_size=60).map(np.array)


@given(SIZES)
def test_entropy_equals_scipys(sizes: list[int]) -> None:
    assert entropy(sizes) == pytest.approx(stats.entropy(sizes), abs=1e-12)


@given(SIZES, st.randoms())
def test_entropy_has_the_same_bits_in_any_order_of_clusters(sizes: list[int], random: object) -> None:
    shuffled = list(sizes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert entropy(shuffled) == entropy(sizes)


def test_entropy_of_one_cluster_is_exactly_zero_and_of_k_equal_ones_ln_k() -> None:
    assert [entropy([n]) for n in (1, 3, 7, 49, 128)] == [0.0] * 5
    assert entropy([4] * 8) == pytest.approx(math.log(8), abs=1e-15)
    assert entropy([]) == 0.0


@given(st.lists(st.lists(st.integers(1, 50), max_size=8), min_size=1, max_size=20))
def test_entropies_of_many_questions_equal_each_ones_own(questions: list[list[int]]) -> None:
    flat = np.array([size for sizes in questions for size in sizes], dtype=np.int64)
    offsets = np.cumsum([0, *(len(sizes) for sizes in questions)])
    assert entropies(flat, offsets).tolist() == [entropy(sizes) for sizes in questions]


@given(VALUES, st.sampled_from(PAPER_EXPONENTS))
def test_power_weights_equal_the_equation_and_have_mean_one(values: np.ndarray, exponent: float) -> None:
    found = weights(values, WeightMapping(exponent=exponent))
    exact = [Fraction(float(v)) for v in values]
    if exponent == int(exponent):  # eq. 6 in rational arithmetic
        powers = [v ** int(exponent) for v in exact]
        expected = [float(p * len(powers) / sum(powers)) for p in powers]
        assert found == pytest.approx(expected, rel=1e-12)
    assert abs(math.fsum(found) / len(found) - 1) < 1e-12
    assert (found >= 0).all()


@given(VALUES)
def test_mean_division_equals_power_one_bit_for_bit(values: np.ndarray) -> None:
    assert (
        weights(values, WeightMapping(mapping="mean")).tolist() == weights(values, WeightMapping(exponent=1)).tolist()
    )
    assert weights(values, WeightMapping(mapping="mean")) == pytest.approx(values / values.mean(), rel=1e-12)


@given(VALUES, st.floats(0.05, 20), st.sampled_from(PAPER_EXPONENTS))
def test_weights_do_not_depend_on_the_base_of_the_logarithm(values: np.ndarray, factor: float, exponent: float) -> None:
    mapping = WeightMapping(exponent=exponent)
    assert weights(values * factor, mapping) == pytest.approx(weights(values, mapping), rel=1e-11)


@given(st.lists(st.floats(0, 10), min_size=1).map(np.array))
def test_exponent_zero_gives_ones_even_for_questions_without_uncertainty(values: np.ndarray) -> None:
    assert weights(values, WeightMapping(exponent=0)).tolist() == [1.0] * len(values)


@given(st.floats(1e-6, 10), st.integers(1, 50), st.floats(-3, 3), st.sampled_from(["power", "mean", "linear"]))
def test_equal_uncertainty_gives_exactly_ones(value: float, count: int, exponent: float, mapping: str) -> None:
    chosen = WeightMapping("entropy", mapping, exponent, 0.5 if mapping == "linear" else None)
    assert weights(np.full(count, value), chosen).tolist() == [1.0] * count


@given(VALUES, st.sampled_from([*PAPER_EXPONENTS, 0, None]), st.integers(1, 7), st.randoms())
def test_blocks_in_any_order_give_the_same_weights_to_a_billionth(
    values: np.ndarray, exponent: float | None, blocks: int, random: object
) -> None:
    mapping = WeightMapping(mapping="linear", range=0.1) if exponent is None else WeightMapping(exponent=exponent)
    shuffled = values.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    pieces = [totals_of(MeasureBlock.of(piece), mapping) for piece in np.array_split(shuffled, blocks)]
    found = fit(sum(pieces, MappingTotals()), mapping).weights(MeasureBlock.of(values))
    assert found == pytest.approx(weights(values, mapping), rel=1e-9)
    assert abs(math.fsum(found) / len(found) - 1) < 1e-9


def test_twenty_thousand_shards_keep_the_mean_at_one_to_a_billionth() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.5, 1_000_000) + 0.03
    for exponent in (-3, 1, 3):
        mapping = WeightMapping(exponent=exponent)
        totals = sum(
            (totals_of(MeasureBlock.of(shard), mapping) for shard in np.array_split(values, 20_000)), MappingTotals()
        )
        found = fit(totals, mapping).weights(MeasureBlock.of(values))
        assert abs(math.fsum(found) / len(found) - 1) < 1e-9


@pytest.mark.parametrize("size", [10, 1000, 100_000])
@pytest.mark.parametrize("exponent", PAPER_EXPONENTS)
def test_mean_is_one_to_a_billionth_at_any_size(size: int, exponent: float) -> None:
    values = np.random.default_rng(size).gamma(2.0, 0.5, size) + 0.03
    assert abs(math.fsum(weights(values, WeightMapping(exponent=exponent))) / size - 1) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [-3, -0.5, 0.7, 3])
def test_mean_is_one_to_a_billionth_over_ten_million_questions(exponent: float) -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.5, 10_000_000) + 0.03
    assert abs(math.fsum(weights(values, WeightMapping(exponent=exponent))) / len(values) - 1) < 1e-9


def test_extreme_values_neither_overflow_nor_lose_the_mean() -> None:
    values = np.array([1e-300, 1.0, 1e300])
    assert weights(values, WeightMapping(exponent=3)) == pytest.approx([0.0, 0.0, 3.0], abs=1e-300, rel=1e-11)
    assert weights(values, WeightMapping(exponent=-10)) == pytest.approx([3.0, 0.0, 0.0], abs=1e-300, rel=1e-11)


def test_no_uncertainty_weighs_nothing_under_a_positive_exponent() -> None:
    assert weights(np.array([0.0, 1.0, 3.0]), WeightMapping(exponent=1)) == pytest.approx([0.0, 0.75, 2.25], rel=1e-15)


def test_no_uncertainty_under_a_negative_exponent_says_how_many_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r'2 of 3 kept questions have entropy = 0.*keep = "mixed"'):
        weights(np.array([0.0, 0.0, 1.0]), WeightMapping(exponent=-1))


def test_no_uncertainty_anywhere_says_that_every_weight_is_zero() -> None:
    with pytest.raises(ValueError, match="inaccuracy is 0 for all 2 kept questions"):
        weights(np.zeros(2), WeightMapping("inaccuracy"))


def test_nothing_kept_is_an_error() -> None:
    with pytest.raises(ValueError, match="no question is kept"):
        weights(np.array([]), WeightMapping())


@pytest.mark.parametrize("bad", [[-0.1, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_measure_that_is_no_measure_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        weights(np.array(bad), WeightMapping())


@given(
    st.lists(st.floats(0, 5, allow_subnormal=False), min_size=2, max_size=40, unique=True).map(np.array),
    st.floats(0.01, 1),
)
def test_linear_weights_have_mean_one_and_the_range_asked_for(values: np.ndarray, share: float) -> None:
    low, high, mean = (Fraction(float(x)) for x in (values.min(), values.max(), 0))
    mean = sum((Fraction(float(v)) for v in values), mean) / len(values)
    bound = float((high - low) / (mean - low))
    found = weights(values, WeightMapping(mapping="linear", range=share * bound))
    assert found.max() - found.min() == pytest.approx(share * bound, rel=1e-9)
    assert abs(math.fsum(found) / len(found) - 1) < 1e-9
    assert found.min() >= 0


def test_a_range_beyond_the_bound_of_equation_four_prints_the_bound() -> None:
    with pytest.raises(ValueError, match=r"largest range is 1\.5"):
        weights(np.array([0.0, 1.0, 1.0]), WeightMapping(mapping="linear", range=1.6))
    assert weights(np.array([0.0, 1.0, 1.0]), WeightMapping(mapping="linear", range=1.5)).tolist() == [0.0, 1.5, 1.5]


@settings(max_examples=60)
@given(VALUES, st.sampled_from(PAPER_EXPONENTS), st.floats(1.01, 20))
def test_clipped_weights_keep_mean_one_and_the_ratios_below_the_cap(
    values: np.ndarray, exponent: float, clip: float
) -> None:
    found, free = (
        weights(values, WeightMapping(exponent=exponent, clip=clip)),
        weights(values, WeightMapping(exponent=exponent)),
    )
    assert found.max() <= clip
    assert abs(math.fsum(found) / len(found) - 1) < 1e-9
    below = found < clip
    if below.any():
        ratios = found[below] / free[below]
        assert ratios == pytest.approx(ratios[0], rel=1e-9)
        assert ratios[0] >= 1 - 1e-12
    if free.max() <= clip:
        assert found.tolist() == free.tolist()


def test_clipping_by_hand() -> None:
    # 1, 1, 1, 5 have mean 2; with 2 for the last, the other three share the remaining 2.
    found = weights(np.array([1.0, 1.0, 1.0, 5.0]), WeightMapping(clip=2.0))
    assert found == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])


def test_a_clip_that_zeros_make_impossible_is_refused() -> None:
    with pytest.raises(ValueError, match="only 1 of 4 kept questions"):
        weights(np.array([0.0, 0.0, 0.0, 1.0]), WeightMapping(clip=3.0))
    assert weights(np.array([0.0, 0.0, 0.0, 1.0]), WeightMapping(clip=4.0)) == pytest.approx(
        [0.0, 0.0, 0.0, 4.0], rel=1e-15
    )


def test_a_fit_knows_the_normaliser_of_equation_five() -> None:
    values = np.array([0.5, 1.0, 2.0])
    block, mapping = MeasureBlock.of(values), WeightMapping(exponent=1.5)
    fitted = fit(totals_of(block, mapping), mapping)
    assert np.exp(1.5 * np.log(values) + fitted.log_normaliser) == pytest.approx(fitted.weights(block), rel=1e-12)
    linear = WeightMapping(mapping="linear", range=0.5)
    assert fit(totals_of(block, linear), linear).log_normaliser == pytest.approx(-math.log(values.mean()))


def test_columns_tell_mappings_apart() -> None:
    mappings = [
        *(WeightMapping(exponent=a) for a in (*PAPER_EXPONENTS, 1 + 1e-10)),
        WeightMapping(mapping="mean"),
        WeightMapping(mapping="linear", range=1.5),
        WeightMapping("inaccuracy"),
        WeightMapping(exponent=3, clip=10),
    ]
    assert len({mapping.column for mapping in mappings}) == len(mappings)
    assert WeightMapping().column == "weight_entropy_power_1"
    assert WeightMapping(exponent=3, clip=10).column == "weight_entropy_power_3_clip_10"
    assert WeightMapping(mapping="mean", exponent=2) == WeightMapping(mapping="mean", exponent=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "cubic"}, "Input should be 'power', 'mean' or 'linear'"),
        ({"mapping": "linear"}, "set both or neither"),
        ({"range": 1.0}, "set both or neither"),
        ({"clip": 0.9}, "greater than 1"),
    ],
)
def test_a_mapping_that_makes_no_sense_names_the_setting(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightMapping(**settings)


def test_effective_sample_size_of_equal_weights_is_their_number_and_of_one_weight_is_one() -> None:
    assert effective_sample_size(np.ones(40)) == 40
    assert effective_sample_size(np.array([0, 0, 7.0])) == pytest.approx(1)
    assert effective_sample_size(np.array([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
