"""Training of one arm: Ray Train workers with DeepSpeed around the weighted trainers, one `fit()` per training.

The driver plans every batch, follows the progress and writes the log; it never holds text. `worker` runs on the workers.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass
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
from east_ray.training.job import StatusActor, TrainingJob, TrainingStatus
from east_ray.training.model_card import FACTS, write_model_card
from east_ray.training.tokens import PreparedExamples, prepare_examples

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


def train(
    run: RunDirectory,
    *,
    examples: str,
    weight_column: str | None,
    base_model: str,
    output: str,
    training: TrainingConfig,
    model: ModelConfig,
    seed: int,
    title: str,
    questions: str = "questions/train.parquet",
    stop: threading.Event | None = None,
) -> TrainingSummary:
    """Train `base_model` on one Parquet file of examples and write the model directory `output`.

    `weight_column` names the file's column of weights; None means all ones. An interrupted training resumes from its last
    checkpoint, which is kept beside `output` in `training/`, as is its log. CancelledError soon after `stop` is set;
    UserError when the examples cannot be trained on as configured.
    """
    started = time.monotonic()
    work = "/".join([*output.split("/")[:-1], "training"])
    base_model = storage.absolute(base_model) if os.path.isdir(base_model) else base_model
    task: Any = ray.remote(num_cpus=1, max_retries=3)  # on another node when its own is lost; errors are not retried
    prepared: PreparedExamples = _get(
        task(prepare_examples).remote(
            run,
            examples=examples,
            weight_column=weight_column,
            questions=questions,
            base_model=base_model,
            training=training,
            model=model,
        )
    )
    plan = plan_training(
        prepared.weight_N,
        prepared.tokens_N,
        prepared.question_ids,
        loss=training.loss,
        epochs=training.epochs,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        normalization=training.normalization,
        granularity=training.weight_granularity,
        seed=seed,
    )
    logger.info("%s: %d examples, %d steps", title, len(prepared.weight_N), plan.num_steps)
    if prepared.tokenised_from_text:
        logger.info("%s: %d completions came as text and were tokenised", title, prepared.tokenised_from_text)
    job = TrainingJob(
        run=run,
        tokens=prepared.tokens,
        reference=prepared.reference,
        state=f"{work}/state",
        output=output,
        base_model=base_model,
        plan=plan,
        weight_N=prepared.weight_N,
        training=training,
        model=model,
        seed=seed,
        status=on_driver_node(StatusActor),
    )
    _discard_damaged_state(job, title)
    status = _fit(job, f"{work}/log.jsonl", title, stop or threading.Event())
    facts = {
        "title": title,
        "base_model": base_model,
        "weight_column": weight_column,
        "training": training.identity(),
        "seed": seed,
        "dtype": model.dtype,
        "examples": len(prepared.weight_N),
        "examples_from": examples.rpartition("/examples/")[0],
        "steps": plan.num_steps,
        "tokens": int(prepared.tokens_N[plan.row_P[~plan.padding_P]].sum()),
        "data": prepared.content,
        "weights": status.digest,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "deepspeed", "ray")},
    }
    run.write_json(facts, output, FACTS)
    write_model_card(run, output)
    run.delete(job.state)
    if status.left_out:
        names = ", ".join(status.left_out[:4]) + (" ..." if len(status.left_out) > 4 else "")
        logger.info("%s: left out %d of the base's tensors or files: %s", title, len(status.left_out), names)
    last = status.log[-1]
    summary = TrainingSummary(
        examples=len(prepared.weight_N),
        steps=plan.num_steps,
        tokens=facts["tokens"],
        micro_batch_size=training.micro_batch_size,
        seconds=time.monotonic() - started,
        loss=last["loss"],
        weighted_loss=last["weighted_loss"],
        gradient_error=status.gradient_error,
        weight_error=status.weight_error,
        digest=status.digest,
        tokenised_from_text=prepared.tokenised_from_text,
    )
    logger.info("%s: %.1f s, loss %.4g, weighted %.4g", title, summary.seconds, summary.loss, summary.weighted_loss)
    return summary


def _discard_damaged_state(job: TrainingJob, title: str) -> None:
    """Delete checkpoints whose list is damaged: Ray overwrites it in place, and a driver killed in that moment leaves half.

    Starting again costs time and ends in the same weights.
    """
    if not job.run.exists(job.state, SNAPSHOT):
        return
    try:
        snapshot = json.loads(job.run.read_bytes(job.state, SNAPSHOT))
        names = [result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]]
        intact = all(job.run.exists(job.state, name) for name in names)
    except (ValueError, KeyError):
        intact = False
    if not intact:
        logger.warning("%s: the checkpoints in %s are damaged; starting again", title, job.run.uri_of(job.state))
        job.run.delete(job.state)


def _fit(job: TrainingJob, log: str, title: str, stop: threading.Event) -> TrainingStatus:
    """Run the workers to the end, showing progress and writing the log as it grows."""
    fit = _FitThread(_trainer(job))
    fit.start()  # in a thread: on the main one Ray Train would keep Ctrl-C to itself for the rest of the process
    status, started, written, shown = TrainingStatus(), time.monotonic(), time.monotonic(), dict[int, str]()
    waiting = True
    with console.progress(title, job.plan.num_steps, unit="steps") as bar:
        while fit.is_alive():
            fit.join(timeout=LOOK_EVERY_SECONDS)
            if stop.is_set():
                raise CancelledError(f"{title} was stopped")
            status = _get(job.status.read.remote())
            if waiting and time.monotonic() - started > WARN_AFTER_SECONDS:
                waiting = False
                if not status.workers:
                    _warn_of_waiting(job, title)
            if status.workers != shown:
                shown = dict(status.workers)
                logger.debug("%s: workers %s", title, shown)
            if status.log:
                bar.update(status.log[-1]["step"], loss=status.log[-1]["loss"])
            if status.log and time.monotonic() - written > WRITE_LOG_EVERY_SECONDS:
                written = time.monotonic()
                _write_log(job.run, log, status)
    if status.refused:
        raise UserError(f"{title}: {status.refused}")
    if fit.error is not None:
        raise _explained(fit.error, job, title)
    _write_log(job.run, log, status)
    return status


def _warn_of_waiting(job: TrainingJob, title: str) -> None:
    training, free = job.training, ray.available_resources()
    logger.warning(
        "%s: waiting for %d workers with %g CPUs%s each%s; free are %g CPUs and %g GPUs",
        title,
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
        self.trainer, self.error = trainer, None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.error = error


def _trainer(job: TrainingJob) -> Any:
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK_EVERY_SECONDS))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # 60 is less than a node takes to boot
    import ray.train.torch  # torch, which most commands never need

    training, run = job.training, job.run
    work, _, state = job.state.rpartition("/")
    return ray.train.torch.TorchTrainer(
        _run_worker,
        train_loop_config={"job": job},
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

    train_worker(config["job"])


def _write_log(run: RunDirectory, path: str, status: TrainingStatus) -> None:
    run.write_bytes("".join(json.dumps(row) + "\n" for row in status.log).encode(), path)


def _get(reference: Any) -> Any:
    """`ray.get` that raises a task's UserError as a UserError."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _explained(error: BaseException, job: TrainingJob, title: str) -> BaseException:
    text = str(error)
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        return UserError(
            f"{title}: a worker ran out of memory {job.training.max_failures + 1} times; lower training.micro_batch_size="
            f"{job.training.micro_batch_size}, set training.gradient_checkpointing=true, or raise training.zero_stage="
            f"{job.training.zero_stage} or training.workers={job.training.workers}"
        )
    return error
