"""One question's graded completions -> training rows, or the one named reason for dropping it (METHOD 5 and 7). Pure.

Choices are made by ranking candidates by a hash of (run seed, round, question, completion number): they depend on
neither order nor sharding, and on no library's random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from east_ray.records import CORRECT, INCORRECT

# A dropped question is counted under the first of these that holds.
REASONS = {
    "in test set": "its text is also in the test set",
    "no samples": "sampling returned nothing (see the shortfall)",
    "grader error": "no completion could be judged",
    "truncated": "every completion, or every correct one, was cut off at max_new_tokens",
    "all wrong": "no completion is correct",
    "all correct": "no completion is incorrect (keep = mixed)",
    "no usable positive": "no correct completion finished and carries an answer",
    "no usable negative": "every incorrect completion is empty (keep = mixed)",
}

# What helps when that reason leaves nothing to train on.
REMEDIES = {
    "in test set": "train on other questions than the test set's, or set selection.exclude_test_questions=false",
    "no samples": "read the column `shortfall` of the samples, mend the cause and sample again",
    "grader error": "raise grading.deadline_seconds or grading.memory_gib and verify again",
    "truncated": "raise sampling.max_new_tokens and sample again",
    "all wrong": "look at a few completions beside their references: if they agree, the answer column or the prompt is "
    "off; else take easier questions, more samples or an abler model",
    "all correct": "take harder questions, or set selection.keep=solved for SFT",
    "no usable positive": "raise sampling.max_new_tokens, or ask for the answer in \\boxed{} (questions.system_prompt)",
    "no usable negative": "set selection.keep=solved for SFT",
}

_COUNTS = ("num_samples", "num_correct", "num_incorrect", "num_truncated", "num_positives", "num_negatives")


def drop_reasons(grades: pa.Table, keep: str, excluded: Collection[str] = frozenset()) -> pa.StringArray:
    """One reason per GRADES row, null where the question is kept; arguments as for `drop_codes`."""
    codes = drop_codes(grades, keep, excluded)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(list(REASONS))).cast(pa.string())


def drop_codes(grades: pa.Table, keep: str, excluded: Collection[str] = frozenset()) -> np.ndarray:
    """Position in REASONS of each GRADES row's reason, -1 where the question is kept.

    `keep` is "mixed" (a correct and an incorrect completion) or "solved" (a correct one); `excluded` are question ids.
    """
    total, right, wrong, cut, positives, negatives = (grades[name].to_numpy() for name in _COUNTS)
    mixed = keep == "mixed"
    holds = {
        "in test set": _is_in(grades, excluded),
        "no samples": total == 0,
        "grader error": right + wrong == 0,
        "truncated": np.where(right == 0, cut == total, (positives == 0) & (cut >= right)),
        "all wrong": right == 0,
        "all correct": (wrong == 0) & mixed,
        "no usable positive": positives == 0,
        "no usable negative": (negatives == 0) & mixed,
    }
    assert list(holds) == list(REASONS)
    return np.select(list(holds.values()), range(len(holds)), default=-1)


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


def _is_in(grades: pa.Table, excluded: Collection[str]) -> np.ndarray:
    if not excluded:
        return np.zeros(len(grades), dtype=bool)
    return pc.is_in(grades["question_id"], value_set=pa.array(sorted(excluded))).to_numpy()  # type: ignore[attr-defined]
