"""The cost of a config before it is run: tokens, memory per device, hours and money on a given pool.

A roofline, not a simulation. Every constant it assumes is printed with the result, and after a run `actual.py` puts
the measured figures next to the planned ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from east_ray.config.load import Arm, Config
from east_ray.preflight.devices import ASSUMED, Device, parse_pool
from east_ray.preflight.memory import GIB, Memory, engine_memory, training_memory
from east_ray.preflight.model_size import DTYPE_BYTES, Architecture, read_architecture
from east_ray.preflight.speed import EngineSpeed, pool_seconds, training_seconds
from east_ray.preflight.workload import Workload, measure_workload
from east_ray.records import UserError
from east_ray.rollouts.shards import count_shards, shard_size

HOUR = 3600.0


@dataclass(frozen=True)
class Phase:
    """A step of one round on `devices` of the pool's devices. `seconds` is wall time, `starting` the part of it before
    the first token or optimizer step.
    """

    name: str
    devices: float
    tokens: float
    starting: float
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
    sampling_gib: float  # what one engine's device has
    training: Memory
    training_gib: float  # what one training worker has
    kv_tokens: float  # capacity of one engine's KV cache
    longest_tokens: int  # the longest prompt and completion together
    grading_seconds: float  # wall time of all grading, which runs during the sampling on its own cores

    @property
    def seconds(self) -> float:
        """Wall time of all phases, one after the other."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def sampling_fits(self) -> bool:
        """Does one engine's KV cache hold at least the longest sequence?"""
        return self.kv_tokens >= self.longest_tokens

    @property
    def training_fits(self) -> bool:
        """Does one worker's share fit its device?"""
        return self.training.total <= self.training_gib

    def price(self, *, spot: bool) -> float:
        """US dollars, each phase paying only for the devices it holds; with `spot`, training stays on demand."""
        return sum(
            phase.device_hours * (self.device.spot if spot and phase.interruptible else self.device.on_demand)
            for phase in self.phases
        )


@dataclass(frozen=True)
class CostEstimate:
    """A config's cost on each of several pools."""

    config: Config
    architecture: Architecture
    workload: Workload
    pools: tuple[PoolPlan, ...]
    disk_gib: float
    store_gib: float


def estimate(config: Config, pools: Sequence[str] = ()) -> CostEstimate:
    """Estimate `config` on each pool, e.g. "8xH100"; without one, on 8 A100 and 8 H100, or on this machine's cores.

    UserError names a device that prices.toml lacks, a pool too small for the config, or what makes the model unreadable.
    """
    on_gpu = config.training.use_gpu or config.sampling.gpus_per_engine > 0
    pools = pools or (("8xA100", "8xH100") if on_gpu else (f"{os.cpu_count() or 1}xCPU",))
    architecture = read_architecture(config.model)
    workload = measure_workload(config, architecture)
    return CostEstimate(
        config=config,
        architecture=architecture,
        workload=workload,
        pools=tuple(_Planner(config, architecture, workload, *parse_pool(pool)).plan() for pool in pools),
        disk_gib=disk_bytes(config, architecture, workload) / GIB,
        store_gib=store_bytes(config, workload) / GIB,
    )


