"""A driver of rollouts as a process of its own, to be killed: `rollout_driver.py RUN_DIRECTORY SETTINGS_AS_JSON`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from east_ray.records import UserError
from east_ray.rollouts.engine import Engine, EngineSettings
from east_ray.rollouts.run import RolloutJob
from east_ray.runs.directory import RunDirectory
from tests.support.fake_engine import FakeEngine
from tests.support.rollout_runs import JOB, roll_out


def open_asynchronous(settings: EngineSettings) -> Engine:
    """The engine of the GPU path, its core in a process of its own, on the CPU."""
    from east_ray.rollouts.vllm_engine import AsyncEngine

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    return AsyncEngine(settings)


def open_real(settings: EngineSettings) -> Engine:
    from east_ray.rollouts.vllm_engine import open_engine

    return open_engine(settings)


ENGINES = {"fake": FakeEngine, "asynchronous": open_asynchronous, "real": open_real}


def main(uri: str, settings: dict[str, Any]) -> int:
    import ray

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in its background
    engine = ENGINES[settings.pop("engine", "fake")]
    job = RolloutJob(settings.pop("model", JOB.model), JOB.questions, JOB.samples, JOB.grades)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, **quiet)
    try:
        print(roll_out(RunDirectory(uri), job, open_engine=engine, **settings)[0], flush=True)
    except UserError as error:
        print(error, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))
