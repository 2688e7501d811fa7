"""Ray: join the cluster of a submitted job or start a quiet local one, and place small actors on the driver's node."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start a quiet local Ray."""
    # A local Ray inherits this process's environment; nodes of a cluster need to be told. No token travels this way: it
    # would be shown on the dashboard, so nodes get theirs from their own environment.
    os.environ.update(QUIET)
    # Read when ray is imported. Else a thread that is still training when Ctrl-C has ended Ray would start another one.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import ray
    from ray._private import worker

    if ray.is_initialized():
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray 2.60 prints the raylet's warnings through its stream of worker logs even with log_to_driver=False.
    worker._worker_logs_enabled = False
    with _quiet_stderr():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(runtime_env={"env_vars": QUIET}, **common)
        else:
            ray.init(address="local", include_dashboard=False, **common)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what native code prints: Ray's core announces on stderr that its log level was set. Failures are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def on_driver_node(actor: type) -> Any:
    """Start `actor` on this process's node; on any other, a spot machine that is taken away would end the run with it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(actor).options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
