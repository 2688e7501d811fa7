"""The whole loop on a Ray cluster of several nodes, and the same loop while a node is lost in every phase."""

from __future__ import annotations

import hashlib
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray_processes import BIN, ROOT, Nodes, ray_nodes

# As cluster.yaml describes them, in small: the GPUs are only numbers here, engines and trainers run on the CPU.
NODES = {
    "rollout": {"num_cpus": 1, "num_gpus": 1, "labels": {"role": "rollout", "ray.io/market-type": "spot"}},
    "rollout@2": {"num_cpus": 1, "num_gpus": 1, "labels": {"role": "rollout", "ray.io/market-type": "spot"}},
    "train": {"num_cpus": 2, "num_gpus": 2, "labels": {"role": "train", "ray.io/market-type": "on-demand"}},
    "cpu": {"num_cpus": 2, "labels": {"role": "cpu", "ray.io/market-type": "on-demand"}},
}
ARM = "round-00/arms/east"

# (the file whose appearance shows that the phase is at work, the node lost then, the node that replaces it)
LOSSES = [
    ("sample", "round-00/samples/shard-*.parquet", "rollout", "rollout@3"),
    ("verify", "round-00/grades/shard-*.parquet", "cpu", "cpu@2"),
    ("weigh", "round-00/weights/intent.json", "cpu@2", "cpu@3"),
    ("train", "round-00/arms/east/**/checkpoint-*", "train", "train@2"),
    ("evaluate", f"{ARM}/evaluation/samples/shard-*.parquet", "rollout@2", "rollout@4"),
]


def write_config(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "nodes.toml").write_text(
        f"""
        run.dir = "{path / "run"}"
        model = {{ path = "{ROOT}/east_ray/tiny/model", dtype = "float32" }}
        questions.train = "{ROOT}/east_ray/tiny/train.jsonl"
        questions.test = "{ROOT}/east_ray/tiny/test.jsonl"
        questions.train_limit = 160
        questions.test_limit = 96
        questions.system_prompt = ""
        arms = [{{ name = "east" }}]

        [sampling]
        num_samples = 16
        max_new_tokens = 96
        questions_per_shard = 8
        kv_cache_gib = 1
        min_engines = 2
        max_engines = 2
        labels = {{ role = "rollout" }}

        [grading]
        labels = {{ role = "cpu" }}

        [training]
        workers = 2
        zero_stage = 2
        epochs = 2
        micro_batch_size = 4
        max_length = 256
        checkpoint_steps = 4
        sft.learning_rate = 2e-5
        labels = {{ role = "train" }}
        """
    )
    return path / "nodes.toml"


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


def artefacts(run: Path) -> dict[str, str]:
    """File -> digest, for all that a run is made for. Tables by content: a Parquet file may name its writer's process."""
    digests = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.suffix == ".parquet" and "training" not in name:
            digests[name] = hashlib.sha256(repr(pq.read_table(file).to_pydict()).encode()).hexdigest()
        elif file.name in ("model.safetensors", "weights.json", "metrics.json") and "checkpoint" not in name:
            digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return digests


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_node_lost_in_every_phase_changes_no_artefact_and_work_goes_where_its_labels_say(tmp_path: Path) -> None:
    undisturbed, disturbed = write_config(tmp_path / "undisturbed"), write_config(tmp_path / "disturbed")
    lost, placed = run_on(undisturbed)
    assert lost == []
    assert ("MapWorker(Map(Sampler))", "rollout") in placed
    assert ("MapWorker(Map(GradingWorker))", "cpu") in placed
    assert ("RayTrainWorker", "train") in placed
    assert not {kind for kind, node in placed if node == "head"} & {"RayTrainWorker", "MapWorker(Map(Sampler))"}

    lost, _ = run_on(disturbed, lose_nodes)
    assert lost == [phase for phase, *_ in LOSSES]
    expected = artefacts(undisturbed.parent / "run")
    assert artefacts(disturbed.parent / "run") == expected
    for file in ("questions/train.parquet", "round-00/samples/shard-00019.parquet", "round-00/weights/weights.parquet"):
        assert file in expected
    assert f"{ARM}/model/model.safetensors" in expected
    assert f"{ARM}/evaluation/eval.parquet" in expected
