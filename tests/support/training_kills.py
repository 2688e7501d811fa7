"""Trainings that are killed on purpose: which process is which rank comes from the log, the moment from the checkpoints."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil

from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.runs.directory import RunDirectory
from east_ray.training.driver import TrainingSummary, train_all
from east_ray.training.job import ArmTraining
from tests.support.training_rows import MODEL

UNSTEADY = {"tokens_per_second", "num_tokens"}


def arm(training: TrainingConfig, output: str, seed: int = 0) -> ArmTraining:
    return ArmTraining(
        f"examples/{training.loss}.parquet", "weight", str(MODEL), f"{output}/model", training, seed, title=output
    )


def start_all(run: RunDirectory, arms: list[ArmTraining]) -> list[TrainingSummary | Exception]:
    """Train these arms with one set of workers."""
    return list(train_all(run, arms, arms, model=ModelConfig(path=str(MODEL), dtype="float32"), at_once=1))


def start(run: RunDirectory, training: TrainingConfig, output: str) -> TrainingSummary:
    (ended,) = start_all(run, [arm(training, output)])
    if isinstance(ended, Exception):
        raise ended
    return ended


class Killer(logging.Handler):
    """Learns from the log which process has which rank, and kills ranks at given moments of a training."""

    def __init__(self, state: Path, plan: list[tuple[int, str]]) -> None:
        super().__init__(logging.DEBUG)
        self.state, self.plan, self.killed, self.pids = state, list(plan), [], dict[int, int]()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        if "workers" in (text := record.getMessage()):
            self.pids = {int(rank): int(pid) for rank, pid in re.findall(r"(\d+): 'pid (\d+) ", text)}

    def registered(self) -> set[str]:
        try:
            snapshot = json.loads((self.state / "checkpoint_manager_snapshot.json").read_text())
        except (OSError, ValueError):
            return set()
        return {result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]}

    def written(self) -> set[str]:
        return {path.name for path in self.state.glob("checkpoint-*")}

    def watch(self) -> None:
        """`step`: some time after a checkpoint was registered; `save`: while one is written and not registered yet."""
        seen = set[str]()
        while self.plan:
            time.sleep(0.002)
            rank, moment = self.plan[0]
            fresh = self.registered() - seen if moment == "step" else self.written() - self.registered() - seen
            pid = self.pids.get(rank)
            if fresh and pid and psutil.pid_exists(pid):
                if moment == "step":
                    time.sleep(0.05)
                os.kill(pid, signal.SIGKILL)
                self.killed.append((rank, moment, min(fresh)))
                seen |= self.registered() | self.written()
                self.plan.pop(0)


def train_with_kills(
    run: RunDirectory, training: TrainingConfig, plan: list[tuple[int, str]]
) -> tuple[TrainingSummary, Killer]:
    killer = Killer(Path(run.path("disturbed/training/state")), plan)
    logger = logging.getLogger("east_ray.training.fit")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(killer)
    killer.thread.start()
    try:
        return start(run, training, "disturbed"), killer
    finally:
        killer.plan.clear()
        logger.removeHandler(killer)
        logger.setLevel(level)


def assert_same_training(run: RunDirectory, undisturbed: TrainingSummary, disturbed: TrainingSummary) -> None:
    assert disturbed.digest == undisturbed.digest
    logs = [
        [json.loads(line) for line in run.read_bytes(arm, "training", "log.jsonl").splitlines()]
        for arm in ("undisturbed", "disturbed")
    ]
    assert [row["step"] for row in logs[0]] == list(range(1, undisturbed.steps + 1))
    timeless = [[{k: v for k, v in row.items() if k not in UNSTEADY} for row in log] for log in logs]
    assert timeless[0] == timeless[1]
