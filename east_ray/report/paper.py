"""The paper's Table 1 (`paper.toml`), to compare ours with, and which of its columns a run repeats."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

METHODS = ("vanilla", "lw-w", "lw-p", "east")  # the rows of Table 1 under each loss, in its order


@dataclass(frozen=True)
class Column:
    """One model on one data set: a column of Table 1."""

    model: str
    dataset: str
    default: float
    table: dict[str, dict[str, float]]  # loss -> method -> accuracy

    @property
    def title(self) -> str:
        """Model and data set, as the page names the column."""
        return f"{self.model}, {self.dataset}"

    def accuracy(self, loss: str, method: str) -> float:
        """Accuracy, percent, e.g. of ("dpo", "east")."""
        return self.table[loss][method]


PAPER = tomllib.loads(Path(__file__).with_name("paper.toml").read_text(encoding="utf-8"))
COLUMNS = tuple(Column(**column) for column in PAPER["columns"])
HUB_NAMES: dict[str, str] = PAPER["hub_names"]


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
