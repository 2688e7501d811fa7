"""Pools of engines and graders on Ray Data, started for one set of rollouts and released afterwards.

The rows that Ray Data moves are shard numbers and counts; `actors.py` does the work on a shard.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from east_ray.config.sections import GradingConfig, SamplingConfig
from east_ray.console import quiet_ray_data
from east_ray.records import UserError
from east_ray.rollouts.actors import FATAL, NO_ENGINE, REFUSED, GradingWorker, RolloutJob, RolloutSpec, Sampler
from east_ray.rollouts.attempts import Attempts
from east_ray.rollouts.engine import SHARDS_IN_FLIGHT, ExchangeRefused
from east_ray.rollouts.kept_engine import engine_hosts
from east_ray.rollouts.progress import NEWS_SECONDS, live_line
from east_ray.rollouts.shards import Shard
from east_ray.runs.cluster import on_driver_node
from east_ray.runs.directory import RunDirectory

if TYPE_CHECKING:
    import ray.data

REQUESTS_IN_FLIGHT = 2048  # completions queued at an engine: twice vLLM's largest default batch
FEWEST_BLOCKS, BLOCKS_PER_CALL = 128, 16  # a block is one shard while there are no more than this
RELEASE_SECONDS = 10.0


def shard_row(job: int, shard: Shard) -> dict[str, Any]:
    """The row that travels through the pools for one shard; the actors fill in the rest."""
    drawn = {"sampled": 0, "tokens": 0, "truncated": 0, "began": 0.0, "ended": 0.0}
    return {
        "job": job,
        "shard": shard.index,
        "samples": shard.samples,
        "begun": shard.begun,
        "failed": 0,
        "problem": "",
        "reason": "",
        **drawn,
    }


def process_shards(
    rows: Sequence[Mapping[str, Any]],
    run: RunDirectory,
    jobs: Sequence[RolloutJob],
    grading: GradingConfig,
    spec: RolloutSpec | None,
    *,
    title: str,
    questions: int,
    allowed_failures: float = 0,
    keep: bool = True,
) -> str:
    """Send shards through the pools and check the counts that come back. What is started here is stopped afterwards; with
    `keep` all but the engines that can be kept.

    `spec` None: no shard needs an engine. Returns why an engine was given up; the shards it had are then still to do. ""
    when none was. UserError when more than `allowed_failures` questions could not be sampled; ExchangeRefused when an
    engine could not go from one job's model to another's.
    """
    import ray

    before, failed, given_up = ray.available_resources(), 0, ""
    attempts = on_driver_node(Attempts) if spec else None

    def news() -> tuple[bool, list[str]]:
        return ray.get(attempts.news.remote(), timeout=NEWS_SECONDS) if attempts else (True, [])

    count = sum(row["samples"] for row in rows) if spec else 0
    engines = min(number_of_engines(spec.sampling)[0], count) if spec and count else 0
    hosted = engine_hosts(spec.sampling, spec.open_engine, engines) if spec and keep else nullcontext([])
    with live_line(title, questions, news) as line, quiet_ray_data(), hosted as hosts:
        # A block is what one task works on, and the driver holds something for each until the end.
        at_once = engines * _shards_in_flight(spec.sampling, count, engines) if spec and engines else 0
        blocks = min(len(rows), max(FEWEST_BLOCKS, BLOCKS_PER_CALL * at_once))
        dataset = ray.data.from_items(list(rows), override_num_blocks=blocks)
        engine_cpus = 0.0
        if spec and engines:
            engine_cpus = engines * spec.sampling.cpus_per_engine
            dataset = engine_pool(dataset, count, replace(spec, hosts=hosts), attempts, rows[0]["job"])
        dataset = grader_pool(dataset, len(rows), run, jobs, grading, engine_cpus)
        batches: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        # Closed explicitly: on an error or Ctrl-C the traceback would keep the iterator, and so the pools, alive.
        with closing(batches):
            for row in (row for batch in batches for row in batch.to_pylist()):
                if row["problem"] == FATAL:
                    raise UserError(row["reason"])
                if row["problem"] == REFUSED:
                    raise ExchangeRefused(row["reason"])
                if row["problem"] == NO_ENGINE:
                    given_up = row["reason"]
                    continue
                line.add(row)
                failed += row["failed"]
                if spec and failed > allowed_failures:
                    raise UserError(_too_many_failed(spec, failed))
    run.append_metrics(rollouts=title, questions=questions, failed=failed, **line.measures())
    _wait_for_release(before)
    return given_up


def number_of_engines(sampling: SamplingConfig) -> tuple[int, int]:
    """The fewest and the most engines of the pool. Unless `min_engines` says otherwise they are equal: all nodes are asked
    for at once, while Ray Data asks for a second one only after a first shard, and for at most twice as many each time.

    A single machine has no more than it has room for; a cluster may grow, so there they are waited for. UserError when
    there is no room for the fewest.
    """
    fewest, most = sampling.min_engines or sampling.max_engines, sampling.max_engines
    if os.environ.get("RAY_ADDRESS"):
        return fewest, most
    import ray

    has = ray.cluster_resources()
    needs = (("GPU", "gpus_per_engine", sampling.gpus_per_engine), ("CPU", "cpus_per_engine", sampling.cpus_per_engine))
    for resource, setting, each in needs:
        room = int(has.get(resource, 0.0) / each) if each else most
        if room < (sampling.min_engines or 1):
            raise UserError(
                f"sampling.min_engines={sampling.min_engines or 1} x sampling.{setting}={each:g}, but this machine has "
                f"{has.get(resource, 0.0):g} {resource}s; lower them, or submit the run to a cluster (`ray job submit`)"
            )
        fewest, most = min(fewest, room), min(most, room)
    return fewest, most


def engine_pool(
    dataset: ray.data.Dataset, num_shards: int, spec: RolloutSpec, attempts: Any, job: int
) -> ray.data.Dataset:
    """The pool of engines, which open the model of `job` first. Where it may grow, Ray Data adds engines while more shards
    wait than the pool works on.
    """
    from ray.data import ActorPoolStrategy

    sampling = spec.sampling
    fewest, most = (min(engines, num_shards) for engines in number_of_engines(sampling))
    concurrency = _shards_in_flight(sampling, num_shards, most)
    return dataset.map(
        Sampler,  # type: ignore[arg-type]
        fn_constructor_args=(spec, attempts, job),
        compute=ActorPoolStrategy(
            min_size=fewest,
            max_size=most,
            max_concurrent_calls_per_actor=concurrency,
            # A shard queued at one engine cannot move to another, so none is queued unless that makes the pool grow.
            max_tasks_in_flight_per_actor=concurrency * (2 if most > fewest else 1),
            enable_true_multi_threading=True,
        ),
        num_cpus=sampling.cpus_per_engine,
        num_gpus=sampling.gpus_per_engine,
        label_selector=sampling.labels or None,
    )


def grader_pool(
    dataset: ray.data.Dataset,
    num_shards: int,
    run: RunDirectory,
    jobs: Sequence[RolloutJob],
    grading: GradingConfig,
    engine_cpus: float,
) -> ray.data.Dataset:
    """The pool of graders: one core each; a fraction when cores are scarce, so that graders can always be scheduled."""
    import ray
    from ray.data import ActorPoolStrategy

    workers = min(grading.workers, num_shards)
    all_cpus = ray.cluster_resources().get("CPU", 0.0)
    own_nodes = grading.labels or not all_cpus  # labelled nodes, or nodes that the autoscaler has yet to start
    each = 1.0 if own_nodes else min(1.0, max(0.0, (all_cpus - engine_cpus) / workers))
    return dataset.map(
        GradingWorker,  # type: ignore[arg-type]
        fn_constructor_args=(run, jobs, grading),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=each,
        label_selector=grading.labels or None,
    )


def _shards_in_flight(sampling: SamplingConfig, num_shards: int, max_engines: int) -> int:
    """Shards an engine works on at once: enough to fill its batch, at least two, at most its share of all shards."""
    per_shard = sampling.questions_per_shard * sampling.num_samples
    wanted = min(-(-REQUESTS_IN_FLIGHT // per_shard), -(-num_shards // max_engines), SHARDS_IN_FLIGHT)
    return max(2, wanted)


def _too_many_failed(spec: RolloutSpec, failed: int) -> str:
    return (
        f"{failed} questions could not be sampled, more than sampling.max_failed_share={spec.sampling.max_failed_share:g} "
        f"allows; the column `shortfall` in {spec.run.uri_of(spec.jobs[0].samples)} says why. Fix the cause, or raise "
        f"sampling.max_failed_share, and run the same command again; finished shards are kept"
    )


def _wait_for_release(before: Mapping[str, float]) -> None:
    """Wait until the pools' processes have released their GPUs and cores: the next step asks for them at once."""
    import ray

    deadline = time.monotonic() + RELEASE_SECONDS
    while time.monotonic() < deadline:
        now = ray.available_resources()
        if all(now.get(name, 0.0) >= before.get(name, 0.0) for name in ("CPU", "GPU")):
            return
        time.sleep(0.05)
