"""Rollouts while something is killed: afterwards the files are those of an undisturbed run, nothing lost, nothing twice.

Every process is found below the driver that the test started, and killed by its id.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from east_ray.runs.directory import RunDirectory
from tests.support.rollout_runs import content, make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "tests" / "support" / "rollout_driver.py"
QUESTIONS = 40
# Of the twenty shards of two questions, eight fill the engine.
SETTINGS: dict[str, Any] = {"behaviour": {"delay_seconds": 0.3}, "num_samples": 128}


@contextmanager
def driver(run: RunDirectory, settings: dict[str, Any], **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), run.uri, json.dumps(settings)],
        cwd=ROOT,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "RAY_BACKEND_LOG_LEVEL": "fatal", "PYTHONPATH": str(ROOT)}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        below = descendants(process.pid)
        process.kill()
        process.communicate()
        psutil.wait_procs(below, timeout=30)


def finish(run: RunDirectory, settings: dict[str, Any], **environment: str) -> str:
    with driver(run, settings, **environment) as process:
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def find(process: subprocess.Popen[str], title: str, below: str | None = None) -> psutil.Process:
    """The first process below the driver whose title has `title`; with `below`, one whose parent's title has that."""
    while process.poll() is None:
        for candidate in descendants(process.pid):
            with suppress(psutil.NoSuchProcess):
                parent = candidate.parent()
                if title in " ".join(candidate.cmdline()) and (
                    below is None or (parent is not None and below in " ".join(parent.cmdline()))
                ):
                    return candidate
        time.sleep(0.02)
    raise AssertionError(f"the driver ended before {title} was seen: {process.communicate()[0]}")


def wait_for_shards(process: subprocess.Popen[str], run: RunDirectory, directory: str, count: int) -> None:
    while len(run.list(directory, suffix=".parquet")) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def assert_whole(run: RunDirectory, undisturbed: RunDirectory, num_samples: int = 128) -> None:
    """Every question once, with all its samples, and the same files, row by row, as without a fault."""
    rows = [
        row for name in run.list("samples", suffix=".parquet") for row in run.read_table("samples", name).to_pylist()
    ]
    names = [row["question_id"] for row in rows]
    assert len(names) == len(set(names)) == run.read_table("questions", "train.parquet").num_rows
    assert {len(row["completions"]) for row in rows} == {num_samples}
    assert content(run) == content(undisturbed)
    left = [path for path in Path(run.root).rglob("*") if path.suffix == ".tmp" and path.stat().st_size == 0]
    assert not left


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = make_run(tmp_path_factory.mktemp("undisturbed"), QUESTIONS)
    finish(run, SETTINGS)
    return run


@pytest.mark.parametrize("title", ["Map(Sampler)", "Map(GradingWorker)"])
def test_a_killed_worker_is_replaced_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: RunDirectory, title: str
) -> None:
    run = make_run(tmp_path, QUESTIONS)
    with driver(run, SETTINGS) as process:
        for shard in (2, 6):
            wait_for_shards(process, run, "samples", shard)
            find(process, title).kill()
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert_whole(run, undisturbed)


@pytest.mark.parametrize("depth", [1, 2], ids=["supervisor", "its worker"])
def test_a_killed_symbolic_process_is_replaced_within_its_grader(tmp_path: Path, depth: int) -> None:
    settings = {"behaviour": {**SETTINGS["behaviour"], "symbolic": True}, "num_samples": 4}
    calm, run = make_run(tmp_path / "calm", QUESTIONS), make_run(tmp_path / "disturbed", QUESTIONS)
    finish(calm, settings)
    with driver(run, settings) as process:
        for shard in (2, 6):
            wait_for_shards(process, run, "grades", shard)
            find(
                process,
                "east_ray.answers.sandbox",
                below="Map(GradingWorker)" if depth == 1 else "east_ray.answers.sandbox",
            ).kill()
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert_whole(run, calm, num_samples=4)
    verdicts = [
        v for name in run.list("grades") for row in run.read_table("grades", name)["verdicts"] for v in row.as_py()
    ]
    assert set(verdicts) == {"correct", "incorrect"}


