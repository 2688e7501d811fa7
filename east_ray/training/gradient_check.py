"""The gradient check: before training starts, verify on the first micro-batch that the weights reach the gradient.

TRL's gradient of a whole micro-batch, weighted as training will weight it, is compared with the gradient of the weighted
loss written out from the formulas (`losses`), example by example. A TRL release that computes its loss another way fails
here in seconds, instead of after days in the accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from east_ray.training.trainers import WeightedTrainer

# Accepted distance of the two gradients, by the type the model computes in, relative to the root of the summed squares of
# the examples' own gradients. Rounding stays far below; a wrong, lost or swapped weight is an order of magnitude above.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
WEIGHT_TOLERANCE = 1e-6  # of multipliers and reference log-probabilities, which must arrive in float32
COMPLETION_TOKENS = 32  # per example: enough to tell weights apart, and little memory


GIVEN = ("multiplier", "ref_chosen_logps", "ref_rejected_logps")  # floating-point columns of a batch


class WeightedGradientError(RuntimeError):
    """Training would not minimise the weighted loss."""


@dataclass(frozen=True)
class GradientCheck:
    """`distance` of the two gradients and `loss_distance` of the two unweighted losses: relative, the worst over all ranks.

    `weight_error`: the largest relative error of a multiplier, or of a given reference log-probability, as it arrived.
    `parameters`: those whose gradients were compared.
    """

    distance: float
    loss_distance: float
    weight_error: float
    tolerance: float
    parameters: tuple[str, ...]


def check_weighted_gradient(trainer: WeightedTrainer) -> GradientCheck:
    """Compare the two gradients on this rank's first micro-batch; WeightedGradientError on every rank if any rank's differ.

    All ranks must call it once the model is prepared for training; it leaves no trace in the model. It compares two small
    parameters, the first and the last of the model, that no ZeRO stage partitions.
    """
    names, probes = zip(*_probes(trainer), strict=True)
    was_training = trainer.model.training
    trainer.model.eval()  # no dropout: both passes must see the same network
    try:
        with trainer.compute_loss_context_manager():
            distances = _distances(trainer, list(probes))
    finally:
        trainer.model.train(was_training)
        trainer._metrics["eval"].clear()
        trainer._weighted_loss = torch.zeros_like(trainer._weighted_loss)
        trainer.multiplier_B = None
    gradient, loss, weight = trainer.accelerator.gather(distances[None]).max(dim=0).values.tolist()
    tolerance = TOLERANCES[trainer.model.dtype]
    if weight > WEIGHT_TOLERANCE:
        raise WeightedGradientError(
            f"the weights of the first micro-batch reach the loss with a relative error of {weight:.2g} ({WEIGHT_TOLERANCE:g} "
            "allowed): this transformers rounds a batch's floating-point columns; install the versions in pyproject.toml"
        )
    if not (gradient <= tolerance and loss <= tolerance):
        raise WeightedGradientError(
            f"on the first micro-batch TRL's weighted {trainer.positions.loss} gradient is {gradient:.2g}, and its loss "
            f"{loss:.2g}, away from the formulas' (relative, {tolerance:g} allowed; measured on {', '.join(names)}): "
            "this transformers or TRL computes its loss another way; install the versions in pyproject.toml"
        )
    return GradientCheck(gradient, loss, weight, tolerance, names)


def _probes(trainer: WeightedTrainer) -> list[tuple[str, torch.nn.Parameter]]:
    """The first and the last trainable vector (a norm's weight), or LoRA B, that this rank holds whole.

    LoRA's A has no gradient before the first step, because B is zero. Embeddings add theirs up token by token, which rounds
    too much in bf16.
    """
    whole = [
        (name, parameter)
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
        and (len(getattr(parameter, "ds_shape", parameter.shape)) == 1 or "lora_B" in name)
        and getattr(parameter, "ds_persist", True)
    ]
    assert whole, "no trainable parameter is small enough to compare gradients on"
    return whole[:1] + whole[1:][-1:]


def _distances(trainer: WeightedTrainer, probes: list[torch.nn.Parameter]) -> torch.Tensor:
    """Relative distances of the gradients at the probes and of the losses, and the weights' error, on this rank."""
    plan = trainer.positions.plan
    first = trainer.accelerator.process_index * plan.micro_batch_size
    mine = [trainer.positions[first + i] for i in range(plan.micro_batch_size)]
    inputs = _shortened(trainer._prepare_inputs(trainer.data_collator(mine)))
    items = None
    if trainer.positions.loss == "sft":
        labels = [label for p in range(plan.batch_size) for label in trainer.positions[p]["labels"]]
        items = torch.tensor(sum(label != -100 for label in labels))

    loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=items)
    actual = _flat(torch.autograd.grad(loss, probes))

    planned_B = torch.tensor([item["multiplier"] for item in mine], dtype=torch.float64)
    arrived_B = inputs["multiplier"].double().cpu()
    # What training applied, local weights included, with the plan's own multipliers in place of those that arrived.
    correction_B = torch.where(arrived_B == planned_B, 1.0, planned_B / arrived_B)
    scale_B = trainer.scale_B * correction_B.to(trainer.scale_B)
    share = trainer.loss_share(items, plan.micro_batch_size)
    by_formula = share * trainer.example_losses(inputs, trainer.policy_R).sum()
    terms = []
    for example in range(plan.micro_batch_size):
        # The same forward pass each time, so that both gradients start from the same numbers at any precision.
        losses_B = trainer.example_losses(inputs, _policy_logps(trainer, inputs))
        terms.append(_flat(torch.autograd.grad(share * scale_B[example] * losses_B[example], probes)))
    terms_B = torch.stack(terms)
    gap, size = (actual - terms_B.sum(dim=0)).norm(), terms_B.norm()
    loss_gap, loss_size = (loss.detach() - by_formula).float().abs(), by_formula.float().abs()
    weight_error = max(_relative_error(inputs, mine, name) for name in GIVEN if name in mine[0])
    return torch.stack(
        [
            gap / size if size > 0 else gap,
            loss_gap / loss_size if loss_size > 0 else loss_gap,
            gap.new_tensor(weight_error),
        ]
    )


