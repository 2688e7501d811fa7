"""A training from examples to model directory: what is refused, what comes out, and that kills change nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.records import QUESTIONS, UserError
from east_ray.runs.directory import RunDirectory
from east_ray.training.driver import TrainingSummary
from east_ray.training.export import judge_base, read_tensors, weights_digest, write_model
from east_ray.training.job import ArmTraining
from east_ray.training.model_card import write_model_card
from east_ray.training.tokens import PreparedExamples, prepare_examples
from tests.support.training_kills import arm, assert_same_training, start, start_all, train_with_kills
from tests.support.training_rows import MODEL, config, examples


def prepare(run: RunDirectory, training: TrainingConfig, column: str | None = "weight") -> PreparedExamples:
    arm = ArmTraining("examples/x.parquet", column, str(MODEL), "arm/model", training, seed=0, title="arm")
    return prepare_examples(run, arm, questions="questions/train.parquet", model=ModelConfig(path=str(MODEL)))


def test_imported_examples_become_the_sampled_prompt_the_completion_and_one_end_of_sequence(run: RunDirectory) -> None:
    table = examples("dpo", 3)
    run.write_table(table, "examples/x.parquet")
    prepared = prepare(run, config("dpo"))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokens = run.read_table(prepared.tokens)
    assert prepared.tokenised_from_text == 6
    for row, source in zip(tokens.to_pylist(), table.to_pylist(), strict=True):
        assert tokenizer.decode(row["prompt_ids"]) == source["prompt"]
        assert row["prompt_ids"].count(tokenizer.bos_token_id) == 1
        for ids, text in (("chosen_ids", "chosen"), ("rejected_ids", "rejected")):
            assert row[ids][-1] == tokenizer.eos_token_id
            assert row[ids].count(tokenizer.eos_token_id) == 1
            assert tokenizer.decode(row[ids][:-1]) == source[text]


def test_a_prompt_that_was_sampled_from_other_tokens_is_refused(run: RunDirectory) -> None:
    table = examples("sft", 3)
    run.write_table(table, "examples/x.parquet")
    rows = [
        {"question_id": q, "question": "", "reference": "", "prompt": p, "prompt_token_ids": [1, 2], "prompt_hash": ""}
        for q, p in zip(table["question_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    ]
    run.write_table(pa.Table.from_pylist(rows, QUESTIONS), "questions/train.parquet")
    with pytest.raises(UserError, match="train the model that was sampled from"):
        prepare(run, config("sft"))


def test_examples_longer_than_max_length_are_counted_and_refused_and_never_cut(run: RunDirectory) -> None:
    run.write_table(examples("sft", 8), "examples/x.parquet")
    prepared = prepare(run, config("sft"))
    longest = max(
        len(row["prompt_ids"]) + len(row["completion_ids"]) for row in run.read_table(prepared.tokens).to_pylist()
    )
    assert len(run.list("examples/tokens")) == 1
    with pytest.raises(UserError, match=rf"1 of 8 .* set training\.max_length={longest}"):
        prepare(run, config("sft", max_length=longest - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 0), "holds no examples"),
        (lambda table: table.drop_columns(["weight"]), "no weights 'weight'"),
        (lambda table: with_weights(table, [1.0, float("nan"), 1.0]), "1 of 3 weights"),
        (lambda table: with_weights(table, [1.0, None, 1.0]), "1 of 3 weights"),
        (lambda table: with_weights(table, [1.0, -1.0, 1.0]), "1 of 3 weights"),
        (lambda table: with_weights(table, [0.0, 0.0, 0.0]), "3 are zero"),
    ],
    ids=["none", "no-column", "nan", "null", "negative", "zero"],
)
def test_examples_without_usable_weights_are_refused(change: Any, message: str, run: RunDirectory) -> None:
    run.write_table(change(examples("sft", 3)), "examples/x.parquet")
    with pytest.raises(UserError, match=message):
        prepare(run, config("sft"))


def with_weights(table: pa.Table, weights: list[float | None]) -> pa.Table:
    return table.set_column(table.column_names.index("weight"), "weight", pa.array(weights, pa.float64()))


def test_no_weight_column_means_ones(run: RunDirectory) -> None:
    run.write_table(examples("sft", 3), "examples/x.parquet")
    assert prepare(run, config("sft"), None).weight_N.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_written_model_is_its_base_with_other_weights(dtype: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    target = tmp_path / "model"
    digest = write_model(model, model.state_dict(), str(MODEL), str(target), dtype)

    assert digest == weights_digest(str(target)) != weights_digest(str(MODEL))
    assert sorted(os.listdir(target)) == sorted(os.listdir(MODEL))
    for name in os.listdir(MODEL):
        if name not in ("config.json", "model.safetensors"):
            assert (target / name).read_bytes() == (MODEL / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert loaded.dtype == getattr(torch, dtype)
    for (name, mine), theirs in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype)), name


def odd_base(path: Path, oddity: str) -> list[str]:
    """The bundled model's directory with something in it that published models have; returns what an export leaves out."""
    shutil.copytree(MODEL, path)
    tensors = load_file(path / "model.safetensors")
    extra: dict[str, torch.Tensor] = {}
    if oddity == "redundant head":
        extra = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    elif oddity == "rotary frequencies":
        extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(16) for i in range(4)}
    elif oddity == "unknown tensors":
        extra = {"model.multi_token_head.weight": torch.ones(3)}
    elif oddity == "two formats":
        renamed = {name.replace("model.layers", "layers"): tensor for name, tensor in tensors.items()}
        save_file(renamed, path / "consolidated.safetensors")
        return ["consolidated.safetensors"]
    elif oddity == "generation settings that may not be saved":
        settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.9, "top_p": 0.6}
        (path / "generation_config.json").write_text(json.dumps(settings))
        return []
    save_file({**tensors, **extra}, path / "model.safetensors", metadata={"format": "pt"})
    return sorted(extra)


