"""The questions that can be trained on, and the one named reason why any other is dropped."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A dropped question is counted under the first of these that holds.
REASONS = {
    "in test set": "its text is also in the test set",
    "no samples": "sampling returned nothing (see the shortfall)",
    "grader error": "no completion could be judged",
    "truncated": "every completion, or every correct one, was cut off at max_new_tokens",
    "all wrong": "no completion is correct",
    "all correct": "no completion is incorrect (keep = mixed)",
    "no usable positive": "every finished correct completion runs on after its answer with another turn",
    "no usable negative": "every incorrect completion is empty or runs on with another turn (keep = mixed)",
}


# The remedy when that reason leaves nothing to train on.
REMEDIES = {
    "in test set": "train on other questions than the test set's, or set selection.exclude_test_questions=false",
    "no samples": "read the column `shortfall` of the samples, fix the cause and sample again",
    "grader error": "raise grading.deadline_seconds or grading.memory_gib and run `verify` again",
    "truncated": "raise sampling.max_new_tokens and sample again",
    "all wrong": "compare a few completions with their references: if they agree, the answer column or the prompt is "
    "wrong; otherwise use easier questions, more samples or a stronger model",
    "all correct": "use harder questions, or set selection.keep=solved for SFT",
    "no usable positive": "use a prompt or a model that ends its turn after the answer",
    "no usable negative": "set selection.keep=solved for SFT",
}


_COUNTS = ("num_samples", "num_correct", "num_incorrect", "num_truncated", "num_positives", "num_negatives")


def drop_reasons(grades: pa.Table, keep: str, excluded: Collection[str] = frozenset()) -> pa.StringArray:
    """One reason per GRADES row, null where the question is kept; arguments as for `drop_codes`."""
    codes = drop_codes(grades, keep, excluded)
    names = pa.array(["kept", *REASONS])
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes == 0), names).cast(pa.string())


def drop_codes(grades: pa.Table, keep: str, excluded: Collection[str] = frozenset()) -> np.ndarray:
    """Position in ("kept", *REASONS) of each GRADES row's reason: 0 where the question is kept.

    `keep` is "mixed" (a correct and an incorrect completion) or "solved" (a correct one); `excluded` are question ids.
    """
    total, right, wrong, cut, positives, negatives = (grades[name].to_numpy() for name in _COUNTS)
    mixed = keep == "mixed"
    holds = {
        "in test set": _is_in(grades, excluded),
        "no samples": total == 0,
        "grader error": right + wrong == 0,
        "truncated": ((right == 0) & (cut == total)) | ((right > 0) & (positives == 0) & (cut >= right)),
        "all wrong": right == 0,
        "all correct": (wrong == 0) & mixed,
        "no usable positive": positives == 0,
        "no usable negative": (negatives == 0) & mixed,
    }
    assert list(holds) == list(REASONS)
    first = np.zeros(len(total), dtype=np.int8)  # counted from the end; np.select takes several times as long
    for position, where in enumerate(holds.values()):
        np.minimum(first, where.view(np.int8) * np.int8(position - len(holds)), out=first)
    return first % np.int8(len(holds) + 1)


def _is_in(grades: pa.Table, excluded: Collection[str]) -> np.ndarray:
    if not excluded:
        return np.zeros(len(grades), dtype=bool)
    return pc.is_in(grades["question_id"], value_set=pa.array(sorted(excluded))).to_numpy()  # type: ignore[attr-defined]
