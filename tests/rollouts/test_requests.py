"""Requests to an object store per shard: what 100,000 questions cost when their finished set is asked for again."""

from __future__ import annotations

import pyarrow as pa

from east_ray.config.sections import GradingConfig
from east_ray.records import GRADES, SAMPLES
from east_ray.rollouts import run as rollouts
from east_ray.rollouts import shards
from east_ray.runs.directory import RunDirectory
from tests.support.graded import grades_row, samples_row
from tests.support.s3_server import s3_server

SHARDS = 40


def test_a_finished_set_asked_for_again_costs_at_most_five_requests_per_shard() -> None:
    with s3_server() as server:
        options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.port}"
        run = RunDirectory(f"s3://test:test@east/run?{options}")
        for index in range(SHARDS):
            sampled = pa.Table.from_pylist([samples_row(f"q{index}", ["a", "b"])], schema=SAMPLES)
            footer = shards.write_samples(run, sampled, "samples", index, 2)
            graded = pa.Table.from_pylist([grades_row(f"q{index}", ["gold", "b"])], schema=GRADES)
            shards.write_grades(run, graded, "grades", index, footer)
        shards._footers.clear()
        server.clear()
        again = rollouts.grade_samples(run, "samples", "grades", grading=GradingConfig())
        assert again.reused_shards == again.shards == SHARDS
        assert server.requests.total() <= 5 * SHARDS
        server.clear()
        rollouts.grade_samples(run, "samples", "grades", grading=GradingConfig())
        assert server.requests.total() <= 10
