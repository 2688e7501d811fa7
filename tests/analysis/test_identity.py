"""The identity audit on runs made by hand: equal ids are counted, and anything else fails loudly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from east_ray.analysis.identity import identity
from east_ray.records import EXAMPLES, SAMPLES, UserError
from east_ray.rollouts.shards import write_samples
from east_ray.runs.directory import RunDirectory

SAMPLED = {"q0": [[5, 6, 2], [7, 2]], "q1": [[8, 9], [5, 6, 2]]}


def finish(run: RunDirectory, directory: str, **facts: Any) -> None:
    run.write_json({"inputs": {}, "settings": {}, "fingerprint": "", "facts": facts}, directory, "manifest.json")
    run.append_metrics(step="x", artifacts=[directory], seconds=1.0)


def samples_table(question_id: str, ids: list[list[int]]) -> pa.Table:
    """One question's completions, of these ids."""
    row = {
        "question_id": question_id,
        "reference": "1",
        "prompt_hash": "0" * 16,
        "prompt_tokens": 3,
        "completions": ["x"] * len(ids),
        "finish_reasons": ["stop"] * len(ids),
        "completion_tokens": [len(row) for row in ids],
        "completion_ids": ids,
        "shortfall": None,
    }
    return pa.Table.from_pylist([row], SAMPLES)


def make_run(path: Path, chosen: list[Any], rejected: list[Any], **training: float) -> RunDirectory:
    run = RunDirectory(str(path))
    for i, (question_id, ids) in enumerate(SAMPLED.items()):
        write_samples(run, samples_table(question_id, ids), "round-00/samples", i, len(ids), "loaded")
    rows = [
        {"question_id": q, "prompt": "", "chosen": "", "rejected": "", "chosen_ids": good, "rejected_ids": bad}
        for q, good, bad in zip(SAMPLED, chosen, rejected, strict=True)
    ]
    run.write_table(pa.Table.from_pylist(rows, EXAMPLES["dpo"]), "round-00/examples", "dpo.parquet")
    for name in ("samples", "examples"):
        finish(run, f"round-00/{name}")
    finish(run, "round-00/arms/east/training", **training)
    evaluation = "round-00/arms/east/evaluation"
    write_samples(run, samples_table("t0", [[5, 2]]), f"{evaluation}/samples", 0, 1, "exchanged")
    finish(run, evaluation)
    return run


def test_trained_ids_that_were_sampled_are_counted_with_exchanges_and_the_weights_error(tmp_path: Path) -> None:
    found = identity(make_run(tmp_path / "run", [[5, 6, 2], [8, 9]], [[7, 2], [5, 6, 2]], weight_error=3e-8))
    found.check()
    assert found.render() == (
        "identity   4 of 4 trained completions are the sampled token ids; shards sampled with weights as loaded: 2, "
        "exchanged and verified: 1; weights at the gradient: at most 3e-08 off"
    )


@pytest.mark.parametrize(
    "ids", [[7], [7, 2, 2], [8, 9]], ids=["end token lost", "another one added", "of another question"]
)
def test_ids_that_were_not_sampled_fail(ids: list[int], tmp_path: Path) -> None:
    found = identity(make_run(tmp_path / "run", [ids, [8, 9]], [[7, 2], [5, 6, 2]]))
    assert found.sampled == 3
    with pytest.raises(UserError, match="3 of 4 trained completions"):
        found.check()


def test_the_ids_that_an_arm_was_given_count_and_not_those_it_should_have_been_given(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[5, 6, 2], [8, 9]], [[7, 2], [5, 6, 2]])
    given = {"question_id": list(SAMPLED), "chosen_ids": [[5, 6, 2], [8, 9, 2]], "rejected_ids": [[7, 2], [5, 6, 2]]}
    run.write_table(pa.table(given), "round-00/examples/tokens", "dpo-0123.parquet")
    assert identity(run).sampled == 3


def test_imported_text_is_counted_apart(tmp_path: Path) -> None:
    found = identity(make_run(tmp_path / "run", [None, [8, 9]], [None, [5, 6, 2]]))
    found.check()
    assert "2 of 2 trained completions are the sampled token ids (2 more came as text)" in found.render()
    assert math.isnan(found.weight_error)
    assert "not recorded" in found.render()


def test_weights_that_reached_the_gradient_rounded_fail(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [[5, 6, 2], [8, 9]], [[7, 2], [5, 6, 2]], weight_error=2.9e-3)
    with pytest.raises(UserError, match=r"at most 0\.003 off"):
        identity(run).check()


def test_a_run_from_before_ids_were_kept_is_text(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "run"))
    old = {"question_id": ["q0"], "prompt": [""], "completion": ["5"]}
    run.write_table(pa.table(old), "round-00/examples", "sft.parquet")
    finish(run, "round-00/examples")
    found = identity(run)
    assert (found.trained, found.as_text) == (1, 1)
    found.check()
