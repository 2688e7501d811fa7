"""Faulty files and disks: a command ends with one message that says what to do, and loses nothing finished."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from east_ray import cli
from east_ray.config.load import load
from east_ray.config.sections import GradingConfig, QuestionsConfig
from east_ray.questions.questions import load_questions
from east_ray.records import SAMPLES, UserError, check_schema
from east_ray.rollouts import shards
from east_ray.runs.artifacts import Artifact
from east_ray.runs.directory import RunDirectory
from tests.support.run_factory import make_run
from tests.support.small_run import artefacts, write_config

Command = Callable[..., str]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
BAD_BYTES = {
    "empty": b"",
    "NUL bytes": b"\x00" * 50,
    "no UTF-8": b"\xff\xfe\x80 question",
    "truncated": b'{"question": "a", "ans',
    "deep nesting": b'{"question": ' + b"[" * 200_000,
    "one huge line": b'{"question": "' + b"x" * (1 << 20),
    "a number of many digits": b'{"question": "a", "answer": ' + b"9" * 5000 + b"}",
    "half a surrogate pair": b'{"question": "\\ud800", "answer": "1"}',
    "a list": b"[1, 2, 3]",
}


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must fail: returns its one message, and makes sure that there is no traceback."""

    def call(*arguments: object) -> str:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        shown = capfd.readouterr().err
        assert code in (1, 2), shown
        assert "Traceback" not in shown
        messages = [line for line in shown.splitlines() if line.startswith("east-ray: ")]
        assert len(messages) == 1, shown
        return messages[0]

    return call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.toml", str(tmp_path / "run"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looks finished, to be copied before it is harmed."""
    path = tmp_path_factory.mktemp("finished") / "run"
    make_run(path, num_train=40, num_test=40)
    return path


def make_unusable(path: Path, how: str) -> None:
    """Put something into the place of a file that cannot be read as one."""
    if how == "directory":
        path.mkdir()
    elif how == "dangling link":
        path.symlink_to(path.parent / "nowhere")
    elif how == "loop of links":
        path.symlink_to(path)
    else:
        path.write_bytes(BAD_BYTES[how])


UNUSABLE = [*BAD_BYTES, "directory", "dangling link", "loop of links"]


