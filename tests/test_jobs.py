"""The entry points of a job, and jobs submitted to a real Ray head that run to their end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.ray_processes import BIN, ROOT, Head, ray_head
from tests.support.small_run import ARM, artefacts, is_whole


@pytest.mark.parametrize("command", ["jobs/run.py", "-m east_ray run"])
def test_the_entry_points_of_a_job_are_the_command(command: str) -> None:
    help_text = subprocess.run(
        [sys.executable, *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert help_text.startswith("usage: east-ray run ")


def test_the_runtime_environment_installs_nothing_and_holds_no_secret() -> None:
    environment = yaml.safe_load((ROOT / "jobs" / "runtime-env.yaml").read_text())
    assert set(environment) == {"excludes", "env_vars"}
    assert not [name for name in environment["env_vars"] if "TOKEN" in name or "KEY" in name]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory lies outside what is uploaded, as a shared disk does."""
    return tmp_path_factory.mktemp("job") / "run"


def job(run: Path) -> list[str]:
    """The first job of docs/cluster.md, with fewer questions and samples: its model and questions are in the upload."""
    settings = ["questions.train_limit=160", "questions.test_limit=96", "sampling.questions_per_shard=8"]
    settings += ["sampling.num_samples=16", "sampling.max_new_tokens=96", "training.epochs=1", f"run.dir={run}"]
    return ["jobs/configs/tiny.toml", *(word for setting in settings for word in ("--set", setting))]


def submit(
    head: Head, *entrypoint: str, runtime_env: str = "jobs/runtime-env.yaml", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, followed to the job's end; its exit code is the job's."""
    command = [BIN / "ray", "job", "submit", "--address", head.dashboard]
    command += ["--runtime-env", runtime_env, "--working-dir", ".", "--", *entrypoint]
    return subprocess.run(
        command, cwd=ROOT, env=head.environment | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_submitted_run_is_followed_to_its_end_and_leaves_its_results(head: Head, run: Path) -> None:
    done = submit(head, "python", "jobs/run.py", *job(run))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "succeeded" in output
    for step in ("sample", "weigh", "select", "train", "evaluate"):
        assert step in output
    assert is_whole(artefacts(str(run)))
    assert json.loads((run / ARM / "evaluation" / "metrics.json").read_text())
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_same_job_again_has_nothing_to_do(head: Head, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    done = submit(head, "python", "jobs/run.py", *job(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing to do: this run is finished." in done.stdout + done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}


@pytest.mark.slow
def test_one_step_submitted_alone_refuses_another_setting_with_one_clear_message(head: Head, run: Path) -> None:
    done = submit(head, "python", "-m", "east_ray", "weigh", *job(run), "--set", "selection.keep=solved")
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "was made with selection.keep = 'mixed', now it is 'solved'" in output
    assert "--restart-from weigh" in output
    assert "Traceback" not in output.split("Running entrypoint")[1]


@pytest.mark.slow
def test_a_relative_run_directory_is_refused_in_a_job(head: Head, run: Path) -> None:
    done = submit(head, "python", "jobs/run.py", *job(run), "--set", "run.dir=runs/x")
    assert done.returncode != 0
    assert "this is a submitted job, whose working directory is deleted" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_submission_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    done = submit(head, "python", "-c", "print('ran')", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert done.returncode != 0
    assert "ran" not in done.stdout.splitlines()
    assert "authentication" in (done.stdout + done.stderr).lower()


@pytest.mark.slow
def test_a_variable_of_the_jobs_runtime_environment_wins_over_ours(head: Head, tmp_path: Path) -> None:
    """Ray refuses a job whose driver gives one of its variables again, even with the same value."""
    environment = yaml.safe_load((ROOT / "jobs" / "runtime-env.yaml").read_text())
    environment["env_vars"]["VLLM_LOGGING_LEVEL"] = "DEBUG"
    (tmp_path / "debug.yaml").write_text(yaml.safe_dump(environment))
    code = (
        "import os, ray; from east_ray.runs.cluster import start_ray; start_ray();"
        "level = ray.remote(lambda: os.environ['VLLM_LOGGING_LEVEL']); print('level', ray.get(level.remote()))"
    )
    done = submit(head, "python", "-c", code, runtime_env=str(tmp_path / "debug.yaml"))
    assert "level DEBUG" in done.stdout.splitlines(), done.stdout + done.stderr
