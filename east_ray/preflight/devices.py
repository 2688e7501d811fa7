"""The devices of prices.toml: what each can do and costs, and pools of them as the command line names them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from east_ray.records import UserError

PRICES = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Device:
    """One row of prices.toml; prices are US dollars per device and hour."""

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gb_s: float
    on_demand: float
    spot: float
    engine_start_seconds: float
    training_start_seconds: float


def read_devices() -> dict[str, Device]:
    """The rows of prices.toml by name."""
    return {key: Device(**row) for key, row in tomllib.loads(PRICES.read_text(encoding="utf-8")).items()}


def parse_pool(text: str) -> tuple[int, Device]:
    """ "8xH100" -> (8, the H100's row of prices.toml)."""
    devices = {key.lower(): device for key, device in read_devices().items()}
    match = re.fullmatch(r"(\d+)\s*x\s*(\S+)", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise UserError(f"pool {text!r}: expected COUNTxDEVICE, e.g. 8xH100")
    if match[2].lower() not in devices:
        raise UserError(f"pool {text!r}: prices.toml knows {', '.join(sorted(read_devices()))}; add a section there")
    return int(match[1]), devices[match[2].lower()]