@pytest.mark.parametrize("how", [how for how in UNUSABLE if how != "empty"])
def test_a_config_file_that_cannot_be_used_is_named(how: str, fails: Command, tmp_path: Path) -> None:
    make_unusable(tmp_path / "mine.toml", how)
    assert "mine.toml" in fails("config", tmp_path / "mine.toml")


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "\x00", "{", '"""', "1979-13-45", "\ud800", ""])
@pytest.mark.parametrize(
    "key", ["sampling.num_samples", "model.path.deep.er", "..", "", "arms", "sampling.engine_args.x"]
)
def test_no_override_ends_in_a_traceback(key: str, value: str, config: Path) -> None:
    try:
        load(config, [f"{key}={value}"])
    except UserError as error:
        assert len(str(error)) < 2000


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_of_a_config_file_escape_as_anything_but_a_user_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(data)
    with pytest.raises(UserError, match=r"mine\.toml"):
        load(tmp_path / "mine.toml")


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_question_file_that_cannot_be_used_is_named(how: str, fails: Command, config: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    make_unusable(mine, how)
    assert "mine.jsonl" in fails("questions", config, "--set", f"questions.train={mine}")
    shutil.rmtree(mine) if how == "directory" else mine.unlink()
    mine.write_text('{"question": "What is 1 + 1?", "answer": 2}\n')  # mended, it is taken at once
    assert cli.main(["questions", str(config), "--set", f"questions.train={mine}"]) == 0


@pytest.mark.parametrize("how", UNUSABLE)
@pytest.mark.parametrize("ending", ["parquet", "jsonl.gz"])
def test_a_compressed_question_file_that_cannot_be_used_is_named(how: str, ending: str, tmp_path: Path) -> None:
    make_unusable(tmp_path / f"mine.{ending}", how)
    with pytest.raises(UserError, match=rf"mine\.{ending}"):
        load_questions(str(tmp_path / f"mine.{ending}"), QuestionsConfig(train="unused"))


@pytest.mark.parametrize(
    "columns",
    [
        {"question": pa.array([b"\xff\xfe"], pa.binary()), "answer": ["1"]},
        {"question": pa.array(["a"]), "answer": pa.array([{"x": 1}])},
        {"question": pa.array([1]), "answer": ["1"]},
        {"question": pa.array([None], pa.string()), "answer": ["1"]},
        {"question": pa.array([b"\xff"]).view(pa.binary()).cast(pa.string(), safe=False), "answer": ["1"]},
        {"id": ["k", "k"], "question": ["a", "b"], "answer": ["1", "2"]},
        {"text": ["a"]},
        {"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())},
    ],
)
def test_a_parquet_file_of_the_wrong_content_is_named(columns: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match=r"mine\.parquet"):
        load_questions(str(tmp_path / "mine.parquet"), QuestionsConfig(train="unused"))


@given(st.dictionaries(st.sampled_from(["id", "question", "answer", "level", "x"]), JSON, max_size=4), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_row_of_a_question_file_escapes_as_anything_but_a_user_error(tmp_path: Path, row: dict, skip: bool) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    columns = QuestionsConfig(train="unused", skip_without_reference=skip)
    try:
        (question,) = load_questions(str(tmp_path / "mine.jsonl"), columns)
        question.question.encode()
    except UserError as error:
        assert "mine.jsonl" in str(error)


@pytest.mark.parametrize(
    "refused",
    [
        ["questions", "--set", "questions.answer_column=solution"],
        ["select", "--set", "training.max_steps=7"],
        ["run", "--set", "training.max_steps=7", "--restart-from", "selct"],
    ],
)
def test_a_refused_command_leaves_the_recorded_settings_as_they_were(
    refused: list[str], fails: Command, config: Path, tmp_path: Path
) -> None:
    assert cli.main(["questions", str(config)]) == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    fails(refused[0], config, *refused[1:])
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize("how", [how for how in UNUSABLE if how != "empty"])
def test_samples_that_cannot_be_imported_leave_the_run_as_it_was(
    how: str, fails: Command, config: Path, tmp_path: Path
) -> None:
    assert cli.main(["questions", str(config)]) == 0
    before = artefacts(str(tmp_path / "run"))
    make_unusable(tmp_path / "mine.jsonl", how)
    assert "mine.jsonl" in fails("import-samples", config, tmp_path / "mine.jsonl")
    assert artefacts(str(tmp_path / "run")) == before
    line = json.loads((Path(load(config).questions.train)).read_text().splitlines()[0])
    shutil.rmtree(tmp_path / "mine.jsonl") if how == "directory" else (tmp_path / "mine.jsonl").unlink()
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": line["question"], "responses": ["\\boxed{1}"]}))
    assert cli.main(["import-samples", str(config), str(tmp_path / "mine.jsonl")]) == 0


def test_a_second_import_says_what_is_there_and_how_to_replace_it(fails: Command, config: Path, tmp_path: Path) -> None:
    line = json.loads((Path(load(config).questions.train)).read_text().splitlines()[0])
    for name in ("mine", "other"):
        completions = {"question": line["question"], "responses": [f"{name} \\boxed{{1}}"]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(completions))
    assert cli.main(["import-samples", str(config), str(tmp_path / "mine.jsonl")]) == 0
    assert cli.main(["import-samples", str(config), str(tmp_path / "mine.jsonl")]) == 0
    message = fails("import-samples", config, tmp_path / "other.jsonl")
    assert "holds completions imported from mine.jsonl as it was, so" in message
    assert "restart-from" not in message
    shutil.rmtree(tmp_path / "run" / "round-00")
    assert cli.main(["import-samples", str(config), str(tmp_path / "other.jsonl")]) == 0


def test_importing_into_a_sampled_run_says_so(fails: Command, config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    assert cli.main(["questions", str(config)]) == 0
    sampled = {"inputs": {"questions": "0"}, "settings": {"temperature": 1.0}}
    RunDirectory(str(tmp_path / "run")).write_json(sampled, "round-00", "samples", "intent.json")
    assert "holds completions that were sampled, so" in fails("import-samples", config, tmp_path / "mine.jsonl")


def test_a_setting_whose_default_changed_since_can_be_kept_by_name(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    old = Artifact(run, "round-00/grades", GradingConfig(answer_tags=False).identity())
    old.begin()
    old.complete()
    with pytest.raises(
        UserError, match=r"grading\.answer_tags = False, now it is True\. Keep it with --set grading\.answer_tags=false"
    ):
        _ = Artifact(run, "round-00/grades", GradingConfig().identity()).is_finished


@pytest.mark.parametrize("name", ["manifest.json", "intent.json"])
@pytest.mark.parametrize("how", [how for how in UNUSABLE if "link" not in how])  # to nowhere: there is no record
def test_a_record_that_cannot_be_used_says_to_delete_it_and_touches_nothing(
    name: str, how: str, fails: Command, config: Path, tmp_path: Path
) -> None:
    assert cli.main(["questions", str(config)]) == 0
    before = artefacts(str(tmp_path / "run"))
    record = tmp_path / "run" / "questions" / name
    record.unlink()
    make_unusable(record, how)
    message = fails("questions", config)
    assert name in message
    assert "delete it and run the same command again" in message
    shutil.rmtree(record) if how == "directory" else record.unlink()
    assert cli.main(["questions", str(config)]) == 0
    assert artefacts(str(tmp_path / "run")) == before


RECORDS = st.fixed_dictionaries(
    {"inputs": JSON, "fingerprint": st.text(), "facts": st.just({})}
    | {"settings": JSON | st.fixed_dictionaries({"num_samples": JSON})}
)


@given(JSON | RECORDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_manifest_escapes_as_anything_but_a_user_error(tmp_path: Path, record: Any) -> None:
    run = RunDirectory(str(tmp_path))
    run.write_json(record, "weights", "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json is damaged|was made with"):
        _ = Artifact(
            run, "weights", {"num_samples": 4}, {"grades": "a"}, extendable=frozenset({"num_samples"})
        ).is_finished


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("config.json", how) for how in UNUSABLE),
        ("provenance.json", "truncated"),
        ("round-00/grades/shard-00000.parquet", "truncated"),
        ("questions/train.parquet", "empty"),
        ("base/evaluation/metrics.json", "NUL bytes"),
    ],
)
def test_a_run_with_an_unusable_file_is_reported_as_such(
    name: str, how: str, fails: Command, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    make_unusable(tmp_path / "run" / name, how)
    assert name in fails("report", tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()


@given(st.binary(max_size=100), st.integers(0, 400))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_shard_cut_off_or_overwritten_anywhere_is_named(finished: Path, tmp_path: Path, data: bytes, at: int) -> None:
    run = RunDirectory(str(tmp_path))
    whole = (finished / "round-00" / "grades" / "shard-00000.parquet").read_bytes()
    run.write_bytes(whole[:at] + data, "grades", "shard-00000.parquet")
    for read in (shards.read_shard_and_footer, shards.read_footer):
        with pytest.raises(UserError, match=r"shard-00000\.parquet is damaged .*delete it"):
            read(run, "grades", 0)


def test_a_table_without_its_columns_names_them_and_the_place() -> None:
    with pytest.raises(UserError, match=r"somewhere lacks the columns \['finish_reasons', .*restart"):
        check_schema(
            pa.table({"question_id": ["a"], "completions": [["b"]]}), SAMPLES.remove(1).remove(1).remove(1), "somewhere"
        )


@pytest.fixture
def refusing_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on files can neither be made nor replaced, with the error of that number. Works for root too."""

    def refuse(number: int) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)
        monkeypatch.setattr(os, "replace", fail)

    return refuse


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_more_is_said_and_loses_nothing(
    number: int,
    fails: Command,
    config: Path,
    tmp_path: Path,
    refusing_disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cli.main(["questions", str(config)]) == 0
    before = artefacts(str(tmp_path / "run"))
    refusing_disk(number)
    message = fails("questions", config)
    monkeypatch.undo()
    assert os.strerror(number) in message
    assert "run the same command again" in message
    assert artefacts(str(tmp_path / "run")) == before
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert cli.main(["questions", str(config)]) == 0


@pytest.mark.parametrize("number", sorted(cli.DISK))
def test_a_disks_refusal_to_any_library_is_one_message(
    number: int, fails: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a worker failed") from OSError(number, os.strerror(number), "/run/model.safetensors")

    monkeypatch.setattr(cli, "_load", fail)
    message = fails("config", config)
    assert "/run/model.safetensors" in message
    assert cli.DISK[number] in message


def test_a_command_whose_raylet_was_killed_says_that_it_can_go_on(
    fails: Command, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray 2.60 then said of an actor beside the driver."""
    from ray.core.generated.common_pb2 import ActorDiedErrorContext
    from ray.exceptions import ActorDiedError

    said = "The actor is dead because its owner has died. Worker exit detail: Owner's node has crashed."

    def fail(*_: Any) -> None:
        raise ActorDiedError(ActorDiedErrorContext(error_message=said, actor_id=bytes(16)))

    monkeypatch.setattr(cli, "_load", fail)
    assert "(raylet) ended" in fails("config", config)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this machine lets us mount one."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_what_is_finished_and_goes_on_once_there_is_room(
    small_disk: Path, fails: Command, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.toml", str(small_disk / "run"))
    (small_disk / "filler").write_bytes(b"x" * (240 << 10))
    assert "No space left" in fails("questions", config, "--set", "questions.test_limit=2000")
    assert not list(small_disk.rglob("*.tmp"))
    (small_disk / "filler").unlink()
    assert cli.main(["questions", str(config), "--set", "questions.test_limit=2000"]) == 0


def test_a_read_only_disk_is_said(small_disk: Path, fails: Command, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.toml", str(small_disk / "run"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "not writable: Read-only file system; choose another" in fails("questions", config)


def test_a_limit_on_file_sizes_is_said_and_no_half_file_stays(config: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does; then writes fail instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, 8 << 10))

    done = subprocess.run(
        [sys.executable, "-m", "east_ray", "questions", str(config)],
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},  # it writes files
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(re.findall("^east-ray: .*File too large.*run the same command again", done.stderr, re.MULTILINE)) == 1
    assert not list((tmp_path / "run").rglob("*.parquet*"))
