"""One set of Ray Train workers, from its start to the end of its last job: progress, logs, and what ends it early."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from east_ray import console
from east_ray.records import UserError
from east_ray.training.job import JobGroup, TrainingJob, TrainingStatus

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5
WRITE_LOG_EVERY_SECONDS = 10.0
WARN_AFTER_SECONDS = 60.0
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints all ranks have finished


def discard_damaged_state(group: JobGroup) -> None:
    """Delete checkpoints whose list is damaged: Ray overwrites it in place, and a driver killed in that moment leaves half.

    Starting again costs time and ends in the same weights.
    """
    run, state = group.run, group.state
    if not run.exists(state, SNAPSHOT):
        return
    try:
        snapshot = json.loads(run.read_bytes(state, SNAPSHOT))
        names = [result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]]
        intact = all(run.exists(state, name) for name in names)
    except (ValueError, KeyError):
        intact = False
    if not intact:
        logger.warning("the checkpoints in %s are damaged; starting again", run.uri_of(state))
        run.delete(state)


@dataclass(frozen=True)
class FitError:
    """What ended a set of workers, and the job that they were at."""

    job: TrainingJob
    cause: Exception


def fit(group: JobGroup, end: Callable[[TrainingJob, TrainingStatus], None], stop: threading.Event) -> FitError | None:
    """Run one set of workers to the end, showing progress, writing the logs as they grow, and calling `end` for each job."""
    jobs = {job.arm.output: job for job in group.jobs}
    thread = _FitThread(_trainer(group))
    thread.start()  # in a thread: on the main one Ray Train would keep Ctrl-C to itself for the rest of the process
    started, shown, waiting, ended = time.monotonic(), dict[int, str](), True, set[str]()
    current = group.jobs[0]
    alive = True
    while alive:
        with console.progress(current.arm.title, current.plan.num_steps, unit="steps") as bar:
            written, is_current = time.monotonic(), True
            while alive and is_current:
                thread.join(timeout=LOOK_EVERY_SECONDS)
                alive = thread.is_alive()
                if stop.is_set():
                    raise CancelledError(f"{current.arm.title} was stopped")
                status = get(group.status.read.remote())
                if waiting and (status.workers or time.monotonic() - started > WARN_AFTER_SECONDS):
                    waiting = False
                    if not status.workers:
                        _warn_of_waiting(group)
                if status.workers != shown:
                    shown = dict(status.workers)
                    logger.debug("%s: workers %s", current.arm.title, shown)
                for output, job_status in status.jobs.items():
                    job = jobs[output]
                    if job is current and job_status.log:
                        bar.update(job_status.log[-1]["step"], loss=job_status.log[-1]["loss"])
                    if job_status.log and (
                        job_status.has_ended or time.monotonic() - written > WRITE_LOG_EVERY_SECONDS
                    ):
                        written = time.monotonic()
                        log = "".join(json.dumps(row) + "\n" for row in job_status.log)
                        group.run.write_bytes(log.encode(), job.arm.directory, "log.jsonl")
                    if job_status.not_exported:
                        raise UserError(f"{job.arm.title}: {job_status.not_exported}")
                    if job_status.has_ended and output not in ended:
                        ended.add(output)
                        end(job, job_status)
                is_current = status.current in ("", current.arm.output)
                current = jobs.get(status.current, current)
    return FitError(current, thread.error) if thread.error is not None else None


def _warn_of_waiting(group: JobGroup) -> None:
    arm, free = group.jobs[0].arm, ray.available_resources()
    training = arm.training
    logger.warning(
        "%s: no worker has started after %.0f s: they are importing torch and DeepSpeed, or no node has room for %d x %g "
        "CPUs%s%s (`ray status` shows what is pending); free now are %g CPUs and %g GPUs",
        arm.title,
        WARN_AFTER_SECONDS,
        training.workers,
        training.cpus_per_worker,
        " and a GPU" if training.use_gpu else "",
        f" on nodes labelled {training.labels}" if training.labels else "",
        free.get("CPU", 0),
        free.get("GPU", 0),
    )


class _FitThread(threading.Thread):
    def __init__(self, trainer: Any) -> None:
        super().__init__(name=console.TRAINING_THREAD, daemon=True)
        self.trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.error = error


def import_trainer() -> None:
    """Import torch and Ray Train, which takes seconds and most commands never need."""
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK_EVERY_SECONDS))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # 60 is less than a node takes to boot
    import ray.train.torch  # noqa: F401


def _trainer(group: JobGroup) -> Any:
    import_trainer()
    import ray.train.torch

    training, run = group.jobs[0].arm.training, group.run
    if not training.use_gpu:  # a process of its own, for the notice that a spot node gives
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    work, _, state = group.state.rpartition("/")
    return ray.train.torch.TorchTrainer(
        _run_worker,
        train_loop_config={"group": group},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if training.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.use_gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": 1} if training.use_gpu else {})},
            label_selector=training.labels or None,
        ),
        run_config=ray.train.RunConfig(
            name=state,
            storage_path=run.path(work),
            storage_filesystem=None if run.is_local else run.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {} if training.use_gpu else {"DS_ACCELERATOR": "cpu"}},
        ),
    )


def _run_worker(config: dict[str, Any]) -> None:
    from east_ray.training.worker import train_worker  # trl and deepspeed, which the driver never needs

    train_worker(config["group"])


def get(reference: Any) -> Any:
    """`ray.get` that raises a task's UserError as a UserError."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
