"""Steps: what is skipped, redone and refused, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.runs.steps import Part, Step, restart_from, run_steps


class Recorder:
    """Two steps, `first` and `second`, that note when they work."""

    def __init__(self, root: Path, setting: int = 1) -> None:
        self.run = RunDirectory(str(root))
        self.worked: list[str] = []
        first = Part(self.run.stage("round-00", "samples"), {"setting": setting})
        second = Part(self.run.stage("round-00", "grades"), {}, needs={"samples": first}, outputs=("round-00/extra",))
        self.steps = [Step("sample", [first], self.work), Step("verify", [second], self.work)]

    def work(self, parts: Sequence[Part]) -> list[dict]:
        self.worked += [part.stage.name for part in parts]
        return [{"rows": 1} for _ in parts]

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
    restart_from(recorder.run, recorder.steps, "verify")
    assert not (tmp_path / "round-00" / "extra").exists()
    recorder.go()
    assert recorder.worked == ["round-00/grades"]


def test_restarting_lets_a_changed_setting_through(tmp_path: Path) -> None:
    Recorder(tmp_path).go()
    changed = Recorder(tmp_path, setting=2)
    restart_from(changed.run, changed.steps, "sample")
    changed.go()
    assert changed.worked == ["round-00/samples", "round-00/grades"]


def test_restarting_from_an_unknown_step_lists_the_known_ones(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    with pytest.raises(UserError, match="choose one of sample, verify"):
        restart_from(recorder.run, recorder.steps, "smaple")


def test_work_that_fails_leaves_its_part_unfinished(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)

    def fail(_: Sequence[Part]) -> list[dict]:
        raise RuntimeError("engine died")

    broken = Step("sample", recorder.steps[0].parts, fail)
    with pytest.raises(RuntimeError):
        broken.run(lambda: None)
    assert not recorder.steps[0].parts[0].is_finished


def test_work_stopped_in_the_middle_keeps_the_parts_it_had_finished(tmp_path: Path) -> None:
    parts = [Part(RunDirectory(str(tmp_path)).stage("round-00", "arms", name), {}) for name in ("a", "b", "c")]

    def stopped(_: Sequence[Part]) -> Iterator[dict]:
        yield {"steps": 1}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Step("train", parts, stopped).run(lambda: None)
    assert [part.is_finished for part in parts] == [True, False, False]
    again: list[str] = []

    def rest(pending: Sequence[Part]) -> Iterator[dict]:
        for part in pending:
            again.append(part.stage.name)
            yield {"steps": 1}

    Step("train", parts, rest).run(lambda: None)
    assert again == ["round-00/arms/b", "round-00/arms/c"]
