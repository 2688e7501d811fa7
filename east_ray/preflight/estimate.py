"""The cost of a config before it is run: tokens, memory per GPU, hours and money on a given pool.

A roofline, not a simulation. Every constant it assumes is printed with the result, and after a run `plan.py` prints the
measured figures next to the planned ones. `model_size.py` has the model's sizes, `prices.toml` the devices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from east_ray.config.load import Config
from east_ray.config.training import TrainingConfig
from east_ray.preflight.devices import Device, parse_pool
from east_ray.preflight.model_size import DTYPE_BYTES, GIB, Architecture, Memory, read_architecture, training_memory
from east_ray.preflight.workload import Actual, Workload, measure_workload, read_actual
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory

HOUR = 3600.0


@dataclass(frozen=True)
class Assumptions:
    """Constants that no config states. Measured runs correct them; change them in code review, not per run."""

    decode_bandwidth_share: float = 0.6  # of the memory bandwidth, reached while decoding
    decode_compute_share: float = 0.5  # of the peak, reached in prefill and in large decoding batches
    decode_step_seconds: float = 0.005  # scheduling and sampling of one decoding step, whatever its size
    sequences_per_engine: int = 256  # vLLM's max_num_seqs, unless sampling.engine_args says otherwise
    engine_memory_share: float = 0.9  # vLLM's gpu_memory_utilization, likewise
    engine_reserve_gib: float = 3.0  # activations and CUDA graphs of an engine
    training_compute_share: float = 0.35  # of the peak, reached by forward and backward passes
    training_step_seconds: float = 0.25  # collectives and optimizer of one step, whatever its size
    training_reserve_gib: float = 4.0  # CUDA context, communication buffers, one chunk of logits
    kept_share: float = 0.75  # of the training questions, solved sometimes but not always
    grades_per_second: float = 2000  # completions graded per CPU core
    compression: float = 0.3  # of sampled text in Parquet


@dataclass(frozen=True)
class Phase:
    """A step of one round on `devices` of the pool's devices. `seconds` is wall time."""

    name: str
    devices: float
    tokens: float
    seconds: float
    interruptible: bool

    @property
    def device_hours(self) -> float:
        """Devices times wall time, hours: what is paid for."""
        return self.devices * self.seconds / HOUR


@dataclass(frozen=True)
class PoolPlan:
    """The run on one pool: phases in order, and the memory of one device while sampling and while training."""

    count: int
    device: Device
    phases: tuple[Phase, ...]
    sampling: Memory
    training: Memory
    kv_tokens: float  # capacity of one engine's KV cache
    longest_tokens: int  # the longest prompt and completion together
    grading_seconds: float  # wall time of all grading, which runs during the sampling on its own cores

    @property
    def seconds(self) -> float:
        """Wall time of all phases, one after the other."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def grading_is_slow(self) -> bool:
        """Does grading take longer than sampling?"""
        return self.grading_seconds > sum(phase.seconds for phase in self.phases if phase.interruptible)

    @property
    def sampling_fits(self) -> bool:
        """Does one engine's KV cache hold at least the longest sequence?"""
        return self.kv_tokens >= self.longest_tokens

    @property
    def training_fits(self) -> bool:
        """Does one worker's share fit its device?"""
        return self.training.total <= self.device.memory_gib

    def price(self, *, spot: bool) -> float:
        """US dollars, each phase paying only for the devices it holds; with `spot`, training stays on demand."""
        return sum(
            phase.device_hours * (self.device.spot if spot and phase.interruptible else self.device.on_demand)
            for phase in self.phases
        )


@dataclass(frozen=True)
class CostEstimate:
    """A config's cost on each of several pools, and what its run has measured so far."""

    config: Config
    architecture: Architecture
    workload: Workload
    assumptions: Assumptions
    pools: tuple[PoolPlan, ...]
    disk_gib: float
    store_gib: float
    actual: Actual | None  # None before the run


def estimate(config: Config, pools: Sequence[str] = ()) -> CostEstimate:
    """Estimate `config` on each pool, e.g. "8xH100"; without one, on 8 A100 and 8 H100, or on this machine's cores.

    UserError names a device that prices.toml lacks, a pool too small for the config, or what makes the model unreadable.
    """
    on_gpu = config.training.use_gpu or config.sampling.gpus_per_engine > 0
    pools = pools or (("8xA100", "8xH100") if on_gpu else (f"{os.cpu_count() or 1}xCPU",))
    architecture, assumptions = read_architecture(config.model), Assumptions()
    workload = measure_workload(config, architecture)
    return CostEstimate(
        config=config,
        architecture=architecture,
        workload=workload,
        assumptions=assumptions,
        pools=tuple(plan_pool(config, architecture, workload, assumptions, *parse_pool(pool)) for pool in pools),
        disk_gib=disk_bytes(config, architecture, workload, assumptions) / GIB,
        store_gib=store_bytes(config, workload) / GIB,
        actual=read_actual(RunDirectory(config.run.dir)),
    )


