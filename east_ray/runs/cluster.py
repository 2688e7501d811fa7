"""Ray: join the cluster of a submitted job or start a quiet local one, and place small actors on the driver's node."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from east_ray.console import QUIET
from east_ray.records import UserError

# What every process needs; what the user has set stays.
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # otherwise TRL reports every training to its makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a thread still training when Ctrl-C has ended Ray starts another one
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise every line of a worker appears twice
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start a quiet local Ray."""
    for name, value in ENVIRONMENT.items():  # before ray is imported, which reads some of them
        os.environ.setdefault(name, value)
    import ray
    from ray._private import worker

    if ray.is_initialized():
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray 2.60 prints the raylet's warnings through its stream of worker logs even with log_to_driver=False.
    worker._worker_logs_enabled = False
    with _quiet_stderr():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(runtime_env={"env_vars": _environment_of_nodes()}, **common)
        else:
            check_socket_path(os.environ)
            with any_agent_port():
                ray.init(address="local", include_dashboard=False, **common)


def check_socket_path(environment: Mapping[str, str]) -> None:
    """UserError when Ray's sockets would lie too deep: their paths have 107 bytes at most, and batch systems set long TMPDIRs."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), None)
    if name is None:
        return
    session = f"ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"  # only its length counts
    if (excess := len(os.path.join(environment[name], session).encode()) - 107) > 0:
        raise UserError(
            f"{name}={environment[name]} is {excess} bytes too long for the paths of Ray's sockets; set RAY_TMPDIR to a "
            f"short directory of this machine, such as /tmp"
        )


def _environment_of_nodes() -> dict[str, str]:
    """The variables above as they are in this process, for a cluster's nodes, which do not inherit its environment.

    A variable in the job's own runtime environment reaches them already; Ray refuses a second value for it. No token
    travels this way: the dashboard would show it, so nodes get theirs from their own environment.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {}).get("env_vars", {})
    return {name: os.environ[name] for name in (*ENVIRONMENT, *QUIET) if name in os.environ and name not in job}


@contextmanager
def any_agent_port() -> Iterator[None]:
    """Let a node's agent listen on any free port, which `ray.init` has no argument for.

    Ray 2.60 tries the usual one for 3 s before the node starts, and it is taken by every other local Ray's agent, even by
    that of a killed one for a minute.
    """
    from ray._private import parameter

    usual = parameter.RayParams
    parameter.RayParams = partial(usual, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = usual


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
