"""TRL's SFT, DPO and KTO trainers with an exact weight per example; the only file that imports trl.

All three compute their loss from the per-row `log_probs` of one forward pass, and their losses are sums over rows. So
multiplying row i's *gradient* there by its multiplier (see `batches`) gives exactly the gradient of the weighted loss,
without touching TRL's code: the loss TRL returns stays unweighted, and the weighted one is logged beside it.

Suffixes: B examples of a micro-batch, R rows of its forward pass (DPO: the chosen of every example, then the rejected).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.models.utils import prepare_deepspeed
from trl.trainer.base_trainer import _BaseTrainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from east_ray.config.training import TrainingConfig
from east_ray.training.batches import TrainingPlan
from east_ray.training.inputs import (
    PlannedDataset,
    bare,
    lora_config,
    refuse_inseparable,
    refuse_tied_adapter,
    restore_buffers,
    trainer_settings,
)
from east_ray.training.losses import example_losses, local_weights
from east_ray.training.padding_free import PaddingFree


def make_trainer(
    rows: pa.Table,
    plan: TrainingPlan,
    *,
    model_path: str,
    dtype: str,
    trust_remote_code: bool,
    training: TrainingConfig,
    weight_N: np.ndarray,
    seed: int,
    output_dir: str,
    tensorboard_dir: str | None = None,
    checkpoint_suffix: str = "",
    deepspeed: dict[str, Any] | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> WeightedTrainer:
    """A trainer ready for `.train()`: model loaded, examples in planned order, every setting decided.

    `rows` come from `tokens.tokenise_examples`. `deepspeed` is a DeepSpeed configuration, None for plain PyTorch. Checkpoints
    are directories of `output_dir` whose names end in `checkpoint_suffix`; TensorBoard's files lie beside it unless given.
    """
    trainer_class, config_class = TRAINERS[training.loss]
    events = tensorboard_dir or os.path.join(os.path.dirname(output_dir), "tensorboard")
    os.environ["TENSORBOARD_LOGGING_DIR"] = events  # read by transformers' callback
    arguments = config_class(
        output_dir=output_dir,
        per_device_train_batch_size=plan.micro_batch_size,
        model_init_kwargs={"dtype": dtype, "trust_remote_code": trust_remote_code},
        trust_remote_code=trust_remote_code,
        seed=seed,
        deepspeed=deepspeed,
        **trainer_settings(training, dtype),
    )
    trainer = trainer_class(
        model=model_path,
        args=arguments,
        positions=PlannedDataset(rows, plan, weight_N, training.loss),
        local_weight=training.local_weight,
        checkpoint_suffix=checkpoint_suffix,
        padding_free=training.padding_free,
        peft_config=lora_config(training.lora),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # prints every step on every worker
    restore_buffers(trainer.model)
    restore_buffers(trainer.ref_model)
    refuse_tied_adapter(trainer.model)
    return trainer


class WeightedTrainer(_BaseTrainer):
    """The base of the three weighted trainers, mixed in before TRL's.

    `multiplier_B` weights the next forward pass with a gradient; None leaves it unweighted. `scale_B` is what that pass was
    weighted by, local weights included; `policy_R` are its rows' summed log-probabilities, and `reference_R` those of the
    last pass without a gradient, which TRL makes with the reference model.
    """

    args: Any
    model: Any
    model_wrapped: Any
    ref_model: Any = None
    accelerator: Any
    train_dataset: Any
    _metrics: Any
    _total_train_tokens: Any

    def __init__(
        self,
        *,
        args: Any,
        positions: PlannedDataset,
        local_weight: str = "none",
        checkpoint_suffix: str = "",
        padding_free: bool = True,
        **kwargs: Any,
    ) -> None:
        refuse_inseparable(args)
        self.local_weight, self.checkpoint_suffix = local_weight, checkpoint_suffix
        self.multiplier_B: torch.Tensor | None = None
        self.scale_B = self.policy_R = self.reference_R = torch.empty(0)
        self._weighted_loss = torch.zeros(())
        self._logged = (0, time.monotonic())
        self._wants_padding_free, self._are_models_prepared = padding_free, False
        self.padding_free: list[PaddingFree] = []
        super().__init__(args=args, train_dataset=positions.rows, **kwargs)
        positions.rows = self.train_dataset  # DPO may have added reference log-probabilities
        self.train_dataset = self.positions = positions
        self.collate_rows: Callable[[list[dict[str, Any]]], dict[str, Any]] = self.data_collator
        self.data_collator = self._collate
        self._prepare_models()
        for model in (self.model, self.ref_model):
            if model is not None:
                model.register_forward_hook(self._on_forward)

    def _prepare_models(self) -> None:
        """Give the models the outputs and the passes without padding that are asked for; DPO's reference may come first."""
        if self._are_models_prepared:
            return
        self._are_models_prepared = True
        if self.local_weight == "wpo":
            patched: Any = bare(self.model)
            add_fused_lm_head(patched, outputs=("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs"))
        if self._wants_padding_free:
            models = [model for model in (self.model, self.ref_model) if model is not None]
            self.padding_free = [PaddingFree(bare(model), isinstance(self, DPOTrainer)) for model in models]

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Leave the rows alone: they are token ids already."""
        return dataset

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate_rows(examples)
        batch["multiplier"] = torch.tensor([example["multiplier"] for example in examples], dtype=torch.float32)
        return batch

    def _prepare_input(self, data: Any) -> Any:
        """Move floating tensors without a cast: under DeepSpeed transformers would round weights and reference
        log-probabilities to the model's type, in bf16 by up to 0.3% and 0.2 nats.
        """
        if isinstance(data, torch.Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's own loss, whose gradient is weighted by `_on_forward`."""
        self.multiplier_B = inputs.pop("multiplier")
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.multiplier_B = None
        losses_B = self.example_losses(inputs, self.policy_R)
        share = self.loss_share(num_items_in_batch, len(losses_B))
        steps = 1 if self.positions.loss == "sft" else self.args.gradient_accumulation_steps
        self._weighted_loss = self._weighted_loss.to(losses_B) + share / steps * (self.scale_B * losses_B).sum()
        return loss

    def _on_forward(self, _module: Any, _args: Any, output: Any) -> Any:
        """Forward hook: scale the gradient of each row's log-probabilities in passes that are differentiated."""
        if not isinstance(output, FusedCausalLMOutput):
            return output
        log_probs_RT: Any = output.log_probs
        if not torch.is_grad_enabled():
            self.reference_R = log_probs_RT.sum(dim=1)
            return output
        self.policy_R = log_probs_RT.detach().sum(dim=1)
        if self.multiplier_B is not None:
            passes = len(log_probs_RT) // len(self.multiplier_B)
            self.scale_B = self.multiplier_B
            if self.local_weight != "none":
                self.scale_B = self.scale_B * self._local_weights(output, self.multiplier_B)
            scale_gradient(log_probs_RT, self.scale_B.repeat(passes)[:, None])
        return output

    def _local_weights(self, output: Any, multiplier_B: torch.Tensor) -> torch.Tensor:
        """LW(P) or LW(W) of each example; DPO multiplies those of the chosen and the rejected completion (B.1).

        Perplexities are divided by their mean (eq. 9) over the examples that all workers hold at this moment: the mean
        over a step is known only after its last forward pass.
        """
        weight_R = local_weights(
            self.local_weight, output.log_probs.detach(), output.label_mask, output.log_sum_sq_probs
        )
        weight_CB = weight_R.view(-1, len(multiplier_B))
        if self.local_weight == "perplexity":
            counts_B = (multiplier_B > 0).to(weight_CB)
            totals = torch.cat([(weight_CB * counts_B).sum(dim=1), counts_B.sum()[None]])
            totals = self.accelerator.reduce(totals, "sum").clamp_min(torch.finfo(totals.dtype).tiny)
            weight_CB = weight_CB * (totals[-1] / totals[:-1])[:, None]
        return weight_CB.prod(dim=0)

    def example_losses(self, inputs: dict[str, Any], policy_R: torch.Tensor) -> torch.Tensor:
        """Unweighted loss of each example in `inputs`, given its rows' summed log-probabilities under the policy."""
        reference_R = self.reference_R
        if "ref_chosen_logps" in inputs:
            reference_R = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        kl = None
        if self.positions.loss == "kto":
            kl = torch.tensor(self._metrics["train" if self.model.training else "eval"]["kl"][-1]).to(policy_R)
        beta = None if self.positions.loss == "sft" else self.args.beta
        return example_losses(self.positions.loss, policy_R, reference_R, beta=beta, kl=kl, label_B=inputs.get("label"))

    def loss_share(self, num_items_in_batch: Any, num_examples: int) -> Any:
        """The factor of each example's loss in TRL's loss of one micro-batch, before gradient accumulation."""
        if self.positions.loss == "sft":
            return self.accelerator.num_processes / num_items_in_batch
        return 1 / num_examples

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the weights' figures of a step to TRL's own; every rank must call it."""
        if "loss" in logs:
            step, plan = self.state.global_step, self.positions.plan
            weight_B = self.positions.weight_N[plan.examples_of_step(step - 1)]
            logs["weighted_loss"] = self.accelerator.reduce(self._weighted_loss, "mean").item()
            logs["weight_mean"], logs["weight_min"] = float(weight_B.mean()), float(weight_B.min())
            logs["weight_max"] = float(weight_B.max())
            squares = float((weight_B**2).sum())
            logs["effective_sample_size"] = float(weight_B.sum() ** 2 / squares) if squares else 0.0
            tokens, since = self._logged
            logs["tokens_per_second"] = (self._total_train_tokens - tokens) / (time.monotonic() - since)
            self._logged = (self._total_train_tokens, time.monotonic())
            self._weighted_loss = torch.zeros_like(self._weighted_loss)
            self.state.epoch = step * plan.batch_size / len(self.positions.rows)
        super().log(logs, start_time)

    @property
    def checkpoint_directory(self) -> str:
        """Directory of a checkpoint made at this step."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}{self.checkpoint_suffix}"
        return os.path.join(str(self.args.output_dir), name)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save only what a resume needs (transformers would also gather and write the whole model).

        Each rank writes its own shard: optimizer state and random state; rank 0 adds schedule, step and log.
        """
        directory = self.checkpoint_directory
        os.makedirs(os.path.join(directory, f"global_step{self.state.global_step}"), exist_ok=True)
        self._save_optimizer_and_scheduler(directory)
        self._save_rng_state(directory)
        if self.args.should_save:
            self.state.save_to_json(os.path.join(directory, "trainer_state.json"))


class WeightedSFTTrainer(WeightedTrainer, SFTTrainer):
    """TRL's SFT with a multiplier per example."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # TRL then divides by the tokens of the whole step for every model, also one whose forward takes no such count.
        self.model_accepts_loss_kwargs = True


