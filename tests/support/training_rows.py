"""Small trainings for the tests: examples of the bundled model's arithmetic, their plan, and gradients as plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from east_ray.config.training import TrainingConfig
from east_ray.records import EXAMPLES, check_schema
from east_ray.training.batches import TrainingPlan, plan_training
from east_ray.training.inputs import lora_config
from east_ray.training.tokens import lengths, tokenise_examples
from east_ray.training.trainers import WeightedTrainer, make_trainer
from tests.support import oracles

MODEL = Path(__file__).resolve().parents[2] / "east_ray" / "tiny" / "model"
RATES = {"sft": {"learning_rate": 1e-3}, "dpo": {"learning_rate": 1e-3}, "kto": {"learning_rate": 1e-3, "beta": 0.5}}


def config(loss: str, **changes: Any) -> TrainingConfig:
    """A training without warm-up and clipping, so that one step's gradient can be seen."""
    defaults = {"batch_size": 8, "micro_batch_size": 4, "epochs": 1, "warmup_ratio": 0.0, "max_grad_norm": 0.0, **RATES}
    return TrainingConfig.model_validate({"loss": loss, **defaults, **changes})


def examples(loss: str, count: int, seed: int = 0) -> pa.Table:
    """`count` questions with a right and a wrong completion of various lengths, and random weights of mean 1."""
    rng = np.random.default_rng(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts, right, wrong = [], [], []
    for _ in range(count):
        numbers = rng.integers(1, 30, size=int(rng.integers(2, 5))).tolist()
        question = ", ".join([f"Take {numbers[0]}", *(f"add {n}" for n in numbers[1:])]) + "."
        message = [{"role": "user", "content": question}]
        prompts.append(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
        steps, total = [], numbers[0]
        for n in numbers[1:]:
            steps.append(f"{total}+{n}={total + n}\n")
            total += n
        right.append("".join(steps) + f"\\boxed{{{total}}}")
        wrong.append(f"\\boxed{{{total + int(rng.integers(1, 9))}}}")
    ids = [f"question-{i}" for i in range(count)]
    weights = rng.gamma(1.0, size=count)
    weights /= weights.mean()
    if loss == "sft":
        return pa.table({"question_id": ids, "prompt": prompts, "completion": right, "weight": weights})
    if loss == "dpo":
        return pa.table({"question_id": ids, "prompt": prompts, "chosen": right, "rejected": wrong, "weight": weights})
    return pa.table(
        {
            "question_id": ids * 2,
            "prompt": prompts * 2,
            "completion": right + wrong,
            "label": [True] * count + [False] * count,
            "weight": np.tile(weights, 2),
        }
    )


def planned(
    loss: str, count: int, training: TrainingConfig, weights: np.ndarray | None = None, seed: int = 0
) -> tuple[pa.Table, TrainingPlan, np.ndarray]:
    """Token ids of `examples`, their plan, and their weights (or the given ones)."""
    table = examples(loss, count)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = tokenise_examples(check_schema(table, EXAMPLES[loss], "test"), tokenizer, loss, {}, tokenizer.eos_token_id)
    weight_N = table["weight"].to_numpy() if weights is None else weights
    tokens_N = np.array(lengths(rows, loss)[1])
    plan = plan_training(weight_N, tokens_N, rows["question_id"].to_pylist(), training, seed)
    return rows, plan, weight_N


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step, flat, in the order of the parameters."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(flat_gradient(kwargs["model"]))


def flat_gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.detach().cpu().flatten().clone() for p in model.parameters() if p.requires_grad])


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def trainer(
    rows: pa.Table, plan: TrainingPlan, weights: np.ndarray, training: TrainingConfig, path: Path, **changes: Any
) -> WeightedTrainer:
    settings: dict[str, Any] = {
        "model_path": str(MODEL),
        "dtype": "float32",
        "trust_remote_code": False,
        "seed": 0,
        "deepspeed": None,
        **changes,
    }
    return make_trainer(rows, plan, weight_N=weights, training=training, output_dir=str(path), **settings)


def one_step(
    count: int, training: TrainingConfig, path: Path, **changes: Any
) -> tuple[torch.Tensor, list[dict[str, Any]], list[float], Callable[[], Any]]:
    """Gradient of the first step, its examples and their weights, and a function that builds the policy it was taken at.

    The policy is moved away from the reference first: at the reference DPO's margin and KTO's z are zero.
    """
    rows, plan, weights = planned(training.loss, count, training)
    keep = Gradients()
    made = trainer(rows, plan, weights, training, path, callbacks=[keep], **changes)
    nudge(made.model)
    state = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.train()

    def policy() -> Any:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        if training.lora:
            model = peft.get_peft_model(model, lora_config(training.lora))
        model.load_state_dict(state)
        return model

    here, listed = plan.examples_of_step(0), rows.to_pylist()
    return keep.steps[0], [listed[i] for i in here], [float(weights[i]) for i in here], policy


def nudge(model: Any) -> None:
    """Move the trainable parameters a little, always alike: at the reference DPO's margin and KTO's z are zero."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=noise).to(parameter)


def reference_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def explicit_loss(
    training: TrainingConfig, model: Any, rows: list[dict[str, Any]], weights: list[float]
) -> torch.Tensor:
    """The weighted loss of these examples, as one step, from the oracles."""
    micro = training.micro_batch_size
    if training.loss == "dpo":
        return oracles.dpo(model, reference_model(), rows, weights, training.dpo.beta)
    if training.loss == "kto":
        return oracles.kto(model, reference_model(), rows, weights, training.kto.beta, micro, training.workers)
    if training.weight_granularity == "microbatch":
        return oracles.sft_released(model, rows, weights, micro)
    if training.normalization == "sequence":
        return oracles.sft_sequence_mean(model, rows, weights)
    return oracles.sft_token_mean(model, rows, weights)


def explicit_gradient(
    training: TrainingConfig, model: Any, rows: list[dict[str, Any]], weights: list[float]
) -> torch.Tensor:
    explicit_loss(training, model, rows, weights).backward()
    return flat_gradient(model)
