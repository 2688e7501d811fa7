"""A Ray Train worker: load, check the weighted gradient, resume, train, checkpoint, export, job after job. `driver` starts
the workers.

Each rank writes only its own shard of a checkpoint: straight into a local run directory, or, for an object store, to the
node's disk, from where Ray uploads it during training.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import deepspeed
import deepspeed.ops
import pyarrow as pa
import ray
import ray.train
import torch
from accelerate.state import AcceleratorState, GradientState
from ray.train import CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from east_ray.config.training import TrainingConfig
from east_ray.models import local_model
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.training.export import judge_base, merge_adapter, write_model
from east_ray.training.gradient_check import WeightedGradientError, check_weighted_gradient
from east_ray.training.job import ArmTraining, JobGroup, TrainingJob
from east_ray.training.trainers import WeightedTrainer, make_trainer

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
STATE = "state"  # below a worker's scratch directory: its checkpoints, when the run directory is on an object store
TENSORBOARD = "tensorboard"
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def train_worker(group: JobGroup) -> None:
    """The loop Ray Train runs on each worker: train job after job, the one with a checkpoint first.

    User errors are reported instead of raised, as retrying would not help; the next job is then trained, unless a model
    could not be written: its checkpoint is kept, and a later job's would replace it.
    """
    gc.freeze()  # what the imports left, half a second of each collection otherwise
    set_up_deepspeed(group.jobs[0].arm.training.use_gpu)
    rank, checkpoint = ray.train.get_context().get_world_rank(), ray.train.get_checkpoint()
    ended = ray.get(group.status.register.remote(rank, f"pid {os.getpid()} on {socket.gethostname()}"))
    resumed = [job for job in group.jobs if checkpoint and checkpoint.path.endswith(job.checkpoint_suffix)]
    for job in [*resumed, *(job for job in group.jobs if job not in resumed)]:
        if job.arm.output in ended:
            continue
        if rank == 0:  # the driver shows the job, and blames it for what follows
            ray.get(group.status.update.remote(job.arm.output))
        scratch = tempfile.mkdtemp(dir=os.getcwd())
        try:
            is_written = _train(group, job, rank, scratch, checkpoint if job in resumed else None)
        except (UserError, WeightedGradientError) as error:
            ray.get(group.status.update.remote(job.arm.output, refused=str(error)))
        else:
            if not is_written:
                return
        finally:
            for name in os.listdir(scratch):
                if name != STATE:  # Ray may still be uploading a checkpoint, and deletes it afterwards
                    shutil.rmtree(os.path.join(scratch, name), ignore_errors=True)
        forget_training()


def _train(group: JobGroup, job: TrainingJob, rank: int, scratch: str, checkpoint: ray.train.Checkpoint | None) -> bool:
    """Train one job and write its model; False on every rank when it cannot be written."""
    run, arm = group.run, job.arm
    base = local_model(arm.base_model, job.model.revision)
    left_out = judge_base(base, job.model.trust_remote_code)
    if rank == 0:
        ray.get(group.status.update.remote(arm.output, left_out=left_out))
    callback = _Callback(group, job, scratch)
    trainer = make_trainer(
        _read_rows(run, job),
        job.plan,
        weight_N=job.weight_N,
        model_path=base,
        dtype=job.model.dtype,
        trust_remote_code=job.model.trust_remote_code,
        training=arm.training,
        seed=arm.seed,
        output_dir=run.path(group.state) if run.is_local else os.path.join(scratch, STATE),
        tensorboard_dir=_trackers_directory(run, arm, scratch),
        checkpoint_suffix=job.checkpoint_suffix,
        deepspeed=deepspeed_config(arm.training),
        callbacks=[callback],
    )
    callback.trainer = trainer
    if job.reference and rank == 0 and not run.exists(job.reference):
        run.write_table(trainer.positions.rows.select_columns(list(REFERENCE_COLUMNS)).data.table, job.reference)
    if checkpoint is None:
        trainer.train()
    else:
        with checkpoint.as_directory() as directory:
            check_settings(group, job, directory)
            trainer.train(resume_from_checkpoint=directory)
    state, error = gathered_state(trainer, arm.training), ""
    if rank == 0:
        try:
            _export(group, job, trainer, state, base, scratch)
        except UserError as failure:
            ray.get(group.status.update.remote(arm.output, refused=str(failure)))
        except Exception as failure:
            logger.exception("export")
            error = (
                f"the model is trained but cannot be written ({type(failure).__name__}: {str(failure)[:300]}); fix the cause "
                "and run the same command: it resumes from the last checkpoint"
            )
            ray.get(group.status.update.remote(arm.output, not_exported=error))
    failed = trainer.accelerator.reduce(torch.tensor(float(bool(error)), device=trainer.args.device), "sum").item()
    let_go_of_memory(trainer)
    return not failed


def let_go_of_memory(trainer: WeightedTrainer) -> None:
    """Unhook DeepSpeed from the parameters: its hooks keep model and optimizer for as long as the process lives.

    ZeRO-3 has others that hold them still.
    """
    engine: Any = trainer.deepspeed
    if engine is not None:
        engine.destroy()


def forget_training() -> None:
    """Undo what a training leaves in its process: accelerate's, transformers' and wandb's state, and the memory it held."""
    unset_hf_deepspeed_config()
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.finish()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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

    def __init__(self, group: JobGroup, job: TrainingJob, scratch: str) -> None:
        self.group, self.job, self.scratch = group, job, scratch
        self.trainer: WeightedTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        check = check_weighted_gradient(self.trainer)
        if state.is_world_process_zero:
            # The figure alone: the actor would have to import torch and TRL to know the class.
            self.group.status.update.remote(
                self.job.arm.output,
                gradient_error=check.distance,
                weight_error=check.weight_error,
                is_padded=not all(switch.enabled for switch in self.trainer.padding_free),
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False  # the export follows at once

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            training = self.job.arm.training
            raise UserError(
                f"the loss is {logs['loss']} and the gradient norm {logs.get('grad_norm')} at step {state.global_step}: "
                f"lower training.{training.loss}.learning_rate={training.learning_rate:g}, or use model.dtype=bfloat16"
            )
        if state.is_world_process_zero:
            self.group.status.add.remote(self.job.arm.output, {"step": state.global_step, **logs})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        directory = self.trainer.checkpoint_directory
        if state.is_world_process_zero:
            with open(os.path.join(directory, SETTINGS), "w") as file:
                json.dump(settings_of(self.job.arm.training), file)
            _upload_trackers(self.group.run, self.job.arm, self.scratch)
        in_place = self.group.run.is_local
        ray.train.report(
            {"step": state.global_step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=os.path.basename(directory),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD if in_place else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=not in_place,
        )


def settings_of(training: TrainingConfig) -> dict[str, Any]:
    """The settings that a checkpoint's shards depend on: a training with others cannot read them."""
    names = ("workers", "zero_stage", "micro_batch_size", "batch_size", "loss")
    return {f"training.{name}": getattr(training, name) for name in names}


def check_settings(group: JobGroup, job: TrainingJob, directory: str) -> None:
    """UserError when a checkpoint was written with other values of `settings_of`."""
    with open(os.path.join(directory, SETTINGS)) as file:
        saved = json.load(file)
    changed = {name: value for name, value in settings_of(job.arm.training).items() if saved.get(name) != value}
    if changed:
        now = ", ".join(f"{name}={value}" for name, value in changed.items())
        then = " ".join(f"--set {name}={saved.get(name)}" for name in changed)
        raise UserError(
            f"the checkpoint in {group.run.uri_of(group.state)} was written with other settings than {now}, and its shards do not "
            f"fit: resume with {then}, or start this training again with --restart-from train"
        )


def _read_rows(run: RunDirectory, job: TrainingJob) -> pa.Table:
    rows = run.read_table(job.tokens)
    # Asked once for all ranks: another arm may write it between two ranks' looks, and those that lack it compute it together.
    if broadcast_from_rank_zero(job.reference is not None and run.exists(job.reference)):
        assert job.reference is not None
        reference = run.read_table(job.reference)
        for name in REFERENCE_COLUMNS:
            rows = rows.append_column(name, reference[name])
    return rows


def _trackers_directory(run: RunDirectory, arm: ArmTraining, scratch: str) -> str:
    """Where TensorBoard writes on this node: into the run directory if that is local."""
    return run.path(arm.directory, TENSORBOARD) if run.is_local else os.path.join(scratch, TENSORBOARD)


def _upload_trackers(run: RunDirectory, arm: ArmTraining, scratch: str) -> None:
    """Copy TensorBoard's files from this node into the run directory, where a local run has them."""
    written = _trackers_directory(run, arm, scratch)
    if not run.is_local and os.path.isdir(written):
        run.upload(written, arm.directory, TENSORBOARD)


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


def _export(
    group: JobGroup, job: TrainingJob, trainer: WeightedTrainer, state: Mapping[str, Any], base: str, scratch: str
) -> None:
    """Write the model directory, with the adapter in it, and report the log and the digest."""
    run, arm = group.run, job.arm
    target = run.path(arm.output) if run.is_local else os.path.join(scratch, "model")
    model, adapter = trainer.model, os.path.join(scratch, "adapter")
    if arm.training.lora is not None:
        trainer.model.peft_config["default"].base_model_name_or_path = arm.base_model  # not this machine's copy of it
        model = merge_adapter(trainer.model, state, base, adapter, job.model.trust_remote_code)
        state = model.state_dict()
    digest = write_model(model, state, base, target, job.model.dtype)
    if arm.training.lora is not None:
        shutil.copytree(adapter, os.path.join(target, "adapter"))
    if not run.is_local:
        run.delete(arm.output)
        run.upload(target, arm.output)
    _upload_trackers(run, arm, scratch)
    log = [row for row in trainer.state.log_history if "loss" in row]  # whole, also after a resume
    ray.get(group.status.update.remote(arm.output, log=log, digest=digest))
