"""The weighted trainers' gradients: against TRL's own, and against explicit weighted losses (`oracles`), in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from east_ray.records import UserError
from east_ray.training import trainers
from east_ray.training.gradient_check import WeightedGradientError, check_weighted_gradient
from tests.support import oracles
from tests.support.training_rows import (
    MODEL,
    Gradients,
    config,
    distance,
    explicit_gradient,
    explicit_loss,
    nudge,
    one_step,
    planned,
    reference_model,
    trainer,
)

LOSSES = ("sft", "dpo", "kto")
EXACT = {"sft": 1e-6, "dpo": 1e-6, "kto": 5e-6}  # relative L2 in float32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_ones_train_exactly_as_trl_does(loss: str, tmp_path: Path) -> None:
    training = config(loss, micro_batch_size=2, max_steps=3, warmup_ratio=0.1, max_grad_norm=1.0, padding_free=False)
    rows, plan, ones = planned(loss, 12, training, np.ones(12 if loss != "kto" else 24))
    ours = trainer(rows, plan, ones, training, tmp_path)
    ours.train()

    stock_class = next(base for base in type(ours).__mro__ if base.__name__ == f"{loss.upper()}Trainer")
    stock = type("Stock", (stock_class,), {"_prepare_dataset": lambda _self, dataset, *_, **__: dataset})(
        model=str(MODEL), args=ours.args, train_dataset=ours.positions.rows
    )
    stock.train_dataset = [without_multiplier(ours.positions[p]) for p in range(len(ours.positions))]
    stock.train()

    assert stock.state.log_history[-2]["loss"] == ours.state.log_history[-2]["loss"]
    for (name, mine), theirs in zip(ours.model.state_dict().items(), stock.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def without_multiplier(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "multiplier"}


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("sft", {}),
        ("sft", {"normalization": "sequence"}),
        ("sft", {"weight_granularity": "microbatch"}),
        ("dpo", {}),
        ("kto", {}),
    ],
    ids=["sft", "sft-sequence", "sft-microbatch", "dpo", "kto"],
)
def test_the_gradient_is_that_of_the_explicit_weighted_loss(
    loss: str, changes: dict[str, Any], lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    training = config(loss, max_steps=1, lora=lora, **changes)
    actual, rows, weights, policy = one_step(16, training, tmp_path)
    assert distance(actual, explicit_gradient(training, policy(), rows, weights)) <= EXACT[loss]


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_the_last_step_of_a_training_counts_only_its_own_examples(loss: str, tmp_path: Path) -> None:
    training = config(loss)
    actual, rows, weights, policy = one_step(5, training, tmp_path)
    assert len(rows) == 5  # of 8 places
    assert distance(actual, explicit_gradient(training, policy(), rows, weights)) <= EXACT[loss]


@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_the_gradient_does_not_depend_on_the_micro_batch(loss: str, tmp_path: Path) -> None:
    one, two, eight = (
        one_step(16, config(loss, max_steps=1, micro_batch_size=size), tmp_path)[0] for size in (1, 2, 8)
    )
    assert distance(one, eight) <= 1e-6
    assert distance(two, eight) <= 1e-6


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["perplexity", "wpo"])
def test_local_weights_multiply_each_example_without_a_gradient_of_their_own(
    loss: str, kind: str, tmp_path: Path
) -> None:
    training = config(loss, max_steps=1, local_weight=kind)
    actual, rows, weights, policy = one_step(16, training, tmp_path)
    measure = {"perplexity": oracles.perplexity, "wpo": oracles.wpo}[kind]
    local = np.ones(len(rows))
    for side in ("chosen_ids", "rejected_ids") if loss == "dpo" else ("completion_ids",):
        values = np.array([measure(policy(), row, side) for row in rows])
        if kind == "perplexity":  # divided by its mean over the micro-batch
            values /= values.reshape(-1, 4).mean(axis=1).repeat(4)
        local *= values
    expected = explicit_gradient(training, policy(), rows, list(np.array(weights) * local))
    assert distance(actual, expected) <= 2 * EXACT[loss]


def test_the_wpo_baseline_is_trls_own_weighting(tmp_path: Path) -> None:
    training = config("dpo", max_steps=1, local_weight="wpo")
    rows, plan, ones = planned("dpo", 8, training, np.ones(8))
    ours, theirs = Gradients(), Gradients()
    made = trainer(rows, plan, ones, training, tmp_path, callbacks=[ours])
    nudge(made.model)
    made.train()
    plain = trainer(rows, plan, ones, config("dpo", max_steps=1), tmp_path, callbacks=[theirs])
    plain.use_weighting = True  # TRL's switch, which needs one more output of the head
    add_fused_lm_head(plain.model, outputs=("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs"))
    nudge(plain.model)
    plain.train()
    assert distance(ours.steps[0], theirs.steps[0]) <= 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_the_log_holds_the_weighted_loss_beside_the_unweighted_one(loss: str, tmp_path: Path) -> None:
    training = config(loss, max_steps=1, kto={"beta": 0.5, "learning_rate": 1e-3})
    rows, plan, weights = planned(loss, 16, training)
    made = trainer(rows, plan, weights, training, tmp_path)
    nudge(made.model)
    state = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.train()
    logged = made.state.log_history[0]

    model = reference_model()
    model.load_state_dict(state)
    here = plan.examples_of_step(0)
    listed, chosen = rows.to_pylist(), weights[here]
    step = [listed[i] for i in here]
    assert logged["loss"] == pytest.approx(explicit_loss(training, model, step, [1.0] * 8).item(), rel=1e-5)
    assert logged["weighted_loss"] == pytest.approx(
        explicit_loss(training, model, step, chosen.tolist()).item(), rel=1e-5
    )
    assert (logged["weight_min"], logged["weight_max"]) == (chosen.min(), chosen.max())
    assert logged["weight_mean"] == pytest.approx(chosen.mean())
    assert logged["effective_sample_size"] == pytest.approx(chosen.sum() ** 2 / (chosen**2).sum())
    assert logged["tokens_per_second"] > 0
    assert logged["grad_norm"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_check_passes_and_leaves_no_trace(loss: str, dtype: str, tmp_path: Path) -> None:
    training = config(loss, local_weight="perplexity")
    rows, plan, weights = planned(loss, 16, training)
    made = trainer(rows, plan, weights, training, tmp_path, dtype=dtype)
    made.model.train()
    before = torch.get_rng_state()
    check = check_weighted_gradient(made)
    assert check.distance <= {"float32": 1e-6, "bfloat16": 0.02}[dtype]
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in made.model.parameters())
    assert made.model.training


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_check_passes_in_bf16_on_text_the_model_has_never_seen(loss: str, tmp_path: Path) -> None:
    """Far from its training a model's activations are large and bf16 rounds them coarsely."""
    training = config(loss, micro_batch_size=8)
    rows, plan, weights = planned(loss, 16, training)
    noise = np.random.default_rng(0)
    columns = {
        name: [noise.integers(6, 262, size=len(ids) * 3).tolist() for ids in rows[name].to_pylist()]
        if name.endswith("_ids")
        else rows[name]
        for name in rows.column_names
    }
    made = trainer(pa.table(columns), plan, weights, training, tmp_path, dtype="bfloat16")
    assert check_weighted_gradient(made).distance <= 0.01


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "broken",
    [lambda scale: torch.ones_like(scale), lambda scale: scale.roll(1), lambda scale: scale.mean().expand_as(scale)],
    ids=["lost", "of-the-neighbour", "averaged"],
)
def test_the_gradient_check_stops_a_training_whose_weights_are(
    broken: Callable[[torch.Tensor], torch.Tensor], loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale_gradient = trainers.scale_gradient
    monkeypatch.setattr(trainers, "scale_gradient", lambda values, scale: scale_gradient(values, broken(scale)))
    training = config(loss)
    rows, plan, weights = planned(loss, 16, training)
    with pytest.raises(WeightedGradientError, match=r"install the versions in pyproject\.toml"):
        check_weighted_gradient(trainer(rows, plan, weights, training, tmp_path))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_check_notices_another_loss(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = next(base for base in trainers.TRAINERS[loss][0].__mro__ if base.__name__ == f"{loss.upper()}Trainer")
    theirs = stock.compute_loss
    monkeypatch.setattr(stock, "compute_loss", lambda *args, **kwargs: 1.2 * theirs(*args, **kwargs))
    training = config(loss)
    rows, plan, weights = planned(loss, 16, training)
    with pytest.raises(WeightedGradientError):
        check_weighted_gradient(trainer(rows, plan, weights, training, tmp_path))


def test_the_gradient_check_sees_weights_that_arrive_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers' own `_prepare_input` rounds them under DeepSpeed with bf16."""
    training = config("sft")
    rows, plan, weights = planned("sft", 16, training)
    made = trainer(rows, plan, weights, training, tmp_path, dtype="bfloat16")
    prepare = made._prepare_inputs
    monkeypatch.setattr(
        made,
        "_prepare_inputs",
        lambda inputs: {k: v.bfloat16() if v.is_floating_point() else v for k, v in prepare(inputs).items()},
    )
    with pytest.raises(WeightedGradientError, match="reach the loss with a relative error of"):
        check_weighted_gradient(made)


def test_an_adapter_on_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target_modules names lm_head"):
        config("sft", lora={"rank": 2, "target_modules": ["lm_head"]})
    training = config("sft", lora={"rank": 2, "target_modules": ["embed_tokens"]})
    with pytest.raises(UserError, match="the merged model would not be the trained one"):
        trainer(*planned("sft", 8, training), training, tmp_path)


@pytest.mark.parametrize(
    ("loss", "setting", "value"),
    [
        ("sft", "packing", True),
        ("sft", "padding_free", True),
        ("sft", "label_smoothing_factor", 0.1),
        ("sft", "loss_type", "dft"),
        ("sft", "use_liger_kernel", True),
        ("dpo", "loss_type", ["aot"]),
        ("dpo", "use_weighting", True),
        ("dpo", "ld_alpha", 0.5),
        ("kto", "loss_type", "apo_zero_unpaired"),
    ],
)
def test_settings_under_which_weights_would_not_be_exact_are_refused(loss: str, setting: str, value: Any) -> None:
    arguments = trainers.TRAINERS[loss][1](output_dir="unused", use_cpu=True, bf16=False)
    trainers.refuse_inseparable(arguments)
    setattr(arguments, setting, value)
    with pytest.raises(ValueError, match=rf"{setting} cannot be combined with a weight per example: it .+"):
        trainers.refuse_inseparable(arguments)
