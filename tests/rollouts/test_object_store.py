"""Cost of rollouts on an object store: requests per shard, sampled now or finished before. The server counts them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from east_ray.runs import storage
from east_ray.runs.directory import RunDirectory
from tests.support.rollout_runs import make_run, roll_out
from tests.support.s3_server import S3Server, s3_server

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


def run_on_store(server: S3Server, directory: Path, num_questions: int) -> RunDirectory:
    options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.port}"
    run = RunDirectory(f"s3://test:test@east/{uuid.uuid4().hex[:8]}?{options}")
    table = make_run(directory, num_questions).read_table("questions", "train.parquet")
    run.write_table(table, "questions", "train.parquet")
    return run


def test_a_new_shard_takes_at_most_8_requests_until_it_is_graded_and_a_finished_one_at_most_5(
    server: S3Server, tmp_path: Path
) -> None:
    """The difference between 44 shards and 4 is what a shard takes, without what a set takes. The set is added up in both."""
    new, finished = [], []
    for shards in (4, 44):
        run = run_on_store(server, tmp_path / str(shards), 2 * shards)
        for counts in (new, finished):
            server.clear()
            storage._open_bucket.cache_clear()
            roll_out(run)
            counts.append(server.requests.total())
            _forget_footers()
    per_new, per_finished = ((counts[1] - counts[0]) / 40 for counts in (new, finished))
    assert per_new - per_finished <= 8, (new, finished)
    assert per_finished <= 5, finished
    assert 100_000 / 32 * per_finished / 16 * 0.025 < 60  # sixteen at a time, 25 ms each


def _forget_footers() -> None:
    """As a new process would have."""
    from east_ray.rollouts import shards

    shards._footers.clear()
