"""Plans against published sizes, measured activations, the ZeRO paper's table, and hand-made prices and runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from east_ray.config.load import Config, from_dict, load
from east_ray.config.sections import ModelConfig
from east_ray.config.training import LoraConfig, TrainingConfig
from east_ray.preflight.devices import read_devices
from east_ray.preflight.estimate import Phase, estimate
from east_ray.preflight.model_size import GIB, KNOWN, Architecture, from_hf_config, read_architecture, training_memory
from east_ray.preflight.plan import render
from east_ray.records import MEASURES, QUESTIONS, UserError
from east_ray.runs.directory import RunDirectory
from tests.support.run_factory import make_run

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
LLAMA_1B = KNOWN["meta-llama/llama-3.2-1b-instruct"]
LLAMA_8B = KNOWN["meta-llama/llama-3.1-8b-instruct"]
PAPER = [f"{data}-llama-{size}" for data in ("gsm8k", "math") for size in ("1b", "8b")]


def tiny_config(tiny_questions: Path, run_dir: Path) -> Config:
    return from_dict(
        {
            "run": {"dir": str(run_dir)},
            "model": {"path": str(tiny_questions / "model")},
            "questions": {"train": str(tiny_questions / "train.jsonl"), "test": str(tiny_questions / "test.jsonl")},
        },
        "test",
    )


def test_parameter_counts_are_the_published_ones() -> None:
    assert LLAMA_1B.parameters == 1_235_814_400
    assert LLAMA_8B.parameters == 8_030_261_248


def test_the_tiny_models_parameters_are_those_in_its_file(tiny_model: Path) -> None:
    with (tiny_model / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stored = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            stored += (tensor["data_offsets"][1] - tensor["data_offsets"][0]) // 2
    assert read_architecture(ModelConfig(path=str(tiny_model))).parameters == stored


def test_a_rank_16_adapter_has_pefts_parameter_count(tiny_model: Path) -> None:
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
    trained = adapted.get_nb_trainable_parameters()[0]
    assert read_architecture(ModelConfig(path=str(tiny_model))).lora_parameters(LoraConfig(rank=16)) == trained


def test_the_8b_models_kv_cache_takes_128_kib_per_token() -> None:
    assert LLAMA_8B.kv_bytes_per_token("bfloat16") == 128 * 1024


def test_optimizer_state_is_divided_as_in_the_zero_papers_figure_1() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters, 64 GPUs, Adam: 120, 31.4, 16.6 and 1.9 GB per GPU."""
    model = Architecture(0, 1000, 1, 1, 1, 1, 7_500_000, True)
    for stage, gigabytes in ((0, 120), (1, 31.4), (2, 16.6), (3, 1.9)):
        training = TrainingConfig.model_validate({"zero_stage": stage, "batch_size": 256})
        parts = training_memory(model, training, "bfloat16", workers=64, longest_tokens=1).parts
        total = sum(parts[name] for name in ("weights", "gradients", "optimizer")) * GIB / 1e9
        assert total == pytest.approx(gigabytes, abs=0.05)


