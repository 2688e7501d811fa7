"""Token ids of the examples: those that were sampled as they are, imported text once and with the model's own end token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from east_ray.records import EXAMPLES, check_schema
from east_ray.training.tokens import end_token, tokenise_examples
from tests.support.training_rows import MODEL, config, examples, planned, trainer

EOS, OTHER = (
    2,
    3,
)  # the bundled tokenizer's end of sequence, and the special token that the swapped model ends turns with


def tokenised(loss: str, table: pa.Table, end: int = EOS) -> list[dict[str, Any]]:
    rows = check_schema(table, EXAMPLES[loss], "test")
    return tokenise_examples(rows, AutoTokenizer.from_pretrained(MODEL), loss, {}, end).to_pylist()


def with_ids(table: pa.Table, **columns: list[Any]) -> pa.Table:
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def test_sampled_ids_are_trained_as_they_are() -> None:
    sampled = [[7, 8, OTHER], [9, 9, 9]]  # ends with another token than eos, and was cut: neither is touched
    rows = tokenised("sft", with_ids(examples("sft", 2), completion_ids=sampled))
    assert [row["completion_ids"] for row in rows] == sampled
    pairs = tokenised("dpo", with_ids(examples("dpo", 2), chosen_ids=sampled, rejected_ids=sampled[::-1]))
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in pairs] == list(zip(sampled, sampled[::-1], strict=True))


def test_imported_text_gets_the_end_token_once_unless_it_was_cut() -> None:
    table = with_ids(examples("dpo", 3), cut=[False, True, None])
    for row, source in zip(tokenised("dpo", table, OTHER), table.to_pylist(), strict=True):
        assert row["chosen_ids"][-1] == OTHER
        assert row["chosen_ids"].count(OTHER) == 1
        assert (row["rejected_ids"][-1] == OTHER) == (not source["cut"])
    kto = with_ids(examples("kto", 2), cut=[False, False, True, False])
    assert [row["completion_ids"][-1] == EOS for row in tokenised("kto", kto)] == [True, True, False, True]


def test_one_example_of_ids_and_one_of_text_train_together() -> None:
    rows = tokenised("sft", with_ids(examples("sft", 2), completion_ids=[None, [5, EOS]]))
    assert rows[1]["completion_ids"] == [5, EOS]
    assert rows[0]["completion_ids"][-1] == EOS


def swapped_model(path: Path) -> Path:
    """The bundled model with the embeddings of eos and another special token exchanged: it ends its turns with the other."""
    shutil.copytree(MODEL, path)
    tensors = load_file(path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    embedding[[EOS, OTHER]] = embedding[[OTHER, EOS]].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    template = (path / "chat_template.jinja").read_text()
    (path / "chat_template.jinja").write_text(template.replace("eos_token", "'<|system|>'"))
    generation = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [EOS, OTHER]}))
    return path


@pytest.mark.parametrize("loss", ["sft", "dpo"])
@pytest.mark.parametrize("origin", ["sampled", "imported"])
def test_a_model_with_another_end_of_turn_has_the_loss_of_the_same_model_with_the_two_tokens_swapped(
    origin: str, loss: str, tmp_path: Path
) -> None:
    training = config(loss, max_steps=1)
    rows, plan, weights = planned(loss, 8, training)
    path = swapped_model(tmp_path / "swapped")
    other = {EOS: OTHER, OTHER: EOS}
    names = ["completion_ids"] if loss == "sft" else ["chosen_ids", "rejected_ids"]
    ids = {name: [[other.get(token, token) for token in row] for row in rows[name].to_pylist()] for name in names}
    table = examples(loss, 8) if origin == "imported" else with_ids(examples(loss, 8), **ids)
    tokenizer = AutoTokenizer.from_pretrained(path)
    end = end_token(tokenizer, json.loads((path / "generation_config.json").read_text()))
    assert end == OTHER
    swapped = tokenise_examples(check_schema(table, EXAMPLES[loss], "test"), tokenizer, loss, {}, end)
    losses = []
    for model, data in ((MODEL, rows), (path, swapped)):
        made = trainer(data, plan, weights, training, tmp_path / "state", model_path=str(model))
        made.train()
        losses.append(made.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(
    ("stops", "template", "expected"),
    [
        ([2, 3], "{% for m in messages %}<|user|>{{ m.content }}<|system|>{% endfor %}", 3),
        ([2, 3], "{% for m in messages %}<|user|>{{ m.content }}\n<|eos|>{% endfor %}", 2),
        (
            2,
            "{% for m in messages %}<|user|>{{ m.content }}<|system|>{% endfor %}",
            2,
        ),  # the template's is no stop token
        (None, "{{ raise_exception('no') }}", 2),
    ],
)
def test_the_end_token_is_the_stop_token_that_the_template_writes_after_a_turn(
    stops: Any, template: str, expected: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = template
    assert end_token(tokenizer, {"eos_token_id": stops} if stops else {}) == expected


def test_swapped_rows_are_another_model_to_the_same_ids(tmp_path: Path) -> None:
    """Else the equality above would say nothing."""
    training = config("sft", max_steps=1)
    rows, plan, weights = planned("sft", 8, training)
    losses = []
    for model in (MODEL, swapped_model(tmp_path / "swapped")):
        made = trainer(rows, plan, weights, training, tmp_path / "state", model_path=str(model))
        made.train()
        losses.append(made.state.log_history[0]["loss"])
    assert losses[1] > losses[0] + 0.5
