"""Rooflines: the seconds an engine takes for completions, a training takes for its steps, and a pool takes to start."""

from __future__ import annotations

import math
from dataclasses import dataclass

from east_ray.config.load import Config
from east_ray.preflight.devices import ASSUMED, Device
from east_ray.preflight.model_size import DTYPE_BYTES, Architecture
from east_ray.preflight.workload import Workload


@dataclass(frozen=True)
class EngineSpeed:
    """Seconds that one engine of `devices` takes: the slower of moving bytes and multiplying, plus the host's work.

    The host schedules, samples and detokenises: a fixed time per step, one per sequence in it, one per completion.
    """

    architecture: Architecture
    dtype: str
    device: Device
    devices: float
    kv_tokens: float
    sequences: int

    def seconds(
        self, requests: float, samples: int, prompt_tokens: float, completion_tokens: float, longest: int
    ) -> float:
        """Wall time of `requests` prompts with `samples` completions each; prompts are read once (prefix cache)."""
        if requests == 0:
            return 0.0
        context, completions = prompt_tokens + completion_tokens / 2, requests * samples
        batch = max(1.0, min(self.sequences, completions, self.kv_tokens / (prompt_tokens + completion_tokens)))
        steps = completions * completion_tokens / batch
        prefill = self._multiply(requests * prompt_tokens, prompt_tokens / 2)
        host = completions * self.device.completion_microseconds / 1e6
        # The last completions run to their limit almost alone.
        return prefill + host + steps * self.step(batch, context) + longest * self.step(1, longest / 2)

    def step(self, batch: float, context: float) -> float:
        """Seconds of one decoding step: every sequence of the batch gains a token."""
        a, bytes_each = self.architecture, DTYPE_BYTES[self.dtype]
        moved = a.weights_read(batch) * bytes_each + batch * context * a.kv_bytes_per_token(self.dtype)
        bandwidth = self.device.bandwidth_gb_s * 1e9 * ASSUMED.decode_bandwidth_share * self.devices
        host = ASSUMED.decode_step_seconds + batch * self.device.token_microseconds / 1e6
        return max(moved / bandwidth, self._multiply(batch, context)) + host

    def _multiply(self, tokens: float, context: float) -> float:
        peak = self.device.tflops * 1e12 * ASSUMED.decode_compute_share * self.devices
        return self.architecture.forward_flops(tokens, context) / peak


def pool_seconds(work: float, engines: int, fewest: int, start: float) -> float:
    """Wall time of `work` engine-seconds in a pool that asks for `fewest` engines at once, each ready after `start`.

    Ray asks for twice as many whenever those it has are working, so a pool of many engines starts in several waves.
    """
    wall, running = start, min(fewest, engines)
    while running < engines and work > running * start:
        work -= running * start
        wall += start
        running = min(2 * running, engines)
    return wall + work / running


def training_seconds(
    config: Config,
    architecture: Architecture,
    workload: Workload,
    device: Device,
    devices: float,
    rounds: int = 1,
) -> tuple[float, float]:
    """Tokens passed through and wall seconds of one arm's training on `devices`, start included; `rounds`: how many
    rounds' examples it trains on.

    A forward pass costs one unit, the backward pass two (one for an adapter: frozen weights need no gradient), and a
    recomputed forward pass one more. DPO adds the reference's forward pass on both completions; KTO that, and the
    policy's and the reference's on the mismatched completion of its KL term.
    """
    training = config.training
    pairs = rounds * workload.train * ASSUMED.kept_share * config.selection.pairs_per_question
    examples = pairs * (2 if training.loss == "kto" else 1)
    sequences = examples * training.epochs * (2 if training.loss == "dpo" else 1)
    tokens = sequences * (workload.prompt_tokens + workload.completion_tokens)
    units = 1 + (1 if training.lora else 2) + training.gradient_checkpointing
    units += {"sft": 0, "dpo": 1 / training.epochs if training.precompute_reference else 1, "kto": 3}[training.loss]
    flops = units * architecture.forward_flops(tokens, workload.completion_tokens / 2)
    steps = examples * training.epochs / training.batch_size
    if training.max_steps > 0:
        tokens, flops, steps = (value * min(1, training.max_steps / steps) for value in (tokens, flops, steps))
    compute = flops / (device.tflops * 1e12 * ASSUMED.training_compute_share * devices)
    return tokens, compute + math.ceil(steps) * device.training_step_seconds + device.training_start_seconds
