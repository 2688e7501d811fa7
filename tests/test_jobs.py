"""The entry points in jobs/: each is its command, and a submitted job on a real Ray head runs to its end."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.ray_processes import BIN, ROOT, Head, ray_head
from tests.support.small_run import ARM, artefacts, is_whole, write_config

ENTRY_POINTS = ("run", "sample", "verify", "weigh", "select_", "train", "evaluate", "sweep", "reproduce")


def test_there_is_an_entry_point_for_every_command_that_works_on_a_cluster() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(ENTRY_POINTS)


def test_no_entry_point_hides_a_module_of_the_standard_library() -> None:
    """A script's directory comes first on its path: jobs/select.py broke every job, deep inside asyncio."""
    assert not set(ENTRY_POINTS) & sys.stdlib_module_names


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_is_the_command_of_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: east-ray {name.rstrip('_')} ")


def test_the_runtime_environment_installs_nothing_and_holds_no_secret() -> None:
    environment = yaml.safe_load((ROOT / "jobs" / "runtime-env.yaml").read_text())
    assert set(environment) == {"excludes", "env_vars"}
    assert not [name for name in environment["env_vars"] if "TOKEN" in name or "KEY" in name]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It lies outside what is uploaded, as a shared disk does."""
    path = tmp_path_factory.mktemp("job")
    return write_config(path / "job.toml", str(path / "run"))


def submit(head: Head, *entrypoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, followed to the job's end; its exit code is the job's."""
    command = [BIN / "ray", "job", "submit", "--address", head.dashboard]
    command += ["--runtime-env", "jobs/runtime-env.yaml", "--working-dir", ".", "--", *entrypoint]
    return subprocess.run(
        command, cwd=ROOT, env=head.environment | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_submitted_run_is_followed_to_its_end_and_leaves_its_results(head: Head, config: Path) -> None:
    job = submit(head, "python", "jobs/run.py", str(config))
    output = job.stdout + job.stderr
    assert job.returncode == 0, output
    assert "succeeded" in output
    for stage in ("sample", "weigh", "select", "train", "evaluate"):
        assert stage in output
    run = config.parent / "run"
    assert is_whole(artefacts(str(run)))
    assert json.loads((run / ARM / "evaluation" / "metrics.json").read_text())
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_same_job_again_has_nothing_to_do(head: Head, config: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (config.parent / "run").rglob("*.parquet")}
    job = submit(head, "python", "jobs/run.py", str(config))
    assert job.returncode == 0, job.stdout + job.stderr
    assert "Nothing to do: this run is finished." in job.stdout + job.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (config.parent / "run").rglob("*.parquet")}


@pytest.mark.slow
def test_one_stage_submitted_alone_refuses_another_setting_with_one_clear_message(head: Head, config: Path) -> None:
    job = submit(head, "python", "jobs/weigh.py", str(config), "--set", "selection.keep=solved")
    output = job.stdout + job.stderr
    assert job.returncode != 0
    assert "was made with selection.keep = 'mixed', now it is 'solved'" in output
    assert "--restart-from weigh" in output
    assert "Traceback" not in output.split("Running entrypoint")[1]


@pytest.mark.slow
def test_a_relative_run_directory_is_refused_in_a_job(head: Head, config: Path) -> None:
    job = submit(head, "python", "jobs/run.py", str(config), "--set", "run.dir=runs/x")
    assert job.returncode != 0
    assert "this is a submitted job, whose working directory is deleted" in job.stdout + job.stderr


@pytest.mark.slow
def test_a_submission_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    job = submit(head, "python", "-c", "print('ran')", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert job.returncode != 0
    assert "ran" not in job.stdout.splitlines()
    assert "authentication" in (job.stdout + job.stderr).lower()
