"""The plan of a training: the examples of each optimizer step, and what each example's gradient is multiplied by.

Pure numpy, decided once for a whole training before any model is loaded. Positions are laid out step by step, micro-batch
by micro-batch, so that a step's gradient depends on neither worker count nor accumulation. Whatever is known
beforehand (weights, normalisation, padding, granularity) is folded into one multiplier per position, which `trainers` applies. Suffixes: N examples, P positions, S steps, K micro-batches, B examples of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from east_ray.config.training import TrainingConfig
from east_ray.records import UserError


@dataclass(frozen=True)
class TrainingPlan:
    """`row_P`: example at each position; `padding_P`: present only to fill the last step, multiplier 0."""

    row_P: np.ndarray
    padding_P: np.ndarray
    multiplier_P: np.ndarray
    batch_size: int
    micro_batch_size: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.row_P) // self.batch_size

    @property
    def kl_row_P(self) -> np.ndarray:
        """Example whose completion each position borrows for KTO's KL term: the one before it in its micro-batch."""
        return np.roll(self.row_P.reshape(-1, self.micro_batch_size), 1, axis=1).reshape(-1)

    def examples_of_step(self, step: int) -> np.ndarray:
        """Examples of one step (counted from 0), padding left out."""
        here = slice(step * self.batch_size, (step + 1) * self.batch_size)
        return self.row_P[here][~self.padding_P[here]]


