"""The choice of completions to train on, question by question (METHOD, step 7). Pure.

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
    pairs: int,
    seed: int,
    round_index: int,
) -> Choice:
    """Up to `pairs` positives and as many negatives, each without replacement (a GRADES row and its completions).

    Positives are correct, finished and carry an answer. Negatives are incorrect and not empty; `negative` = "random"
    draws among all of them, "dominant" among those of the most frequent incorrect cluster that has one.
    """
    verdicts, answers, cut = grades["verdicts"], grades["answers"], grades["truncated"]
    positives = [
        i for i, verdict in enumerate(verdicts) if verdict == CORRECT and not cut[i] and answers[i] is not None
    ]
    negatives = [i for i, verdict in enumerate(verdicts) if verdict == INCORRECT and completions[i].strip()]
    if negative == "dominant":
        negatives = _most_frequent_cluster(negatives, grades["clusters"])

    def draw(kind: str, candidates: Sequence[int]) -> tuple[int, ...]:
        name = f"{seed}/{round_index}/{kind}/{grades['question_id']}/"
        return tuple(sorted(candidates, key=lambda i: (_digest(f"{name}{i}"), i))[:pairs])

    return Choice(draw("positive", positives), draw("negative", negatives))


def training_rows(loss: str, prompt: str, completions: Sequence[str], choice: Choice) -> list[dict[str, Any]]:
    """TRL rows of one question; none when the loss needs a negative and there is no usable one.

    "sft": prompt, completion. "dpo": prompt, chosen, rejected. "kto": prompt, completion, label.
    """
    good = [completions[i] for i in choice.positives]
    bad = [completions[i] for i in choice.negatives]
    if loss == "sft":
        return [{"prompt": prompt, "completion": text} for text in good]
    pairs = list(zip(good, bad, strict=False))  # the shorter list decides
    if loss == "dpo":
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]
    assert loss == "kto", loss
    return [
        {"prompt": prompt, "completion": text, "label": label}
        for pair in pairs
        for text, label in zip(pair, (True, False), strict=True)
    ]


def _most_frequent_cluster(negatives: Sequence[int], clusters: Sequence[int]) -> list[int]:
    """The negatives of one cluster: clusters are numbered by size, so the lowest number among them."""
    first = min((clusters[i] for i in negatives if clusters[i] >= 0), default=None)
    return list(negatives) if first is None else [i for i in negatives if clusters[i] == first]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
