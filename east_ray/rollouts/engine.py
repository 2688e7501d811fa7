"""Interface between the rollouts and an inference engine; thread-safe. `vllm_engine.py` implements it with vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from east_ray.config.sections import ModelConfig, SamplingConfig
from east_ray.records import Unavailable, UserError

SHARDS_IN_FLIGHT = 128  # at one engine, each a thread that waits in `generate`: thousands starve the engine's own


@dataclass(frozen=True)
class Request:
    """A question to sample. Sample j of the request is drawn with seed + j."""

    question_id: str
    prompt_token_ids: Sequence[int]
    num_samples: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One sampled text. `num_tokens` counts the generated tokens, the end of sequence included; `token_ids` are those."""

    text: str
    finish_reason: str  # "stop" or "length"
    num_tokens: int
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Refusal:
    """Why the engine rejected a request: its prompt is too long, empty or outside the vocabulary."""

    reason: str


Result = list[Completion] | Refusal


class ExchangeRefused(RuntimeError):
    """The engine cannot be shown to have become the new model; only a fresh engine can sample from it."""


class EngineDied(RuntimeError):
    """The engine no longer works; only a new one can continue."""


@dataclass(frozen=True)
class EngineSettings:
    """Settings an engine is opened with: the directory or hub name of the model it starts with, and its settings."""

    path: str
    model: ModelConfig
    sampling: SamplingConfig
    longest_prompt: int  # tokens


class Engine(Protocol):
    """The interface a pool needs of an engine. Its methods raise EngineDied when only a new engine can continue."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Sample every request; several threads may call at once."""
        ...

    def load(self, path: str) -> None:
        """Sample from another model from now on; no other call may be in progress.

        ExchangeRefused when the engine cannot be shown to give what a fresh engine on that model would.
        """
        ...

    def close(self) -> None: ...


OpenEngine = Callable[[EngineSettings], Engine]


def question_seed(seed: int, round_index: int, question_id: str) -> int:
    """The question's first seed; sample i is drawn with this + i, whatever shares its batch.

    62 bits of a hash, because vLLM gives the n samples of a request consecutive seeds: questions must lie far apart.
    """
    data = f"{seed}\0{round_index}\0{question_id}".encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 2


def is_setting_at_fault(error: Exception, sampling: SamplingConfig) -> bool:
    """Would the engine fail to start everywhere and always? A GPU may be sick, or still hold the memory of another process."""
    if isinstance(error, UserError):
        return not isinstance(error, Unavailable)
    on_cpu = sampling.gpus_per_engine == 0 and "kv cache" in str(error).lower()  # whose size is a setting
    return on_cpu or isinstance(error, TypeError | ValidationError)  # an argument that vLLM does not know, or its value


def explain_failure(error: Exception, model: str, sampling: SamplingConfig) -> str:
    """Why the engine did not start, in words that name the setting to change."""
    reason = one_line(error)
    if isinstance(error, UserError):
        return reason
    if "KV cache" in reason or "kv cache" in reason or "memory" in reason:
        on_gpu = "lower sampling.engine_args.max_model_len, or raise sampling.engine_args.gpu_memory_utilization"
        on_cpu = (
            f"sampling.kv_cache_gib={sampling.kv_cache_gib:g} does not suit this machine and model: set it to what vLLM "
            f"needs and the machine has free, or lower sampling.max_new_tokens"
        )
        return f"{on_gpu if sampling.gpus_per_engine > 0 else on_cpu} (vLLM: {reason})"
    return (
        f"vLLM cannot start on model.path={model!r}: {reason}. Check that it is a complete Hugging Face model directory or "
        f"hub name, and that sampling.engine_args holds arguments vLLM knows"
    )


def one_line(error: BaseException) -> str:
    """An exception's message without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
