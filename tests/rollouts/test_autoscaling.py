"""The pool of engines on a cluster whose nodes come when work asks for them: Ray's own autoscaler, its nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.ray_processes import ROOT, Head, ray_head
from tests.support.rollout_runs import content, make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUESTIONS = 160  # 80 shards, and an engine takes 16 ahead
NODES = {
    "rollout": {
        "resources": {"CPU": 1, "object_store_memory": 80 << 20},
        "labels": {"role": "rollout"},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 4,
    }
}
COUNT = "import json, ray; ray.init(logging_level='ERROR', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"


def alive_nodes(head: Head) -> int:
    environment = head.environment | {"RAY_ADDRESS": head.address}
    return int(subprocess.check_output([sys.executable, "-c", COUNT], env=environment, text=True).split()[-1])


def roll_out(head: Head, directory: Path, **settings: Any) -> str:
    command = [sys.executable, str(ROOT / "tests" / "support" / "rollout_driver.py")]
    environment = head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(directory / "run"), json.dumps(settings)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_pool_grows_under_load_and_its_nodes_go_when_idle(tmp_path: Path) -> None:
    """From no node to three, one engine each, and back to the head alone; the samples are those of one engine.

    The head's core is the grader's: Ray Data asks for nodes only while three quarters of the cores it has are in use.
    """
    grown, single = (make_run(tmp_path / name, QUESTIONS) for name in ("grown", "single"))
    with ray_head(num_cpus=1, node_types=NODES) as head:
        assert alive_nodes(head) == 1
        behaviour = {"delay_seconds": 4, "directory": str(tmp_path)}
        settings = {"num_samples": 128, "cpus_per_engine": 1, "labels": {"role": "rollout"}}
        roll_out(head, tmp_path / "grown", behaviour=behaviour, min_engines=1, max_engines=3, **settings)
        assert len(list(tmp_path.glob("engine-*"))) == 3
        while alive_nodes(head) > 1:  # until the test's time limit
            time.sleep(2)
        roll_out(head, tmp_path / "single", min_engines=1, max_engines=1, **settings)
    assert content(grown) == content(single)


def test_all_engines_are_asked_for_at_once_and_one_that_fails_to_start_comes_later(tmp_path: Path) -> None:
    """Four engines that begin only when all four are there: a pool that asks for a second after a first shard never ends."""
    met, single = (make_run(tmp_path / name, 40) for name in ("met", "single"))
    with ray_head(num_cpus=1, node_types=NODES) as head:
        settings = {"num_samples": 4, "cpus_per_engine": 1, "labels": {"role": "rollout"}}
        behaviour = {"directory": str(tmp_path), "meet": 4, "fail_starts": 2}
        roll_out(head, tmp_path / "met", behaviour=behaviour, max_engines=4, **settings)
        assert len(list(tmp_path.glob("engine-*"))) == 4
        assert len((tmp_path / "failed").read_text().split()) == 2
        roll_out(head, tmp_path / "single", max_engines=1, **settings)
    assert content(met) == content(single)
