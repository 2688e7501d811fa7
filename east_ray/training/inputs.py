"""Inputs of TRL's trainers: all their settings that matter, models as sampled from, and the rows in planned order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import peft
import pyarrow as pa
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.data import Dataset
from transformers.integrations.integration_utils import is_tensorboard_available

from east_ray.config.training import LoraConfig, TrainingConfig
from east_ray.records import UserError
from east_ray.training.batches import TrainingPlan


def trainer_settings(training: TrainingConfig, dtype: str) -> dict[str, Any]:
    """Arguments of TRL's SFTConfig, DPOConfig or KTOConfig that follow from the config."""
    settings: dict[str, Any] = {} if training.loss == "sft" else {"beta": training.beta}
    if training.loss == "dpo":
        settings["precompute_ref_log_probs"] = training.precompute_reference
    return {
        **settings,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "num_train_epochs": 1,  # the plan holds all epochs
        "train_sampling_strategy": "sequential",
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": training.warmup_ratio,  # a float below 1 is a ratio since transformers 5
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_length": None,
        "router_aux_loss_coef": 0.0,  # a mixture's balancing loss is not a sum over examples, so it cannot be weighted
        "remove_unused_columns": False,
        "use_cpu": not training.use_gpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": training.checkpoint_steps,
        "report_to": trackers(training.report_to),
        "disable_tqdm": True,
        "dataloader_pin_memory": training.use_gpu,
    }


LOSS_TYPES = {"nll", "sigmoid", "kto"}  # TRL's names of the losses that `example_losses` writes out


def refuse_inseparable(args: Any) -> None:
    """ValueError for TRL settings whose loss is not a sum over rows, or does not pass through `log_probs`."""
    losses = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
    reasons = {
        "packing": (getattr(args, "packing", False), "packs several examples into one row, which has one weight"),
        "padding_free": (
            getattr(args, "padding_free", False),
            "joins a micro-batch into one row, which has one weight",
        ),
        "use_liger_kernel": (args.use_liger_kernel, "computes the loss without per-row log-probabilities"),
        "label_smoothing_factor": (args.label_smoothing_factor, "computes the loss from logits, bypassing the weights"),
        "use_weighting": (getattr(args, "use_weighting", False), 'is local_weight = "wpo" here'),
        "ld_alpha": (getattr(args, "ld_alpha", None) is not None, "couples the lengths of a pair"),
        "loss_type": (set(losses) - LOSS_TYPES, f"{losses} has no weighted form here"),
        "parallelism_config": (args.parallelism_config is not None, "splits rows over devices"),
    }
    for name, (is_set, reason) in reasons.items():
        if is_set:
            raise ValueError(f"{name} cannot be combined with a weight per example: it {reason}; leave it unset")


def trackers(report_to: Sequence[str]) -> list[str]:
    """The trackers to log to: those named, else TensorBoard where it is installed; "none" for none."""
    return list(report_to) or (["tensorboard"] if is_tensorboard_available() else ["none"])


def lora_config(lora: LoraConfig | None) -> peft.LoraConfig | None:
    """The adapter in peft's terms; None trains all parameters."""
    if lora is None:
        return None
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
        task_type="CAUSAL_LM",
    )


def restore_buffers(model: Any) -> None:
    """Give `model` its computed buffers (rotary frequencies) in their own precision.

    Under ZeRO-3 every tensor made while a model is built is cast to the model's type. Rotary frequencies in bf16 turn
    position 1,000 by up to a radian too much (theta 5e5), in training but not in sampling.
    """
    if model is None:
        return
    model = bare(model)
    with init_empty_weights(include_buffers=False):
        exact = dict(type(model)(model.config).named_modules())
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer, computed = getattr(module, name), getattr(exact[path], name)
            if buffer is not None and buffer.dtype != computed.dtype:
                setattr(module, name, computed.to(buffer.device))


def bare(model: Any) -> Any:
    """The transformers model within DeepSpeed's engine, which holds a reference model, or peft's wrapper."""
    model = getattr(model, "module", model)
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def refuse_tied_adapter(model: Any) -> None:
    """UserError for an adapter on one of two tied embeddings: merged, it would change the other one as well."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise UserError(
            "training.lora.target_modules names an embedding or the output head of a model that ties the two: the merged "
            "model would not be the trained one; leave them out, or train all parameters"
        )


class PlannedDataset(Dataset):
    """The examples in training order: item p is the example at position p of the plan, with its multiplier."""

    def __init__(self, rows: pa.Table, plan: TrainingPlan, weight_N: np.ndarray, loss: str) -> None:
        self.rows: Any = datasets.Dataset(rows)
        self.plan, self.weight_N, self.loss = plan, weight_N, loss
        self.kl_row_P = plan.kl_row_P

    def __len__(self) -> int:
        return len(self.plan.row_P)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.rows[int(self.plan.row_P[position])]
        item = {"multiplier": float(self.plan.multiplier_P[position])}
        if self.loss == "sft":
            ids = row["prompt_ids"] + row["completion_ids"]
            # TRL divides by the number of labels in a step, and padding must not count.
            unlabelled = len(ids) if self.plan.padding_P[position] else len(row["prompt_ids"])
            return {**item, "input_ids": ids, "labels": [-100] * unlabelled + ids[unlabelled:]}
        if self.loss == "kto":
            row["KL_completion_ids"] = self.rows[int(self.kl_row_P[position])]["completion_ids"]
        return {**item, **row}
