"""Hand-made samples and grades for tests: the shape that sampling and grading leave, without either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from east_ray.records import CORRECT, ERROR, GRADES, INCORRECT, QUESTIONS, SAMPLES
from east_ray.runs.directory import RunDirectory


def grades_row(
    question_id: str,
    answers: Sequence[str | None],
    gold: str = "gold",
    *,
    truncated: Sequence[bool] | None = None,
    errors: Sequence[str] = (),
    mean_tokens: float = 10.0,
    shortfall: str | None = None,
) -> dict[str, Any]:
    """A GRADES row of string clusters: an answer equal to `gold` is correct, one in `errors` could not be judged."""
    cut = list(truncated or [False] * len(answers))

    def verdict(answer: str | None) -> str:
        return CORRECT if answer == gold else ERROR if answer in errors else INCORRECT

    sizes = sorted(Counter(answers).items(), key=lambda item: (-item[1], item[0] or ""))
    number = {answer: i for i, (answer, _) in enumerate(sizes)}
    verdicts = [verdict(answer) for answer in answers]
    return {
        "question_id": question_id,
        "answers": list(answers),
        "rules": ["boxed" if answer is not None else "none" for answer in answers],
        "verdicts": verdicts,
        "clusters": [number[answer] for answer in answers],
        "cluster_sizes": [size for _, size in sizes],
        "cluster_verdicts": [verdict(answer) for answer, _ in sizes],
        "truncated": cut,
        "run_on": [False] * len(answers),
        "num_samples": len(answers),
        "num_correct": verdicts.count(CORRECT),
        "num_incorrect": verdicts.count(INCORRECT),
        "num_errors": verdicts.count(ERROR),
        "num_unanswered": list(answers).count(None),
        "num_truncated": sum(cut),
        "num_positives": sum(v == CORRECT and not c for v, c in zip(verdicts, cut, strict=True)),
        "num_negatives": verdicts.count(INCORRECT),
        "largest_wrong": max((size for answer, size in sizes if verdict(answer) == INCORRECT), default=0),
        "mean_tokens": mean_tokens,
        "shortfall": shortfall,
    }


def samples_row(question_id: str, completions: Sequence[str], gold: str = "gold") -> dict[str, Any]:
    """A SAMPLES row whose completions all finished; a completion is as many tokens long as it has words."""
    return {
        "question_id": question_id,
        "reference": gold,
        "prompt_hash": "0" * 16,
        "prompt_tokens": 5,
        "completions": list(completions),
        "finish_reasons": ["stop"] * len(completions),
        "completion_tokens": [len(text.split()) for text in completions],
        "shortfall": None,
    }


def write_shards(run: RunDirectory, directory: str, rows: Sequence[dict[str, Any]], per_shard: int) -> None:
    """Write GRADES or SAMPLES rows as shard-00000.parquet, shard-00001.parquet, ..."""
    schema = GRADES if rows and "clusters" in rows[0] else SAMPLES
    for i, start in enumerate(range(0, len(rows), per_shard)):
        table = pa.Table.from_pylist(list(rows[start : start + per_shard]), schema=schema)
        run.write_table(table, directory, f"shard-{i:05d}.parquet")


def write_questions(run: RunDirectory, ids: Sequence[str], *, in_test: Sequence[str] = ()) -> None:
    """questions/train.parquet with these ids, and questions/test.parquet with the texts of those in `in_test`."""
    blank = {"reference": "1", "level": None, "subject": None, "prompt": "", "prompt_token_ids": [1], "prompt_hash": ""}
    rows = [{"question_id": name, "question": f"question {name}", **blank} for name in ids]
    test = [{**row, "question_id": f"test {row['question_id']}"} for row in rows if row["question_id"] in in_test]
    run.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS), "questions", "train.parquet")
    run.write_table(pa.Table.from_pylist(test, schema=QUESTIONS), "questions", "test.parquet")
