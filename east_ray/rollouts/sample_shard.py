"""One shard, QUESTIONS -> SAMPLES: request the completions that are missing and add the results. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from east_ray.records import SAMPLES, UserError
from east_ray.rollouts.engine import Refusal, Request, Result
from east_ray.rollouts.shards import ASKED


def sample_shard(
    questions: pa.Table,
    before: pa.Table | None,
    *,
    num_samples: int,
    seed_of: Callable[[str], int],
    generate: Callable[[Sequence[Request]], list[Result]],
) -> pa.Table:
    """QUESTIONS -> SAMPLES, in order, with `num_samples` completions each or a reason in `shortfall`.

    `before` holds earlier completions of the same questions; only what it lacks is sampled.
    """
    asked = questions.select(ASKED).to_pylist()
    kept = before.to_pylist() if before is not None else [unsampled(question) for question in asked]
    for question, old in zip(asked, kept, strict=True):
        if (question["question_id"], question["prompt_hash"]) != (old["question_id"], old["prompt_hash"]):
            raise UserError(
                f"question {old['question_id']!r} was sampled from another prompt than {question['question_id']!r} has "
                f"now; choose another run.dir, or --restart-from sample"
            )
    requests = {
        i: Request(
            question["question_id"],
            question["prompt_token_ids"],
            num_samples - len(old["completions"]),
            seed_of(question["question_id"]) + len(old["completions"]),
        )
        for i, (question, old) in enumerate(zip(asked, kept, strict=True))
        if len(old["completions"]) < num_samples
    }
    rows = list(kept)
    for (i, request), result in zip(requests.items(), generate(list(requests.values())), strict=True):
        rows[i] = _extended(kept[i], request, result)
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def unsampled(question: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a question that has no completions yet (records.SAMPLES)."""
    return {
        "question_id": question["question_id"],
        "reference": question["reference"],
        "prompt_hash": question["prompt_hash"],
        "prompt_tokens": len(question["prompt_token_ids"]),
        "completions": [],
        "finish_reasons": [],
        "completion_tokens": [],
        "completion_ids": None,
        "shortfall": None,
    }


def _extended(row: dict[str, Any], request: Request, result: Result) -> dict[str, Any]:
    if isinstance(result, Refusal):
        return {**row, "shortfall": result.reason}
    shortfall = (
        None if len(result) == request.num_samples else f"the engine returned {len(result)} of {request.num_samples}"
    )
    return {
        **row,
        "completions": row["completions"] + [c.text for c in result],
        "finish_reasons": row["finish_reasons"] + [c.finish_reason for c in result],
        "completion_tokens": row["completion_tokens"] + [c.num_tokens for c in result],
        "completion_ids": (row["completion_ids"] or [None] * len(row["completions"])) + [c.token_ids for c in result],
        "shortfall": shortfall,
    }