ODDITIES = [
    "redundant head",
    "rotary frequencies",
    "unknown tensors",
    "two formats",
    "generation settings that may not be saved",
]


@pytest.mark.parametrize("oddity", ODDITIES)
def test_a_base_with_more_than_its_class_writes_is_exported_without_it(oddity: str, tmp_path: Path) -> None:
    dropped = odd_base(tmp_path / "base", oddity)
    assert judge_base(str(tmp_path / "base"), False) == dropped  # known before anything is trained
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    target = tmp_path / "model"
    write_model(model, model.state_dict(), str(tmp_path / "base"), str(target), "float32")
    assert {name for name, _ in read_tensors(str(target))} == {name for name, _ in read_tensors(str(MODEL))}
    generation = (target / "generation_config.json").read_bytes()
    assert generation == (tmp_path / "base" / "generation_config.json").read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(target)
    for (name, mine), theirs in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype)), name


def test_a_different_output_head_of_a_tied_model_is_kept(tmp_path: Path) -> None:
    """transformers and vLLM load it, so it is trained and written as well."""
    shutil.copytree(MODEL, tmp_path / "base")
    tensors = load_file(MODEL / "model.safetensors")
    tensors["lm_head.weight"] = 2 * tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    assert judge_base(str(tmp_path / "base"), False) == []


