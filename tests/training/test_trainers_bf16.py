"""Exact weights in bf16 under DeepSpeed: what reaches the optimizer against a float64 sum of each micro-batch's gradient.

One process, one case after another; the gradient is read from the optimizer's flat partitions at its first step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training_rows import MODEL, config, distance, nudge, planned

MICRO_BATCHES = 16
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft-zero2": ("sft", {"zero_stage": 2}),
    "sft-zero3": ("sft", {"zero_stage": 3}),
    "dpo-zero2": ("dpo", {"zero_stage": 2}),
    "dpo-zero2-precomputed": ("dpo", {"zero_stage": 2, "precompute_reference": True}),
}


def case_of(name: str) -> Any:
    loss, changes = CASES[name]
    return config(loss, batch_size=2 * MICRO_BATCHES, micro_batch_size=2, max_steps=1, **changes)


def build(name: str, out: str, deepspeed: dict[str, Any] | None) -> Any:
    from east_ray.training.trainers import make_trainer

    training = case_of(name)
    rows, plan, weights = planned(training.loss, 2 * MICRO_BATCHES, training)
    return make_trainer(
        rows,
        plan,
        weight_N=weights,
        model_path=str(MODEL),
        dtype="bfloat16",
        trust_remote_code=False,
        training=training,
        seed=0,
        output_dir=out,
        deepspeed=deepspeed,
    )


def summed_in_float64(trainer: Any) -> torch.Tensor:
    """The gradient of the first step without DeepSpeed, decayed parameters first, as its optimizer orders them."""
    trainer.current_gradient_accumulation_steps = MICRO_BATCHES
    labels = [
        label for item in map(trainer.positions.__getitem__, range(2 * MICRO_BATCHES)) for label in item["labels"]
    ]
    items = torch.tensor(sum(label != -100 for label in labels))
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    named = sorted(trainer.model.named_parameters(), key=lambda pair: pair[0] not in decayed)
    total = torch.zeros(sum(parameter.numel() for _, parameter in named), dtype=torch.float64)
    for first in range(0, 2 * MICRO_BATCHES, 2):
        batch = trainer.data_collator([trainer.positions[first], trainer.positions[first + 1]])
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=items).backward()
        total += torch.cat([parameter.grad.double().flatten() for _, parameter in named])
        trainer.model.zero_grad()
    return total


def worker(_rank: int, out: str) -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", ACCELERATE_TORCH_DEVICE="cpu")
    torch.set_num_threads(1)
    import deepspeed
    from accelerate.state import AcceleratorState, GradientState
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from east_ray.training.gradient_check import check_weighted_gradient
    from east_ray.training.worker import deepspeed_config, set_up_deepspeed

    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=0, world_size=1)
    set_up_deepspeed(use_gpu=False)
    plain = build("sft-zero2", out, None)
    nudge(plain.model)
    expected = summed_in_float64(plain)
    arrived: list[torch.Tensor] = []

    def keep(optimizer: Any, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        arrived.extend(p.grad.double().flatten() for p in parameters if p.grad is not None and p.numel())

    register_optimizer_step_pre_hook(keep)
    for name in CASES:
        training = case_of(name)
        trainer = build(name, out, deepspeed_config(training))
        with deepspeed.zero.GatheredParameters(
            list(trainer.model.parameters()), modifier_rank=0, enabled=training.zero_stage == 3
        ):
            nudge(trainer.model)
        arrived.clear()
        trainer.train()
        check = check_weighted_gradient(trainer)
        torch.save(
            {"gradient": torch.cat(arrived), "expected": expected, "error": check.weight_error}, f"{out}/{name}.pt"
        )
        unset_hf_deepspeed_config()
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported, by the child's first line
        patch.setenv("PYTHONWARNINGS", "ignore")
        torch.multiprocessing.start_processes(worker, (str(out),), nprocs=1, start_method="spawn")
    return out


@pytest.mark.parametrize("name", ["sft-zero2", "sft-zero3"])
def test_a_steps_micro_batches_are_summed_in_float32(name: str, results: Path) -> None:
    saved = torch.load(results / f"{name}.pt")
    assert distance(saved["gradient"], saved["expected"]) <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_weights_and_reference_log_probabilities_arrive_unrounded(name: str, results: Path) -> None:
    assert torch.load(results / f"{name}.pt")["error"] <= 1e-6


def test_a_precomputed_reference_trains_the_same_model(results: Path) -> None:
    kept, precomputed = (torch.load(results / f"dpo-zero2{suffix}.pt")["gradient"] for suffix in ("", "-precomputed"))
    assert distance(precomputed, kept) <= 1e-3
