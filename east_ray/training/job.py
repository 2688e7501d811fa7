"""The job that the driver sends to the workers of a training, and the status they report back; free of either's libraries."""

from __future__ import annotations

import importlib.util
import math
import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.training.batches import TrainingPlan


def check_trackers(report_to: Sequence[str]) -> None:
    """UserError when a tracker that the config names is not installed or has no key; called before anything is spent."""
    missing = [name for name in report_to if name != "none" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"training.report_to names {', '.join(missing)}, which is not installed: pip install 'east-ray[trackers]', or "
            "leave it out"
        )
    if "wandb" in report_to and not _knows_wandb_key(os.environ):
        raise UserError(
            "training.report_to names wandb, and there is no key for it: set WANDB_API_KEY, run `wandb login`, or set "
            "WANDB_MODE=offline"
        )


def _knows_wandb_key(environment: Mapping[str, str]) -> bool:
    if environment.get("WANDB_MODE", "online") != "online":
        return True
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    names = [environment["NETRC"]] if "NETRC" in environment else ["~/.netrc", "~/_netrc"]
    for file in map(os.path.expanduser, names):
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(file).authenticators(host):
                return True
    return False


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs.

    Relative to the run: `tokens` (the tokenised examples), `reference` (DPO's reference log-probabilities, shared by all
    arms), `state` (the directory of checkpoints) and `output` (the model's). `status` is a `StatusActor`.
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
    status: Any


@dataclass
class TrainingStatus:
    """Reports of rank 0. `log`: one row per step, complete at the end; `digest` is empty until then."""

    log: list[dict[str, Any]] = field(default_factory=list)
    workers: dict[int, str] = field(default_factory=dict)
    gradient_error: float = math.nan
    weight_error: float = math.nan
    digest: str = ""
    left_out: list[str] = field(default_factory=list)
    refused: str = ""


class StatusActor:
    """An actor that passes rank 0's status to the driver at once; Ray Train's own reports wait for all ranks."""

    def __init__(self) -> None:
        self._status = TrainingStatus()

    def register(self, rank: int, where: str) -> None:
        """Record a worker that has started, for the first time or again."""
        self._status.workers[rank] = where

    def add(self, row: dict[str, Any]) -> None:
        """Append a log row; steps that are trained again after a failure replace the old ones."""
        self._status.log = [old for old in self._status.log if old["step"] < row["step"]] + [row]

    def update(self, **fields: Any) -> None:
        """Set fields of TrainingStatus."""
        for name, value in fields.items():
            setattr(self._status, name, value)

    def read(self) -> TrainingStatus:
        """The status so far."""
        return self._status
