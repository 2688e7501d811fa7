"""The jobs that the driver sends to the workers, and the status they report back; free of either's libraries."""

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
from east_ray.runs.directory import RunDirectory, fingerprint
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
class ArmTraining:
    """What is asked for: train `base_model` on one Parquet file of examples and write the model directory `output`.

    `weight_column` names the file's column of weights; None means all ones.
    """

    examples: str
    weight_column: str | None
    base_model: str
    output: str
    training: TrainingConfig
    seed: int
    title: str

    @property
    def directory(self) -> str:
        """Directory of its log, its trackers' files and, where it is the first of its group, the checkpoints."""
        return "/".join([*self.output.split("/")[:-1], "training"])


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs to train one arm.

    Relative to the run: `tokens` (the tokenised examples) and `reference` (DPO's reference log-probabilities, shared by all
    arms).
    """

    arm: ArmTraining
    model: ModelConfig
    tokens: str
    reference: str | None
    plan: TrainingPlan
    weight_N: np.ndarray

    @property
    def checkpoint_suffix(self) -> str:
        """What ends the names of this job's checkpoints, among those of other jobs."""
        return "-" + fingerprint(self.arm.output)[:8]


@dataclass(frozen=True)
class JobGroup:
    """Jobs that one set of workers trains one after another; `state`: their checkpoints, `status`: a `StatusActor`."""

    run: RunDirectory
    jobs: tuple[TrainingJob, ...]
    state: str
    status: Any


@dataclass
class TrainingStatus:
    """Reports of rank 0 about one job. `log`: one row per step, complete at the end; `digest` is empty until then.

    `is_padded`: this model cannot be trained without padding; `left_out`: names of the base's tensors that the trained model
    does without. `refused`: why it cannot be trained; `not_exported`: why the
    trained model cannot be written.
    """

    log: list[dict[str, Any]] = field(default_factory=list)
    gradient_error: float = math.nan
    weight_error: float = math.nan
    is_padded: bool = False
    left_out: Sequence[str] = ()
    digest: str = ""
    refused: str = ""
    not_exported: str = ""

    @property
    def has_ended(self) -> bool:
        """Is the model written, or certain never to be?"""
        return bool(self.digest or self.refused or self.not_exported)


@dataclass(frozen=True)
class GroupStatus:
    """The workers, the job they are at (its model's directory), and the jobs of which there is news since the last read."""

    workers: dict[int, str]
    current: str
    jobs: dict[str, TrainingStatus]


class StatusActor:
    """An actor that passes rank 0's status to the driver at once; Ray Train's own reports wait for all ranks."""

    def __init__(self) -> None:
        self._workers: dict[int, str] = {}
        self._current = ""
        self._jobs: dict[str, TrainingStatus] = {}
        self._changed: set[str] = set()

    def register(self, rank: int, where: str) -> list[str]:
        """Record a worker that has started, for the first time or again; return the jobs that need no training any more."""
        self._workers[rank] = where
        return [output for output, status in self._jobs.items() if status.has_ended]

    def add(self, output: str, row: dict[str, Any]) -> None:
        """Append a log row to a job; steps that are trained again after a failure replace the old ones."""
        status = self._status(output)
        status.log = [old for old in status.log if old["step"] < row["step"]] + [row]

    def update(self, output: str, **fields: Any) -> None:
        """Set fields of the TrainingStatus of the job that the workers are at."""
        for name, value in fields.items():
            setattr(self._status(output), name, value)

    def read(self) -> GroupStatus:
        """The status so far."""
        changed, self._changed = self._changed, set()
        return GroupStatus(self._workers, self._current, {output: self._jobs[output] for output in changed})

    def _status(self, output: str) -> TrainingStatus:
        self._current = output
        self._changed.add(output)
        return self._jobs.setdefault(output, TrainingStatus())
