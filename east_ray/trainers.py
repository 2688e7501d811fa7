"""TRL's SFT, DPO and KTO trainers with an exact weight per example; the only file that imports trl.

All three compute their loss from the per-row `log_probs` of one forward pass, and their losses are sums over rows. So
multiplying row i's *gradient* there by its multiplier (see `batches`) gives exactly the gradient of the weighted loss,
without touching TRL's code: the loss TRL returns stays unweighted, and the weighted one is logged beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import peft
import pyarrow as pa
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.utils import FusedCausalLMOutput

from east_ray.batches import TrainingPlan
from east_ray.config import LoraConfig, TrainingConfig


def make_trainer(
    rows: pa.Table,
    plan: TrainingPlan,
    *,
    model_path: str,
    dtype: str,
    trust_remote_code: bool,
    training: TrainingConfig,
    seed: int,
    output_dir: str,
    deepspeed: dict[str, Any] | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> _Weighted:
    """A trainer ready for `.train()`: the model loaded, the examples in their planned order, every setting decided.

    `rows` come from `tokens.tokenise_examples`. `deepspeed` is a DeepSpeed configuration, None for plain PyTorch.
    """
    trainer_class, config_class = TRAINERS[training.loss]
    settings: dict[str, Any] = {} if training.loss == "sft" else {"beta": training.beta}
    if training.loss == "sft":
        settings.update(packing=False, padding_free=False, completion_only_loss=False, shuffle_dataset=False)
    arguments = config_class(
        output_dir=output_dir,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        num_train_epochs=1,  # the plan holds all epochs
        train_sampling_strategy="sequential",
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=training.warmup_ratio,  # a float below 1 is a ratio since transformers 5
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        gradient_checkpointing=training.gradient_checkpointing,
        max_length=None,
        router_aux_loss_coef=0.0,  # a mixture's balancing loss is no sum over examples, so it cannot be weighted
        remove_unused_columns=False,
        seed=seed,
        use_cpu=not training.use_gpu,
        deepspeed=deepspeed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.checkpoint_steps,
        report_to=list(training.report_to) or "none",
        disable_tqdm=True,
        dataloader_pin_memory=training.use_gpu,
        model_init_kwargs={"dtype": dtype, "trust_remote_code": trust_remote_code},
        trust_remote_code=trust_remote_code,
        **settings,
    )
    dataset = datasets.Dataset(rows)
    return trainer_class(
        model=model_path,
        args=arguments,
        positions=Positions(dataset, plan, training.loss),
        peft_config=_lora(training.lora),
        callbacks=list(callbacks),
    )


def _lora(lora: LoraConfig | None) -> Any:
    if lora is None:
        return None
    targets = lora.target_modules if lora.target_modules == "all-linear" else list(lora.target_modules)
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


class Positions(Dataset):
    """The examples in training order: item p is the example at position p of the plan, with its multiplier."""

    def __init__(self, rows: datasets.Dataset, plan: TrainingPlan, loss: str) -> None:
        self.rows, self.plan, self.loss = rows, plan, loss
        self.neighbour_P = plan.neighbour_P

    def __len__(self) -> int:
        return len(self.plan.row_P)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.rows[int(self.plan.row_P[position])]
        item = {"multiplier": float(self.plan.multiplier_P[position])}
        if self.loss == "sft":
            ids = row["prompt_ids"] + row["completion_ids"]
            # TRL counts the labels of a step to divide by, and padding must not count.
            seen = len(ids) if self.plan.padding_P[position] else len(row["prompt_ids"])
            return {**item, "input_ids": ids, "labels": [-100] * seen + ids[seen:]}
        if self.loss == "kto":
            row["KL_completion_ids"] = self.rows[int(self.neighbour_P[position])]["completion_ids"]
        return {**item, **row}


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `scale` on the way back."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(scale)
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (scale,) = context.saved_tensors
        return gradient * scale, None


class _Weighted(_BaseTrainer):
    """What the three weighted trainers share. Train through `train_dataset=Positions(...)`."""

    def __init__(self, *args: Any, positions: Positions, **kwargs: Any) -> None:
        self._multiplier_B: torch.Tensor | None = None
        self._weighted_loss: torch.Tensor | float = 0.0
        super().__init__(*args, train_dataset=positions.rows, **kwargs)
        self.train_dataset = positions
        inner = self.data_collator
        self.data_collator = lambda examples: _collate(inner, examples)
        self.model.register_forward_hook(self._scale_rows)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Leave the rows alone: they are token ids already."""
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._multiplier_B = inputs.pop("multiplier")
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _scale_rows(self, _module: Any, _args: Any, output: Any) -> Any:
        """Forward hook: scale the gradient of each row's log-probabilities in the pass that is differentiated."""
        if not isinstance(output, FusedCausalLMOutput) or not torch.is_grad_enabled():
            return output
        rows = output.log_probs.shape[0]
        scale_R = self._multiplier_B.to(output.log_probs).repeat(rows // len(self._multiplier_B))
        output.log_probs = _ScaleGradient.apply(output.log_probs, scale_R[:, None])
        return output


class WeightedSFTTrainer(_Weighted, SFTTrainer):
    """TRL's SFT with a multiplier per example."""


class WeightedDPOTrainer(_Weighted, DPOTrainer):
    """TRL's DPO with a multiplier per pair."""


class WeightedKTOTrainer(_Weighted, KTOTrainer):
    """TRL's KTO with a multiplier per completion; its KL term is unweighted, as it carries no gradient."""


TRAINERS: Mapping[str, tuple[type[_Weighted], type]] = {
    "sft": (WeightedSFTTrainer, SFTConfig),
    "dpo": (WeightedDPOTrainer, DPOConfig),
    "kto": (WeightedKTOTrainer, KTOConfig),
}


def _collate(inner: Callable[[list[dict[str, Any]]], dict[str, Any]], examples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = inner(examples)
    batch["multiplier"] = torch.tensor([example["multiplier"] for example in examples], dtype=torch.float32)
    return batch
