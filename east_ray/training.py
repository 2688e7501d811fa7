"""Train one arm: Ray Train workers with DeepSpeed around the weighted trainers, one `fit()` per training.

The driver tokenises (in a task), plans every batch, follows the progress and writes the log; it never holds text.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch

from east_ray import console
from east_ray.batches import plan_training
from east_ray.config import ModelConfig, TrainingConfig
from east_ray.records import EXAMPLES, UserError, check_schema
from east_ray.runs import RunDirectory
from east_ray.tokens import check_lengths, lengths, tokenise_examples
from east_ray.training_worker import TrainingJob, train_worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """`digest`: sha256 of the weights; `loss` and `weighted_loss`: of the last step; `tokens`: trained on, in all."""

    examples: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    digest: str


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
) -> TrainingSummary:
    """Train `base_model` on one Parquet file of examples and write the model directory `output`.

    `weight_column` names the file's column of weights, None means all ones. A training that was interrupted goes on
    from its last checkpoint, beside `output` in `training/`. UserError when the examples cannot be trained on as asked.
    """
    started = time.monotonic()
    _quiet_ray_train()
    work = f"{output.rpartition('/')[0]}/training".lstrip("/")
    if os.path.isdir(base_model):
        base_model = os.path.abspath(base_model)
    prepared = ray.get(
        _prepare.options(num_cpus=1).remote(
            run, examples, weight_column, questions, f"{work}/tokens.parquet", base_model, training, model
        )
    )
    plan = plan_training(
        prepared["weight_N"],
        prepared["tokens_N"],
        prepared["question_ids"],
        loss=training.loss,
        epochs=training.epochs,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        micro_batch_size=training.micro_batch_size,
        normalization=training.normalization,
        granularity=training.weight_granularity,
        seed=seed,
    )
    board = _Board.options(num_cpus=0).remote()
    job = TrainingJob(
        run, f"{work}/tokens.parquet", output, base_model, plan, prepared["weight_N"], training, model, seed, board
    )
    log, result = _fit(job, work, title)
    run.write_bytes("".join(json.dumps(row) + "\n" for row in log).encode(), work, "log.jsonl")
    run.delete(work, "state")
    return TrainingSummary(
        examples=len(prepared["weight_N"]),
        steps=plan.num_steps,
        tokens=int(prepared["tokens_N"][plan.row_P[~plan.padding_P]].sum()),
        seconds=time.monotonic() - started,
        loss=log[-1]["loss"],
        digest=result["digest"],
    )


@ray.remote
class _Board:
    """Where rank 0 puts its log and the driver reads it; rows of a step trained again replace the old ones."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.result: dict[str, Any] = {}

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["step"]] = row

    def finish(self, result: dict[str, Any]) -> None:
        self.result = result

    def since(self, step: int) -> list[dict[str, Any]]:
        return [row for key, row in sorted(self.rows.items()) if key > step]

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return self.since(0), self.result


@ray.remote
def _prepare(
    run: RunDirectory,
    examples: str,
    weight_column: str | None,
    questions: str,
    tokens: str,
    base_model: str,
    training: TrainingConfig,
    model: ModelConfig,
) -> dict[str, Any]:
    """Tokenise the examples into the run and return their weights, token counts and question ids."""
    import tempfile

    from transformers import AutoTokenizer

    from east_ray.model_files import local_model

    table = run.read_table(examples)
    if weight_column is not None and weight_column not in table.column_names:
        known = [n for n in table.column_names if n not in EXAMPLES[training.loss].names]
        raise UserError(f"{run.uri_of(examples)} has no column {weight_column!r}, only {known}")
    if table.num_rows == 0:
        raise UserError(f"{run.uri_of(examples)} holds no examples: no question was kept (see weights.json's funnel)")
    weight_N = np.ones(table.num_rows) if weight_column is None else table[weight_column].to_numpy()
    if not np.isfinite(weight_N).all() or (weight_N < 0).any():
        raise UserError(f"{run.uri_of(examples)}: weights in {weight_column!r} must be finite and not negative")
    rows = check_schema(table, EXAMPLES[training.loss], run.uri_of(examples))
    prompt_ids = {}
    if run.exists(questions):
        wanted = run.read_table(questions, columns=["question_id", "prompt_token_ids"])
        prompt_ids = dict(zip(wanted["question_id"].to_pylist(), wanted["prompt_token_ids"].to_pylist(), strict=True))
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = AutoTokenizer.from_pretrained(
            local_model(base_model, model.revision, scratch), trust_remote_code=model.trust_remote_code
        )
    tokenised = tokenise_examples(rows, tokenizer, training.loss, prompt_ids)
    longest_N, tokens_N = lengths(tokenised, training.loss)
    check_lengths(longest_N, training.max_length)
    run.write_table(tokenised, tokens)
    return {"weight_N": weight_N, "tokens_N": np.array(tokens_N), "question_ids": rows["question_id"].to_pylist()}


def _fit(job: TrainingJob, work: str, title: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run the workers to the end while showing progress; the log's rows and what rank 0 reported at the end."""
    training, run = job.training, job.run
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if training.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.use_gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": 1} if training.use_gpu else {})},
            label_selector=training.labels or None,
        ),
        run_config=ray.train.RunConfig(
            name="state",
            storage_path=run.path(work),
            storage_filesystem=None if run.is_local else run.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": _worker_environment(training.use_gpu)},
        ),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    with console.progress(title, job.plan.num_steps, unit="steps") as bar:
        while thread.is_alive():
            thread.join(timeout=0.5)
            rows, result = ray.get(job.board.read.remote())
            if rows:
                bar.update(rows[-1]["step"], loss=rows[-1]["loss"])
    if "error" in outcome:
        raise outcome["error"]
    return rows, result


def _quiet_ray_train() -> None:
    for name, value in {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line appears twice
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)


def _worker_environment(use_gpu: bool) -> dict[str, str]:
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    quiet |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return quiet if use_gpu else quiet | {"DS_ACCELERATOR": "cpu"}
