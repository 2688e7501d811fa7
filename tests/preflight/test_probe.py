"""The probes: what each calls right and wrong, and (slow) what this installation really does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from east_ray.config.load import from_dict
from east_ray.preflight import probe
from east_ray.preflight.machine_checks import Finding
from east_ray.runs.directory import RunDirectory

CONFIG = from_dict({"model": {"path": str(probe.TINY / "model")}, "questions": {"train": "train.jsonl"}}, "test")
SAMPLED = [["a", "b"], ["c", "d"]]
ENGINE = {"kept": 4, "together": SAMPLED, "alone": SAMPLED, "exchanged": [["x", "y"], ["z", "w"]]}
FRESH = {"together": [["x", "y"], ["z", "w"]]}
TRAINED = {"distance": 2e-6, "multiplier": "torch.float32", "resumed": True}


def statuses(findings: Any) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


def children(monkeypatch: pytest.MonkeyPatch, *results: dict[str, Any]) -> None:
    left = list(results)
    monkeypatch.setattr(probe, "_child", lambda name, settings, scratch: left.pop(0))


def test_grading_is_stopped_in_time_on_this_machine() -> None:
    (finding,) = probe.probe_grading()
    assert finding.status == "ok", finding.detail


def test_a_directory_shows_what_was_written_to_it(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"dir": str(tmp_path / "run")})})
    assert probe.probe_store(config).status == "ok"
    assert list((tmp_path / "run").iterdir()) == []


def test_a_store_that_answers_with_old_content_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDirectory, "read_bytes", lambda self, *parts: b"first")
    config = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"dir": str(tmp_path / "run")})})
    finding = probe.probe_store(config)
    assert finding.status == "fail"
    assert "20 stale answers" in finding.detail


@pytest.mark.parametrize(
    ("first", "second", "wrong"),
    [
        (ENGINE, FRESH, set()),
        ({**ENGINE, "alone": [["a", "b"], ["c", "other"]]}, FRESH, {"seeds"}),
        ({**ENGINE, "exchanged": SAMPLED}, FRESH, {"exchange"}),
        ({**ENGINE, "kept": 3}, FRESH, {"token ids"}),
        ({"error": "ValueError: no KV cache"}, FRESH, {"engine"}),
    ],
)
def test_engines_that_differ_are_found(
    first: dict[str, Any], second: dict[str, Any], wrong: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children(monkeypatch, first, second)
    found = statuses(probe.probe_engines(CONFIG, tmp_path))
    assert {name for name, status in found.items() if status == "fail"} == wrong


@pytest.mark.parametrize(
    ("rounded", "exact", "wrong"),
    [
        (TRAINED, TRAINED, set()),
        ({**TRAINED, "multiplier": "torch.bfloat16"}, TRAINED, {"multipliers, bfloat16"}),
        (TRAINED, {**TRAINED, "distance": 1e-3}, {"weights, float32"}),
        ({**TRAINED, "resumed": False}, TRAINED, {"resuming, bfloat16"}),
        (TRAINED, {"error": "no NCCL"}, {"training"}),
    ],
)
def test_trainings_of_another_loss_are_found(
    rounded: dict[str, Any], exact: dict[str, Any], wrong: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children(monkeypatch, rounded, exact)
    found = list(probe.probe_trainings(CONFIG, tmp_path))
    assert {finding.name for finding in found if finding.status == "fail"} == wrong
    assert all(finding.remedy for finding in found if finding.status == "fail")


def test_a_child_that_breaks_is_one_finding_with_its_last_line(tmp_path: Path) -> None:
    assert probe._child("unheard-of", {}, tmp_path) == {"error": "KeyError: 'unheard-of'"}


@pytest.mark.slow
def test_this_installation_does_what_we_assume() -> None:
    found: list[Finding] = list(probe.probe(None))
    assert {finding.name: finding.detail for finding in found if finding.status != "ok"} == {}
    assert {"grading", "seeds", "token ids", "exchange", "weights, float32", "multipliers, bfloat16"} <= set(
        statuses(found)
    )