def plan_training(
    weight_N: np.ndarray,
    tokens_N: np.ndarray,
    question_ids: Sequence[str],
    training: TrainingConfig,
    seed: int,
) -> TrainingPlan:
    """Order the examples for a whole training and fold everything known beforehand into multipliers.

    `tokens_N` counts the tokens each example's loss sums over. SFT and DPO are shuffled again each epoch; KTO keeps one
    order, because its KL term pairs neighbours. The last step is filled with further examples of multiplier 0. Within a
    step, long and short examples are dealt evenly to the micro-batches, except where these shape the loss.
    """
    num_examples, batch_size, micro_batch_size = len(weight_N), training.batch_size, training.micro_batch_size
    num_positions = max(1, round(training.epochs * num_examples))
    if training.max_steps > 0:
        num_positions = training.max_steps * batch_size
    num_steps = -(-num_positions // batch_size)
    rng = np.random.default_rng(seed)
    total = num_steps * batch_size
    num_orders = -(-total // num_examples)
    if training.loss == "kto":
        row_P = np.tile(order_for_kl(question_ids, micro_batch_size, rng), num_orders)[:total]
    else:
        row_P = np.concatenate([rng.permutation(num_examples) for _ in range(num_orders)])[:total]
    padding_P = np.arange(total) >= num_positions
    is_by_example = training.weight_granularity == "example" and training.local_weight != "perplexity"
    if training.loss != "kto" and is_by_example:
        level_P = level_micro_batches(tokens_N[row_P], batch_size, micro_batch_size)
        row_P, padding_P = row_P[level_P], padding_P[level_P]
    multiplier_P = multipliers(weight_N[row_P], tokens_N[row_P], padding_P, training)
    return TrainingPlan(row_P, padding_P, multiplier_P, batch_size, micro_batch_size)


def level_micro_batches(tokens_P: np.ndarray, batch_size: int, micro_batch_size: int) -> np.ndarray:
    """An order of the positions, each within its step, in which a step's micro-batches have about as many tokens each.

    The longest goes to the first micro-batch, the next to the second, and so on and back again: the largest micro-batch
    decides the memory, and workers wait for the slowest.
    """
    longest_first_SP = np.argsort(-tokens_P.reshape(-1, batch_size), axis=1, kind="stable")
    dealt_SBK = longest_first_SP.reshape(len(longest_first_SP), micro_batch_size, -1)
    dealt_SBK[:, 1::2] = dealt_SBK[:, 1::2, ::-1].copy()
    order_SP = dealt_SBK.transpose(0, 2, 1).reshape(-1, batch_size)
    return (order_SP + batch_size * np.arange(len(order_SP))[:, None]).reshape(-1)


def multipliers(
    weight_P: np.ndarray, tokens_P: np.ndarray, padding_P: np.ndarray, training: TrainingConfig
) -> np.ndarray:
    """The factor of each position's gradient, given the means that TRL takes by itself.

    TRL divides SFT's token sum by the tokens of the whole step, and DPO's and KTO's sum by the examples of the whole
    step, padding included. Exactly 1 for weight 1 with normalization "token" (SFT), or without padding (DPO, KTO).
    """
    loss, micro_batch_size = training.loss, training.micro_batch_size
    real_SKB = ~padding_P.reshape(-1, training.batch_size // micro_batch_size, micro_batch_size)
    weight_SKB = np.where(real_SKB, weight_P.reshape(real_SKB.shape), 0.0)
    tokens_SKB = np.where(real_SKB, tokens_P.reshape(real_SKB.shape), 0)
    examples_SK1 = real_SKB.sum(axis=2, keepdims=True)
    examples_S11 = examples_SK1.sum(axis=1, keepdims=True)
    tokens_S11 = tokens_SKB.sum(axis=(1, 2), keepdims=True)
    by_token = loss == "sft" and training.normalization == "token"
    divided_by_trl_S11 = tokens_S11 if loss == "sft" else np.full_like(examples_S11, training.batch_size)

    with np.errstate(divide="ignore", invalid="ignore"):
        if training.weight_granularity == "microbatch":
            # The released scripts: mean loss of a micro-batch x its mean weight, averaged over the micro-batches.
            weight_SKB = weight_SKB.sum(axis=2, keepdims=True) / examples_SK1 * np.ones_like(weight_SKB)
            inner_SK1 = tokens_SKB.sum(axis=2, keepdims=True) if by_token else examples_SK1
            wanted_SK1 = inner_SK1 * (examples_SK1 > 0).sum(axis=1, keepdims=True)
        else:
            wanted_SK1 = tokens_S11 if by_token else examples_S11
        scale_SKB = divided_by_trl_S11 / wanted_SK1 * np.ones_like(weight_SKB)
        if loss == "sft" and training.normalization == "sequence":
            scale_SKB = scale_SKB / tokens_SKB
        return np.where(real_SKB, weight_SKB * scale_SKB, 0.0).reshape(-1)


def order_for_kl(question_ids: Sequence[str], distance: int, rng: np.random.Generator) -> np.ndarray:
    """A seeded order in which any `distance` neighbours, also across its ends, belong to different questions.

    Each question's examples are spread evenly over the whole, and the questions with equally many are spread evenly among
    each other, in shuffled order. UserError when there are too few questions for that.
    """
    question_N, count_Q = np.unique(np.asarray(question_ids), return_inverse=True, return_counts=True)[1:]
    offset_Q = np.empty(len(count_Q))
    for count in np.unique(count_Q):
        alike = np.flatnonzero(count_Q == count)
        offset_Q[alike] = (rng.permutation(len(alike)) + 0.5) / len(alike)
    shuffled_N = rng.permutation(len(question_N))
    by_question_N = shuffled_N[np.argsort(question_N[shuffled_N], kind="stable")]
    number_N = np.empty(len(question_N))  # of each example among its question's
    number_N[by_question_N] = np.arange(len(question_N)) - np.repeat(np.cumsum(count_Q) - count_Q, count_Q)
    order_N = np.argsort((number_N + offset_Q[question_N]) / count_Q[question_N], kind="stable")
    arranged_N = question_N[order_N]
    for gap in range(1, distance):
        if (arranged_N == np.roll(arranged_N, gap)).any():
            remedy = f"lower training.micro_batch_size to {gap}" if gap > 1 else "sample more questions"
            raise UserError(
                f"KTO pairs the {distance} completions of a micro-batch for its KL term, which must belong to different "
                f"questions; {len(order_N)} examples of {len(count_Q)} questions cannot be ordered that way: {remedy}, or "
                "lower selection.pairs_per_question"
            )
    return order_N
