"""The order of training and the multipliers, against sums written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from east_ray.records import UserError
from east_ray.training.batches import multipliers, order_for_kl, plan_training

DEFAULTS: dict[str, Any] = {
    "loss": "sft",
    "epochs": 3,
    "max_steps": -1,
    "batch_size": 8,
    "micro_batch_size": 2,
    "normalization": "token",
    "granularity": "example",
    "seed": 0,
}


def plan(count: int, **changes: Any) -> Any:
    questions = [f"q{i // 2}" for i in range(count)]
    return plan_training(np.arange(1.0, count + 1), np.arange(3, count + 3), questions, **{**DEFAULTS, **changes})


@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_every_epoch_holds_every_example_once(loss: str) -> None:
    made = plan(30, loss=loss)
    real = made.row_P[~made.padding_P]
    assert [sorted(real[e * 30 : (e + 1) * 30]) for e in range(3)] == [list(range(30))] * 3
    assert made.num_steps == 12  # 90 examples in steps of 8
    assert made.padding_P.sum() == 6
    assert (made.multiplier_P[made.padding_P] == 0).all()


def test_sft_is_shuffled_again_each_epoch_and_kto_keeps_its_order() -> None:
    sft, kto = plan(30).row_P, plan(30, loss="kto").row_P
    assert not np.array_equal(sft[:30], sft[30:60])
    assert np.array_equal(kto[:30], kto[30:60])


def test_the_order_depends_on_the_seed_and_not_on_the_micro_batch() -> None:
    assert np.array_equal(plan(30).row_P, plan(30, micro_batch_size=8).row_P)
    assert not np.array_equal(plan(30).row_P, plan(30, seed=1).row_P)


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
    return multipliers(
        WEIGHTS,
        TOKENS,
        PADDING,
        loss=loss,
        batch_size=4,
        micro_batch_size=2,
        normalization=normalization,
        granularity=granularity,
    )


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
    made = plan_training(np.ones(32), np.arange(32) + 3, questions, **{**DEFAULTS, "loss": loss, "epochs": 1})
    assert (made.multiplier_P == 1.0).all()
