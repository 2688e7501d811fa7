"""Forward passes without padding: the same gradients as with it, for every loss, and padded rows where a model needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, MambaConfig, MixtralConfig

from east_ray.training.padding_free import _attend, lay_out
from tests.support.training_rows import MODEL, Gradients, config, distance, nudge, planned, trainer


def steps(
    loss: str, path: Path, padding_free: bool, dtype: torch.dtype = torch.float32, **changes: Any
) -> list[torch.Tensor]:
    """Gradients of the steps of one epoch, the last of them with padding examples, all at the same nudged weights."""
    rate = {loss: {"learning_rate": 1e-12, **({"beta": 0.5} if loss == "kto" else {})}}
    training = config(loss, padding_free=padding_free, **rate, **changes)
    rows, plan, weights = planned(loss, 21 if loss != "kto" else 10, training)
    keep = Gradients()
    made = trainer(rows, plan, weights, training, path, callbacks=[keep], dtype=dtype)
    for model in (made.model, made.ref_model):
        if model is not None:
            model.to(dtype)
    nudge(made.model)
    made.train()
    return keep.steps


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4}}, {"local_weight": "wpo"}], ids=["full", "lora", "wpo"])
@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_the_gradient_of_every_step_is_that_of_padded_rows(loss: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """In float64: where a gradient is a small difference of large terms, float32 alone puts padded rows 1e-5 off."""
    padded, free = (steps(loss, tmp_path, free, torch.float64, **changes) for free in (False, True))
    assert len(padded) == len(free) == 3
    for expected, actual in zip(padded, free, strict=True):
        assert distance(actual, expected) <= 1e-7  # TRL's head rounds to float32


@pytest.mark.parametrize("loss", ["sft", "dpo", "kto"])
def test_the_gradient_of_every_step_is_that_of_padded_rows_in_float32(loss: str, tmp_path: Path) -> None:
    padded, free = (steps(loss, tmp_path, free) for free in (False, True))
    for expected, actual in zip(padded, free, strict=True):
        assert distance(actual, expected) <= 1e-6


@pytest.mark.parametrize(("length", "in_float32"), [(60, True), (400, False)])
def test_only_short_rows_attend_in_float32(length: int, in_float32: bool) -> None:
    states = torch.randn(3, 1, 2, 2 * length, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.ones(2, length, dtype=torch.long)
    rows = lay_out(ids, ids, ids, pairs=False)
    attended, precise = (_attend(torch.nn.Module(), *part, None, rows)[0] for part in (states, states.float()))
    assert attended.dtype == torch.bfloat16
    assert torch.equal(attended, precise.bfloat16()) == in_float32


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    plain, recomputed = (steps("dpo", tmp_path, True, gradient_checkpointing=value) for value in (False, True))
    assert distance(recomputed[0], plain[0]) <= 1e-6


def test_a_pair_shares_the_tokens_that_both_rows_begin_with() -> None:
    """Two pairs: chosen 1 2 3 4 and rejected 1 2 3 5 6; chosen 7 8 and rejected 9 8 7. Completions are the last tokens."""
    ids = torch.tensor([[1, 2, 3, 4, 0], [7, 8, 0, 0, 0], [1, 2, 3, 5, 6], [9, 8, 7, 0, 0]])
    mask = (ids != 0).long()
    labels = torch.tensor(
        [[-100, -100, 3, 4, -100], [-100, 8, *[-100] * 3], [-100, -100, 3, 5, 6], [-100, 8, 7, -100, -100]]
    )
    layout = lay_out(ids, mask, labels, pairs=True)
    assert layout is not None
    assert layout.ids_N.tolist() == [1, 2, 3, 4, 7, 8, 5, 6, 9, 8, 7]
    assert layout.position_N.tolist() == [0, 1, 2, 3, 0, 1, 3, 4, 0, 1, 2]
    assert [(s.start, s.stop, s.prefix, s.shared) for s in layout.spans] == [
        (0, 4, 0, 0),
        (4, 6, 0, 0),
        (6, 8, 0, 3),
        (8, 11, 0, 0),
    ]
    assert layout.ids_N[layout.labelled_L].tolist() == [2, 3, 7, 2, 3, 5, 9, 8]  # each before the token below
    assert layout.label_L.tolist() == [3, 4, 8, 3, 5, 6, 8, 7]


def test_rows_padded_on_the_left_or_without_a_label_are_not_laid_out() -> None:
    ids, labels = torch.tensor([[0, 1, 2]]), torch.tensor([[-100, -100, 2]])
    assert lay_out(ids, torch.tensor([[0, 1, 1]]), labels, pairs=False) is None
    assert lay_out(ids, torch.ones_like(ids), torch.full_like(ids, -100), pairs=False) is None


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


@pytest.mark.parametrize(
    ("settings", "without_padding"),
    [
        (LlamaConfig(**SMALL, **HEADS), True),
        (MixtralConfig(**SMALL, **HEADS, num_local_experts=4), True),
        (Gemma3TextConfig(**SMALL, **HEADS, **WINDOW), True),
        (MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=512, state_size=4), False),
    ],
    ids=["llama", "mixture", "sliding-window", "state-space"],
)
def test_what_cannot_be_trained_without_padding_is_found_at_the_start(
    settings: Any, without_padding: bool, tmp_path: Path
) -> None:
    settings.pad_token_id, settings.eos_token_id, settings.bos_token_id = 0, 2, 1
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings)
    nudge(model)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "model")
    training = config("sft", micro_batch_size=4)
    rows, plan, weights = planned("sft", 8, training)
    made = trainer(rows, plan, weights, training, tmp_path / "state", model_path=str(tmp_path / "model"))
    made.model.train()
    batch = made._prepare_inputs(made.data_collator([made.positions[p] for p in range(4)]))
    made.compute_loss(made.model, batch, num_items_in_batch=torch.tensor(1))
    assert made.model.training
    assert all(switch.enabled == without_padding for switch in made.padding_free)


def test_prompts_are_not_computed_twice_for_a_pair(tmp_path: Path) -> None:
    training = config("dpo", micro_batch_size=4, max_steps=1)
    rows, plan, _ = planned("dpo", 8, training)
    made = trainer(rows, plan, np.ones(8), training, tmp_path)
    seen = list[int]()
    made.model.model.embed_tokens.register_forward_hook(lambda _module, args, _output: seen.append(args[0].numel()))
    batch = made._prepare_inputs(made.data_collator([made.positions[p] for p in range(4)]))
    made.compute_loss(made.model, batch)  # the first pass is made with padding as well
    seen.clear()
    made.train()
    listed = pa.Table.to_pylist(rows)
    pairs = [listed[i] for i in plan.row_P[:8]]
    least = sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in pairs)
    most = least + sum(len(row["prompt_ids"]) for row in pairs)
    assert 0.9 * least < sum(seen) <= least < most
