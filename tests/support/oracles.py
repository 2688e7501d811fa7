"""Explicit weighted losses, derived by hand from the papers and written with nothing but a model's logits.

Every sequence goes through the model alone and unpadded, so neither padding, nor batching, nor TRL can be wrong in the
same way. A row is a dict of token id lists: prompt_ids and completion_ids (SFT, KTO) or chosen_ids and rejected_ids (DPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def token_logps(model: Any, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> torch.Tensor:
    """log p(y_t | x, y_<t) of each completion token: [T]."""
    return _next_token_logps(model, prompt_ids, completion_ids).gather(1, torch.tensor(completion_ids)[:, None])[:, 0]


def _next_token_logps(model: Any, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([[*prompt_ids, *completion_ids]]), use_cache=False).logits[0]
    first = len(prompt_ids) - 1
    return torch.log_softmax(logits[first : first + len(completion_ids)].float(), dim=-1)


def sft_token_mean(model: Any, rows: Sequence[dict[str, Any]], weights: Sequence[float]) -> torch.Tensor:
    """sum_i w_i sum_t nll_it / sum_i |y_i| over one optimizer step."""
    nll = [-token_logps(model, row["prompt_ids"], row["completion_ids"]).sum() for row in rows]
    return sum(w * n for w, n in zip(weights, nll, strict=True)) / sum(len(row["completion_ids"]) for row in rows)


def sft_sequence_mean(model: Any, rows: Sequence[dict[str, Any]], weights: Sequence[float]) -> torch.Tensor:
    """mean_i w_i (1 / |y_i|) sum_t nll_it over one optimizer step."""
    nll = [-token_logps(model, row["prompt_ids"], row["completion_ids"]).mean() for row in rows]
    return sum(w * n for w, n in zip(weights, nll, strict=True)) / len(rows)


def sft_released(model: Any, rows: Sequence[dict[str, Any]], weights: Sequence[float], micro: int) -> torch.Tensor:
    """The released scripts: token mean of a micro-batch x mean weight of it, averaged over the step's micro-batches."""
    blocks = [slice(start, start + micro) for start in range(0, len(rows), micro)]
    ones = [1.0] * micro
    return sum(
        sft_token_mean(model, rows[block], ones[: len(rows[block])]) * sum(weights[block]) / len(weights[block])
        for block in blocks
    ) / len(blocks)


def dpo(
    model: Any, reference: Any, rows: Sequence[dict[str, Any]], weights: Sequence[float], beta: float
) -> torch.Tensor:
    """mean_i w_i log(1 + exp(-beta ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected))))."""
    total = torch.zeros(())
    for row, weight in zip(rows, weights, strict=True):
        ratio = {
            side: token_logps(model, row["prompt_ids"], row[side]).sum() - _frozen(reference, row, side).sum()
            for side in ("chosen_ids", "rejected_ids")
        }
        margin = beta * (ratio["chosen_ids"] - ratio["rejected_ids"])
        total = total + weight * torch.log1p(torch.exp(-margin))
    return total / len(rows)


def kto(
    model: Any,
    reference: Any,
    rows: Sequence[dict[str, Any]],
    weights: Sequence[float],
    beta: float,
    micro: int,
    workers: int = 1,
) -> torch.Tensor:
    """mean_i w_i (1 - sigmoid(+-beta (log p - log p_ref - z))), + where desirable (Ethayarajh et al. 2024, eq. 7).

    z = max(0, mean of log p - log p_ref over mismatched pairs), without gradient: each prompt with the completion before
    it in its micro-batch, the mean taken over the micro-batches that the workers hold at the same moment.
    """
    total = torch.zeros(())
    for start in range(0, len(rows), micro * workers):
        together = range(start, start + micro * workers)
        mismatched = []
        for i in together:
            block = start + (i - start) // micro * micro
            other = rows[block + (i - block - 1) % micro]["completion_ids"]
            pair = {"prompt_ids": rows[i]["prompt_ids"], "completion_ids": other}
            mismatched.append(
                _frozen(model, pair, "completion_ids").sum() - _frozen(reference, pair, "completion_ids").sum()
            )
        z = torch.stack(mismatched).mean().clamp(min=0)
        for i in together:
            ratio = token_logps(model, rows[i]["prompt_ids"], rows[i]["completion_ids"]).sum()
            ratio = ratio - _frozen(reference, rows[i], "completion_ids").sum()
            sign = 1 if rows[i]["label"] else -1
            total = total + weights[i] * (1 - 1 / (1 + torch.exp(-sign * beta * (ratio - z))))
    return total / len(rows)


def perplexity(model: Any, row: dict[str, Any], side: str = "completion_ids") -> float:
    """exp(-(1 / |y|) sum_t log p(y_t)) (eq. 8)."""
    return float(torch.exp(-_frozen(model, row, side).mean()))


def wpo(model: Any, row: dict[str, Any], side: str = "completion_ids") -> float:
    """exp((1 / |y|) sum_t log(p(y_t) / sum_v p(v)^2)) (eq. 10)."""
    with torch.no_grad():
        every = _next_token_logps(model, row["prompt_ids"], row[side]).exp()
    ratios = [p[token] / (p**2).sum() for p, token in zip(every, row[side], strict=True)]
    return float(torch.stack(ratios).log().mean().exp())


def _frozen(model: Any, row: dict[str, Any], side: str) -> torch.Tensor:
    with torch.no_grad():
        return token_logps(model, row["prompt_ids"], row[side])
