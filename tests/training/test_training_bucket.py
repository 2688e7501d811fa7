"""A training whose run directory is a bucket that answers late: checkpoints, reference log-probabilities, trackers' files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from east_ray.runs.directory import RunDirectory
from tests.support.s3_server import S3Server, s3_server
from tests.support.training_kills import start
from tests.support.training_rows import config, examples

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


def test_two_arms_on_a_store_that_refuses_each_request_twice(server: S3Server) -> None:
    """Uploads of checkpoints outlast the training that wrote them; the second arm reads what the first one computed."""
    options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.port}"
    run = RunDirectory(f"s3://test:test@east/run?{options}")
    run.write_table(examples("dpo", 12), "examples", "dpo.parquet")
    settings = {"workers": 2, "micro_batch_size": 2, "batch_size": 4, "max_steps": 4, "checkpoint_steps": 2}
    training = config("dpo", precompute_reference=True, cpus_per_worker=0.5, **settings)
    server.stutter(2)
    digests = [start(run, training, f"arms/{arm}").digest for arm in ("one", "two")]
    server.stutter(0)
    assert digests[0] == digests[1]
    for arm in ("one", "two"):
        assert run.files("arms", arm, "training", "tensorboard")
