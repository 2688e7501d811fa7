"""Training of arms: Ray Train workers with DeepSpeed around the weighted trainers; one set of workers trains arm after arm.

The driver plans every batch, follows the progress and writes the log; it never holds text. `worker` runs on the workers.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import ray
import ray.exceptions

from east_ray import console
from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.records import UserError
from east_ray.runs import storage
from east_ray.runs.cluster import on_driver_node
from east_ray.runs.directory import RunDirectory
from east_ray.training.batches import plan_training
from east_ray.training.job import ArmTraining, JobGroup, StatusActor, TrainingJob, TrainingStatus
from east_ray.training.model_card import FACTS, write_model_card
from east_ray.training.tokens import PreparedExamples, prepare_arms

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5
WRITE_LOG_EVERY_SECONDS = 10.0
WARN_AFTER_SECONDS = 60.0
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints all ranks have finished


@dataclass(frozen=True)
class TrainingSummary:
    """A finished training. `tokens`: those its loss was summed over, in all epochs; `digest`: sha256 of the weights.

    `loss` and `weighted_loss` are of the last step; `gradient_error` is the relative L2 error of the weighted gradient, and
    `weight_error` the largest relative error of a multiplier where it is applied, both from the start-up check;
    `tokenised_from_text` counts completions that were imported without ids.
    """

    examples: int
    steps: int
    tokens: int
    micro_batch_size: int
    seconds: float
    loss: float
    weighted_loss: float
    gradient_error: float
    weight_error: float
    digest: str
    tokenised_from_text: int


def train_arms(
    run: RunDirectory,
    arms: Sequence[ArmTraining],
    *,
    model: ModelConfig,
    state: str,
    done: Callable[[int, TrainingSummary | Exception], None],
    questions: str = "questions/train.parquet",
    stop: threading.Event | None = None,
) -> None:
    """Train arms with one set of workers, which `workers_of` must say they can share, and write their models.

    `done` is told each arm's number and its summary, or the error that ends it while others go on: a UserError when the
    examples cannot be trained on as configured. An interrupted training resumes from the group's last checkpoint, which
    is kept in `state`. CancelledError soon after `stop` is set; UserError when a trained model cannot be written.
    """
    stop, started = stop or threading.Event(), time.monotonic()
    arms = [replace(a, base_model=storage.absolute(a.base_model)) if os.path.isdir(a.base_model) else a for a in arms]
    task: Any = ray.remote(num_cpus=1, max_retries=3)  # on another node when its own is lost; errors are not retried
    prepared = _get(task(prepare_arms).remote(run, arms, questions=questions, model=model))
    waiting: dict[str, tuple[int, TrainingJob, PreparedExamples]] = {}
    for number, (arm, examples) in enumerate(zip(arms, prepared, strict=True)):
        try:
            if isinstance(examples, UserError):
                raise examples
            waiting[arm.output] = number, _planned(arm, examples, model), examples
        except UserError as error:
            done(number, UserError(f"{arm.title}: {error}"))

    def end(job: TrainingJob, status: TrainingStatus) -> None:
        nonlocal started
        number, _, examples = waiting.pop(job.arm.output)
        if status.refused:
            done(number, UserError(f"{job.arm.title}: {status.refused}"))
        else:
            done(number, _finish(run, job, examples, status, time.monotonic() - started))
        started = time.monotonic()

    while waiting:
        before = len(waiting)
        group = JobGroup(run, tuple(job for _, job, _ in waiting.values()), state, on_driver_node(StatusActor))
        _discard_damaged_state(group)
        error = _fit(group, end, stop)
        if error is not None and len(waiting) == before:  # else the arm it was at begins anew, with all its restarts
            job = error.job
            done(waiting.pop(job.arm.output)[0], _explained(error.cause, job))
    run.delete(state)


def workers_of(training: TrainingConfig) -> tuple[Any, ...]:
    """The settings that shape a set of workers: arms that agree on them can be trained by one set."""
    t = training
    return (t.workers, t.use_gpu, t.cpus_per_worker, t.zero_stage, t.max_failures, tuple(sorted(t.labels.items())))


def _planned(arm: ArmTraining, prepared: PreparedExamples, model: ModelConfig) -> TrainingJob:
    plan = plan_training(prepared.weight_N, prepared.tokens_N, prepared.question_ids, arm.training, arm.seed)
    logger.info("%s: %d examples, %d steps", arm.title, len(prepared.weight_N), plan.num_steps)
    if prepared.tokenised_from_text:
        logger.info("%s: %d completions came as text and were tokenised", arm.title, prepared.tokenised_from_text)
    if left_out := prepared.left_out:
        names = ", ".join(left_out[:4]) + (" ..." if left_out[4:] else "")
        logger.info("%s: leaves out %d of the base's tensors or files: %s", arm.title, len(left_out), names)
    return TrainingJob(arm, model, prepared.tokens, prepared.reference, plan, prepared.weight_N)


def _finish(
    run: RunDirectory, job: TrainingJob, prepared: PreparedExamples, status: TrainingStatus, seconds: float
) -> TrainingSummary:
    """Write what belongs to a model beside its weights, and sum up its training."""
    arm, plan = job.arm, job.plan
    facts = {
        "title": arm.title,
        "base_model": arm.base_model,
        "weight_column": arm.weight_column,
        "training": arm.training.identity(),
        "seed": arm.seed,
        "dtype": job.model.dtype,
        "examples": len(prepared.weight_N),
        "examples_from": arm.examples.rpartition("/examples/")[0],
        "steps": plan.num_steps,
        "tokens": int(prepared.tokens_N[plan.row_P[~plan.padding_P]].sum()),
        "data": prepared.content,
        "weights": status.digest,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "deepspeed", "ray")},
    }
    run.write_json(facts, arm.output, FACTS)
    write_model_card(run, arm.output)
    if status.is_padded:
        logger.info("%s: trained with padded rows, which this model cannot do without", arm.title)
    last = status.log[-1]
    summary = TrainingSummary(
        examples=len(prepared.weight_N),
        steps=plan.num_steps,
        tokens=facts["tokens"],
        micro_batch_size=arm.training.micro_batch_size,
        seconds=seconds,
        loss=last["loss"],
        weighted_loss=last["weighted_loss"],
        gradient_error=status.gradient_error,
        weight_error=status.weight_error,
        digest=status.digest,
        tokenised_from_text=prepared.tokenised_from_text,
    )
    logger.info("%s: %.1f s, loss %.4g, weighted %.4g", arm.title, summary.seconds, summary.loss, summary.weighted_loss)
    return summary


def _discard_damaged_state(group: JobGroup) -> None:
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
class _FitError:
    """What ended a set of workers, and the job that they were at."""

    job: TrainingJob
    cause: Exception


def _fit(
    group: JobGroup, end: Callable[[TrainingJob, TrainingStatus], None], stop: threading.Event
) -> _FitError | None:
    """Run one set of workers to the end, showing progress, writing the logs as they grow, and calling `end` for each job."""
    jobs = {job.arm.output: job for job in group.jobs}
    fit = _FitThread(_trainer(group))
    fit.start()  # in a thread: on the main one Ray Train would keep Ctrl-C to itself for the rest of the process
    started, shown, waiting, ended = time.monotonic(), dict[int, str](), True, set[str]()
    current = group.jobs[0]
    alive = True
    while alive:
        with console.progress(current.arm.title, current.plan.num_steps, unit="steps") as bar:
            written, is_current = time.monotonic(), True
            while alive and is_current:
                fit.join(timeout=LOOK_EVERY_SECONDS)
                alive = fit.is_alive()
                if stop.is_set():
                    raise CancelledError(f"{current.arm.title} was stopped")
                status = _get(group.status.read.remote())
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
    return _FitError(current, fit.error) if fit.error is not None else None


def _warn_of_waiting(group: JobGroup) -> None:
    arm, free = group.jobs[0].arm, ray.available_resources()
    training = arm.training
    logger.warning(
        "%s: waiting for %d workers with %g CPUs%s each%s; free are %g CPUs and %g GPUs",
        arm.title,
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


def _trainer(group: JobGroup) -> Any:
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK_EVERY_SECONDS))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # 60 is less than a node takes to boot
    import ray.train.torch  # torch, which most commands never need

    training, run = group.jobs[0].arm.training, group.run
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


def _get(reference: Any) -> Any:
    """`ray.get` that raises a task's UserError as a UserError."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _explained(error: Exception, job: TrainingJob) -> Exception:
    text, training = str(error), job.arm.training
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        return UserError(
            f"{job.arm.title}: a worker ran out of memory {training.max_failures + 1} times; lower "
            f"training.micro_batch_size={training.micro_batch_size}, set training.gradient_checkpointing=true, or raise "
            f"training.zero_stage={training.zero_stage} or training.workers={training.workers}"
        )
    return error
