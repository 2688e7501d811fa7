"""The run directory: whole files or none, manifests that decide, refusals that name what changed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory, fingerprint, fingerprint_source


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot write"):
        RunDirectory(str(tmp_path / "run")).write_bytes(b"x", "a", "b")


def test_a_file_in_the_place_of_a_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a directory")
    with pytest.raises(UserError, match="cannot write"):
        RunDirectory(str(tmp_path / "run")).write_bytes(b"x", "a", "b")


def test_a_failed_write_leaves_the_old_file_and_no_scrap(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_bytes(b"old", "file")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        run.write_bytes(b"new", "file")
    assert run.read_bytes("file") == b"old"
    assert run.list() == ["file"]


def test_tables_come_back_from_one_file_or_a_directory_in_name_order(run: RunDirectory) -> None:
    run.write_table(pa.table({"a": [1]}), "t", "shard-00000.parquet")
    run.write_table(pa.table({"a": [2]}), "t", "shard-00001.parquet")
    assert run.read_table("t", "shard-00001.parquet")["a"].to_pylist() == [2]
    assert run.read_table("t")["a"].to_pylist() == [1, 2]


def test_deleting_what_is_not_there_is_no_error(run: RunDirectory) -> None:
    run.delete("nothing")
    assert run.list("nothing") == []


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)))
def test_fingerprints_ignore_key_order_and_tuples(value: dict) -> None:
    turned = dict(reversed(list(value.items())))
    turned = {key: tuple(item) if isinstance(item, list) else item for key, item in turned.items()}
    assert fingerprint(value) == fingerprint(turned)


def test_models_of_one_shape_with_other_weights_have_other_fingerprints(tmp_path: Path) -> None:
    for name, byte in (("a", b"\x01"), ("b", b"\x02")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(byte * 100_000)
    assert fingerprint_source(str(tmp_path / "a")) != fingerprint_source(str(tmp_path / "b"))
    assert fingerprint_source(str(tmp_path / "a")) == fingerprint_source(str(tmp_path / "a"))


def test_metrics_are_appended_line_by_line(run: RunDirectory) -> None:
    run.append_metrics(step="a")
    run.append_metrics(step="b")
    assert run.read_bytes("metrics.jsonl").count(b"\n") == 2


def test_finished_steps_of_older_runs_name_their_artifacts_too(run: RunDirectory) -> None:
    run.append_metrics(step="sample", parts=["round-00/samples"], seconds=1.0)
    run.append_metrics(step="weigh", artifacts=["round-00/weights"], seconds=2.0)
    assert [row["artifacts"] for row in run.finished_steps()] == [["round-00/samples"], ["round-00/weights"]]
