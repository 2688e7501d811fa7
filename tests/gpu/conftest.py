"""One GPU, or, with EAST_RAY_REHEARSE=1, the same lines on a CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest

REHEARSE = bool(os.environ.get("EAST_RAY_REHEARSE"))
# Eager and with a small cache: what is tested is not speed, and an engine then starts in half the time.
GPU_ENGINE = {"gpus_per_engine": 1, "engine_args": {"enforce_eager": True, "gpu_memory_utilization": 0.3}}
CPU_ENGINE = {"gpus_per_engine": 0, "cpus_per_engine": 0.5, "kv_cache_gib": 1}


@pytest.fixture(scope="session", autouse=True)
def _gpu() -> None:
    import torch

    if not REHEARSE and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch sees none here")


@pytest.fixture(scope="session")
def use_gpu() -> bool:
    return not REHEARSE


@pytest.fixture(scope="session")
def sampling() -> dict[str, Any]:
    """Settings of an engine on this device."""
    return CPU_ENGINE if REHEARSE else GPU_ENGINE
