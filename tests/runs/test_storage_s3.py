"""A run directory on an S3-compatible server and on disk: whole files, kills, resume, node-local copies, clear errors."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from east_ray.config.sections import ModelConfig
from east_ray.preflight.model_size import read_architecture
from east_ray.records import UserError
from east_ray.rollouts import shards
from east_ray.runs import node_copies, storage
from east_ray.runs.artifacts import Artifact
from east_ray.runs.directory import RunDirectory, fingerprint_source
from east_ray.runs.storage import Directory
from tests.support.ray_processes import BIN, ENVIRONMENT, short_directory
from tests.support.s3_server import S3Server, s3_server
from tests.support.small_run import artefacts, is_whole, write_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


@pytest.fixture
def s3_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server for this process and those it starts."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    storage._open_bucket.cache_clear()  # the environment may have named another server


@pytest.fixture
def s3_uri(s3_environment: None) -> str:
    return f"s3://east/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def options_uri(server: S3Server) -> str:
    return f"s3://test:test@east/{uuid.uuid4().hex[:8]}?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.port}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(node_copies.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["local", "environment", "options"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    if request.param == "local":
        return RunDirectory(str(tmp_path / "run"))
    return RunDirectory(request.getfixturevalue("s3_uri" if request.param == "environment" else "options_uri"))


def test_what_is_written_is_read_listed_and_deleted_alike_on_disk_and_on_s3(run: RunDirectory) -> None:
    table = pa.table({"question_id": ["a", "b"], "entropy": [0.5, 1.0]})
    assert not run.exists("round-00")
    assert run.list("round-00", "weights") == []
    run.write_json({"seed": 1}, "config.json")
    run.write_table(table, "round-00", "arms", "a=1", "shard-00001.parquet")
    run.write_table(table, "round-00", "arms", "a=1", "shard-00000.parquet")
    run.write_bytes(b"done", "round-00", "arms", "a=1", "manifest.json")
    again: RunDirectory = pickle.loads(pickle.dumps(run))
    assert again.read_json("config.json") == {"seed": 1}
    assert again.list("round-00/arms/a=1", suffix=".parquet") == ["shard-00000.parquet", "shard-00001.parquet"]
    assert again.read_table("round-00/arms/a=1", "shard-00000.parquet") == table
    assert again.read_table("round-00/arms/a=1") == pa.concat_tables([table, table])
    assert again.read_table("round-00/arms/a=1", columns=["entropy"]).column_names == ["entropy"]
    assert again.exists("round-00/arms/a=1/manifest.json")
    again.delete("round-00/arms/a=1")
    again.delete("round-00/arms/a=1")
    assert not again.exists("round-00/arms/a=1")
    assert again.exists("config.json")


def test_an_artifact_is_finished_only_with_its_manifest_and_metrics_lines_accumulate(run: RunDirectory) -> None:
    weights = Artifact(run, "round-00/weights", {"exponent": 1.0}, {"grades": "f0"})
    assert not weights.is_finished
    weights.begin()
    with pytest.raises(UserError, match=r"exponent = 1\.0, now it is 2\.0"):
        _ = Artifact(run, "round-00/weights", {"exponent": 2.0}, {"grades": "f0"}).is_finished
    weights.complete()
    assert weights.is_finished
    run.append_metrics(step="weigh", kept=3)
    run.append_metrics(step="train", loss=0.1)
    assert run.read_bytes("metrics.jsonl").count(b"\n") == 2


def test_a_kill_while_an_artifact_is_deleted_leaves_it_unfinished(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    Artifact(run, "samples").complete()
    monkeypatch.setattr(storage.Directory, "delete_directory", killed)
    with pytest.raises(KeyboardInterrupt):
        run.delete("samples")
    assert not Artifact(run, "samples").is_finished


def test_a_write_killed_half_way_leaves_the_old_file_and_nothing_beside_it(s3_uri: str) -> None:
    run = RunDirectory(s3_uri)
    run.write_bytes(b"old", "samples", "shard-00000.parquet")
    script = """
        import sys, time
        from east_ray.runs.storage import Directory
        file = Directory(sys.argv[1])
        stream = file.filesystem.open_output_stream(file.root)
        stream.write(b"x" * (24 << 20))
        print("written", flush=True)
        time.sleep(600)
    """
    writer = start(script, f"{s3_uri}/samples/shard-00000.parquet")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert run.list("samples") == ["shard-00000.parquet"]
    assert run.read_bytes("samples", "shard-00000.parquet") == b"old"


def test_a_step_killed_between_two_shards_continues_where_it_was(s3_uri: str) -> None:
    """Each shard is written once: the second process finds three shards, writes the other two, then the manifest."""
    script = """
        import sys, time
        import pyarrow as pa
        from east_ray.runs.artifacts import Artifact
        from east_ray.runs.directory import RunDirectory
        run, last = RunDirectory(sys.argv[1]), int(sys.argv[2])
        samples = Artifact(run, "samples", {"seed": 0})
        assert not samples.is_finished
        samples.begin()
        done = run.list("samples", suffix=".parquet")
        for shard in range(5):
            name = f"shard-{shard:05d}.parquet"
            if name not in done:
                run.write_table(pa.table({"shard": [shard]}), "samples", name)
                print(name, flush=True)
            if shard == last:
                print("killed here", flush=True)
                time.sleep(600)
        samples.complete(shards=5)
    """
    first = start(script, s3_uri, "2")
    assert first.stdout is not None
    written = [line.strip() for line in iter(first.stdout.readline, "killed here\n")]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not RunDirectory(s3_uri).exists("samples", "manifest.json")
    second = start(script, s3_uri, "-1")
    resumed = second.communicate()[0].split()
    assert second.returncode == 0
    assert written == [f"shard-{shard:05d}.parquet" for shard in range(3)]
    assert resumed == [f"shard-{shard:05d}.parquet" for shard in range(3, 5)]
    assert RunDirectory(s3_uri).read_table("samples")["shard"].to_pylist() == [0, 1, 2, 3, 4]
    assert Artifact(RunDirectory(s3_uri), "samples", {"seed": 0}).is_finished


def test_a_model_uploaded_from_one_node_is_copied_once_to_another(s3_uri: str, cache: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "saved", weight=b"1" * (9 << 20))
    run = RunDirectory(s3_uri)
    run.upload(str(model), "round-00", "arms", "east", "model")
    first = run.local_copy("round-00/arms/east/model")
    assert contents(Path(first)) == contents(model)
    (Path(first) / "mark").touch()  # would be gone if the second call fetched again
    assert run.local_copy("round-00/arms/east/model") == first
    assert (Path(first) / "mark").exists()


def test_a_model_written_anew_is_copied_anew(s3_uri: str, cache: Path, tmp_path: Path) -> None:
    run = RunDirectory(s3_uri)
    run.upload(str(make_model(tmp_path / "one", weight=b"1")), "model")
    first = run.local_copy("model")
    run.upload(str(make_model(tmp_path / "two", weight=b"22")), "model")
    second = run.local_copy("model")
    assert first != second
    assert (Path(second) / "model.safetensors").read_bytes() == b"22"


def test_processes_that_ask_for_a_copy_at_the_same_time_get_a_whole_one_that_was_fetched_once(
    server: S3Server, s3_uri: str, cache: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "saved", weight=b"1" * (20 << 20))
    RunDirectory(s3_uri).upload(str(model), "model")
    script = """
        import sys
        from east_ray.runs.storage import Directory
        print(Directory(sys.argv[1]).local_copy("model"))
    """
    requests = []
    for processes in (1, 1, 3):
        server.clear()
        answers = [p.communicate()[0].strip() for p in [start(script, s3_uri) for _ in range(processes)]]
        requests.append(server.requests["GET"])
        assert len(set(answers)) == 1
        assert contents(Path(answers[0])) == contents(model)
        assert [path.name for path in (cache / "copies").iterdir()] == [Path(answers[0]).name]
        if len(requests) == 2:
            shutil.rmtree(answers[0])
    fetching, asking = requests[:2]
    assert fetching > asking
    assert requests[2] == fetching + 2 * asking


def test_questions_or_a_model_changed_on_the_store_have_another_fingerprint(s3_uri: str, tmp_path: Path) -> None:
    run = RunDirectory(s3_uri)
    run.write_bytes(b"{}", "train.jsonl")
    run.upload(str(make_model(tmp_path / "saved", weight=b"1")), "model")
    names = ("train.jsonl", "model")
    before = [fingerprint_source(run.uri_of(name)) for name in names]
    assert before == [fingerprint_source(run.uri_of(name)) for name in names]
    run.write_bytes(b"{} ", "train.jsonl")
    run.write_bytes(b"22", "model", "model.safetensors")
    assert not set(before) & {fingerprint_source(run.uri_of(name)) for name in names}


def test_copies_that_no_process_reads_make_room_and_one_that_a_process_reads_stays(
    s3_uri: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sweep of LoRA arms: an engine reads one merged model after another, and the disk has room for two."""
    run, copies = RunDirectory(s3_uri), cache / "copies"
    for name in ("base", "one", "two", "three"):
        run.upload(str(make_model(tmp_path / name, weight=name.encode())), name)
    script = """
        import sys, time
        from east_ray.runs.storage import Directory
        print(Directory(sys.argv[1]).local_copy("base"), flush=True)
        time.sleep(600)
    """
    trainer = start(script, s3_uri)
    assert trainer.stdout is not None
    base = Path(trainer.stdout.readline().strip())
    (copies / ".begun").mkdir()  # by a process that was killed
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=40 * (len(list(copies.iterdir())) < 3)))
    for name in ("one", "two"):
        copy = Path(run.local_copy(name))
        assert set(copies.iterdir()) == {base, copy}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=rf"three needs .* set {node_copies.CACHE_VARIABLE}"):
        run.local_copy("three")
    assert list(copies.iterdir()) == [base]
    trainer.kill()
    trainer.wait()