def test_the_driver_killed_at_five_random_moments(tmp_path: Path, undisturbed: RunDirectory) -> None:
    run = make_run(tmp_path, QUESTIONS)
    moments = random.Random(0)
    for shard in sorted(moments.sample(range(1, 20), 5)):
        with driver(run, SETTINGS) as process:
            wait_for_shards(process, run, "samples", shard)
            time.sleep(moments.uniform(0, 0.5))
            assert process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
    output = finish(run, SETTINGS)
    assert_whole(run, undisturbed)
    assert "reused_shards=0" not in output


def test_nothing_outlives_a_killed_driver(tmp_path: Path) -> None:
    run = make_run(tmp_path, QUESTIONS)
    with driver(run, SETTINGS) as process:
        wait_for_shards(process, run, "samples", 2)
        below = descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(below) > 3
        assert psutil.wait_procs(below, timeout=180)[1] == []  # Ray's own daemons notice within two minutes


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path, undisturbed: RunDirectory) -> None:
    run = make_run(tmp_path, QUESTIONS)
    with driver(run, SETTINGS) as process:
        wait_for_shards(process, run, "samples", 2)
        below = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
        assert output.rstrip().endswith("KeyboardInterrupt")
        assert psutil.wait_procs(below, timeout=60)[1] == []
    assert len(run.list("samples", suffix=".parquet")) < 20
    finish(run, SETTINGS)
    assert_whole(run, undisturbed)


def test_two_commands_on_one_run_neither_mix_nor_duplicate(tmp_path: Path, undisturbed: RunDirectory) -> None:
    run = make_run(tmp_path, QUESTIONS)
    with driver(run, SETTINGS) as one, driver(run, SETTINGS) as other:
        outputs = [process.communicate(timeout=600)[0] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], outputs
    assert_whole(run, undisturbed)


def test_a_full_disk_stops_with_its_remedy_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: RunDirectory
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        run = make_run(disk, QUESTIONS)
        with driver(run, SETTINGS) as process:
            output = process.communicate(timeout=600)[0]
        assert process.returncode == 2, output
        assert "No space left on device; free space" in output
        assert "Traceback" not in output
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        finish(run, SETTINGS)
        assert_whole(run, undisturbed)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("engine", ["in this process", "in its own process"])
def test_a_real_engine_killed_under_way_ends_in_the_same_completions(
    tmp_path: Path, tiny_model: Path, engine: str
) -> None:
    """The engine's own process where it has one, else the sampler that steps it."""
    settings = {
        "engine": "in this process",
        "model": str(tiny_model),
        "num_samples": 4,
        "questions_per_shard": 4,
        "cpus_per_engine": 1,
        "max_new_tokens": 128,
        "kv_cache_gib": 1,
    }
    calm, disturbed = make_run(tmp_path / "calm", QUESTIONS), make_run(tmp_path / "disturbed", QUESTIONS)
    finish(calm, settings)
    with driver(disturbed, {**settings, "engine": engine}) as process:
        wait_for_shards(process, disturbed, "samples", 2)
        find(process, "EngineCore" if engine == "in its own process" else "Map(Sampler)").kill()
        output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert_whole(disturbed, calm, num_samples=4)


def test_a_lost_node_costs_only_the_shards_in_flight(tmp_path: Path) -> None:
    from tests.support.ray_processes import ray_nodes

    calm, run = make_run(tmp_path / "calm", 2 * QUESTIONS), make_run(tmp_path / "disturbed", 2 * QUESTIONS)
    finish(calm, SETTINGS)
    behaviour = {**SETTINGS["behaviour"], "directory": str(tmp_path)}
    with ray_nodes({"a": {"num_cpus": 2}, "b": {"num_cpus": 2}}) as cluster:
        environment = {"RAY_ADDRESS": cluster.environment["RAY_ADDRESS"]}
        settings = {**SETTINGS, "behaviour": behaviour, "min_engines": 2, "max_engines": 2, "cpus_per_engine": 1}
        with driver(run, settings, **environment) as process:
            wait_for_shards(process, run, "samples", 12)
            cluster.remove("a")
            output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    assert_whole(run, calm)
    assert len((tmp_path / "sampled").read_text().split()) - 2 * QUESTIONS <= 8 * 2
