"""The order of training and the multipliers, against sums written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from east_ray.config.training import TrainingConfig
from east_ray.records import UserError
from east_ray.training.batches import level_micro_batches, multipliers, order_for_kl, plan_training


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"batch_size": 8, "micro_batch_size": 2, **changes})


def plan(count: int, seed: int = 0, **changes: Any) -> Any:
    questions = [f"q{i // 2}" for i in range(count)]
    return plan_training(np.arange(1.0, count + 1), np.arange(3, count + 3), questions, settings(**changes), seed)


@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_every_epoch_holds_every_example_once(loss: str) -> None:
    whole = plan(32, loss=loss).row_P
    assert [sorted(whole[e * 32 : (e + 1) * 32]) for e in range(3)] == [list(range(32))] * 3
    made = plan(30, loss=loss)
    assert sorted(made.row_P[~made.padding_P]) == sorted([*range(30)] * 3)
    assert made.num_steps == 12  # 90 examples in steps of 8
    assert made.padding_P.sum() == 6
    assert (made.multiplier_P[made.padding_P] == 0).all()


def test_sft_is_shuffled_again_each_epoch_and_kto_keeps_its_order() -> None:
    sft, kto = plan(30).row_P, plan(30, loss="kto").row_P
    assert not np.array_equal(sft[:30], sft[30:60])
    assert np.array_equal(kto[:30], kto[30:60])


def test_the_examples_of_a_step_depend_on_the_seed_and_not_on_the_micro_batch() -> None:
    halves, whole = (np.sort(plan(30, micro_batch_size=size).row_P.reshape(-1, 8)) for size in (2, 8))
    assert np.array_equal(halves, whole)
    assert not np.array_equal(plan(30).row_P, plan(30, seed=1).row_P)


def test_long_and_short_examples_are_dealt_evenly_to_a_steps_micro_batches() -> None:
    tokens = np.array([10, 90, 20, 80, 30, 70, 40, 60, 1, 2, 3, 4, 5, 6, 7, 8])
    order = level_micro_batches(tokens, batch_size=8, micro_batch_size=2)
    assert tokens[order].tolist() == [90, 10, 80, 20, 70, 30, 60, 40, 8, 1, 7, 2, 6, 3, 5, 4]


@pytest.mark.parametrize(
    "changes", [{"weight_granularity": "microbatch"}, {"local_weight": "perplexity"}, {"loss": "kto"}]
)
def test_micro_batches_that_shape_the_loss_are_left_as_they_were_drawn(changes: dict[str, str]) -> None:
    made = plan(32, **changes, epochs=1)
    drawn = np.random.default_rng(0).permutation(32)
    expected = order_for_kl([f"q{i // 2}" for i in range(32)], 2, np.random.default_rng(0))
    assert made.row_P.tolist() == (expected if changes.get("loss") == "kto" else drawn).tolist()


def test_max_steps_replaces_the_epochs() -> None:
    assert plan(30, max_steps=2).num_steps == 2
    assert plan(30, max_steps=40).num_steps == 40
    assert not plan(30, max_steps=40).padding_P.any()


def test_a_kto_completion_is_paired_with_the_one_before_it_in_its_micro_batch() -> None:
    made = plan(8, loss="kto", epochs=1, micro_batch_size=4)
    a, b, c, d, e, f, g, h = made.row_P
    assert made.kl_row_P.tolist() == [d, a, b, c, h, e, f, g]


@given(
    counts=st.lists(st.integers(1, 3), min_size=6, max_size=40),
    distance=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_kto_neighbours_are_of_different_questions(counts: list[int], distance: int, seed: int) -> None:
    questions = [f"q{i}" for i, count in enumerate(counts) for _ in range(count)]
    try:
        order = order_for_kl(questions, distance, np.random.default_rng(seed))
    except UserError:
        # Only in a tight spot: some question would need more than half of the places it may have.
        assert max(counts) * distance * 2 > len(questions)
        return
    assert sorted(order) == list(range(len(questions)))
    around = [questions[i] for i in order] * 2
    for start in range(len(order)):
        assert len(set(around[start : start + distance])) == distance


def test_kto_with_fewer_questions_than_a_micro_batch_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"lower training\.micro_batch_size to 2"):
        plan(4, loss="kto", micro_batch_size=4)


# One step of 4 places in micro-batches of 2; the last place is padding. Weights 2, 4, 6; tokens 1, 3, 4.
WEIGHTS, TOKENS = np.array([2.0, 4.0, 6.0, 9.0]), np.array([1, 3, 4, 7])
PADDING = np.array([False, False, False, True])


def by_hand(loss: str, normalization: str, granularity: str) -> np.ndarray:
    training = settings(loss=loss, batch_size=4, normalization=normalization, weight_granularity=granularity)
    return multipliers(WEIGHTS, TOKENS, PADDING, training)


def test_sft_by_token_leaves_weights_alone_because_trl_takes_the_token_mean() -> None:
    assert by_hand("sft", "token", "example").tolist() == [2, 4, 6, 0]


def test_sft_by_sequence_turns_trls_token_mean_into_a_mean_over_examples() -> None:
    # wanted: w / (3 |y|); TRL divides by 8 tokens
    assert by_hand("sft", "sequence", "example") == pytest.approx([2 * 8 / 3, 4 * 8 / 9, 6 * 8 / 12, 0])


def test_preference_losses_are_averaged_over_the_real_examples_of_a_step() -> None:
    # wanted: w / 3; TRL divides by 4 places
    assert by_hand("dpo", "token", "example") == pytest.approx([2 * 4 / 3, 4 * 4 / 3, 6 * 4 / 3, 0])
    assert by_hand("kto", "token", "example") == pytest.approx(by_hand("dpo", "token", "example"))


def test_microbatch_granularity_multiplies_mean_loss_by_mean_weight() -> None:
    # wanted: (3 x token mean of (1, 2) + 6 x token mean of (3)) / 2; TRL divides by 8 tokens
    assert by_hand("sft", "token", "microbatch") == pytest.approx([3 * 8 / 8, 3 * 8 / 8, 6 * 8 / 8, 0])
    # wanted: (3 x mean of two pairs + 6 x the third pair) / 2; TRL divides by 4 places
    assert by_hand("dpo", "token", "microbatch") == pytest.approx([3 * 4 / 4, 3 * 4 / 4, 6 * 4 / 2, 0])


@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_weights_of_one_multiply_by_exactly_one(loss: str) -> None:
    questions = [f"q{i}" for i in range(32)]
    made = plan_training(np.ones(32), np.arange(32) + 3, questions, settings(loss=loss, epochs=1), seed=0)
    assert (made.multiplier_P == 1.0).all()
