"""Estimates against what was measured: every figure within a quarter. docs/benchmarks.md shows this table.

The tiny model's run on two idle cores, and rows of a first run on one H200 (vLLM 0.32.0, torch 2.11).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from east_ray.config.load import Config, load
from east_ray.preflight.devices import ASSUMED, read_devices
from east_ray.preflight.estimate import estimate
from east_ray.preflight.memory import engine_memory, training_memory
from east_ray.preflight.model_size import read_architecture
from east_ray.preflight.speed import EngineSpeed, training_seconds
from east_ray.preflight.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
H200 = read_devices()["H200"]
ON_GPU = ["sampling.gpus_per_engine=1", "training.use_gpu=true"]
EAGER = "sampling.engine_args={enforce_eager=true}"


def tiny(*overrides: str) -> Config:
    folder = ROOT / "east_ray" / "tiny"
    paths = [f"model.path={folder / 'model'}", *(f"questions.{s}={folder / s}.jsonl" for s in ("train", "test"))]
    return load(ROOT / "jobs" / "configs" / "tiny.toml", [*paths, *overrides])


def llama(*overrides: str) -> Config:
    return load(ROOT / "jobs" / "configs" / "gsm8k-llama-1b.toml", ["training.workers=1", *overrides])


def h200_engine(config: Config) -> EngineSpeed:
    size = read_architecture(config.model)
    kv_tokens = engine_memory(config, size, H200, 1)[1]
    return EngineSpeed(size, "bfloat16", H200, 1, kv_tokens, H200.sequences)


def sampled_tokens_per_second(config: Config, requests: int, samples: int, tokens: float, longest: int) -> float:
    return requests * samples * tokens / h200_engine(config).seconds(requests, samples, 100, tokens, longest)


def step_milliseconds(loss: str) -> float:
    """Forward and backward pass of four examples of 400 tokens (eight sequences with DPO), no optimizer step."""
    config = llama(f"training.loss={loss}", "training.batch_size=4", "training.micro_batch_size=4")
    config = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1})})
    work = Workload(round(4 / ASSUMED.kept_share * 1000), 0, 0, 0, 0, 400, 400, 3.5)
    seconds = training_seconds(config, read_architecture(config.model), work, H200, 1)[1]
    return seconds - H200.training_start_seconds - 1000 * H200.training_step_seconds


def training_gib(config: Config, tokens: int) -> float:
    return training_memory(read_architecture(config.model), config.training, "bfloat16", tokens).total


def phase_seconds(config: Config, pool: str) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in estimate(config, [pool]).pools[0].phases}


def h200_phase(name: str) -> float:
    """Of the tiny config on one H200 without compilation; arms wait for the GPU, so training is twice one arm's."""
    config = tiny(*ON_GPU, EAGER)
    return phase_seconds(config, "1xH200")[name] / (2 if name.endswith("train") else 1)


ROWS = {
    "tiny, 2 cores: sample, s": (lambda: phase_seconds(tiny(), "2xCPU")["round 0: sample"], 36.3),
    "tiny, 2 cores: train two arms at once, s": (lambda: phase_seconds(tiny(), "2xCPU")["round 0: train"], 36.3),
    "tiny, 2 cores: evaluate three models, s": (lambda: phase_seconds(tiny(), "2xCPU")["round 0: evaluate"], 7.5),
    "tiny, 2 cores: prompt, tokens": (lambda: estimate(tiny(), ["2xCPU"]).workload.prompt_tokens, 35),
    "tiny, 2 cores: sampled completion, tokens": (
        lambda: estimate(tiny(), ["2xCPU"]).workload.completion_tokens,
        22.63,
    ),
    "tiny, 2 cores: greedy completion, tokens": (lambda: estimate(tiny(), ["2xCPU"]).workload.greedy_tokens, 33.34),
    "tiny, 2 cores: kept questions, %": (lambda: 100 * ASSUMED.kept_share, 95.6),
    "tiny, H200: sample with start, s": (lambda: h200_phase("round 0: sample"), 77.2),
    "tiny, H200: sampled tokens/s, mean 22.6": (
        lambda: sampled_tokens_per_second(tiny(*ON_GPU), 500, 64, 22.63, 128),
        29_608,
    ),
    "tiny, H200: sampled tokens/s, mean 15.7": (
        lambda: sampled_tokens_per_second(tiny(*ON_GPU), 48, 128, 15.7, 48),
        28_693,
    ),
    "tiny, H200: train one arm, s": (lambda: h200_phase("round 0: train"), 54.7),
    "tiny, H200: training memory, GiB": (lambda: training_gib(tiny(*ON_GPU), 174), 2.76),
    "tiny, H200: engine memory, GiB": (
        lambda: estimate(tiny(*ON_GPU), ["1xH200"]).pools[0].sampling.total,
        129.1,
    ),
    "1B, H200: sampled tokens/s": (lambda: sampled_tokens_per_second(llama(), 32, 128, 256, 256), 38_280),
    "1B, H200: decoding step of 1,024 sequences, ms": (lambda: 1000 * h200_engine(llama()).step(1024, 228), 26.7),
    "1B, H200: KV cache, million tokens": (
        lambda: engine_memory(llama(), read_architecture(llama().model), H200, 1)[1] / 1e6,
        4.063,
    ),
    "1B, H200: SFT forward and backward, ms": (lambda: step_milliseconds("sft"), 44.5),
    "1B, H200: DPO forward and backward, ms": (lambda: step_milliseconds("dpo"), 97.9),
    "1B, H200: SFT training memory, allocated, GiB": (
        lambda: training_gib(llama("training.micro_batch_size=4"), 400),
        27.7,
    ),
    "1B, H200: SFT training memory, reserved, GiB": (
        lambda: training_gib(llama("training.micro_batch_size=4"), 400),
        36.8,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_figure_is_within_a_quarter_of_the_measured_one(name: str) -> None:
    planned, measured = ROWS[name]
    assert planned() == pytest.approx(measured, rel=0.25)


def test_vllms_defaults_are_those_of_the_plan() -> None:
    """Read from its source: importing vLLM takes seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    share = re.search(
        r"gpu_memory_utilization: float = Field\(default=([\d.]+)", (folder / "config/cache.py").read_text()
    )
    assert share is not None
    assert float(share[1]) == ASSUMED.engine_memory_share
    defaults = (folder / "engine" / "arg_utils.py").read_text().partition("def get_batch_defaults")[2]
    assert '>= 70 * GiB_bytes and "a100" not in device_name' in defaults
    sizes = re.findall(r"default_max_num_seqs = {\s*UsageContext.LLM_CLASS: (\d+)", defaults)
    assert sizes[:3] == ["1024", "1024", "256"]
    assert {name: device.sequences for name, device in read_devices().items() if name in ("H100", "A100", "L4")} == {
        "H100": 1024,
        "A100": 256,
        "L4": 256,
    }
