"""A training whose run directory is a bucket that answers late: checkpoints, reference log-probabilities, trackers' files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from east_ray.config.sections import ModelConfig
from east_ray.runs.directory import RunDirectory
from east_ray.training.driver import train
from tests.support.s3_server import S3Server, s3_server
from tests.support.training_rows import MODEL, config, examples

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as started:
        yield started


def test_two_arms_on_a_store_that_refuses_each_request_twice(server: S3Server) -> None:
    """Uploads of checkpoints outlast the training that wrote them; the second arm reads what the first one computed."""
    options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.port}"
    run = RunDirectory(f"s3://test:test@east/run?{options}")
    run.write_table(examples("dpo", 12), "round-00", "examples", "dpo.parquet")
    settings = {"workers": 2, "micro_batch_size": 2, "batch_size": 4, "max_steps": 4, "checkpoint_steps": 2}
    training = config("dpo", precompute_reference=True, cpus_per_worker=0.5, **settings)
    server.stutter(2)
    digests = [
        train(
            run,
            examples="round-00/examples/dpo.parquet",
            weight_column="weight",
            base_model=str(MODEL),
            output=f"round-00/arms/{arm}/model",
            training=training,
            model=ModelConfig(path=str(MODEL), dtype="float32"),
            seed=0,
            title=arm,
        ).digest
        for arm in ("one", "two")
    ]
    server.stutter(0)
    assert digests[0] == digests[1]
    for arm in ("one", "two"):
        assert run.files("round-00", "arms", arm, "training", "tensorboard")
