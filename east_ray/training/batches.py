"""Which examples make up each optimizer step, and what every example's gradient is multiplied by there.

Pure numpy, decided once for a whole training before any model is loaded. PlannedDataset are laid out step by step,
micro-batch by micro-batch, so that what one step computes depends on neither worker count nor accumulation. Whatever
can be known beforehand (weights, normalisation, padding, granularity) is folded into one multiplier per position;
`trainers` only has to apply it. Suffixes: N examples, P positions, S steps, K micro-batches, B examples of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    *,
    loss: str,
    epochs: float,
    max_steps: int,
    batch_size: int,
    micro_batch_size: int,
    normalization: str,
    granularity: str,
    seed: int,
) -> TrainingPlan:
    """Order the examples for a whole training and fold all that is known beforehand into multipliers.

    `tokens_N` counts the tokens each example's loss sums over. SFT and DPO are shuffled anew each epoch; KTO keeps one
    order, because its KL term pairs neighbours. The last step is filled with further examples of multiplier 0.
    """
    num_examples = len(weight_N)
    num_positions = max_steps * batch_size if max_steps > 0 else max(1, round(epochs * num_examples))
    num_steps = -(-num_positions // batch_size)
    rng = np.random.default_rng(seed)
    total = num_steps * batch_size
    num_orders = -(-total // num_examples)
    if loss == "kto":
        order_N = order_for_kl(question_ids, micro_batch_size, rng)
        row_P = np.tile(order_N, num_orders)[:total]
    else:
        row_P = np.concatenate([rng.permutation(num_examples) for _ in range(num_orders)])[:total]
    padding_P = np.arange(total) >= num_positions
    multiplier_P = multipliers(
        weight_N[row_P],
        tokens_N[row_P],
        padding_P,
        loss=loss,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        normalization=normalization,
        granularity=granularity,
    )
    return TrainingPlan(row_P, padding_P, multiplier_P, batch_size, micro_batch_size)


def multipliers(
    weight_P: np.ndarray,
    tokens_P: np.ndarray,
    padding_P: np.ndarray,
    *,
    loss: str,
    batch_size: int,
    micro_batch_size: int,
    normalization: str,
    granularity: str,
) -> np.ndarray:
    """What each position's gradient is multiplied by, given the means TRL takes by itself.

    TRL divides SFT's token sum by the tokens of the whole step, and DPO's and KTO's sum by the examples of the whole
    step, padding included. Exactly 1 for weight 1 with normalization "token" (SFT), or without padding (DPO, KTO).
    """
    real_SKB = ~padding_P.reshape(-1, batch_size // micro_batch_size, micro_batch_size)
    weight_SKB = np.where(real_SKB, weight_P.reshape(real_SKB.shape), 0.0)
    tokens_SKB = np.where(real_SKB, tokens_P.reshape(real_SKB.shape), 0)
    examples_SK1 = real_SKB.sum(axis=2, keepdims=True)
    examples_S11 = examples_SK1.sum(axis=1, keepdims=True)
    tokens_S11 = tokens_SKB.sum(axis=(1, 2), keepdims=True)
    by_token = loss == "sft" and normalization == "token"
    divided_by_trl_S11 = tokens_S11 if loss == "sft" else np.full_like(examples_S11, batch_size)

    with np.errstate(divide="ignore", invalid="ignore"):
        if granularity == "microbatch":
            # The released scripts: mean loss of a micro-batch x its mean weight, averaged over the micro-batches.
            weight_SKB = weight_SKB.sum(axis=2, keepdims=True) / examples_SK1 * np.ones_like(weight_SKB)
            inner_SK1 = tokens_SKB.sum(axis=2, keepdims=True) if by_token else examples_SK1
            wanted_SK1 = inner_SK1 * (examples_SK1 > 0).sum(axis=1, keepdims=True)
        else:
            wanted_SK1 = tokens_S11 if by_token else examples_S11
        scale_SKB = divided_by_trl_S11 / wanted_SK1 * np.ones_like(weight_SKB)
        if loss == "sft" and normalization == "sequence":
            scale_SKB = scale_SKB / tokens_SKB
        return np.where(real_SKB, weight_SKB * scale_SKB, 0.0).reshape(-1)


def order_for_kl(question_ids: Sequence[str], distance: int, rng: np.random.Generator) -> np.ndarray:
    """A seeded order in which any `distance` neighbours, also across its ends, belong to different questions.

    Shuffles and then swaps the few that collide. Where swapping finds no way (hardly more questions than `distance`),
    the questions are gone through in turns instead; UserError when there are fewer questions than `distance`.
    """
    question_N = np.unique(np.asarray(question_ids), return_inverse=True)[1]
    num_questions = question_N.max() + 1
    if num_questions < distance:
        raise UserError(
            f"KTO pairs the {distance} completions of a micro-batch for its KL term, which needs as many different "
            f"questions, and there are {num_questions}; lower training.micro_batch_size to {max(num_questions, 2)} or "
            "sample more questions"
        )
    order_N = rng.permutation(len(question_N))
    arranged_N = question_N[order_N]
    for position in range(len(order_N)):
        if not _is_crowded(arranged_N, position, distance):
            continue
        for other in rng.permutation(len(order_N)):
            _swap(order_N, position, other)
            _swap(arranged_N, position, other)
            if not (_is_crowded(arranged_N, position, distance) or _is_crowded(arranged_N, other, distance)):
                break
            _swap(order_N, position, other)
            _swap(arranged_N, position, other)
    for attempt_N in (order_N, _in_turns(question_N, rng)):
        arranged_N = question_N[attempt_N]
        if not any(_is_crowded(arranged_N, position, distance) for position in range(len(attempt_N))):
            return attempt_N
    raise UserError(
        f"the {len(order_N)} KTO examples of {num_questions} questions cannot be ordered so that {distance} neighbours "
        "are of different questions; lower training.micro_batch_size or selection.pairs_per_question"
    )


def _swap(values: np.ndarray, i: int, j: int) -> None:
    values[[i, j]] = values[[j, i]]


def _is_crowded(question_N: np.ndarray, position: int, distance: int) -> bool:
    around = [(position + offset) % len(question_N) for offset in range(1 - distance, distance) if offset]
    return bool((question_N[around] == question_N[position]).any()) if around else False


def _in_turns(question_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """First one example of every question, then a second one of each, and so on; questions in one seeded order."""
    examples: dict[int, list[int]] = {}
    for index in rng.permutation(len(question_N)).tolist():
        examples.setdefault(int(question_N[index]), []).append(index)
    longest_first = sorted(examples.values(), key=len, reverse=True)
    turns = itertools.zip_longest(*longest_first)
    return np.array([index for turn in turns for index in turn if index is not None])
