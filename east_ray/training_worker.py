"""What one Ray Train worker does: load, resume, train, checkpoint, export. `training` starts the workers.

Every worker writes its own shard of a checkpoint to its own disk, and Ray uploads the shards into one directory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from transformers import TrainerCallback

from east_ray.batches import TrainingPlan
from east_ray.config import ModelConfig, TrainingConfig
from east_ray.runs import RunDirectory


@dataclass(frozen=True)
class TrainingJob:
    """All a worker needs. `tokens` and `output` are relative to the run; `board` collects progress for the driver."""

    run: RunDirectory
    tokens: str
    output: str
    base_model: str
    plan: TrainingPlan
    weight_N: Any
    training: TrainingConfig
    model: ModelConfig
    seed: int
    board: Any


def train_worker(job: TrainingJob) -> None:
    """The loop Ray Train runs on each worker."""
    _set_up_deepspeed(job.training.use_gpu)
    from east_ray import trainers  # trl needs DeepSpeed's accelerator chosen first

    with tempfile.TemporaryDirectory(prefix="east-ray-") as scratch:
        from east_ray.model_files import local_model

        base = local_model(job.base_model, job.model.revision, scratch)
        rows = job.run.read_table(job.tokens)
        trainer = trainers.make_trainer(
            rows,
            job.plan,
            model_path=base,
            dtype=job.model.dtype,
            trust_remote_code=job.model.trust_remote_code,
            training=job.training,
            seed=job.seed,
            output_dir=os.path.join(scratch, "checkpoints"),
            deepspeed=deepspeed_config(job.training),
            callbacks=[_Reporter(job)],
        )
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as directory:
                trainer.train(resume_from_checkpoint=directory)
        _export(job, trainer, base, scratch)


def deepspeed_config(training: TrainingConfig) -> dict[str, Any]:
    """DeepSpeed's settings; everything transformers knows as well is left to it ("auto")."""
    zero: dict[str, Any] = {"stage": training.zero_stage, "stage3_gather_16bit_weights_on_model_save": True}
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": training.use_gpu}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


class _Reporter(TrainerCallback):
    """Sends what transformers logs to the driver."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self.job.board.add.remote({"step": state.global_step, **logs})


def _set_up_deepspeed(use_gpu: bool) -> None:
    """First thing in a worker: without it ZeRO-3 on CPU takes the world for one process and asserts on batch size."""
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if not use_gpu:
        # Its shared-memory all-reduce takes a minute to compile, and spins for ever when another rank is killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", auto_mpi_discovery=False, verbose=False)


def _export(job: TrainingJob, trainer: Any, base: str, scratch: str) -> None:
    """Gather the weights on rank 0, write the model directory there, and report its digest."""
    from east_ray.model_files import write_model

    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if ray.train.get_context().get_world_rank() == 0:
        target = job.run.path(job.output)
        digest = write_model(state, base, target, job.model.dtype)
        ray.get(job.board.finish.remote({"digest": digest}))
