"""Trackers: every logged figure reaches TensorBoard; one that is missing or unknown stops a run before it begins."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from east_ray.config.load import from_dict
from east_ray.pipeline import run_algorithm
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from east_ray.training.job import check_trackers
from tests.support.training_rows import MODEL, config, planned, trainer


@pytest.mark.parametrize("report_to", [(), ("tensorboard",)], ids=["by-default", "by-name"])
def test_tensorboard_holds_every_figure_of_the_log(report_to: tuple[str, ...], tmp_path: Path) -> None:
    training = config("sft", micro_batch_size=2, max_steps=3, report_to=report_to)
    made = trainer(*planned("sft", 12, training, np.linspace(0.5, 1.5, 12)), training, tmp_path / "state")
    made.train()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "weighted_loss", "effective_sample_size", "grad_norm"):
        logged = [row[name] for row in made.state.log_history if name in row]
        assert [event.step for event in events.Scalars(f"train/{name}")] == [1, 2, 3]
        assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(logged, rel=1e-6)


def test_none_writes_no_events(tmp_path: Path) -> None:
    training = config("sft", micro_batch_size=2, max_steps=1, report_to=("none",))
    trainer(*planned("sft", 12, training, np.ones(12)), training, tmp_path / "state").train()
    assert not (tmp_path / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python itself takes for "cannot be imported"
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "1+1?", "answer": "2"}\n')
    wanted = from_dict(
        {
            "model": {"path": str(MODEL)},
            "questions": {"train": str(questions)},
            "training": {"report_to": ["tensorboard", "wandb"]},
        },
        "test",
    )
    run = RunDirectory(str(tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"report_to names wandb, which is not installed: pip install 'east-ray\[trackers\]'"
    ):
        run_algorithm(run, wanted, lambda: None)
    assert not run.exists("questions")


def test_wandb_without_a_key_is_refused_before_anything_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"no key for it: set WANDB_API_KEY"):
        check_trackers(("wandb",))
    (tmp_path / "netrc").write_text("machine elsewhere login user password secret\n")
    with pytest.raises(UserError, match="no key"):
        check_trackers(("wandb",))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    check_trackers(("wandb",))
    (tmp_path / "netrc").unlink()
    for name, value in (("WANDB_API_KEY", "key"), ("WANDB_MODE", "offline")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            check_trackers(("wandb",))


def test_an_unknown_tracker_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"training\.report_to.*tensorboard.*wandb.*mlflow"):
        from_dict(
            {"model": {"path": "m"}, "questions": {"train": "q"}, "training": {"report_to": ["tensorbord"]}}, "test"
        )
