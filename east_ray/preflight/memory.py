"""The memory of one device, by what fills it: in an engine, and in a training worker under DeepSpeed ZeRO."""

from __future__ import annotations

from dataclasses import dataclass

from east_ray.config.load import Config
from east_ray.config.training import TrainingConfig
from east_ray.preflight.devices import ASSUMED, Device
from east_ray.preflight.model_size import DTYPE_BYTES, Architecture

GIB = 2.0**30


@dataclass(frozen=True)
class Memory:
    """One device's memory by what fills it, GiB."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """GiB."""
        return sum(self.parts.values())


def engine_memory(config: Config, architecture: Architecture, device: Device, devices: float) -> tuple[Memory, float]:
    """One device's memory in an engine of `devices`, GiB, and how many tokens the engine's whole KV cache holds."""
    per_token = architecture.kv_bytes_per_token(config.model.dtype)
    weights = architecture.parameters * DTYPE_BYTES[config.model.dtype] / GIB
    if config.sampling.gpus_per_engine == 0:
        cache = config.sampling.kv_cache_gib
        parts = {"weights": weights, "KV cache": cache, "reserve": ASSUMED.cpu_reserve_gib}
        return Memory(parts), cache * GIB / per_token
    share = config.sampling.engine_args.get("gpu_memory_utilization", ASSUMED.engine_memory_share)
    cache = max(share * device.memory_gib - weights / devices - ASSUMED.engine_reserve_gib, 0)
    parts = {"weights": weights / devices, "KV cache": cache, "reserve": ASSUMED.engine_reserve_gib}
    return Memory(parts), cache * devices * GIB / per_token


def training_memory(architecture: Architecture, training: TrainingConfig, dtype: str, longest_tokens: int) -> Memory:
    """Per training worker under DeepSpeed ZeRO, for micro-batches full of `longest_tokens`-token sequences.

    Stage 1 divides the optimizer's state (float32 copy and two moments, 12 bytes per trained parameter) over the
    workers, stage 2 also the gradients, stage 3 also the weights. The optimizer's step takes a worker's gradients in
    float32, 4 bytes more per parameter of its share: at stage 2 they are the sums over micro-batches; at stage 3 the
    gradients are those sums, 4 bytes each, and these a copy of them (DeepSpeed 0.19.8). DPO and KTO keep a frozen reference unless they train an
    adapter; DPO processes two sequences per example.
    """
    stage, workers, b = training.zero_stage, training.workers, DTYPE_BYTES[dtype]
    weights = architecture.parameters
    trained = architecture.lora_parameters(training.lora) if training.lora else weights
    reference = training.loss != "sft" and not training.lora and not training.precompute_reference
    sequences = training.micro_batch_size * (2 if training.loss == "dpo" else 1)
    per_token = architecture.activation_bytes_per_token(dtype, training.gradient_checkpointing)
    share = 0 if training.offload_optimizer else trained / (workers if stage >= 1 else 1)
    parts = {
        "weights": b * (weights + (trained if training.lora else 0)) / (workers if stage >= 3 else 1) / GIB,
        "gradients": b * trained / (workers if stage >= 2 else 1) / GIB,
        "float32 gradients": (8 - b if stage >= 3 else 4) * share / GIB,
        "optimizer": 12 * share / GIB,
        "reference": b * weights / (workers if stage >= 3 else 1) / GIB if reference else 0,
        "activations": sequences * longest_tokens * per_token / GIB,
    }
    fixed = ASSUMED.training_reserve_gib if training.use_gpu else ASSUMED.cpu_reserve_gib
    return Memory({**parts, "reserve": fixed + ASSUMED.training_reserve_share * sum(parts.values())})
