"""An engine that outlives its pool: on one machine without GPUs, evaluation goes on with the engine that sampled.

It lives in an actor of its own, which Ray restarts, empty, when it dies; the pool's sampler passes requests on to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from east_ray.config.sections import SamplingConfig
from east_ray.records import UserError
from east_ray.rollouts.engine import (
    SHARDS_IN_FLIGHT,
    Engine,
    EngineDied,
    EngineSettings,
    ExchangeRefused,
    OpenEngine,
    Request,
    Result,
    explain_failure,
    is_setting_at_fault,
    one_line,
)

CALLS = SHARDS_IN_FLIGHT + 8  # at once: a sampler's shards, and what else is asked meanwhile
KEPT_SHARE = 0.5  # of the memory that is free beside it; a larger engine ends with its pool
STARTS = 2  # again, where the process was ending when it was asked


@contextmanager
def engine_hosts(sampling: SamplingConfig, open_engine: OpenEngine, count: int) -> Iterator[list[Any]]:
    """The actors that keep so many engines, the same ones for every pool of this process; none on GPUs, which training
    needs, in a cluster, and for engines that cannot `adopt` other settings.
    """
    import ray

    if sampling.gpus_per_engine or os.environ.get("RAY_ADDRESS") or not hasattr(open_engine, "adopt"):
        count = 0
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": CALLS}
    options |= {"lifetime": "detached", "get_if_exists": True}  # this machine's Ray ends with the command
    actor: Any = ray.remote(_EngineHost)
    hosts = [actor.options(name=f"engine-{number}", **options).remote() for number in range(count)]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.leave.remote()


class KeptEngine:
    """An `Engine` that is in a host. `path`: the model that it holds; `is_exchanged`: whether that took another's place."""

    def __init__(self, host: Any, settings: EngineSettings, open_engine: OpenEngine) -> None:
        import ray

        self._host = host
        if not self._call("can_become", settings, open_engine):
            ray.kill(host, no_restart=False)
        self.path, self.is_exchanged = self._call("open", settings, open_engine)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        return self._call("generate", requests)

    def load(self, path: str) -> None:
        self._call("load", path)

    def close(self) -> None:
        pass

    def _call(self, method: str, *args: Any) -> Any:
        import ray
        import ray.exceptions

        restarts = STARTS if method in ("can_become", "open") else 0
        try:
            return ray.get(getattr(self._host, method).options(max_task_retries=restarts).remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError:
            raise EngineDied("its process died") from None


class _EngineHost:
    """Holds at most one engine, which is opened once per process."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._opened_by: OpenEngine | None = None
        self._path, self._is_exchanged, self._is_spoiled = "", False, False
        self._calls = set[object]()

    def can_become(self, settings: EngineSettings, open_engine: OpenEngine) -> bool:
        """Can it give what a fresh engine of this kind with these settings would, after an exchange of weights at most?"""
        if self._is_spoiled or self._calls:  # nobody waits for what it still samples
            return False
        if self._engine is None:
            return True
        return self._opened_by == open_engine and self._engine.adopt(settings)  # type: ignore[attr-defined]

    def open(self, settings: EngineSettings, open_engine: OpenEngine) -> tuple[str, bool]:
        if self._engine is None:
            self._is_spoiled = True  # until it is open
            try:
                self._engine = open_engine(settings)
            except UserError:
                raise
            except Exception as error:  # as text: what vLLM raises cannot always be sent
                is_fatal = is_setting_at_fault(error, settings.sampling)
                text = explain_failure(error, settings.path, settings.sampling) if is_fatal else one_line(error)
                raise (UserError if is_fatal else RuntimeError)(text) from None
            self._path, self._opened_by, self._is_spoiled = settings.path, open_engine, False
        return self._path, self._is_exchanged

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        assert self._engine is not None
        self._calls.add(call := object())
        try:
            return self._engine.generate(requests)
        except EngineDied:
            os._exit(1)
        finally:
            self._calls.discard(call)

    def load(self, path: str) -> None:
        assert self._engine is not None
        self._is_spoiled = True  # until it is loaded
        try:
            self._engine.load(path)
        except ExchangeRefused:
            raise
        except EngineDied:
            os._exit(1)
        self._path, self._is_exchanged, self._is_spoiled = path, True, False

    def leave(self) -> None:
        """End, unless its engine is whole, idle, and leaves the machine free memory."""
        held, free = psutil.Process().memory_info().rss, psutil.virtual_memory().available
        if self._is_spoiled or self._calls or held > KEPT_SHARE * free:
            os._exit(1)
