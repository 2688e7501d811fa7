"""Training of arms: Ray Train workers with DeepSpeed around the weighted trainers; one set of workers trains arm after arm.

The driver plans every batch, follows the progress and writes the log; it never holds text. `worker` runs on the workers.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import ray

from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.records import UserError
from east_ray.runs import storage
from east_ray.runs.cluster import on_driver_node
from east_ray.runs.directory import RunDirectory
from east_ray.training.batches import plan_training
from east_ray.training.fit import discard_damaged_state, fit, get, import_trainer
from east_ray.training.job import ArmTraining, JobGroup, StatusActor, TrainingJob, TrainingStatus
from east_ray.training.model_card import FACTS, write_model_card
from east_ray.training.tokens import PreparedExamples, prepare_arms

logger = logging.getLogger(__name__)

Prepared = tuple[ArmTraining, PreparedExamples | UserError]


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


def train_all(
    run: RunDirectory,
    arms: Sequence[ArmTraining],
    pending: Sequence[ArmTraining],
    *,
    model: ModelConfig,
    at_once: int,
    questions: str = "questions/train.parquet",
) -> Iterator[TrainingSummary | Exception]:
    """Train those of the arms that are pending, `at_once` at a time; their summaries in order, or the errors of some.

    Arms whose workers are shaped alike are trained by the same ones, one after another. All arms decide who shares them:
    a resumed command must find each group's checkpoints.
    """
    stop = threading.Event()
    results = {arm.output: Future[TrainingSummary | Exception]() for arm in pending}
    prepared = {arm.output: (arm, examples) for arm, examples in _prepare(run, pending, questions, model)}

    def train_group(members: Sequence[ArmTraining]) -> None:
        unfinished = [arm.output for arm in members if arm.output in results]
        try:
            _train_together(
                run,
                [prepared[output] for output in unfinished],
                model=model,
                state=f"{members[0].directory}/state",
                done=lambda number, outcome: results[unfinished[number]].set_result(outcome),
                stop=stop,
            )
        except BaseException as error:
            stop.set()
            for result in results.values():
                if not result.done():
                    result.set_exception(error)

    alike: dict[Any, list[ArmTraining]] = {}
    for arm in arms:
        alike.setdefault(workers_of(arm.training), []).append(arm)
    sets = -(-at_once // len(alike))
    groups = [members[i::sets] for members in alike.values() for i in range(min(sets, len(members)))]
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        for members in groups:
            if any(arm.output in results for arm in members):
                pool.submit(train_group, members)
        try:
            for arm in pending:
                yield results[arm.output].result()
        except BaseException:  # an error or Ctrl-C: otherwise it would be shown only when the other arms have ended
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare(run: RunDirectory, arms: Sequence[ArmTraining], questions: str, model: ModelConfig) -> list[Prepared]:
    arms = [replace(a, base_model=storage.absolute(a.base_model)) if os.path.isdir(a.base_model) else a for a in arms]
    task: Any = ray.remote(num_cpus=1, max_retries=3)  # on another node when its own is lost; errors are not retried
    prepared = task(prepare_arms).remote(run, arms, questions=questions, model=model)
    import_trainer()  # while the task tokenises
    return list(zip(arms, get(prepared), strict=True))


def _train_together(
    run: RunDirectory,
    prepared: Sequence[Prepared],
    *,
    model: ModelConfig,
    state: str,
    done: Callable[[int, TrainingSummary | Exception], None],
    stop: threading.Event,
) -> None:
    """Train arms with one set of workers, which `workers_of` must say they can share, and write their models.

    `done` gets each arm's number and its summary, or the error that ends it while others go on: a UserError when the
    examples cannot be trained on as configured. An interrupted training resumes from the group's last checkpoint, which
    is kept in `state`. CancelledError soon after `stop` is set; UserError when a trained model cannot be written.
    """
    started = time.monotonic()
    waiting: dict[str, tuple[int, TrainingJob, PreparedExamples]] = {}
    for number, (arm, examples) in enumerate(prepared):
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
        discard_damaged_state(group)
        error = fit(group, end, stop)
        if error is not None and len(waiting) == before:  # else the arm it was at starts over, with all its restarts
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
    if left_out := status.left_out:
        names = ", ".join(left_out[:4]) + (" ..." if left_out[4:] else "")
        logger.info("%s: leaves out %d of the base's tensors or files: %s", arm.title, len(left_out), names)
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


def _explained(error: Exception, job: TrainingJob) -> Exception:
    text, training = str(error), job.arm.training
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        return UserError(
            f"{job.arm.title}: a worker ran out of memory {training.max_failures + 1} times; lower "
            f"training.micro_batch_size={training.micro_batch_size}, set training.gradient_checkpointing=true, or raise "
            f"training.zero_stage={training.zero_stage} or training.workers={training.workers}"
        )
    return error
