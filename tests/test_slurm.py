"""The Slurm script: on a real Slurm a run that its time limit ends is requeued and resumes to the same artifacts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_processes import ENVIRONMENT, ROOT, short_directory
from tests.support.slurm import Slurm, slurm, why_no_slurm
from tests.support.small_run import ARM, artefacts, write_config

SCRIPT = ROOT / "jobs" / "slurm.sh"
SETTINGS = ("questions.train_limit=8", "questions.test_limit=8", "sampling.num_samples=4")
SETTINGS += ("sampling.questions_per_shard=2", "training.max_steps=2")


def test_the_script_is_valid_bash_and_ends_no_ray_process_of_others() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    commands = [line.split("#")[0] for line in SCRIPT.read_text().splitlines()]
    assert not [line for line in commands if "ray stop" in line or "pkill" in line or "killall" in line]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    if reason := why_no_slurm():
        pytest.skip(reason)
    with slurm(nodes=2) as started:
        yield started


def words(run: Path) -> list[str]:
    return [word for setting in (*SETTINGS, f"run.dir={run}") for word in ("--set", setting)]


@pytest.mark.slow
def test_a_run_that_its_time_limit_ends_resumes_after_the_requeue_to_the_same_artifacts(
    cluster: Slurm, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.toml", str(tmp_path / "unused"))
    log = tmp_path / "job.log"
    options = ["--nodes=2", "--time=30", "--signal=B:USR1@180", f"--output={log}", f"--chdir={ROOT}"]
    command = ["sbatch", "--parsable", *options, str(SCRIPT), str(config), *words(tmp_path / "run")]
    job = cluster.ask(*command)
    while not list((tmp_path / "run").glob("round-00/samples/*.parquet")):
        assert cluster.job(job)["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), log.read_text()
        time.sleep(0.5)
    hours, minutes, _ = map(int, cluster.job(job)["RunTime"].split(":"))
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 3}")  # the signal is due
    while (state := cluster.job(job))["Restarts"] == "0":
        assert state["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), log.read_text()
        time.sleep(1)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=30")  # the same limit could end every attempt
    while (state := cluster.job(job))["JobState"] in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
        time.sleep(1)
    output = log.read_text()
    assert state["JobState"] == "COMPLETED", output
    assert f"Ray runs on 2 nodes, job {job}, attempt 1" in output
    assert f"Ray runs on 2 nodes, job {job}, attempt 2" in output
    first, second = output.split("slurm.sh: requeued")
    assert "questions finished" in first
    assert "report.html" not in first
    assert "questions finished" not in second
    assert not list(Path("/tmp").glob(f"er{job}-*"))

    with short_directory() as directory:
        environment = cluster.environment | ENVIRONMENT | {"RAY_TMPDIR": str(directory)}
        undisturbed = [sys.executable, "jobs/run.py", str(config), *words(tmp_path / "undisturbed")]
        subprocess.run(undisturbed, cwd=ROOT, env=environment, check=True, capture_output=True)
    left = artefacts(str(tmp_path / "run"))
    assert left.keys() >= {
        "round-00/examples/sft.parquet",
        f"{ARM}/model/model.safetensors",
        f"{ARM}/evaluation/eval.parquet",
    }
    assert left == artefacts(str(tmp_path / "undisturbed"))
