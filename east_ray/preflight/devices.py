"""The devices of prices.toml, pools of them as the command line names them, and the constants that no config states."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from east_ray.records import UserError

PRICES = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Device:
    """One row of prices.toml over its [GPU] defaults; prices are US dollars per device and hour."""

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gb_s: float
    on_demand: float
    spot: float
    token_microseconds: float
    completion_microseconds: float
    engine_start_seconds: float
    engine_restart_seconds: float
    training_start_seconds: float
    training_step_seconds: float

    @property
    def is_cpu(self) -> bool:
        """Does this row describe a core rather than a GPU?"""
        return self.name == "CPU core"

    @property
    def sequences(self) -> int:
        """vLLM's default for max_num_seqs on such a device."""
        return 1024 if self.memory_gib >= 70 and "A100" not in self.name else 256


@dataclass(frozen=True)
class Assumptions:
    """Constants that no config and no row of prices.toml states. Measured runs correct them; change them in code review."""

    decode_bandwidth_share: float = 0.6  # of the memory bandwidth, reached while decoding
    decode_compute_share: float = 0.5  # of the peak, reached in prefill and in large decoding batches
    decode_step_seconds: float = 0.001  # of one decoding step, whatever its size
    engine_memory_share: float = 0.92  # vLLM's gpu_memory_utilization, unless sampling.engine_args says otherwise
    engine_reserve_gib: float = 3.0  # activations and CUDA graphs of an engine
    training_compute_share: float = 0.3  # of the peak, reached by forward and backward passes
    training_reserve_gib: float = 2.5  # CUDA context, communication buffers, one chunk of logits
    training_reserve_share: float = 0.15  # of what is allocated, lost to the allocator's fragmentation
    cpu_reserve_gib: float = 0.5  # of a process on a CPU core
    boot_seconds: float = 600  # of a node that the cluster starts for a label: machine, image, packages
    kept_share: float = 0.85  # of the training questions, solved sometimes but not always
    grades_per_second: float = 2000  # completions graded per CPU core
    compression: float = 0.3  # of sampled text in Parquet


ASSUMED = Assumptions()


def read_devices() -> dict[str, Device]:
    """The rows of prices.toml by name."""
    rows = tomllib.loads(PRICES.read_text(encoding="utf-8"))
    defaults = rows.pop("GPU")
    return {key: Device(**{**defaults, **row}) for key, row in rows.items()}


def parse_pool(text: str) -> tuple[int, Device]:
    """ "8xH100" -> (8, the H100's row of prices.toml)."""
    devices = {key.lower(): device for key, device in read_devices().items()}
    match = re.fullmatch(r"(\d+)\s*x\s*(\S+)", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise UserError(f"pool {text!r}: expected COUNTxDEVICE, e.g. 8xH100")
    if match[2].lower() not in devices:
        raise UserError(f"pool {text!r}: prices.toml knows {', '.join(sorted(read_devices()))}; add a section there")
    return int(match[1]), devices[match[2].lower()]