def _relative_error(inputs: dict[str, Any], items: list[dict[str, Any]], name: str) -> float:
    """The largest relative difference between a column as it arrived and as the data set holds it."""
    arrived_B = inputs[name].double().cpu()
    given_B = torch.tensor([item[name] for item in items], dtype=torch.float64)
    error_B = (arrived_B - given_B).abs() / given_B.abs()
    return float(torch.where(arrived_B == given_B, 0.0, error_B).max())


def _shortened(inputs: dict[str, Any]) -> dict[str, Any]:
    """The micro-batch with every completion cut after COMPLETION_TOKENS."""
    short = dict(inputs)
    for prefix in ("", "KL_"):
        if f"{prefix}input_ids" in inputs:
            counted = _labels(inputs, prefix) != -100
            width = int(counted.int().argmax(dim=1).max()) + COMPLETION_TOKENS
            for name in ("input_ids", "attention_mask", "labels", "completion_mask"):
                if prefix + name in inputs:
                    short[prefix + name] = inputs[prefix + name][:, :width]
    return short


def _labels(inputs: dict[str, Any], prefix: str = "") -> torch.Tensor:
    if f"{prefix}labels" in inputs:
        return inputs[f"{prefix}labels"]
    return inputs[f"{prefix}input_ids"].masked_fill(inputs[f"{prefix}completion_mask"] == 0, -100)


def _policy_logps(trainer: WeightedTrainer, inputs: dict[str, Any]) -> torch.Tensor:
    """Summed log-probability of each row under the policy, with its gradient and without weights."""
    trainer.multiplier_B = None
    output = trainer.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=_labels(inputs),
        use_cache=False,
        fused_lm_head=True,
    )
    return output.log_probs.sum(dim=1)


def _flat(gradients: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([gradient.detach().float().flatten() for gradient in gradients])
