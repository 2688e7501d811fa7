"""The size of a model from its config alone: parameters, bytes and floating-point operations. No weight is read.

transformers builds the model on torch's meta device, so every architecture that it knows is counted as it is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from east_ray.config.sections import ModelConfig
from east_ray.config.training import LoraConfig
from east_ray.models import local_model, read_json
from east_ray.records import UserError

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
KNOWN = tomllib.loads(Path(__file__).with_name("known.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder: grouped-query or multi-head latent attention, gated MLPs, dense or mixtures of experts."""

    parameters: int
    looked_up: int  # of these, an input embedding that nothing is multiplied with (0 when tied to the output)
    routed: int  # of these, in routed experts
    expert_share: float  # of the routed experts, visited by one token
    layers: int
    hidden: int
    intermediate: int  # width of the MLP that one token passes
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    cached_values: int  # in the KV cache, per token, all layers
    linears: tuple[tuple[str, int], ...]  # what an adapter takes: last part of its name, trained parameters at rank 1

    @property
    def active(self) -> float:
        """Parameters that one token is multiplied with."""
        return self.parameters - self.looked_up - self.routed * (1 - self.expert_share)

    def weights_read(self, tokens: float) -> float:
        """Parameters read to process so many tokens at once: the more tokens, the more of the experts are visited."""
        return self.parameters - self.looked_up - self.routed * (1 - self.expert_share) ** tokens

    def lora_parameters(self, lora: LoraConfig) -> int:
        """Trained parameters of an adapter: rank * (inputs + outputs) of every adapted layer."""
        chosen = lora.target_modules
        return lora.rank * sum(size for name, size in self.linears if chosen == "all-linear" or name in chosen)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token in all layers, bytes."""
        return self.cached_values * DTYPE_BYTES[dtype]

    def forward_flops(self, tokens: float, context: float) -> float:
        """Operations to process `tokens` tokens that each attend to `context` others on average."""
        return tokens * (2 * self.active + 4 * self.layers * self.heads * self.head_dim * context)

    def activation_bytes_per_token(self, dtype: str, checkpointing: bool) -> float:
        """Bytes that the backward pass keeps per token, all layers, with attention that stores no score matrix.

        Two RMSNorms computed in float32, the attention's and the MLP's inputs and outputs; with checkpointing only
        the layers' inputs and one layer at a time.
        """
        b, query, key = DTYPE_BYTES[dtype], self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = 2 * (b * self.hidden + 2 * 4 * self.hidden)
        one_layer = norms + b * (2 * self.hidden + 2 * query + 2 * key + 4 * self.intermediate)
        return self.layers * b * self.hidden + one_layer if checkpointing else self.layers * one_layer


def read_architecture(model: ModelConfig) -> Architecture:
    """From known.toml, or the config.json of the model wherever it is. UserError when it cannot be counted."""
    if (known := KNOWN["models"].get(model.path.lower())) and not Path(model.path).is_dir():
        return from_hf_config(known, model)
    config = read_json(model.path, "config.json", model.revision)
    if config is None:
        raise UserError(f"model.path={model.path!r} has no config.json; give a Hugging Face model")
    return from_hf_config(config, model)


def from_hf_config(settings: Mapping[str, Any], model: ModelConfig) -> Architecture:
    """An Architecture from the contents of a config.json. UserError when transformers cannot build such a model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    where, kind, trust = f"{model.path}/config.json", settings.get("model_type", ""), model.trust_remote_code
    if kind not in CONFIG_MAPPING and not trust:
        raise UserError(
            f"{where}: transformers has no model_type {kind!r}; give another model, or for one with code of its own that "
            f"you trust set model.trust_remote_code=true"
        )
    try:
        if kind in CONFIG_MAPPING:
            config = CONFIG_MAPPING[kind].from_dict(dict(settings))
        else:
            directory = local_model(model.path, model.revision, weights=False)
            config = AutoConfig.from_pretrained(directory, trust_remote_code=trust)
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        return _measure(built, config.get_text_config(), where)
    except UserError:
        raise
    except Exception as error:  # each architecture checks its config in its own way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{where} cannot be planned for: {reason}; check it, or use another model") from None


def _measure(built: Any, config: Any, where: str) -> Architecture:
    """Count a model on the meta device; `config` is that of its text part."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise UserError(f"{where} has no num_attention_heads; plans are for transformers with attention")
    sizes = {name: parameter.numel() for name, parameter in built.named_parameters()}
    embedding, head = built.get_input_embeddings().weight, built.get_output_embeddings()
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") or 0
    visited = _first(config, "num_experts_per_tok", "moe_top_k", "moe_k") or 0
    routed = sum(size for name, size in sizes.items() if ".experts." in name) if experts > 1 else 0
    if experts > 1 and not (routed and visited):
        raise UserError(f"{where} has {experts} experts that cannot be counted; plan with a dense model of its size")
    intermediate = config.intermediate_size
    if routed:
        shared = (getattr(config, "n_shared_experts", 0) or 0) + visited
        one = getattr(config, "moe_intermediate_size", None) or intermediate
        intermediate = shared * one + (getattr(config, "shared_expert_intermediate_size", 0) or 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = _first(config, "qk_head_dim", "head_dim") or config.hidden_size // heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    latent = getattr(config, "kv_lora_rank", None)  # multi-head latent attention caches one vector for all heads
    per_layer = latent + config.qk_rope_head_dim if latent else 2 * kv_heads * head_dim
    return Architecture(
        parameters=sum(sizes.values()),
        looked_up=0 if head is None or head.weight is embedding else embedding.numel(),
        routed=routed,
        expert_share=visited / experts if routed else 1.0,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=config.vocab_size,
        cached_values=per_layer * sum("linear" not in kind and "attention" in kind for kind in kinds),
        linears=tuple(_adapted_experts(built) if routed else _adapted_linears(built, head)),
    )


def _adapted_linears(built: Any, head: Any) -> Iterator[tuple[str, int]]:
    """Every linear layer but the head: inputs + outputs."""
    for name, module in built.named_modules():
        if type(module).__name__ == "Linear" and module is not head:
            yield name.rpartition(".")[2], module.in_features + module.out_features


def _adapted_experts(built: Any) -> Iterator[tuple[str, int]]:
    """In a mixture peft also adapts routers and stacked experts, in its own way: it is asked, which changes the model."""
    import peft
    import torch

    with torch.device("meta"):
        adapter = peft.LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(built, adapter)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            yield name.split(".lora_")[0].removesuffix(".base_layer").rpartition(".")[2], parameter.numel()


def _first(config: Any, *names: str) -> Any:
    """The first of these settings that a config has."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)
