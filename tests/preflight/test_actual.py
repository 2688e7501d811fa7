"""Planned and measured figures of one run, from the tables and metrics that its steps leave."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from east_ray.config.load import Config, from_dict
from east_ray.preflight import actual
from east_ray.preflight.actual import measured_figures, record_plan, recorded_comparison
from east_ray.preflight.estimate import estimate
from east_ray.preflight.machine_checks import Gpu
from east_ray.preflight.plan import render
from east_ray.records import MEASURES, QUESTIONS
from east_ray.report.data import gather_report_data
from east_ray.report.process import cost
from east_ray.runs.directory import RunDirectory
from tests.support.run_factory import make_run


def tiny_config(tiny_questions: Path, run_dir: Path) -> Config:
    return from_dict(
        {
            "run": {"dir": str(run_dir)},
            "model": {"path": str(tiny_questions / "model")},
            "questions": {"train": str(tiny_questions / "train.jsonl"), "test": str(tiny_questions / "test.jsonl")},
        },
        "test",
    )


def test_after_a_run_the_actual_figures_stand_next_to_the_planned(tiny_questions: Path, tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    question = {"question": "?", "reference": "1", "prompt": "?", "prompt_hash": "0" * 16}
    rows = [{**question, "question_id": str(i), "prompt_token_ids": [1] * (10 + i)} for i in range(3)]
    run.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS), "questions", "train.parquet")
    run.write_table(pa.Table.from_pylist(rows[:2], schema=QUESTIONS), "questions", "test.parquet")
    measure = {"num_clusters": 2, "entropy": 0.5, "inaccuracy": 0.5, "dominant_wrong": 0.5}
    weights = [
        {**measure, "question_id": "0", "mean_tokens": 20.0, "reason": None},
        {**measure, "question_id": "1", "mean_tokens": 40.0, "reason": "all_wrong"},
    ]
    for shard, row in enumerate(weights):
        name = f"shard-{shard:05d}.parquet"
        run.write_table(pa.Table.from_pylist([row], schema=MEASURES), "round-00", "weights", name)
    run.write_json({}, "round-00", "weights", "weights.json")
    run.append_metrics(step="sample", artifacts=["round-00/samples"], seconds=100.0)
    run.append_metrics(step="sample", artifacts=["round-00/samples"], seconds=20.0)
    run.append_metrics(step="evaluate", artifacts=["base/evaluation", "round-00/arms/east/evaluation"], seconds=30.0)
    assert measured_figures(run) == {
        "training questions": 3,
        "test questions": 2,
        "prompt, tokens": 11,
        "completion, tokens": 30,
        "kept questions": 0.5,
        "round 0: sample": 120.0,
        "round 0: evaluate": 30.0,
    }
    text = render(estimate(tiny_config(tiny_questions, tmp_path), ["2xCPU"])).split("planned on")[1]
    lines = {line.strip().split("  ")[0]: line for line in text.splitlines()}
    assert lines["round 0: sample"].endswith("2 min 00 s")
    assert lines["kept questions"].endswith("50.0%")


def test_a_run_stopped_while_its_questions_were_written_has_figures_of_what_is_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=2, num_train=120)
    (tmp_path / "run" / "questions" / "test.parquet").unlink()
    figures = measured_figures(run)
    assert figures["training questions"] == 120
    assert "test questions" not in figures
    assert 0 < figures["kept questions"] < 1


def test_the_plan_is_recorded_once_and_compared_after_the_run(tiny_questions: Path, tmp_path: Path) -> None:
    run, config = RunDirectory(str(tmp_path / "run")), tiny_config(tiny_questions, tmp_path / "run")
    record_plan(run, config)
    recorded = run.read_bytes("plan.json")
    assert recorded_comparison(run) == (run.read_json("plan.json")["pool"], [])  # nothing is measured yet
    record_plan(run, config.model_copy(update={"arms": config.arms[:1]}))
    assert run.read_bytes("plan.json") == recorded
    run.append_metrics(step="train", artifacts=["round-00/arms/east/training"], seconds=61.0)
    make_run(tmp_path / "other")
    for name in ("train", "test"):
        table = RunDirectory(str(tmp_path / "other")).read_table("questions", f"{name}.parquet")
        run.write_table(table, "questions", f"{name}.parquet")
    comparison = recorded_comparison(run)
    assert comparison is not None
    figures = {figure.name: figure for figure in comparison[1]}
    assert figures["training questions"].cells == ("training questions", "500", "120")
    assert figures["round 0: train"].actual == 61
    assert figures["round 0: evaluate"].cells[2] == ""


def test_a_run_without_a_recorded_plan_has_no_comparison(tmp_path: Path) -> None:
    assert recorded_comparison(make_run(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("gpu", "pool"),
    [
        (Gpu("NVIDIA H200", "580", 140.4, 9.0, "13.0"), "8xH200"),
        (Gpu("NVIDIA A100-PCIE-40GB", "550", 40.0, 8.0, "12.4"), "8xA100-40GB"),
        (Gpu("NVIDIA A100-SXM4-80GB", "550", 80.0, 8.0, "12.4"), "8xA100"),
        (Gpu("NVIDIA B200", "580", 178.0, 10.0, "13.0"), None),
    ],
)
def test_a_gpu_machine_is_planned_as_its_row_of_the_price_table(
    gpu: Gpu, pool: str | None, tiny_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actual, "list_gpus", lambda: [gpu])
    config = tiny_config(tiny_questions, tmp_path / "run")
    wide = config.sampling.model_copy(update={"gpus_per_engine": 1.0, "max_engines": 8})
    run = RunDirectory(str(tmp_path / "run"))
    record_plan(run, config.model_copy(update={"sampling": wide}))
    assert (run.read_json("plan.json")["pool"] if run.exists("plan.json") else None) == pool


def test_the_report_shows_planned_and_measured_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    figures = [["training questions", 500], ["round 0: sample", 86.0]]
    run.write_json({"pool": "2xCPU", "figures": figures}, "plan.json")
    chapter = cost(gather_report_data(run, from_dict(run.read_json("config.json"), "test")))
    assert chapter is not None
    table = chapter.tables[-1]
    assert "2xCPU" in table.caption
    assert table.rows[0] == ("training questions", "500", "120")
    assert table.rows[1][:2] == ("round 0: sample", "1 min 26 s")
