"""docs/extending.md as it is written: its code blocks run, and do what the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from east_ray.answers import canonical
from east_ray.answers.grading import Grader
from east_ray.config.sections import GradingConfig, SelectionConfig, WeightingConfig
from east_ray.records import CORRECT, GRADES, INCORRECT
from east_ray.runs.directory import RunDirectory
from east_ray.training import inputs, trainers
from east_ray.training.gradient_check import WeightedGradientError, check_weighted_gradient
from east_ray.weighting import weigh
from east_ray.weighting.mappings import WeightMapping
from tests.support.graded import grades_row
from tests.support.rollout_runs import content, make_run, roll_out
from tests.support.training_rows import config, planned, trainer

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def run_block(name: str) -> dict[str, Any]:
    """The names that one block of the page defines."""
    defined: dict[str, Any] = {"__name__": f"docs_extending_{name}"}
    exec(compile(BLOCKS[name], f"docs/extending.md ({name})", "exec", dont_inherit=True), defined)
    return defined


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a block enters into the package is taken out again."""
    kept = [(holder, type(holder)(holder)) for holder in (weigh.MEASURE_FUNCTIONS, trainers.TRAINERS)]
    readers, loss_types = list(canonical.PARSERS), set(inputs.LOSS_TYPES)
    yield
    for holder, before in kept:
        holder.clear()
        holder.update(before)  # type: ignore[arg-type]
    canonical.PARSERS[:] = readers
    inputs.LOSS_TYPES.intersection_update(loss_types)


def test_every_block_of_the_page_is_tried_here() -> None:
    assert PAGE.count("```python") == len(BLOCKS)
    assert set(BLOCKS) == {"measure", "answer", "loss", "engine"}


def test_a_new_measure_is_weighed_like_the_papers(tmp_path: Path) -> None:
    run_block("measure")
    run = RunDirectory(str(tmp_path / "run"))
    answers = {"even": ["gold", "a"], "three": ["gold", "a", "b"], "sure": ["gold", "gold", "gold", "a"]}
    rows = [grades_row(name, given) for name, given in answers.items()]
    run.write_table(pa.Table.from_pylist(rows, schema=GRADES), "grades", "shard-00000.parquet")
    weigh.weigh(
        run,
        grades="grades",
        output="weights",
        mappings=[WeightMapping("disagreement", exponent=2)],
        selection=SelectionConfig(),
        weighting=WeightingConfig(),
    )
    gini = np.array([1 / 2, 2 / 3, 3 / 8])  # by hand
    written = run.read_table("weights", "shard-00000.parquet")["weight_disagreement_power_2"]
    assert written.to_pylist() == pytest.approx(gini**2 / np.mean(gini**2), abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ("3:30 p.m.", "15:30", CORRECT),
        ("3:30 p.m.", r"3{:}30\text{ p.m.}", CORRECT),
        ("12:05 am", "0:05", CORRECT),
        ("9 a.m.", "09:00", CORRECT),
        ("3:30 p.m.", "3:30", INCORRECT),
        ("15:30", "1:2", INCORRECT),
        ("7", "7", CORRECT),
    ],
)
def test_a_new_kind_of_answer_is_graded_by_its_meaning(reference: str, answer: str, verdict: str) -> None:
    run_block("answer")
    with Grader(GradingConfig()) as grader:
        assert grader.equal(reference, answer) == verdict
        assert grader.equal(answer, reference) == verdict


def test_without_its_reader_that_kind_of_answer_is_not_understood() -> None:
    with Grader(GradingConfig()) as grader:
        assert grader.equal("3:30 p.m.", "15:30") != CORRECT


def test_a_new_loss_passes_the_gradient_check_and_trains(tmp_path: Path) -> None:
    run_block("loss")
    training = config("dpo", max_steps=1)
    rows, plan, weights = planned("dpo", 8, training)
    made = trainer(rows, plan, weights, training, tmp_path)
    assert made.args.loss_type == ["hinge"]
    check_weighted_gradient(made)
    made.train()
    assert made.state.log_history[0]["weighted_loss"] == pytest.approx(1, abs=1e-3)  # no margin before the first step


def test_a_formula_that_is_not_the_loss_fails_the_gradient_check(tmp_path: Path) -> None:
    defined = run_block("loss")
    defined["WeightedHingeTrainer"].example_losses = trainers.WeightedTrainer.example_losses  # DPO's, not hinge's
    training = config("dpo", max_steps=1)
    made = trainer(*planned("dpo", 8, training), training, tmp_path)
    with pytest.raises(WeightedGradientError):
        check_weighted_gradient(made)


def test_a_new_engine_serves_rollouts_and_what_it_refuses_is_recorded(ray_session: None, tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    texts = {f"q{i}": [rf"\boxed{{{i % 4}}}", r"\boxed{9}"] for i in range(3)}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    roll_out(
        run,
        open_engine=run_block("engine")["LookUp"],
        num_samples=2,
        questions_per_shard=4,
        behaviour={"file": str(tmp_path / "texts.json")},
    )
    samples = {row["question_id"]: row for rows in content(run, "samples").values() for row in rows}
    grades = {row["question_id"]: row for rows in content(run, "grades").values() for row in rows}
    assert {name: row["completions"] for name, row in samples.items() if row["completions"]} == texts
    assert "the file has 0 of 2 completions" in samples["q3"]["shortfall"]
    assert [grades[name]["verdicts"] for name in texts] == [[CORRECT, INCORRECT]] * 3