@pytest.mark.parametrize("wrong", ["missing", "smaller"])
def test_a_base_without_some_of_its_tensors_is_refused_before_it_is_trained(wrong: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "base")
    tensors = load_file(MODEL / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    if wrong == "smaller":
        tensors["model.norm.weight"] = norm[:-1].clone()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"has no model\.norm\.weight .* trained from random values; give a complete model"
    ):
        judge_base(str(tmp_path / "base"), False)


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"norm\.weight is not finite"):
        write_model(model, model.state_dict(), str(MODEL), str(tmp_path / "model"), "float32")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_of_another_number_of_workers_is_refused_with_the_way_back(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from east_ray.training.worker import SETTINGS, check_settings, settings_of

    (tmp_path / SETTINGS).write_text(json.dumps(settings_of(config("sft", workers=2, zero_stage=3))))
    group: Any = SimpleNamespace(run=RunDirectory(str(tmp_path)), state="training/state")
    job: Any = SimpleNamespace(arm=arm(config("sft", workers=2, zero_stage=3), "arm"))
    check_settings(group, job, str(tmp_path))
    job.arm = arm(config("sft", workers=1, zero_stage=3), "arm")
    with pytest.raises(UserError, match=r"--set training\.workers=2, or start .* --restart-from train"):
        check_settings(group, job, str(tmp_path))


def test_an_error_in_export_ends_the_command_in_one_sentence_and_repeats_no_training(
    run: RunDirectory, ray_session: None
) -> None:
    """The model's directory cannot be made: a file lies where it should be."""
    run.write_table(examples("sft", 16), "examples/sft.parquet")
    run.write_bytes(b"", "arm", "model")
    with pytest.raises(
        UserError, match=r"the model is trained but cannot be written .*resumes from the last checkpoint"
    ):
        start(run, config("sft", checkpoint_steps=1), "arm")
    events = Path(run.path("arm", "training", "tensorboard"))
    assert len(list(events.iterdir())) == 1  # one training, not max_failures + 1


def test_a_killed_training_goes_on_and_ends_in_the_same_model(run: RunDirectory, ray_session: None) -> None:
    training = config(
        "sft", workers=2, micro_batch_size=2, epochs=8, checkpoint_steps=3, zero_stage=2, lora={"rank": 4}
    )
    run.write_table(examples("sft", 60), "examples/sft.parquet")
    undisturbed = start(run, training, "undisturbed")
    disturbed, killer = train_with_kills(run, training, [(0, "step")])
    assert [rank for rank, *_ in killer.killed] == [0]
    assert_same_training(run, undisturbed, disturbed)

    assert undisturbed.gradient_error < 1e-6
    assert undisturbed.steps == 60
    assert run.list("undisturbed", "training") == ["log.jsonl"]  # no checkpoints left behind
    model = Path(run.path("undisturbed", "model"))
    assert weights_digest(str(model)) == undisturbed.digest
    assert {name for name, _ in read_tensors(str(model))} == {name for name, _ in read_tensors(str(MODEL))}
    card = (model / "README.md").read_text()
    assert "Not measured yet" in card
    overall = {"num_questions": 1000, "accuracy": 0.403, "low": 0.373, "high": 0.434}
    run.write_json({"overall": overall}, "undisturbed", "evaluation", "metrics.json")
    write_model_card(run, "undisturbed/model")
    card = ModelCard.load(model / "README.md")
    assert "| test questions | 1000 | 40.3% | 37.3 to 43.4% |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [40.3]  # what the hub shows


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_arms_that_share_workers_end_in_the_models_of_a_set_of_workers_each(
    workers: int, run: RunDirectory, ray_session: None
) -> None:
    """Arms of two losses, one with an adapter and another seed, and one that cannot be trained; byte for byte."""
    for loss in ("sft", "dpo"):
        run.write_table(examples(loss, 24), f"examples/{loss}.parquet")
    common: dict[str, Any] = {"workers": workers, "micro_batch_size": 2, "checkpoint_steps": 2}
    dpo = config("dpo", **common, lora={"rank": 4, "dropout": 0.1})
    hot = config("sft", **common, sft={"learning_rate": 1e30})
    alone = [start_all(run, [arm(config("sft", **common), "sft")])[0], start_all(run, [arm(dpo, "dpo", 1)])[0]]
    together = [arm(hot, "hot"), arm(config("sft", **common), "shared-sft"), arm(dpo, "shared-dpo", 1)]
    refused, *shared = start_all(run, together)
    assert isinstance(refused, UserError)
    assert str(refused).startswith("hot: the loss is")
    for mine, apart in zip(shared, alone, strict=True):
        assert isinstance(mine, TrainingSummary), mine
        assert isinstance(apart, TrainingSummary), apart
        assert mine.digest == apart.digest
        assert mine.loss == apart.loss
    assert run.list("shared-sft", "training") == run.list("sft", "training") == ["log.jsonl"]
    assert run.read_json("shared-dpo/model/adapter/adapter_config.json")["base_model_name_or_path"] == str(MODEL)
