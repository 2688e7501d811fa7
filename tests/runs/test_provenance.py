"""Provenance: what a job cannot know itself is said where it is submitted, and what nobody knows is null."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from east_ray.config.load import load
from east_ray.runs import provenance
from east_ray.runs.directory import RunDirectory
from east_ray.runs.provenance import CONTAINER_VARIABLE, REVISION_VARIABLE, describe_gpus, update_provenance
from tests.support.small_run import write_config

SMI = """#!/bin/sh
echo "NVIDIA L40S, 580.65.06"
echo "NVIDIA L40S, 580.65.06"
"""


@pytest.fixture
def without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DESCRIBE", ("no-such-command",))


def test_a_revision_that_is_not_known_is_null_and_so_are_its_changes(tmp_path: Path, without_git: None) -> None:
    found = provenance.provenance(load(write_config(tmp_path / "c.toml", "x")))
    assert (found["git_revision"], found["git_changes"], found["container"]) == (None, None, None)
    assert found["hardware"]["gpus"] is None


@pytest.mark.parametrize(("said", "changed"), [("a" * 40, False), ("a" * 40 + "-dirty", True)])
def test_the_submitting_machine_says_the_revision_and_the_image(
    said: str, changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REVISION_VARIABLE, said)
    monkeypatch.setenv(CONTAINER_VARIABLE, "owner/image:1")
    found = provenance.provenance(load(write_config(tmp_path / "c.toml", "x")))
    assert (found["git_revision"], found["git_changes"], found["container"]) == ("a" * 40, changed, "owner/image:1")


def test_the_documented_command_names_the_commit_and_its_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*command: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    git("tag", "-am", "one", "v1")
    assert git(*provenance.DESCRIBE) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert git(*provenance.DESCRIBE) == git("rev-parse", "HEAD") + "-dirty"


def test_the_gpus_of_nodes_that_worked_are_added_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_json({"git_revision": None, "hardware": {"gpus": None}}, "provenance.json")
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert describe_gpus() == "2 x NVIDIA L40S, driver 580.65.06"
    for gpus in ({"4 x A"}, {"1 x B"}):
        monkeypatch.setattr(provenance, "_gpus_of_nodes", lambda gpus=gpus: gpus)
        update_provenance(run)
    assert run.read_json("provenance.json")["hardware"]["gpus"] == ["1 x B", "4 x A"]