class WeightedDPOTrainer(WeightedTrainer, DPOTrainer):
    """TRL's DPO with a multiplier per pair."""

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """The rows with their reference log-probabilities, computed by all ranks together unless already there.

        TRL's own caches them in a file, whose name differs between ranks for a data set in memory.
        """
        names = ("ref_chosen_logps", "ref_rejected_logps")
        if set(names) <= set(dataset.column_names):
            return dataset
        restore_buffers(self.model)
        self._prepare_models()
        model = prepare_deepspeed(self.model, self.accelerator) if self.is_deepspeed_enabled else self.model
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        blocks = []
        for start in range(0, len(dataset), batch_size * world):
            mine = [(start + rank * batch_size + i) % len(dataset) for i in range(batch_size)]
            batch = self._prepare_inputs(self.data_collator([dataset[i] for i in mine]))
            blocks.append(self.accelerator.gather(torch.stack(self.compute_ref_log_probs(model, batch), dim=1)))
        logps = torch.cat(blocks)[: len(dataset)].double().cpu().numpy()
        for column, values in zip(names, logps.T, strict=True):
            dataset = dataset.add_column(column, values)
        return dataset


class WeightedKTOTrainer(WeightedTrainer, KTOTrainer):
    """TRL's KTO with a multiplier per completion; its KL term is unweighted, as it carries no gradient."""


TRAINERS: dict[str, tuple[type[WeightedTrainer], type]] = {
    "sft": (WeightedSFTTrainer, SFTConfig),
    "dpo": (WeightedDPOTrainer, DPOConfig),
    "kto": (WeightedKTOTrainer, KTOConfig),
}


def scale_gradient(values: torch.Tensor, scale: torch.Tensor) -> None:
    """Multiply the gradient that will reach `values` by `scale`."""
    values.register_hook(lambda gradient: (gradient * scale).to(gradient.dtype))
