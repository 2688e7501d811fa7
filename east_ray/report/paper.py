"""The paper's Table 1 (Wang et al. 2025, arXiv 2503.23913), to compare ours with.

Accuracies in percent on the standard test splits, one run each, published without intervals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

METHODS = ("vanilla", "lw-w", "lw-p", "east")  # the rows of Table 1 under each loss, in its order


@dataclass(frozen=True)
class Column:
    """One model on one data set: a column of Table 1."""

    model: str
    dataset: str
    default: float
    table: dict[str, tuple[float, float, float, float]]  # loss -> accuracies in the order of METHODS

    @property
    def title(self) -> str:
        """Model and data set, as the page names the column."""
        return f"{self.model}, {self.dataset}"

    def accuracy(self, loss: str, method: str) -> float:
        """Accuracy, percent, e.g. of ("dpo", "east")."""
        return self.table[loss][METHODS.index(method)]


COLUMNS = (
    Column(
        "Llama-3.2-1B-Instruct",
        "GSM8K",
        46.2,
        {"sft": (50.1, 50.9, 51.2, 51.8), "dpo": (50.2, 50.9, 50.3, 51.9), "kto": (53.0, 52.9, 52.9, 53.0)},
    ),
    Column(
        "Llama-3.2-1B-Instruct",
        "MATH",
        28.5,
        {"sft": (28.4, 28.5, 28.4, 29.4), "dpo": (28.7, 28.1, 28.4, 29.7), "kto": (28.8, 28.2, 28.9, 29.9)},
    ),
    Column(
        "Llama-3.1-8B-Instruct",
        "GSM8K",
        82.8,
        {"sft": (85.0, 84.8, 85.1, 86.1), "dpo": (84.6, 85.1, 85.2, 85.4), "kto": (83.9, 84.3, 83.9, 85.1)},
    ),
    Column(
        "Llama-3.1-8B-Instruct",
        "MATH",
        50.4,
        {"sft": (50.0, 50.9, 50.8, 51.2), "dpo": (50.1, 50.2, 50.8, 50.9), "kto": (48.9, 49.1, 49.1, 51.0)},
    ),
)


HUB_NAMES = {
    "openai/gsm8k": "GSM8K",
    "digitallearninggmbh/math-lighteval": "MATH",
    "eleutherai/hendrycks_math": "MATH",
    "hendrycks/competition_math": "MATH",
}


def column_for(model: str, train: str, test: str | None) -> Column | None:
    """The paper's column that a run repeats: its very model, training and test set, by their whole names; else None."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    dataset = _dataset(train, "train")
    if dataset is None or dataset != _dataset(test or "", "test"):
        return None
    return next((column for column in COLUMNS if (column.model.lower(), column.dataset) == (name, dataset)), None)


def _dataset(source: str, split: str) -> str | None:
    """GSM8K or MATH, from hf://openai/gsm8k/main:train, gsm8k/train.jsonl or gsm8k-train.jsonl; None for other names."""
    if source.startswith("hf://"):
        path, _, found = source.removeprefix("hf://").partition(":")
        return HUB_NAMES.get("/".join(path.lower().split("/")[:2])) if found == split else None
    *_, folder, file = ["", *source.lower().split("/")]
    stem = file.partition(".")[0]
    named = re.fullmatch(rf"(gsm8k|math)[-_]{split}", f"{folder}-{stem}" if stem == split else stem)
    return named[1].upper() if named else None