@dataclass(frozen=True)
class _Planner:
    """One pool's plan. On GPUs a device is a GPU, on a CPU pool a core."""

    config: Config
    architecture: Architecture
    workload: Workload
    count: int
    device: Device

    @property
    def engine_devices(self) -> float:
        sampling = self.config.sampling
        return max(sampling.cpus_per_engine if self.device.is_cpu else sampling.gpus_per_engine, 1)

    @property
    def gang_devices(self) -> float:
        """Devices of one arm's training."""
        training = self.config.training
        return training.workers * (max(training.cpus_per_worker, 1) if self.device.is_cpu else 1)

    def plan(self) -> PoolPlan:
        """Phases follow each other; arms train `run.parallel_arms` at a time."""
        config, workload, device = self.config, self.workload, self.device
        if max(self.engine_devices, self.gang_devices) > self.count:
            raise UserError(
                f"a pool of {self.count} x {device.name} is too small: one engine takes {self.engine_devices:g}, one "
                f"training {self.gang_devices:g} (training.workers is {config.training.workers})"
            )
        longest = workload.longest_prompt_tokens + config.sampling.max_new_tokens
        sampling, kv_tokens = engine_memory(config, self.architecture, device, self.engine_devices)
        sections = (config.for_arm(arm).training for arm in config.arms)
        trainings = (training_memory(self.architecture, section, config.model.dtype, longest) for section in sections)
        training = max(trainings, key=lambda memory: memory.total)
        per_worker = self.gang_devices / config.training.workers
        completions = samplings(config) * workload.train * config.sampling.num_samples
        return PoolPlan(
            count=self.count,
            device=device,
            phases=tuple(self._phases(kv_tokens)),
            sampling=sampling,
            sampling_gib=device.memory_gib * (self.engine_devices if device.is_cpu else 1),
            training=training,
            training_gib=device.memory_gib * per_worker,
            kv_tokens=kv_tokens,
            longest_tokens=longest,
            grading_seconds=completions / ASSUMED.grades_per_second / config.grading.workers,
        )

    def _phases(self, kv_tokens: float) -> Iterator[Phase]:
        config, workload, evaluation = self.config, self.workload, self.config.evaluation
        limit, answers = config.sampling.max_new_tokens, 1 + evaluation.num_samples
        for t in range(config.run.rounds):
            arms = active_arms(config, t)
            policies = 1 if t == 0 else len(arms)
            work = (policies * workload.train, config.sampling.num_samples, workload.completion_tokens, limit)
            yield self._generate(f"round {t}: sample", kv_tokens, *work, first=t == 0)
            yield self._train(t)
            models, longest = len(arms) + (t == 0), evaluation.max_new_tokens or limit
            for step, questions in (("validate", workload.validation), ("evaluate", workload.test)):
                if questions:
                    work = (models * questions, answers, workload.greedy_tokens, longest)
                    yield self._generate(f"round {t}: {step}", kv_tokens, *work)

    def _generate(
        self, name: str, kv_tokens: float, requests: int, samples: int, tokens: float, longest: int, first: bool = False
    ) -> Phase:
        sampling, device = self.config.sampling, self.device
        batch = sampling.engine_args.get("max_num_seqs", device.sequences)
        speed = EngineSpeed(self.architecture, self.config.model.dtype, device, self.engine_devices, kv_tokens, batch)
        shards = count_shards(requests, shard_size(requests, sampling.max_engines, sampling.questions_per_shard))
        engines = max(1, min(sampling.max_engines, int(self.count // self.engine_devices), shards))
        work = engines * speed.seconds(requests / engines, samples, self.workload.prompt_tokens, tokens, longest)
        boot = ASSUMED.boot_seconds if sampling.labels else 0.0
        is_cold = (first or boot > 0) and not sampling.engine_args.get("enforce_eager", False)
        start = device.engine_start_seconds if is_cold else device.engine_restart_seconds
        fewest = (sampling.min_engines if boot else None) or engines
        wall = pool_seconds(work, engines, fewest, boot + start)
        devices = engines * self.engine_devices
        return Phase(name, devices, requests * samples * tokens, wall - work / engines, wall, True)

    def _train(self, t: int) -> Phase:
        config, arms = self.config, active_arms(self.config, t)
        at_once = min(config.run.parallel_arms, len(arms), max(1, int(self.count // self.gang_devices)))
        rounds = t + 1 if config.run.data == "accumulate" else 1
        parts = (config.for_arm(arm) for arm in arms)
        setting = (self.architecture, self.workload, self.device, self.gang_devices, rounds)
        trained = [training_seconds(part, *setting) for part in parts]
        turns = math.ceil(len(arms) / at_once)
        boot = ASSUMED.boot_seconds if config.training.labels else 0.0
        seconds = boot + turns * sum(seconds for _, seconds in trained) / len(arms)
        tokens, starting = sum(tokens for tokens, _ in trained), boot + turns * self.device.training_start_seconds
        return Phase(f"round {t}: train", at_once * self.gang_devices, tokens, starting, seconds, False)


def active_arms(config: Config, t: int) -> list[Arm]:
    """The arms that still train in round t."""
    return [arm for arm in config.arms if t < (arm.rounds or config.run.rounds)]


def samplings(config: Config) -> int:
    """Number of times the training questions are sampled: once for all arms in round 0, then once per arm and round."""
    return 1 + sum(len(active_arms(config, t)) for t in range(1, config.run.rounds))


def disk_bytes(config: Config, architecture: Architecture, workload: Workload) -> float:
    """Peak of the run directory: all samples and models, and two checkpoints of every arm that is being trained."""
    bytes_each = DTYPE_BYTES[config.model.dtype]
    text = samplings(config) * workload.train * config.sampling.num_samples * workload.completion_tokens
    models = sum(len(active_arms(config, t)) for t in range(config.run.rounds)) * architecture.parameters * bytes_each
    lora = config.training.lora
    checkpoint = (bytes_each + 12) * (architecture.lora_parameters(lora) if lora else architecture.parameters)
    return text * workload.bytes_per_token * ASSUMED.compression + models + 2 * config.run.parallel_arms * checkpoint


def store_bytes(config: Config, workload: Workload) -> float:
    """Peak of Ray's object store: the graded rows of one round while they are weighed. Completions never enter it."""
    bytes_per_grade = 24  # answer, verdict, cluster and flags of one completion
    return workload.train * config.sampling.num_samples * bytes_per_grade
