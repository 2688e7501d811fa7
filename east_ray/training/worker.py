"""A Ray Train worker: load, check the weighted gradient, resume, train, checkpoint, export. `driver` starts the workers.

Each rank writes only its own shard of a checkpoint: straight into a local run directory, or, for an object store, to the
node's disk, from where Ray uploads it during training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from typing import Any

import deepspeed
import deepspeed.ops
import pyarrow as pa
import ray
import ray.train
from ray.train import CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from transformers import TrainerCallback

from east_ray.config.training import TrainingConfig
from east_ray.models import local_model
from east_ray.records import UserError
from east_ray.training.export import left_out, merge_adapter, write_model
from east_ray.training.gradient_check import WeightedGradientError, check_weighted_gradient
from east_ray.training.job import TrainingJob
from east_ray.training.trainers import WeightedTrainer, make_trainer

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
STATE = "state"  # below a worker's scratch directory: its checkpoints, when the run directory is on an object store
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def train_worker(job: TrainingJob) -> None:
    """The loop Ray Train runs on each worker. User errors are reported instead of raised, as retrying would not help."""
    set_up_deepspeed(job.training.use_gpu)
    rank = ray.train.get_context().get_world_rank()
    ray.get(job.status.register.remote(rank, f"pid {os.getpid()} on {socket.gethostname()}"))
    scratch = tempfile.mkdtemp(dir=os.getcwd())
    try:
        _train(job, rank, scratch)
    except (UserError, WeightedGradientError) as error:
        ray.get(job.status.update.remote(refused=str(error)))
    finally:
        for name in os.listdir(scratch):
            if name != STATE:  # Ray may still be uploading a checkpoint, and deletes it afterwards
                shutil.rmtree(os.path.join(scratch, name), ignore_errors=True)


def _train(job: TrainingJob, rank: int, scratch: str) -> None:
    base = local_model(job.base_model, job.model.revision)
    callback = _Callback(job)
    trainer = make_trainer(
        _read_rows(job),
        job.plan,
        weight_N=job.weight_N,
        model_path=base,
        dtype=job.model.dtype,
        trust_remote_code=job.model.trust_remote_code,
        training=job.training,
        seed=job.seed,
        output_dir=job.run.path(job.state) if job.run.is_local else os.path.join(scratch, STATE),
        deepspeed=deepspeed_config(job.training),
        callbacks=[callback],
    )
    callback.trainer = trainer
    if job.reference and rank == 0 and not job.run.exists(job.reference):
        job.run.write_table(trainer.positions.rows.select_columns(list(REFERENCE_COLUMNS)).data.table, job.reference)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        trainer.train()
    else:
        with checkpoint.as_directory() as directory:
            check_settings(job, directory)
            trainer.train(resume_from_checkpoint=directory)
    try:
        _export(job, trainer, base, scratch)
    except UserError:
        raise
    except Exception as error:
        logger.exception("export")
        raise UserError(
            f"the model is trained but cannot be written ({type(error).__name__}: {str(error)[:300]}); fix the cause and run "
            "the same command: it resumes from the last checkpoint"
        ) from None


def deepspeed_config(training: TrainingConfig) -> dict[str, Any]:
    """DeepSpeed's settings; those that transformers sets as well are left to it ("auto")."""
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
        # Else the gradients of a step's micro-batches are summed in bf16. Stage 0 refuses it; stage 1 would change optimizer.
        "data_types": {"grad_accum_dtype": "fp32"} if training.zero_stage >= 2 else {},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }


