"""The weighted gradient under DeepSpeed: two gloo workers, ZeRO 1 to 3, full and LoRA, against the explicit losses.

All cases run in one pair of processes. The step is taken by SGD with a huge learning rate, so that what the weights moved
by is the gradient that reached the optimizer, reduced over the workers.
"""

from __future__ import annotations

import os
import socket
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import TrainerCallback
from transformers.training_args import OptimizerNames

from east_ray.training.inputs import lora_config
from tests.support.training_rows import MODEL, config, distance, explicit_gradient, nudge, planned, reference_model

RATE = 1e4
EXACT = {"sft": 1e-6, "dpo": 1e-6, "kto": 5e-6}
Case = tuple[str, int, dict[str, Any]]  # loss, ZeRO stage, further settings
LORA = {"lora": {"rank": 4}}
CASES: dict[str, Case] = {
    f"{loss}-zero{stage}-{kind}": (loss, stage, more)
    for loss in EXACT
    for stage in (1, 2, 3)
    for kind, more in (("full", {}), ("lora", LORA))
} | {
    "sft-zero0": ("sft", 0, {}),
    "sft-zero2-checkpointing": ("sft", 2, {"gradient_checkpointing": True}),
    "kto-zero3-lora-checkpointing": ("kto", 3, {**LORA, "gradient_checkpointing": True}),
    "dpo-zero2-precomputed": ("dpo", 2, {"precompute_reference": True}),
    "dpo-zero3-lora-precomputed": ("dpo", 3, {**LORA, "precompute_reference": True}),
    "sft-zero2-offload": ("sft", 2, {"offload_optimizer": True}),
    "sft-zero3-offload": ("sft", 3, {"offload_optimizer": True}),
}


def training_of(case: Case) -> Any:
    loss, stage, more = case
    rates = {"sft": {"learning_rate": RATE}, "dpo": {"learning_rate": RATE}}
    rates["kto"] = {"learning_rate": RATE, "beta": 0.5}
    return config(loss, workers=2, micro_batch_size=2, max_steps=1, zero_stage=stage, **more, **rates)


class Watch(TrainerCallback):
    """Keeps the weights as they are before the first step, and the error that the gradient check measured."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from east_ray.training.gradient_check import check_weighted_gradient
        from east_ray.training.worker import gathered_state

        self.error = check_weighted_gradient(self.trainer).distance  # type: ignore[attr-defined]
        gathered = gathered_state(self.trainer, self.training)  # type: ignore[attr-defined]
        self.before = {name: tensor.clone() for name, tensor in (gathered or {}).items()}


def worker(rank: int, port: int, out: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_TORCH_DEVICE="cpu")
    torch.set_num_threads(1)
    import deepspeed

    from east_ray.training.trainers import make_trainer
    from east_ray.training.worker import (
        deepspeed_config,
        forget_training,
        gathered_state,
        let_go_of_memory,
        set_up_deepspeed,
    )

    torch.distributed.init_process_group("gloo")
    set_up_deepspeed(use_gpu=False)
    for name, case in CASES.items():
        training = training_of(case)
        rows, plan, weights = planned(training.loss, 16, training)
        watch = Watch()
        trainer = make_trainer(
            rows,
            plan,
            weight_N=weights,
            model_path=str(MODEL),
            dtype="float32",
            trust_remote_code=False,
            training=training,
            seed=0,
            output_dir=out,
            deepspeed=deepspeed_config(training),
            callbacks=[watch],
        )
        watch.trainer, watch.training = trainer, training  # type: ignore[attr-defined]
        trainable = [p for p in trainer.model.parameters() if p.requires_grad]
        with deepspeed.zero.GatheredParameters(trainable, modifier_rank=0, enabled=training.zero_stage == 3):
            nudge(trainer.model)
        trainer.args.optim = OptimizerNames.SGD
        trainer.train()
        before, after, error = watch.before, gathered_state(trainer, training), watch.error
        model = weakref.ref(trainer.model)
        let_go_of_memory(trainer)
        del trainer, watch, trainable
        forget_training()
        if rank == 0:
            torch.save(
                {"before": before, "after": after, "error": error, "is_gone": model() is None}, f"{out}/{name}.pt"
            )


def run_cases(out: Path) -> None:
    """Two gloo workers go through all cases and leave a file for each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported, by a child's first line
        torch.multiprocessing.start_processes(worker, (port, str(out)), nprocs=2, start_method="spawn")


def measured(name: str, out: Path) -> tuple[float, float]:
    """Distance of the step from the explicit gradient, and the error that the gradient check measured."""
    training = training_of(CASES[name])
    rows, plan, weights = planned(training.loss, 16, training)
    saved = torch.load(out / f"{name}.pt")
    model = reference_model()
    if training.lora:
        model = peft.get_peft_model(model, lora_config(training.lora))
    model.load_state_dict(saved["before"], strict=False)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    moved = torch.cat([((saved["before"][n] - saved["after"][n]) / RATE).flatten() for n in trainable])

    listed, here = rows.to_pylist(), plan.examples_of_step(0)
    expected = explicit_gradient(training, model, [listed[i] for i in here], [float(weights[i]) for i in here])
    return distance(moved, expected), saved["error"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deepspeed")
    run_cases(out)
    return out


@pytest.mark.parametrize("name", CASES)
def test_two_workers_step_along_the_explicit_weighted_gradient(name: str, results: Path) -> None:
    step, error = measured(name, results)
    assert step <= EXACT[CASES[name][0]]
    assert error <= 1e-6


@pytest.mark.parametrize("name", [name for name, (_, stage, _) in CASES.items() if stage < 3])
def test_a_training_that_ended_leaves_no_model_in_memory(name: str, results: Path) -> None:
    assert torch.load(results / f"{name}.pt")["is_gone"]
