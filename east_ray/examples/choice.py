"""The choice of completions to train on, question by question. Pure.

Candidates are ranked by a hash of (run seed, round, question, completion number), so choices depend on neither order nor
sharding, nor on a library's random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from east_ray.records import CORRECT, INCORRECT


@dataclass(frozen=True)
class Choice:
    """Numbers of the chosen completions of one question, in the order chosen."""

    positives: tuple[int, ...]
    negatives: tuple[int, ...]


def choose(
    grades: Mapping[str, Any],
    completions: Sequence[str],
    *,
    negative: str,
    truncated_negatives: bool = True,
    pairs: int,
    seed: int,
    round_index: int,
) -> Choice:
    """Up to `pairs` positives and as many negatives, each without replacement (a GRADES row and its completions).

    Positives are correct, finished and carry an answer. Negatives are incorrect and not empty, and, without
    `truncated_negatives`, finished; `negative` = "random" draws among all of them, "dominant" among those of the most
    frequent incorrect cluster that has one. Completions that run on after the graded part are neither.
    """
    verdicts, answers, cut = grades["verdicts"], grades["answers"], grades["truncated"]
    run_on = grades.get("run_on") or [False] * len(verdicts)  # grades of earlier versions lack it
    whole = [i for i in range(len(verdicts)) if not run_on[i]]
    positives = [i for i in whole if verdicts[i] == CORRECT and not cut[i] and answers[i] is not None]
    negatives = [i for i in whole if verdicts[i] == INCORRECT and completions[i].strip()]
    if not truncated_negatives:
        negatives = [i for i in negatives if not cut[i]]
    if negative == "dominant":
        clusters = grades["clusters"]  # numbered by size
        largest = min((clusters[i] for i in negatives if clusters[i] >= 0), default=None)
        negatives = [i for i in negatives if largest is None or clusters[i] == largest]

    def draw(kind: str, candidates: Sequence[int]) -> tuple[int, ...]:
        name = f"{seed}/{round_index}/{kind}/{grades['question_id']}/"
        digest = {i: hashlib.blake2b(f"{name}{i}".encode(), digest_size=8).digest() for i in candidates}
        return tuple(sorted(candidates, key=lambda i: (digest[i], i))[:pairs])

    return Choice(draw("positive", positives), draw("negative", negatives))


def training_rows(
    loss: str,
    prompt: str,
    completions: Sequence[str],
    choice: Choice,
    ids: Sequence[Sequence[int]] | None = None,
    cut: Sequence[bool] | None = None,
) -> list[dict[str, Any]]:
    """TRL rows of one question; none when the loss needs a negative and there is no usable one.

    `ids`: the completions' sampled token ids, None for imported text; `cut`: whether they reached the sampler's limit.
    """
    ids_of, cut_of = dict(enumerate(ids or ())), dict(enumerate(cut or ()))

    def row(i: int) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completions[i], "completion_ids": ids_of.get(i)}

    if loss == "sft":
        return [row(i) for i in choice.positives]
    pairs = list(zip(choice.positives, choice.negatives, strict=False))  # the shorter list decides
    if loss == "dpo":
        return [
            {
                "prompt": prompt,
                "chosen": completions[good],
                "rejected": completions[bad],
                "chosen_ids": ids_of.get(good),
                "rejected_ids": ids_of.get(bad),
                "cut": cut_of.get(bad, False),
            }
            for good, bad in pairs
        ]
    assert loss == "kto", loss
    return [
        {**row(i), "label": label, "cut": cut_of.get(i, False)}
        for pair in pairs
        for i, label in zip(pair, (True, False), strict=True)
    ]
