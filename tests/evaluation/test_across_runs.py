"""Comparing models of two runs: what is paired, what is said, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from scipy import stats

from east_ray.cli import main
from east_ray.config.load import Arm
from east_ray.evaluation.across_runs import compare_runs, render_comparison
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory
from tests.support.run_factory import make_run

VANILLA = {"weighting.exponent": 0.0}


def two_runs(path: Path, gain: float = 0.2) -> tuple[RunDirectory, RunDirectory]:
    return (
        make_run(path / "a", num_train=8, num_test=300, gains={"east": gain}),
        make_run(path / "b", num_train=8, num_test=300, seed=1),
    )


def change(run: RunDirectory, column: str, value: str) -> None:
    """Give the first test question another value."""
    table = run.read_table("questions", "test.parquet")
    values = [value, *table[column].to_pylist()[1:]]
    run.write_table(
        table.set_column(table.column_names.index(column), column, pa.array(values)), "questions", "test.parquet"
    )


def configure(run: RunDirectory, section: str, **settings: object) -> None:
    config = run.read_json("config.json")
    run.write_json({**config, section: {**config[section], **settings}}, "config.json")


def test_arms_of_two_runs_are_paired_by_name_under_holms_correction(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path, gain=0.5)
    pairs, notes, confidence = compare_runs(a.uri, b.uri)
    assert [pair.name for pair in pairs] == ["vanilla", "east"]
    assert (notes, confidence) == ([], 0.95)
    for pair in pairs:
        right = [run.read_table(f"round-00/arms/{pair.name}/evaluation/eval.parquet")["correct"] for run in (a, b)]
        gained = sum(x and not y for x, y in zip(*(r.to_pylist() for r in right), strict=True))
        lost = sum(y and not x for x, y in zip(*(r.to_pylist() for r in right), strict=True))
        assert (pair.difference.gained, pair.difference.lost) == (gained, lost)
        assert pair.difference.estimate == pytest.approx(pair.accuracies[0] - pair.accuracies[1])
        assert pair.difference.p_value >= stats.binomtest(gained, gained + lost).pvalue - 1e-12
        assert pair.difference.comparisons == 2
    east = pairs[1].difference
    assert east.p_adjusted < 1e-6


@pytest.mark.parametrize("ending", ["", "/", "/model", "/evaluation"])
def test_two_models_of_one_run_are_compared_by_their_directories(tmp_path: Path, ending: str) -> None:
    run, _ = two_runs(tmp_path)
    for name in ("config.json", "training.json"):  # as a trained model's directory has them
        run.write_json({"architectures": []}, f"round-00/arms/east/model/{name}")
    (pair,), _, _ = compare_runs(f"{run.uri}/round-00/arms/east{ending}", f"{run.uri}/base")
    assert pair.name == "east (A), default (B)"
    assert pair.difference.gained > pair.difference.lost


def test_seeds_of_both_runs_are_pooled(tmp_path: Path) -> None:
    arms = [Arm(name=f"east-seed{seed}", set={"run.seed": seed}) for seed in (0, 1)]
    a, b = (make_run(tmp_path / str(s), num_train=8, num_test=100, arms=arms, seed=s) for s in (0, 1))
    (pair,), _, _ = compare_runs(a.uri, b.uri)
    assert pair.name == "east"
    accuracies = [
        a.read_json(f"round-00/arms/{arm.name}/evaluation/metrics.json")["overall"]["accuracy"] for arm in arms
    ]
    assert pair.accuracies[0] == pytest.approx(sum(accuracies) / 2)


def test_the_command_prints_a_table_and_a_sentence_with_the_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two_runs(tmp_path)
    assert main(["compare", f"{a.uri}/round-00/arms/east", f"{b.uri}/round-00/arms/east"]) == 0
    text = capsys.readouterr().out
    assert "Accuracy on 300 questions, 95% CI" in text
    assert "east: A \u2212 B = " in text


def test_the_table_fits_eighty_columns(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(render_comparison(a.uri, b.uri))
    text = console.export_text()
    assert "\u2026" not in text
    assert "95% CI" in text


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("question_id", r"different questions \(1 only in A, 1 only in B, e\.g\. 'test-00000'\)"),
        ("question", "different questions for 1 questions, e.g. 'test-00000'"),
        ("reference", "different reference answers for 1 questions"),
        ("prompt_hash", "different prompts for 1 questions"),
    ],
)
def test_what_was_not_asked_alike_is_refused_by_name(tmp_path: Path, column: str, message: str) -> None:
    a, b = two_runs(tmp_path)
    change(b, column, "other")
    if column == "question_id":
        for directory in ("base", "round-00/arms/vanilla", "round-00/arms/east"):
            table = b.read_table(directory, "evaluation", "eval.parquet")
            ids = ["other", *table["question_id"].to_pylist()[1:]]
            b.write_table(
                table.set_column(0, table.schema.field(0), pa.array(ids)), directory, "evaluation", "eval.parquet"
            )
    with pytest.raises(UserError, match=message):
        compare_runs(a.uri, b.uri)


def test_another_grader_is_refused_with_the_setting_that_differs(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    configure(b, "grading", cluster="string")
    with pytest.raises(UserError, match=r"different graders \(grading\.cluster = canonical and string\)"):
        compare_runs(a.uri, b.uri)


def test_what_cannot_be_paired_is_listed(tmp_path: Path) -> None:
    arms = [Arm(name="vanilla", set=VANILLA), Arm(name="other")]
    a, _ = two_runs(tmp_path)
    with pytest.raises(UserError, match=r"neither a run directory nor inside one"):
        compare_runs(a.uri, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no evaluation"):
        compare_runs(a.uri, f"{a.uri}/round-00/arms/nobody")
    c = make_run(tmp_path / "c", num_train=8, num_test=300, arms=[Arm(name="x"), Arm(name="y", set=VANILLA)])
    d = make_run(tmp_path / "d", num_train=8, num_test=300, arms=arms)
    RunDirectory(c.uri).delete("base")
    with pytest.raises(UserError, match="nothing to pair: A has x, y, B has default, vanilla, other; name one model"):
        compare_runs(c.uri, d.uri)
