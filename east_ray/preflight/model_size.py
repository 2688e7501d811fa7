"""Size of a model: parameters, bytes and floating-point operations, computed from its config alone.

`plan.py` turns these into time, memory per GPU and money. Nothing here touches a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from east_ray.config.sections import ModelConfig
from east_ray.config.training import LoraConfig, TrainingConfig
from east_ray.models import read_json
from east_ray.records import UserError

GIB = 2.0**30
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Llama-like decoder: grouped-query attention, gated MLP, RMSNorm, no biases."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the seven matrices of one layer: q, k, v, o, gate, up, down."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, f = self.hidden, self.intermediate
        return [(h, query), (h, key), (h, key), (query, h), (h, f), (h, f), (f, h)]

    @property
    def parameters(self) -> int:
        """All weights, embeddings and norms included."""
        per_layer = sum(inputs * outputs for inputs, outputs in self.linears) + 2 * self.hidden
        return self.layers * per_layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, lora: LoraConfig) -> int:
        """Trained parameters of an adapter: rank * (inputs + outputs) of every adapted matrix."""
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        chosen = names if lora.target_modules == "all-linear" else lora.target_modules
        sizes = dict(zip(names, self.linears, strict=True))
        return self.layers * sum(lora.rank * sum(sizes[name]) for name in chosen if name in sizes)

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of one token in all layers, bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[dtype]

    def forward_flops(self, tokens: float, context: float) -> float:
        """Operations to process `tokens` tokens that each look back on `context` others on average."""
        multiplied = self.parameters - (0 if self.tied else self.vocabulary * self.hidden)
        return tokens * (2 * multiplied + 4 * self.layers * self.heads * self.head_dim * context)

    def activation_bytes_per_token(self, dtype: str, checkpointing: bool) -> float:
        """What the backward pass keeps per token, all layers, with attention that stores no score matrix.

        Two RMSNorms computed in float32, the attention's and the MLP's inputs and outputs; with checkpointing only
        the layers' inputs and one layer at a time.
        """
        b, query, key = DTYPE_BYTES[dtype], self.heads * self.head_dim, self.kv_heads * self.head_dim
        norms = 2 * (b * self.hidden + 2 * 4 * self.hidden)
        one_layer = norms + b * (2 * self.hidden + 2 * query + 2 * key + 4 * self.intermediate)
        return self.layers * b * self.hidden + one_layer if checkpointing else self.layers * one_layer


# Configs of the paper's models: their hub pages are gated, and a plan should not need a login.
KNOWN = {
    "meta-llama/llama-3.2-1b-instruct": Architecture(16, 2048, 8192, 32, 8, 64, 128256, True),
    "meta-llama/llama-3.2-3b-instruct": Architecture(28, 3072, 8192, 24, 8, 128, 128256, True),
    "meta-llama/llama-3.1-8b-instruct": Architecture(32, 4096, 14336, 32, 8, 128, 128256, False),
}


def read_architecture(model: ModelConfig) -> Architecture:
    """From the table above, or the config.json of the model wherever it is. UserError where there is none."""
    if (known := KNOWN.get(model.path.lower())) and not Path(model.path).is_dir():
        return known
    config = read_json(model.path, "config.json", model.revision)
    if config is None:
        raise UserError(f"model.path={model.path!r} has no config.json; give a Hugging Face model")
    return from_hf_config(config, model.path)


def from_hf_config(config: Mapping[str, Any], where: str) -> Architecture:
    """An Architecture from a Hugging Face config.json. UserError when it is not a Llama-like decoder."""
    try:
        heads = config["num_attention_heads"]
        return Architecture(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(
            f"{where}/config.json has no {error}; plans are for Llama-like decoders (Llama, Mistral, Qwen and kin)"
        ) from None


@dataclass(frozen=True)
class Memory:
    """One GPU's memory by what fills it, GiB."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """GiB."""
        return sum(self.parts.values())


def training_memory(
    architecture: Architecture, training: TrainingConfig, dtype: str, workers: int, longest_tokens: int
) -> Memory:
    """Per training GPU under DeepSpeed ZeRO, for micro-batches full of `longest_tokens`-token sequences.

    Stage 1 divides the optimizer's state (float32 copy and two moments, 12 bytes per trained parameter) over the
    workers, stage 2 also the gradients, stage 3 also the weights. DPO and KTO keep a frozen reference unless they
    train an adapter; DPO processes two sequences per example.
    """
    stage, b = training.zero_stage, DTYPE_BYTES[dtype]
    weights = architecture.parameters
    trained = architecture.lora_parameters(training.lora) if training.lora else weights
    reference = training.loss != "sft" and not training.lora and not training.precompute_reference
    sequences = training.micro_batch_size * (2 if training.loss == "dpo" else 1)
    per_token = architecture.activation_bytes_per_token(dtype, training.gradient_checkpointing)
    parts = {
        "weights": b * (weights + (trained if training.lora else 0)) / (workers if stage >= 3 else 1),
        "gradients": b * trained / (workers if stage >= 2 else 1),
        "optimizer": 0 if training.offload_optimizer else 12 * trained / (workers if stage >= 1 else 1),
        "reference": b * weights / (workers if stage >= 3 else 1) if reference else 0,
        "activations": sequences * longest_tokens * per_token,
    }
    return Memory({name: size / GIB for name, size in parts.items()})
