"""The whole loop on a Ray cluster of several nodes, and the same loop while a node is lost in every phase."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ray_processes import BIN, ROOT, Nodes, ray_nodes
from tests.support.small_run import ARM, artefacts, is_whole, write_config

# As cluster.yaml describes them, in small: the GPUs are only numbers here, engines and trainers run on the CPU.
NODES = {
    "rollout": {"num_cpus": 1, "num_gpus": 1, "labels": {"role": "rollout", "ray.io/market-type": "spot"}},
    "rollout@2": {"num_cpus": 1, "num_gpus": 1, "labels": {"role": "rollout", "ray.io/market-type": "spot"}},
    "train": {"num_cpus": 2, "num_gpus": 2, "labels": {"role": "train", "ray.io/market-type": "on-demand"}},
    "cpu": {"num_cpus": 2, "labels": {"role": "cpu", "ray.io/market-type": "on-demand"}},
}

# (the file whose appearance shows that the phase is at work, the node lost then, the node that replaces it)
LOSSES = [
    ("sample", "round-00/samples/shard-*.parquet", "rollout", "rollout@3"),
    ("verify", "round-00/grades/shard-*.parquet", "cpu", "cpu@2"),
    ("weigh", "round-00/weights/intent.json", "cpu@2", "cpu@3"),
    ("train", "round-00/arms/east/**/checkpoint-*", "train", "train@2"),
    ("evaluate", f"{ARM}/evaluation/samples/shard-*.parquet", "rollout@2", "rollout@4"),
]


PLACEMENT = """
        sampling.min_engines = 2
        sampling.max_engines = 2
        sampling.labels = { role = "rollout" }
        grading.labels = { role = "cpu" }
        training.workers = 2
        training.labels = { role = "train" }
"""


def lose_nodes(nodes: Nodes, run: Path, lost: list[str], stop: threading.Event) -> None:
    """Wait for each phase in turn, kill its node, and a little later bring another of its kind, as an autoscaler does."""
    for phase, sign, name, replacement in LOSSES:
        while not any(run.glob(sign)):
            if stop.is_set():
                return
            time.sleep(0.02)
        nodes.remove(name)
        lost.append(phase)
        nodes.add(replacement)


def run_on(
    config: Path, disturb: Callable[[Nodes, Path, list[str], threading.Event], None] | None = None
) -> tuple[list[str], set[tuple[str, str]]]:
    """`east-ray run` as a driver of the cluster: phases in which a node was lost, and (class, kind of node) of all actors."""
    lost: list[str] = []
    stop = threading.Event()
    with ray_nodes(NODES) as cluster:
        driver = subprocess.Popen(
            [BIN / "east-ray", "run", str(config)],
            cwd=ROOT,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        watcher = threading.Thread(
            target=disturb or (lambda *_: None), args=(cluster, config.parent / "run", lost, stop)
        )
        watcher.start()
        try:
            output = driver.communicate(timeout=900)[0]
        finally:
            stop.set()
            driver.kill()
            watcher.join()
        assert driver.returncode == 0, output
        return lost, {(kind, node.partition("@")[0]) for kind, node in cluster.actors()}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_node_lost_in_every_phase_changes_no_artefact_and_work_goes_where_its_labels_say(tmp_path: Path) -> None:
    undisturbed, disturbed = (
        write_config(tmp_path / name / "nodes.toml", str(tmp_path / name / "run"), PLACEMENT)
        for name in ("undisturbed", "disturbed")
    )
    lost, placed = run_on(undisturbed)
    assert lost == []
    for kind, role in {
        "MapWorker(Map(Sampler))": "rollout",
        "MapWorker(Map(GradingWorker))": "cpu",
        "RayTrainWorker": "train",
        "Attempts": "head",
        "StatusActor": "head",
    }.items():
        assert {node for found, node in placed if found == kind} == {role}, kind

    lost, _ = run_on(disturbed, lose_nodes)
    assert lost == [phase for phase, *_ in LOSSES]
    expected = artefacts(str(tmp_path / "undisturbed" / "run"))
    assert is_whole(expected)
    assert artefacts(str(tmp_path / "disturbed" / "run")) == expected
