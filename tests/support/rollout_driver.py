"""A driver of rollouts as a process of its own, to be killed: `rollout_driver.py RUN_DIRECTORY SETTINGS_AS_JSON`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from east_ray.records import UserError
from east_ray.rollouts.engine import OpenEngine
from east_ray.rollouts.run import RolloutJob
from east_ray.rollouts.vllm_engine import VllmEngine
from east_ray.runs.directory import RunDirectory
from tests.support.fake_engine import FakeEngine
from tests.support.rollout_runs import JOB, roll_out

ENGINES: dict[str, OpenEngine] = {
    "fake": FakeEngine,
    "in this process": VllmEngine,
    "in its own process": partial(VllmEngine, own_process=True),  # as on GPUs
}


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
