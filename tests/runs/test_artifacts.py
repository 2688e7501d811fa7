"""Artifacts and steps: what is skipped, made again and refused, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from east_ray.records import UserError
from east_ray.runs.artifacts import Artifact, Incomplete, Step, restart_from, run_steps
from east_ray.runs.directory import RunDirectory


def test_an_artifact_is_finished_only_with_its_manifest(run: RunDirectory) -> None:
    samples = Artifact(run, "round-00/samples", {"n": 4}, {"questions": "a"})
    assert not samples.is_finished
    samples.begin()
    assert not samples.is_finished
    samples.complete(rows=3)
    assert samples.is_finished
    assert run.manifest("round-00/samples")["facts"] == {"rows": 3}  # type: ignore[index]


def test_the_manifest_names_the_fingerprint_known_before(run: RunDirectory) -> None:
    samples = Artifact(run, "samples", {"n": 4}, {"questions": "a"})
    grades = Artifact(run, "grades", {}, {"samples": samples})
    grades.complete()
    assert run.manifest("grades")["inputs"] == {"samples": samples.fingerprint}  # type: ignore[index]
    assert run.manifest("grades")["fingerprint"] == grades.fingerprint  # type: ignore[index]


def test_a_changed_setting_is_refused_with_its_dotted_name_and_two_remedies(run: RunDirectory) -> None:
    Artifact(run, "round-00/grades", {"pool": {"deadline": 5}}).complete()
    with pytest.raises(
        UserError, match=r"pool\.deadline = 5, now it is 7.*run\.dir.*`east-ray run CONFIG --restart-from verify`"
    ):
        _ = Artifact(run, "round-00/grades", {"pool": {"deadline": 7}}).is_finished


def test_an_artifact_that_was_only_begun_refuses_other_settings_too(run: RunDirectory) -> None:
    Artifact(run, "round-00/samples", {"n": 4}).begin()
    with pytest.raises(UserError, match="n = 4, now it is 8"):
        _ = Artifact(run, "round-00/samples", {"n": 8}).is_finished


def test_a_changed_input_is_refused(run: RunDirectory) -> None:
    Artifact(run, "round-00/weights", {}, {"grades": "a"}).complete()
    with pytest.raises(UserError, match="grades = 'a', now it is 'b'"):
        _ = Artifact(run, "round-00/weights", {}, {"grades": "b"}).is_finished


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00\x01", b"[1, 2"])
def test_a_damaged_manifest_says_which_file_to_delete(run: RunDirectory, damage: bytes) -> None:
    run.write_bytes(damage, "weights", "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        _ = Artifact(run, "weights").is_finished


def test_work_on_a_file_from_outside_that_must_be_fixed_leaves_nothing_behind(run: RunDirectory) -> None:
    def work() -> None:
        raise UserError("line 3 has no answer")

    questions = Artifact(run, "questions", {}, {"train": "a"}, work, discard_on_user_error=True)
    with pytest.raises(UserError, match="line 3"):
        Step("questions", [questions]).run(lambda: None)
    assert not Artifact(run, "questions", {}, {"train": "b"}).is_finished


class Recorder:
    """Two steps, `first` and `second`, that note when they work."""

    def __init__(self, root: Path, setting: int = 1) -> None:
        self.run = RunDirectory(str(root))
        self.worked: list[str] = []
        first = Artifact(self.run, "round-00/samples", {"setting": setting})
        second = Artifact(self.run, "round-00/grades", inputs={"samples": first}, outputs=("round-00/extra",))
        self.steps = [Step("sample", [first], self.work), Step("verify", [second], self.work)]

    def work(self, artifacts: Sequence[Artifact]) -> list[dict]:
        self.worked += [artifact.directory for artifact in artifacts]
        return [{"rows": 1} for _ in artifacts]

    def go(self, only: str | None = None) -> bool:
        return run_steps(self.steps, lambda: None, only)


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    assert Recorder(tmp_path).go()
    again = Recorder(tmp_path)
    assert not again.go()
    assert again.worked == []


def test_ray_is_started_only_when_there_is_work(tmp_path: Path) -> None:
    started: list[int] = []
    recorder = Recorder(tmp_path)
    run_steps(recorder.steps, lambda: started.append(1))
    assert started
    started.clear()
    run_steps(Recorder(tmp_path).steps, lambda: started.append(1))
    assert not started


def test_one_step_alone_needs_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="verify needs samples, but round-00/samples is not finished"):
        Recorder(tmp_path).go("verify")
    Recorder(tmp_path).go("sample")
    assert Recorder(tmp_path).go("verify")


def test_a_changed_setting_refuses_before_any_work(tmp_path: Path) -> None:
    Recorder(tmp_path).go()
    changed = Recorder(tmp_path, setting=2)
    with pytest.raises(UserError, match="setting = 1, now it is 2"):
        changed.go()
    assert changed.worked == []


def test_restarting_discards_the_step_and_what_follows_but_nothing_before(tmp_path: Path) -> None:
    Recorder(tmp_path).go()
    (tmp_path / "round-00" / "extra").mkdir()
    recorder = Recorder(tmp_path)
    restart_from(recorder.steps, "verify")
    assert not (tmp_path / "round-00" / "extra").exists()
    recorder.go()
    assert recorder.worked == ["round-00/grades"]


def test_restarting_lets_a_changed_setting_through(tmp_path: Path) -> None:
    Recorder(tmp_path).go()
    changed = Recorder(tmp_path, setting=2)
    restart_from(changed.steps, "sample")
    changed.go()
    assert changed.worked == ["round-00/samples", "round-00/grades"]


def test_restarting_from_an_unknown_step_lists_the_known_ones(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(UserError, match="choose one of sample, verify"):
        restart_from(recorder.steps, "smaple")


def test_work_that_fails_leaves_its_artifact_unfinished(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)

    def fail(_: Sequence[Artifact]) -> list[dict]:
        raise RuntimeError("engine died")

    broken = Step("sample", recorder.steps[0].artifacts, fail)
    with pytest.raises(RuntimeError):
        broken.run(lambda: None)
    assert not recorder.steps[0].artifacts[0].is_finished


def test_work_stopped_in_the_middle_keeps_the_artifacts_it_had_finished(tmp_path: Path) -> None:
    artifacts = [Artifact(RunDirectory(str(tmp_path)), f"round-00/arms/{name}") for name in ("a", "b", "c")]

    def stopped(_: Sequence[Artifact]) -> Iterator[dict]:
        yield {"steps": 1}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Step("train", artifacts, stopped).run(lambda: None)
    assert [artifact.is_finished for artifact in artifacts] == [True, False, False]
    again: list[str] = []

    def rest(pending: Sequence[Artifact]) -> Iterator[dict]:
        for artifact in pending:
            again.append(artifact.directory)
            yield {"steps": 1}

    Step("train", artifacts, rest).run(lambda: None)
    assert again == ["round-00/arms/b", "round-00/arms/c"]


def test_what_needs_an_artifact_that_cannot_be_made_is_left_out_and_the_rest_is_done(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    models = [Artifact(run, f"round-00/arms/{name}/training") for name in ("a", "b")]
    evaluations = [
        Artifact(run, f"round-00/arms/{name}/evaluation", inputs={"model": model})
        for name, model in zip(("a", "b"), models, strict=True)
    ]
    evaluated: list[str] = []

    def evaluate(pending: Sequence[Artifact]) -> Iterator[dict]:
        for artifact in pending:
            evaluated.append(artifact.directory)
            yield {"accuracy": 0.5}

    def train(pending: Sequence[Artifact]) -> Iterator[Any]:
        yield from (UserError("train a: the loss is nan") if "/a/" in a.directory else {"steps": 1} for a in pending)

    steps = [Step("train", models, train), Step("evaluate", evaluations, evaluate)]
    with pytest.raises(Incomplete, match=r"^train a: the loss is nan; the rest is done$"):
        run_steps(steps, lambda: None)
    assert evaluated == ["round-00/arms/b/evaluation"]
    assert [artifact.is_finished for artifact in (*models, *evaluations)] == [False, True, False, True]

    alone = Step("train", models[:1], train)
    with pytest.raises(UserError, match=r"^train a: the loss is nan$"):
        run_steps([alone, Step("evaluate", evaluations[:1], evaluate)], lambda: None)
