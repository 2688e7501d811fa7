"""Tiny random models of many architectures, and a process that compares exchanged weights with a fresh engine's.

`python tiny_models.py ARCHITECTURE DIRECTORY` prints one JSON object: how many of six completions equal a fresh
engine's, at each of four exchanges, or why the engine refused to exchange.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # so that the models differ
}
# Gemma scales its embeddings up: with larger ones a random model only repeats the last token.
GEMMA = {"query_pre_attn_scalar": 32, "initializer_range": 0.02}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "Llama untied": ("LlamaConfig", {"tie_word_embeddings": False}),
    "Qwen2 tied": ("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen2 untied": ("Qwen2Config", {"tie_word_embeddings": False}),
    "Qwen3 tied": ("Qwen3Config", {"tie_word_embeddings": True}),
    "Qwen3 untied": ("Qwen3Config", {"tie_word_embeddings": False}),
    "Gemma 2": ("Gemma2Config", GEMMA),
    "Gemma 3": ("Gemma3TextConfig", GEMMA),
    "Phi-3": ("Phi3Config", {"tie_word_embeddings": False}),
    "Mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-MoE": ("Qwen3MoeConfig", EXPERTS),
}


def make_model(architecture: str, seed: int, directory: Path) -> Path:
    """Write a random model of the architecture, without a tokenizer."""
    import torch
    import transformers

    name, settings = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**COMMON | settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def compare(architecture: str, directory: Path) -> dict[str, Any]:
    """Completions of A and B from one engine, exchanged back and forth twice, against those of fresh engines."""
    from east_ray.config.sections import ModelConfig, SamplingConfig
    from east_ray.rollouts.engine import EngineSettings, Request
    from east_ray.rollouts.exchange import ExchangeRefused
    from east_ray.rollouts.vllm_engine import VllmEngine

    paths = {name: str(make_model(architecture, seed, directory / name)) for seed, name in enumerate("AB")}
    sampling = SamplingConfig(max_new_tokens=24, kv_cache_gib=0.25, engine_args={"skip_tokenizer_init": True})
    requests = [Request("", [1, 4, 10 + i, 20 + 2 * i, 30, 5], 1, 1000 * i) for i in range(6)]

    def open_on(name: str) -> VllmEngine:
        model = ModelConfig(path=paths[name], dtype="float32")
        return VllmEngine(EngineSettings(paths[name], model, sampling, longest_prompt=6))

    fresh = {}
    engine = open_on("B")
    fresh["B"] = engine.generate(requests)
    engine.close()
    engine = open_on("A")
    fresh["A"] = engine.generate(requests)
    found: dict[str, Any] = {"differ": sum(a != b for a, b in zip(fresh["A"], fresh["B"], strict=True)), "equal": []}
    try:
        for name in "BABA":
            engine.load(paths[name])
            found["equal"].append(sum(a == b for a, b in zip(engine.generate(requests), fresh[name], strict=True)))
    except ExchangeRefused as error:
        found["refused"] = str(error)
    engine.close()
    return found


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], Path(sys.argv[2]))), flush=True)