def test_local_directories_and_hub_names_need_no_copy(tmp_path: Path) -> None:
    assert RunDirectory(str(tmp_path)).local_copy("model") == str(tmp_path / "model")
    assert storage.Directory("meta-llama/Llama-3.2-1B-Instruct").local_copy() == "meta-llama/Llama-3.2-1B-Instruct"


def test_a_model_on_the_store_is_as_big_as_its_copy_on_disk(s3_uri: str, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        read_architecture(ModelConfig(path=s3_uri))
    storage.Directory(s3_uri).upload(str(tiny_model))
    assert read_architecture(ModelConfig(path=s3_uri)) == read_architecture(ModelConfig(path=str(tiny_model)))


def test_a_model_that_is_not_there_is_named(s3_uri: str, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model holds no files"):
        RunDirectory(s3_uri).local_copy("model")


@pytest.mark.parametrize(
    "action",
    [
        lambda run: run.write_json({}, "config.json"),
        lambda run: Artifact(run, "samples").begin(),
        lambda run: run.append_metrics(step="x"),
    ],
)
def test_a_bucket_that_does_not_exist_is_a_user_error(action: Callable[[RunDirectory], None], s3_uri: str) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket/run/\S+: .*NO_SUCH_BUCKET.*`aws s3 ls`"):
        action(RunDirectory("s3://no-such-bucket/run"))


def test_a_server_that_is_not_there_is_a_user_error_at_once_without_the_secret() -> None:
    run = RunDirectory("s3://key:hush@east/run?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:1")
    with pytest.raises(UserError, match=r"s3://east/run: .*connect") as caught:
        run.check_reachable()
    assert "hush" not in str(caught.value)


ACTIONS: dict[str, Callable[[RunDirectory], object]] = {
    "exists": lambda run: run.exists("there"),
    "list": lambda run: run.list("kept"),
    "read": lambda run: run.read_bytes("there"),
    "read a table": lambda run: run.read_table("kept"),
    "write": lambda run: run.write_bytes(b"x", "new"),
    "upload": lambda run: run.upload(str(ROOT / "jobs"), "jobs"),
    "fetch": lambda run: Directory(run.uri_of("kept")).local_copy(),
    "delete": lambda run: run.delete("kept"),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_store_that_refuses_for_a_while_is_asked_again(
    action: str, server: S3Server, s3_uri: str, cache: Path
) -> None:
    run: RunDirectory = pickle.loads(pickle.dumps(RunDirectory(s3_uri)))
    run.write_bytes(b"x", "there")
    run.write_table(pa.table({"a": [1]}), "kept", "shard-00000.parquet")
    server.refuse(6)
    ACTIONS[action](run)
    assert server.refusals_left == 0


def test_a_filesystem_given_to_ray_is_as_patient(server: S3Server, s3_uri: str) -> None:
    run = RunDirectory(s3_uri)
    filesystem = pickle.loads(pickle.dumps(run.filesystem))
    server.refuse(6)
    with filesystem.open_output_stream(run.path("checkpoint")) as stream:
        stream.write(b"x")
    assert run.read_bytes("checkpoint") == b"x"


READS: dict[str, Callable[[RunDirectory], object]] = {
    "exists": lambda run: run.exists("there"),
    "JSON": lambda run: run.read_json("config.json"),
    "a table": lambda run: run.read_table("samples"),
    "a footer": lambda run: shards.read_footer(run, "samples", 0),
    "a count": lambda run: shards.count_questions(run, "questions"),
}


@pytest.mark.parametrize("action", READS)
def test_a_store_that_refuses_for_good_is_a_user_error_after_the_last_retry_and_no_file_is_called_damaged(
    action: str, server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "RETRIES", 2)
    storage._open_bucket.cache_clear()
    server.refuse(float("inf"))
    try:
        with pytest.raises(UserError, match=r"s3://east/\S+: .*HTTP status 503") as error:
            READS[action](RunDirectory(s3_uri))
        assert "delete" not in str(error.value)
    finally:
        server.refuse(0)
        storage._open_bucket.cache_clear()


def test_the_retries_last_longer_than_five_minutes() -> None:
    """Arrow's client waits 25 ms before the first retry and twice as long before each of the others."""
    assert sum(0.025 * 2**retry for retry in range(storage.RETRIES)) > 300


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_store_that_is_away_for_three_minutes_costs_time_and_nothing_else(server: S3Server, s3_uri: str) -> None:
    run = RunDirectory(s3_uri)
    server.refuse(float("inf"))
    back = threading.Timer(180, server.refuse, [0])
    back.start()
    run.write_bytes(b"x", "manifest.json")
    back.join()
    assert run.read_bytes("manifest.json") == b"x"


def test_an_unknown_scheme_is_a_user_error() -> None:
    with pytest.raises(UserError, match="Use a local path, s3://bucket/prefix or gs://bucket/prefix"):
        RunDirectory("swift://bucket/run").exists("config.json")


def test_a_relative_run_directory_means_the_same_for_workers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("runs/x")
    monkeypatch.chdir("/")
    assert run.path("config.json") == str(tmp_path / "runs/x/config.json")


def test_a_submitted_job_refuses_a_relative_run_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="relative, and this is a submitted job"):
        RunDirectory("runs/x")
    assert RunDirectory("s3://bucket/x/").uri == "s3://bucket/x"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_while_sampling_and_while_training_on_an_s3_that_refuses_ends_as_one_on_disk(
    server: S3Server, s3_uri: str, cache: Path, tmp_path: Path
) -> None:
    """The store refuses each request twice before it answers, in every step and every process."""
    on_disk = write_config(tmp_path / "disk.toml", str(tmp_path / "run"))
    on_s3 = write_config(tmp_path / "s3.toml", s3_uri)
    with short_directory() as ray_directory:
        environment = os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(ray_directory)}

        def run(config: Path, killed_at: str | None = None) -> None:
            """`east-ray run`, to its end, or killed with all its processes once the store holds such a file."""
            command = [BIN / "east-ray", "run", str(config)]
            driver = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
            if killed_at is None:
                assert driver.wait() == 0
                return
            while not any(re.search(killed_at, info.path) for info in storage.Directory(s3_uri).files(recursive=True)):
                assert driver.poll() is None, f"it ended before there was a {killed_at}"
                time.sleep(0.2)
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()

        run(on_disk)
        server.stutter(2)
        run(on_s3, killed_at="samples/shard-.*parquet")
        run(on_s3, killed_at="checkpoint-")
        run(on_s3)
    server.stutter(0)
    expected = artefacts(str(tmp_path / "run"))
    assert is_whole(expected)
    assert artefacts(s3_uri) == expected
    trackers = storage.Directory(s3_uri).files("round-00", recursive=True)
    assert [info.path for info in trackers if "/training/tensorboard/" in info.path]


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process of our own that prints to a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def make_model(path: Path, weight: bytes) -> Path:
    (path / "original").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weight)
    (path / "original" / "params.json").write_text('{"dim": 2}')
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
