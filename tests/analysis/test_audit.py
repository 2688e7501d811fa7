"""The audit on a run made by hand: every way to cluster is compared, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from east_ray.analysis.audit import audit
from east_ray.answers.grading import Grader, grade_table
from east_ray.config.load import from_dict
from east_ray.records import SAMPLES, UserError
from east_ray.runs.directory import RunDirectory, jsonable
from tests.support.graded import write_questions

QUESTIONS = [
    ("0.5", ["1/2", "0.5", r"\frac12", "3", "3.0", None]),  # 3 clusters by meaning, 6 by string
    ("2", ["2", "2", "2", "5", "5", "5"]),  # 2 either way
    ("7", ["7", "1", "2", "3", "4", "5"]),  # 6 either way
    ("1", ["1", "1", "1", "1", "1", "1"]),  # not kept: all correct
]


def make_run(directory: Path, in_test: Sequence[str] = ()) -> RunDirectory:
    run = RunDirectory(str(directory))
    config = from_dict(
        {"model": {"path": "m"}, "questions": {"train": "q"}, "grading": {"deadline_seconds": 30}}, "test"
    )
    run.write_json(jsonable(config), "config.json")
    write_questions(run, [f"q{number}" for number in range(len(QUESTIONS))], in_test=in_test)
    rows = [
        {
            "question_id": f"q{number}",
            "reference": reference,
            "prompt_hash": "",
            "prompt_tokens": 1,
            "completions": ["nothing" if answer is None else rf"\boxed{{{answer}}}" for answer in answers],
            "finish_reasons": ["stop"] * len(answers),
            "completion_tokens": [5] * len(answers),
            "shortfall": None,
        }
        for number, (reference, answers) in enumerate(QUESTIONS)
    ]
    with Grader(config.grading) as grader:
        for shard in range(2):
            table = pa.Table.from_pylist(rows[2 * shard : 2 * shard + 2], schema=SAMPLES)
            run.write_table(table, "round-00", "samples", f"shard-{shard:05d}.parquet")
            run.write_table(grade_table(table, grader), "round-00", "grades", f"shard-{shard:05d}.parquet")
    return run


def test_an_audit_compares_every_way_to_cluster(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    report = audit(run)
    assert (report.num_questions, report.num_kept, report.num_completions) == (4, 3, 24)
    assert report.verdicts == {"correct": 13, "incorrect": 11}
    assert report.rules == {"boxed": 23, "none": 1}
    assert report.changed_verdicts == 0
    ways = {(way.cluster, way.unanswered): way for way in report.ways}
    own = ways["canonical", "cluster"]
    assert own.mean_clusters == pytest.approx((3 + 2 + 6) / 3)
    assert (own.spearman, own.top_overlap, own.moved) == (pytest.approx(1), 1, 0)
    assert ways["canonical", "ignore"].mean_clusters == pytest.approx((2 + 2 + 6) / 3)
    assert ways["string", "cluster"].mean_clusters == pytest.approx((6 + 2 + 6) / 3)
    assert ways["string", "cluster"].moved > 0
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_questions_that_the_run_excludes_are_not_audited_as_kept(tmp_path: Path) -> None:
    report = audit(make_run(tmp_path, in_test=["q1"]))
    assert (report.num_questions, report.num_kept) == (4, 2)
    assert report.ways[0].mean_clusters == pytest.approx((3 + 6) / 2)


def test_an_audit_is_a_page_of_text(tmp_path: Path) -> None:
    text = audit(make_run(tmp_path)).render()
    assert "4 questions, 3 kept; 24 completions" in text
    assert "correct 54.17%" in text
    assert text.count("this run") == 1


def test_an_audit_of_a_run_without_grades_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="east-ray verify"):
        audit(RunDirectory(str(tmp_path)))