def plan_pool(
    config: Config, architecture: Architecture, workload: Workload, assumed: Assumptions, count: int, device: Device
) -> PoolPlan:
    """The phases of all rounds on one pool. Phases follow each other; arms train `run.parallel_arms` at a time."""
    engine_devices = max(config.sampling.gpus_per_engine, 1)
    workers = config.training.workers
    needed = max(engine_devices, workers)
    if needed > count:
        raise UserError(
            f"a pool of {count} x {device.name} is too small: one engine takes {engine_devices:g}, training.workers is {workers}"
        )
    engines = min(config.sampling.max_engines, int(count // engine_devices))
    longest = workload.longest_prompt_tokens + config.sampling.max_new_tokens
    sampling, kv_tokens = engine_memory(config, architecture, assumed, device, engine_devices)
    engine = EngineSpeed(
        architecture, config.model.dtype, device, assumed, engine_devices, kv_tokens, _batch(config, assumed)
    )
    phases = tuple(_phases(config, architecture, workload, assumed, device, engine, engines, count))
    memory = max(
        (
            training_memory(architecture, config.for_arm(arm).training, config.model.dtype, workers, longest)
            for arm in config.arms
        ),
        key=lambda m: m.total,
    )
    training = Memory({**memory.parts, "reserve": assumed.training_reserve_gib if config.training.use_gpu else 0.5})
    completions = workload.train * config.sampling.num_samples * (1 + (config.run.rounds - 1) * len(config.arms))
    grading = completions / assumed.grades_per_second / config.grading.workers
    return PoolPlan(count, device, phases, sampling, training, kv_tokens, longest, grading)


def engine_memory(
    config: Config, architecture: Architecture, assumed: Assumptions, device: Device, devices: float
) -> tuple[Memory, float]:
    """One device's memory in an engine of `devices`, GiB, and how many tokens the engine's whole KV cache holds."""
    per_token = architecture.kv_bytes_per_token(config.model.dtype)
    weights = architecture.parameters * DTYPE_BYTES[config.model.dtype] / devices / GIB
    if config.sampling.gpus_per_engine == 0:
        cache = config.sampling.kv_cache_gib
        return Memory({"weights": weights, "KV cache": cache}), cache * GIB / per_token
    share = config.sampling.engine_args.get("gpu_memory_utilization", assumed.engine_memory_share)
    cache = max(share * device.memory_gib - weights - assumed.engine_reserve_gib, 0)
    parts = {"weights": weights, "KV cache": cache, "reserve": assumed.engine_reserve_gib}
    return Memory(parts), cache * devices * GIB / per_token


def _batch(config: Config, assumed: Assumptions) -> int:
    return config.sampling.engine_args.get("max_num_seqs", assumed.sequences_per_engine)


@dataclass(frozen=True)
class EngineSpeed:
    """Seconds that one engine of `devices` takes: the slower of moving bytes and multiplying, plus a fixed step."""

    architecture: Architecture
    dtype: str
    device: Device
    assumed: Assumptions
    devices: float
    kv_tokens: float
    sequences: int

    def seconds(
        self, requests: float, samples: int, prompt_tokens: float, completion_tokens: float, longest: int
    ) -> float:
        """Wall time of `requests` prompts with `samples` completions each; prompts are read once (prefix cache)."""
        if requests == 0:
            return 0.0
        context = prompt_tokens + completion_tokens / 2
        batch = max(1.0, min(self.sequences, requests * samples, self.kv_tokens / (prompt_tokens + completion_tokens)))
        steps = requests * samples * completion_tokens / batch
        prefill = self._multiply(requests * prompt_tokens, prompt_tokens / 2)
        # The last completions run to their limit almost alone.
        return prefill + steps * self._step(batch, context) + longest * self._step(1, longest / 2)

    def _step(self, batch: float, context: float) -> float:
        """Seconds of one decoding step: every sequence of the batch gains a token."""
        a = self.architecture
        moved = a.parameters * DTYPE_BYTES[self.dtype] + batch * context * a.kv_bytes_per_token(self.dtype)
        bandwidth = self.device.bandwidth_gb_s * 1e9 * self.assumed.decode_bandwidth_share * self.devices
        return max(moved / bandwidth, self._multiply(batch, context)) + self.assumed.decode_step_seconds

    def _multiply(self, tokens: float, context: float) -> float:
        peak = self.device.tflops * 1e12 * self.assumed.decode_compute_share * self.devices
        return self.architecture.forward_flops(tokens, context) / peak


def _phases(
    config: Config,
    architecture: Architecture,
    workload: Workload,
    assumed: Assumptions,
    device: Device,
    engine: EngineSpeed,
    engines: int,
    count: int,
) -> Iterator[Phase]:
    sampling, evaluation = config.sampling, config.evaluation
    prompt, completion = workload.prompt_tokens, workload.completion_tokens
    limit = sampling.max_new_tokens
    at_once = min(config.run.parallel_arms, len(config.arms), max(1, count // config.training.workers))
    for t in range(config.run.rounds):
        policies = 1 if t == 0 else len(config.arms)
        tokens = policies * workload.train * sampling.num_samples * completion
        seconds = policies * engine.seconds(workload.train / engines, sampling.num_samples, prompt, completion, limit)
        yield Phase(f"round {t}: sample", engines * engine.devices, tokens, seconds + device.engine_start_seconds, True)
        runs = [
            training_seconds(config.for_arm(arm).training, architecture, workload, assumed, device)
            for arm in config.arms
        ]
        tokens = sum(tokens for tokens, _ in runs)
        seconds = sum(seconds for _, seconds in runs) / at_once
        yield Phase(f"round {t}: train", at_once * config.training.workers, tokens, seconds, False)
        if workload.test:
            models = len(config.arms) + (t == 0)
            limit = evaluation.max_new_tokens or sampling.max_new_tokens
            seconds = models * engine.seconds(
                workload.test / engines, 1 + evaluation.num_samples, prompt, completion, limit
            )
            tokens = models * workload.test * (1 + evaluation.num_samples) * completion
            yield Phase(
                f"round {t}: evaluate", engines * engine.devices, tokens, seconds + device.engine_start_seconds, True
            )


def training_seconds(
    training: TrainingConfig, architecture: Architecture, workload: Workload, assumed: Assumptions, device: Device
) -> tuple[float, float]:
    """Tokens passed through and wall seconds of one arm's training, start included.

    A forward pass costs one unit, the backward pass two (one for an adapter: frozen weights need no gradient), and a
    recomputed forward pass one more. DPO adds the reference's forward pass on both completions; KTO that, and the
    policy's and the reference's on the mismatched completion of its KL term.
    """
    examples = workload.train * assumed.kept_share * (2 if training.loss == "kto" else 1)
    sequences = examples * training.epochs * (2 if training.loss == "dpo" else 1)
    tokens = sequences * (workload.prompt_tokens + workload.completion_tokens)
    units = 1 + (1 if training.lora else 2) + training.gradient_checkpointing
    units += {"sft": 0, "dpo": 1 / training.epochs if training.precompute_reference else 1, "kto": 3}[training.loss]
    flops = units * architecture.forward_flops(tokens, workload.completion_tokens / 2)
    steps = examples * training.epochs / training.batch_size
    if training.max_steps > 0:
        tokens, flops, steps = (value * min(1, training.max_steps / steps) for value in (tokens, flops, steps))
    compute = flops / (device.tflops * 1e12 * assumed.training_compute_share * training.workers)
    return tokens, compute + math.ceil(steps) * assumed.training_step_seconds + device.training_start_seconds


def disk_bytes(config: Config, architecture: Architecture, workload: Workload, assumed: Assumptions) -> float:
    """Peak of the run directory: all samples and models, and two checkpoints of every arm that is being trained."""
    bytes_each = DTYPE_BYTES[config.model.dtype]
    samplings = 1 + (config.run.rounds - 1) * len(config.arms)
    text = samplings * workload.train * config.sampling.num_samples * workload.completion_tokens
    models = config.run.rounds * len(config.arms) * architecture.parameters * bytes_each
    lora = config.training.lora
    checkpoint = (bytes_each + 12) * (architecture.lora_parameters(lora) if lora else architecture.parameters)
    return text * workload.bytes_per_token * assumed.compression + models + 2 * config.run.parallel_arms * checkpoint


def store_bytes(config: Config, workload: Workload) -> float:
    """Peak of Ray's object store: the graded rows of one round while they are weighed. Completions never enter it."""
    bytes_per_grade = 24  # answer, verdict, cluster and flags of one completion
    return workload.train * config.sampling.num_samples * bytes_per_grade
