"""Sizes of models against published counts, the files' own headers, peft, autograd and the ZeRO paper's table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from east_ray.config.sections import ModelConfig
from east_ray.config.training import LoraConfig, TrainingConfig
from east_ray.preflight.memory import GIB, training_memory
from east_ray.preflight.model_size import Architecture, from_hf_config, read_architecture
from east_ray.records import UserError

MODEL = ModelConfig(path="somewhere")
LLAMA_1B = ModelConfig(path="meta-llama/Llama-3.2-1B-Instruct")
LLAMA_8B = ModelConfig(path="meta-llama/Llama-3.1-8B-Instruct")
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


def test_parameter_counts_are_the_published_ones() -> None:
    assert read_architecture(LLAMA_1B).parameters == 1_235_814_400
    assert read_architecture(LLAMA_8B).parameters == 8_030_261_248


@pytest.mark.parametrize(
    ("settings", "billions", "active"),
    [(MIXTRAL_8X7B, 46.7, 12.9), (QWEN3_30B_A3B, 30.5, 3.3), ({"model_type": "deepseek_v3"}, 671, 37)],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V3"],
)
def test_mixtures_of_experts_have_their_published_sizes(settings: Any, billions: float, active: float) -> None:
    """The active count as published includes the input embedding, which is looked up and not multiplied."""
    size = from_hf_config(settings, MODEL)
    assert size.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert (size.active + size.looked_up) / 1e9 == pytest.approx(active, rel=0.03)


def test_a_full_batch_reads_all_experts_and_one_token_only_its_own() -> None:
    size = from_hf_config(MIXTRAL_8X7B, MODEL)
    assert size.weights_read(1) == pytest.approx(size.active)
    assert size.weights_read(256) == pytest.approx(size.parameters - size.looked_up)
    assert size.active < size.weights_read(2) < size.weights_read(4)


@pytest.mark.parametrize("settings", [MIXTRAL_8X7B, QWEN3_30B_A3B])
def test_an_adapter_of_a_mixture_has_pefts_parameter_count(settings: Any) -> None:
    import peft
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {**settings, "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 128}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = adapted.get_nb_trainable_parameters()[0]
    assert from_hf_config(small, MODEL).lora_parameters(LoraConfig(rank=16)) == trained


def test_latent_attention_caches_one_vector_per_layer() -> None:
    assert from_hf_config({"model_type": "deepseek_v3"}, MODEL).cached_values == 61 * (512 + 64)


def test_experts_that_cannot_be_counted_are_refused() -> None:
    settings = {key: value for key, value in MIXTRAL_8X7B.items() if key != "num_experts_per_tok"}
    with pytest.raises(UserError, match="8 experts"):
        from_hf_config({**settings, "num_experts_per_tok": 0}, MODEL)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "mamba", "hidden_size": 8}, "has no num_attention_heads"),
        ({"hidden_size": 8}, "has no model_type ''"),
        ({"model_type": "unheard-of"}, "trust_remote_code"),
        ({"model_type": "llama", "num_attention_heads": "many"}, "cannot be planned for"),
    ],
)
def test_a_config_that_is_no_transformer_is_refused_with_its_path(settings: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        from_hf_config(settings, MODEL)
    assert "somewhere/config.json" in str(refused.value)


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
    assert read_architecture(LLAMA_8B).kv_bytes_per_token("bfloat16") == 128 * 1024


def test_optimizer_state_is_divided_as_in_the_zero_papers_figure_1() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters, 64 GPUs, Adam: 120, 31.4, 16.6 and 1.9 GB per GPU."""
    model = dataclasses.replace(read_architecture(LLAMA_8B), parameters=7_500_000_000)
    for stage, gigabytes in ((0, 120), (1, 31.4), (2, 16.6), (3, 1.9)):
        training = TrainingConfig.model_validate({"zero_stage": stage, "batch_size": 256, "workers": 64})
        parts = training_memory(model, training, "bfloat16", longest_tokens=1).parts
        total = sum(parts[name] for name in ("weights", "gradients", "optimizer")) * GIB / 1e9
        assert total == pytest.approx(gigabytes, abs=0.05)


def test_checkpointing_and_adapters_save_memory_and_dpo_costs_a_reference() -> None:
    def memory(**settings: Any) -> dict[str, float]:
        training = TrainingConfig.model_validate({"batch_size": 16, "micro_batch_size": 2, "workers": 8, **settings})
        size = training_memory(read_architecture(LLAMA_8B), training, "bfloat16", longest_tokens=2000)
        return {**size.parts, "total": size.total}

    full = memory()
    assert memory(gradient_checkpointing=True)["total"] < full["total"]
    assert memory(lora={})["total"] < full["total"]
    assert memory(offload_optimizer=True)["total"] < full["total"]
    assert full["float32 gradients"] == pytest.approx(4 * 8.030261248e9 / 8 / GIB)
    sharded = memory(zero_stage=3)
    assert sharded["gradients"] + sharded["float32 gradients"] == pytest.approx((4 + 4) * 8.030261248e9 / 8 / GIB)
    dpo = memory(loss="dpo")
    assert dpo["reference"] == pytest.approx(2 * 8.030261248e9 / GIB)
    assert dpo["activations"] == pytest.approx(2 * full["activations"])
    assert memory(loss="dpo", lora={})["reference"] == 0


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
    one = Architecture(0, 0, 0, 1.0, 1, 128, 384, 4, 2, 32, 100, 0, ())
    assert one.activation_bytes_per_token("float32", checkpointing=False) == pytest.approx(measured, rel=0.15)


def test_a_hub_model_that_cannot_be_reached_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="hf auth login"):
        read_architecture(ModelConfig(path="nobody/unknown-1b"))
