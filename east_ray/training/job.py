"""What passes between the driver of a training and its workers: the job there, the news back. Imports neither's libraries."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.training.batches import TrainingPlan

TRAINING_THREAD = "east-ray training"  # name of the driver's threads that are inside Ray Train's fit()


def check_trackers(report_to: Sequence[str]) -> None:
    """UserError, before anything is spent, when a tracker that was asked for by name is not installed."""
    missing = [name for name in report_to if name != "none" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"training.report_to names {', '.join(missing)}, which is not installed: pip install 'east-ray[trackers]', or "
            "leave it out"
        )


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs.

    `tokens`, `state` and `output` are relative to the run: the tokenised examples, the directory of checkpoints and the
    model's. `reference`: where DPO's reference log-probabilities are kept for every arm. `board` is a `StatusActor` actor.
    """

    run: RunDirectory
    tokens: str
    reference: str | None
    state: str
    output: str
    base_model: str
    plan: TrainingPlan
    weight_N: np.ndarray
    training: TrainingConfig
    model: ModelConfig
    seed: int
    board: Any


@dataclass
class TrainingStatus:
    """What rank 0 has told so far. `log`: one row per step, complete at the end; `digest` is empty until then."""

    log: list[dict[str, Any]] = field(default_factory=list)
    workers: dict[int, str] = field(default_factory=dict)
    proof: float = math.nan
    digest: str = ""
    refused: str = ""


class StatusActor:
    """An actor that passes news from rank 0 to the driver at once; Ray Train's own reports wait for all ranks."""

    def __init__(self) -> None:
        self._news = TrainingStatus()

    def join(self, rank: int, where: str) -> None:
        """A worker has started, for the first time or again."""
        self._news.workers[rank] = where

    def add(self, row: dict[str, Any]) -> None:
        """Rows of steps that are trained again, after a failure, replace the old ones."""
        self._news.log = [old for old in self._news.log if old["step"] < row["step"]] + [row]

    def tell(self, **news: Any) -> None:
        """Set fields of TrainingStatus."""
        for name, value in news.items():
            setattr(self._news, name, value)

    def read(self) -> TrainingStatus:
        """All there is so far."""
        return self._news