def test_activation_bytes_match_what_autograd_saves() -> None:
    """What one more layer makes autograd keep, float32: embedding and loss cancel in the difference."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def saved_bytes(layers: int) -> int:
        config = LlamaConfig(
            vocab_size=100,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation="sdpa",
        )
        model = LlamaForCausalLM(config)
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=torch.arange(64).remainder(100)[None]).logits.sum()
        del loss
        return sum(kept.values())

    measured = (saved_bytes(3) - saved_bytes(2)) / 64
    one = Architecture(1, 128, 384, 4, 2, 32, 100, True)
    assert one.activation_bytes_per_token("float32", checkpointing=False) == pytest.approx(measured, rel=0.15)


def test_checkpointing_and_adapters_save_memory_and_dpo_costs_a_reference() -> None:
    def total(**settings: Any) -> float:
        training = TrainingConfig.model_validate({"batch_size": 16, "micro_batch_size": 2, **settings})
        return training_memory(LLAMA_8B, training, "bfloat16", workers=8, longest_tokens=2000).total

    assert total(gradient_checkpointing=True) < total()
    assert total(lora={}) < total()
    assert total(offload_optimizer=True) < total()
    dpo = training_memory(
        LLAMA_8B, TrainingConfig(loss="dpo", batch_size=16, micro_batch_size=2), "bfloat16", 8, longest_tokens=2000
    )
    assert dpo.parts["reference"] == pytest.approx(2 * 8.030261248e9 / GIB)
    assert total(loss="dpo", lora={}) - total(lora={}) == pytest.approx(dpo.parts["activations"] / 2)


def test_a_config_that_is_no_llama_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"somewhere/config\.json has no 'num_attention_heads'"):
        from_hf_config({"model_type": "mamba", "hidden_size": 8}, "somewhere")


def test_a_hub_model_that_cannot_be_reached_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UserError, match="hf auth login"):
        read_architecture(ModelConfig(path="nobody/unknown-1b"))


def test_the_papers_models_need_no_hub() -> None:
    assert read_architecture(ModelConfig(path="meta-llama/Llama-3.2-1B-Instruct")) is LLAMA_1B


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings_fit_eight_gpus_with_80_gb(name: str) -> None:
    result = estimate(load(CONFIGS / f"{name}.toml"))
    assert [pool.device.name for pool in result.pools] == ["A100 80 GB", "H100 80 GB"]
    for pool in result.pools:
        assert pool.sampling_fits
        assert pool.training_fits
        assert 0.2 < pool.seconds / 3600 < 12
    assert result.pools[1].seconds < result.pools[0].seconds


def test_the_samples_tokens_are_questions_times_n_times_length() -> None:
    result = estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), ["8xH100"])
    sample = result.pools[0].phases[0]
    assert sample.name == "round 0: sample"
    assert sample.tokens == 7473 * 128 * result.workload.completion_tokens


def test_twice_the_engines_sample_in_about_half_the_time() -> None:
    config = load(CONFIGS / "math-llama-8b.toml", ["sampling.max_engines=16"])
    few, many = (estimate(config, [f"{count}xA100"]).pools[0].phases[0] for count in (8, 16))
    assert many.seconds == pytest.approx(few.seconds / 2, rel=0.1)
    assert many.device_hours == pytest.approx(few.device_hours, rel=0.1)


def test_three_rounds_sample_once_and_then_once_per_arm() -> None:
    config = load(CONFIGS / "gsm8k-llama-1b.toml", ["run.rounds=3"])
    phases = {phase.name: phase for phase in estimate(config, ["8xA100"]).pools[0].phases}
    assert len(phases) == 9
    assert phases["round 1: sample"].tokens == 2 * phases["round 0: sample"].tokens
    assert phases["round 0: evaluate"].tokens == pytest.approx(1.5 * phases["round 1: evaluate"].tokens)


def test_a_model_too_large_for_one_gpu_does_not_fit_and_the_plan_says_what_to_do() -> None:
    config = load(CONFIGS / "math-llama-8b.toml", ["training.gradient_checkpointing=false"])
    result = estimate(config, ["8xL4"])
    pool = result.pools[0]
    assert pool.sampling_fits
    assert not pool.training_fits
    text = render(result)
    assert "DOES NOT FIT" in text
    assert "gradient_checkpointing=true" in text


def test_weights_larger_than_the_gpu_leave_no_kv_cache(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "num_key_value_heads": 8, "vocab_size": 128256}))
    config = load(CONFIGS / "math-llama-8b.toml", [f"model.path={tmp_path}"])
    result = estimate(config, ["8xH100"])
    assert not result.pools[0].sampling_fits
    assert "tensor_parallel_size" in render(result)
    wide = load(
        CONFIGS / "math-llama-8b.toml",
        [f"model.path={tmp_path}", "sampling.tensor_parallel_size=4", "sampling.gpus_per_engine=4"],
    )
    assert estimate(wide, ["8xH100"]).pools[0].sampling_fits


def test_the_price_is_device_hours_times_the_table_with_training_never_on_spot(tiny_questions: Path) -> None:
    pool = estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), ["8xH100"]).pools[0]
    phases = (Phase("sample", 8, 1e6, 1800, True), Phase("train", 8, 1e6, 900, False))
    device = dataclasses.replace(pool.device, on_demand=4.0, spot=1.5)
    priced = dataclasses.replace(pool, phases=phases, device=device)
    assert priced.price(spot=False) == pytest.approx(4 * 4 + 2 * 4)
    assert priced.price(spot=True) == pytest.approx(4 * 1.5 + 2 * 4)


def test_spot_is_nowhere_dearer_than_on_demand_in_the_price_table() -> None:
    for device in read_devices().values():
        assert 0 < device.spot <= device.on_demand


@pytest.mark.parametrize("pool", ["H100", "0xH100", "eightxH100", "8xZ9"])
def test_a_pool_that_makes_no_sense_is_refused(pool: str) -> None:
    with pytest.raises(UserError, match="pool"):
        estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), [pool])


def test_a_pool_smaller_than_the_training_gang_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.workers is 8"):
        estimate(load(CONFIGS / "gsm8k-llama-1b.toml"), ["4xH100"])


def test_every_assumption_is_printed() -> None:
    result = estimate(load(CONFIGS / "gsm8k-llama-1b.toml"))
    text = render(result)
    for field in dataclasses.fields(result.assumptions):
        assert f"{field.name} {getattr(result.assumptions, field.name):g}" in text


def test_local_questions_are_counted(tiny_questions: Path, tmp_path: Path) -> None:
    result = estimate(tiny_config(tiny_questions, tmp_path / "run"), ["2xCPU"])
    assert result.workload.train == len((tiny_questions / "train.jsonl").read_text().splitlines())
    assert result.workload.test == len((tiny_questions / "test.jsonl").read_text().splitlines())
    assert result.actual is None


def test_a_missing_question_file_is_refused_by_name(tiny_questions: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_questions, tmp_path)
    config = config.model_copy(update={"questions": config.questions.model_copy(update={"train": "absent.jsonl"})})
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        estimate(config, ["2xCPU"])


def test_after_a_run_the_actual_figures_stand_beside_the_planned(tiny_questions: Path, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    question = {"question": "?", "reference": "1", "prompt": "?", "prompt_hash": "0" * 16}
    rows = [{**question, "question_id": str(i), "prompt_token_ids": [1] * (10 + i)} for i in range(3)]
    run.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS), "questions", "train.parquet")
    run.write_table(pa.Table.from_pylist(rows[:2], schema=QUESTIONS), "questions", "test.parquet")
    measure = {"num_clusters": 2, "entropy": 0.5, "inaccuracy": 0.5, "dominant_wrong": 0.5}
    weights = [
        {**measure, "question_id": "0", "mean_tokens": 20.0, "reason": None},
        {**measure, "question_id": "1", "mean_tokens": 40.0, "reason": "all_wrong"},
    ]
    for shard, row in enumerate(weights):
        name = f"shard-{shard:05d}.parquet"
        run.write_table(pa.Table.from_pylist([row], schema=MEASURES), "round-00", "weights", name)
    run.write_json({}, "round-00", "weights", "weights.json")
    run.append_metrics(step="sample", parts=["round-00/samples"], seconds=100.0)
    run.append_metrics(step="sample", parts=["round-00/samples"], seconds=20.0)
    run.append_metrics(step="evaluate", parts=["base/evaluation", "round-00/arms/east/evaluation"], seconds=30.0)
    result = estimate(tiny_config(tiny_questions, tmp_path), ["2xCPU"])
    assert result.actual is not None
    assert (result.actual.train, result.actual.test) == (3, 2)
    assert result.actual.prompt_tokens == 11
    assert result.actual.completion_tokens == 30
    assert result.actual.kept_share == 0.5
    assert result.actual.seconds == {"round 0: sample": 120.0, "round 0: evaluate": 30.0}
    rows_of_text = {line.strip().split("  ")[0]: line for line in render(result).split("planned on")[1].splitlines()}
    assert rows_of_text["round 0: sample"].endswith("2 min 00 s")
    assert rows_of_text["kept questions"].endswith("50.0%")


def test_a_run_as_the_stages_leave_it_can_be_compared_with_its_plan(tiny_questions: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", rounds=2, num_train=120)
    actual = estimate(tiny_config(tiny_questions, tmp_path / "run"), ["2xCPU"]).actual
    assert actual is not None
    assert actual.train == 120
    assert actual.kept_share is not None
    assert 0 < actual.kept_share < 1