class _Callback(TrainerCallback):
    """Checks the weighted gradient before the first step, sends the log to the driver, and reports checkpoints to Ray."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.trainer: WeightedTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        check = check_weighted_gradient(self.trainer)
        if state.is_world_process_zero:
            # The figure alone: the actor would have to import torch and TRL to know the class.
            self.job.status.update.remote(gradient_error=check.distance, weight_error=check.weight_error)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the export follows at once

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            loss = self.job.training.loss
            raise UserError(
                f"the loss is {logs['loss']} and the gradient norm {logs.get('grad_norm')} at step {state.global_step}: "
                f"lower training.{loss}.learning_rate={self.job.training.learning_rate:g}, or use model.dtype=bfloat16"
            )
        if state.is_world_process_zero:
            self.job.status.add.remote({"step": state.global_step, **logs})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        directory = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            with open(os.path.join(directory, SETTINGS), "w") as file:
                json.dump(settings_of(self.job.training), file)
            _upload_trackers(self.job, args.output_dir)
        in_place = self.job.run.is_local
        ray.train.report(
            {"step": state.global_step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=os.path.basename(directory),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD if in_place else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=not in_place,
        )


def settings_of(training: TrainingConfig) -> dict[str, Any]:
    """The settings that a checkpoint's shards depend on: a training with others cannot read them."""
    return {
        "training.workers": training.workers,
        "training.zero_stage": training.zero_stage,
        "training.micro_batch_size": training.micro_batch_size,
        "training.batch_size": training.batch_size,
        "training.loss": training.loss,
    }


def check_settings(job: TrainingJob, directory: str) -> None:
    """UserError when a checkpoint was written with other values of `settings_of`."""
    with open(os.path.join(directory, SETTINGS)) as file:
        saved = json.load(file)
    changed = {name: value for name, value in settings_of(job.training).items() if saved.get(name) != value}
    if changed:
        now = ", ".join(f"{name}={value}" for name, value in changed.items())
        then = " ".join(f"--set {name}={saved.get(name)}" for name in changed)
        raise UserError(
            f"the checkpoint in {job.run.uri_of(job.state)} was written with other settings than {now}, and its shards do not "
            f"fit: resume with {then}, or start this training again with --restart-from train"
        )


def _read_rows(job: TrainingJob) -> pa.Table:
    rows = job.run.read_table(job.tokens)
    # Asked once for all ranks: another arm may write it between two ranks' looks, and those that lack it compute it together.
    if broadcast_from_rank_zero(job.reference is not None and job.run.exists(job.reference)):
        assert job.reference is not None
        reference = job.run.read_table(job.reference)
        for name in REFERENCE_COLUMNS:
            rows = rows.append_column(name, reference[name])
    return rows


def _upload_trackers(job: TrainingJob, output_dir: str | None) -> None:
    """Copy TensorBoard's files from this node into the run directory, beside the checkpoints, where a local run has them."""
    written = os.path.join(os.path.dirname(output_dir or ""), "tensorboard")
    if not job.run.is_local and os.path.isdir(written):
        job.run.upload(written, os.path.dirname(job.state), "tensorboard")


def set_up_deepspeed(use_gpu: bool) -> None:
    """First call in a worker: without it ZeRO-3 on CPU takes the world for one process and asserts on the batch size."""
    if not use_gpu:
        # Its shared-memory all-reduce takes a minute to compile, and spins forever when another rank is killed.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", auto_mpi_discovery=False, verbose=False)


def gathered_state(trainer: WeightedTrainer, training: TrainingConfig) -> Mapping[str, Any]:
    """The model's parameters as whole tensors, or the adapter's with LoRA. All ranks must ask; rank 0 gets them."""
    if training.zero_stage == 3:
        return trainer.model_wrapped._zero3_consolidated_16bit_state_dict(
            exclude_frozen_parameters=training.lora is not None
        )
    return trainer.model_wrapped.module.state_dict()


def _export(job: TrainingJob, trainer: WeightedTrainer, base: str, scratch: str) -> None:
    """Write the model directory, with the adapter in it, on rank 0 and report the log and the digest."""
    state = gathered_state(trainer, job.training)
    if ray.train.get_context().get_world_rank() != 0:
        return
    target = job.run.path(job.output) if job.run.is_local else os.path.join(scratch, "model")
    model, adapter = trainer.model, os.path.join(scratch, "adapter")
    if job.training.lora is not None:
        model = merge_adapter(trainer.model, state, base, adapter, job.model.trust_remote_code)
        state = model.state_dict()
    digest = write_model(model, state, base, target, job.model.dtype)
    if job.training.lora is not None:
        shutil.copytree(adapter, os.path.join(target, "adapter"))
    if not job.run.is_local:
        job.run.delete(job.output)
        job.run.upload(target, job.output)
    _upload_trackers(job, trainer.args.output_dir)
    log = [row for row in trainer.state.log_history if "loss" in row]  # whole, also after a resume
    ray.get(job.status.update.remote(log=log, digest=digest, left_out=left_out(base, target)))
