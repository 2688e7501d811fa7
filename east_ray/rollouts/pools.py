"""The pools that shards go through: engines that sample, graders behind them, started for one set and gone afterwards.

Ray Data moves the rows, which are shard numbers and counts; what the pools do with a shard is in `rollout_actors`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from east_ray.config.sections import GradingConfig, SamplingConfig
from east_ray.console import quiet_ray_data
from east_ray.records import UserError
from east_ray.rollouts.actors import GradingWorker, RolloutJob, RolloutSpec, Sampler
from east_ray.rollouts.progress import live_line
from east_ray.rollouts.shards import Shard
from east_ray.runs.directory import RunDirectory

if TYPE_CHECKING:
    import ray.data

REQUESTS_IN_FLIGHT = 2048  # completions an engine should have at hand: twice vLLM's largest default batch
RELEASE_SECONDS = 10.0


def shard_row(job: int, shard: Shard) -> dict[str, Any]:
    """What travels through the pools: which shard, and what became of it so far."""
    drawn = {"sampled": 0, "tokens": 0, "truncated": 0, "began": 0.0, "ended": 0.0}
    return {"job": job, "shard": shard.index, "samples": shard.samples, "failed": 0, "fatal": "", **drawn}


def process_shards(
    rows: Sequence[Mapping[str, Any]],
    run: RunDirectory,
    jobs: Sequence[RolloutJob],
    grading: GradingConfig,
    plan: RolloutSpec | None,
    *,
    title: str,
    questions: int,
    may_fail: float = 0,
) -> None:
    """Send shards through the pools and watch the counts that come back. What is started here is gone afterwards.

    `plan` None: no shard needs an engine. UserError when more than `may_fail` questions could not be sampled.
    """
    import ray

    before, failed = ray.available_resources(), 0

    def has_begun() -> bool:
        return plan is None or any(run.exists(job.samples, "attempts") for job in jobs)

    with live_line(title, questions, has_begun) as line, quiet_ray_data():
        # One row per block: a block is what one task works on.
        dataset = ray.data.from_items([dict(row) for row in rows], override_num_blocks=len(rows))
        engine_cpus = 0.0
        if plan and (count := sum(row["samples"] for row in rows)):
            _check_room(plan.sampling)
            engine_cpus = min(plan.sampling.min_engines, count) * plan.sampling.cpus_per_engine
            dataset = engine_pool(dataset, count, plan)
        dataset = grader_pool(dataset, len(rows), run, jobs, grading, engine_cpus)
        batches: Any = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        # Closed by hand: on an error or Ctrl-C the traceback would keep the iterator, and with it the pools, alive.
        with closing(batches):
            for row in (row for batch in batches for row in batch.to_pylist()):
                if row["fatal"]:
                    raise UserError(row["fatal"])
                line.add(row)
                failed += row["failed"]
                if plan and failed > may_fail:
                    raise UserError(_too_many_failed(plan, failed))
    run.append_metrics(rollouts=title, questions=questions, failed=failed, **line.measures())
    _wait_for_release(before)


def engine_pool(dataset: ray.data.Dataset, num_shards: int, plan: RolloutSpec) -> ray.data.Dataset:
    """The pool of engines. Ray Data adds one, up to the most allowed, while more shards wait than the pool works on."""
    from ray.data import ActorPoolStrategy

    sampling = plan.sampling
    most = min(sampling.max_engines, num_shards)
    fewest = min(sampling.min_engines, most)
    concurrency = _shards_in_flight(sampling, num_shards, most)
    return dataset.map(
        Sampler,  # type: ignore[arg-type]
        fn_constructor_args=(plan,),
        compute=ActorPoolStrategy(
            min_size=fewest,
            max_size=most,
            max_concurrent_calls_per_actor=concurrency,
            # A shard that waits at one engine cannot go to another, so none does where the pool cannot grow anyway.
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
    """The pool of graders: one core each where there are enough, less rather than wait for ever where there are not."""
    import ray
    from ray.data import ActorPoolStrategy

    workers = min(grading.workers, num_shards)
    all_cpus = ray.cluster_resources().get("CPU", 0.0)
    of_their_own = grading.labels or not all_cpus  # nodes for graders, or (autoscaling) nodes that are still to come
    each = 1.0 if of_their_own else min(1.0, max(0.0, (all_cpus - engine_cpus) / workers))
    return dataset.map(
        GradingWorker,  # type: ignore[arg-type]
        fn_constructor_args=(run, jobs, grading),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=each,
        label_selector=grading.labels or None,
    )


def _check_room(sampling: SamplingConfig) -> None:
    """UserError when this machine cannot hold the engines; a cluster may grow, so there they are waited for."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    has = ray.cluster_resources()
    for resource, setting, each in (
        ("GPU", "gpus_per_engine", sampling.gpus_per_engine),
        ("CPU", "cpus_per_engine", sampling.cpus_per_engine),
    ):
        if each * sampling.min_engines > has.get(resource, 0.0):
            raise UserError(
                f"sampling.min_engines={sampling.min_engines} x sampling.{setting}={each:g}, but this machine has "
                f"{has.get(resource, 0.0):g} {resource}s; lower them, or submit the run to a cluster (`ray job submit`)"
            )


def _shards_in_flight(sampling: SamplingConfig, num_shards: int, max_engines: int) -> int:
    """How many shards an engine works on at once: enough to fill its batch, at least two, and a fair share for each."""
    per_shard = sampling.questions_per_shard * sampling.num_samples
    return min(max(2, -(-REQUESTS_IN_FLIGHT // per_shard)), max(2, -(-num_shards // max_engines)))


def _too_many_failed(plan: RolloutSpec, failed: int) -> str:
    return (
        f"{failed} questions could not be sampled, more than sampling.max_failed_share={plan.sampling.max_failed_share:g} "
        f"allows; the column `shortfall` in {plan.run.uri_of(plan.jobs[0].samples)} says why. Mend the cause, or raise "
        f"sampling.max_failed_share, and run the same command again: what was sampled is kept"
    )


def _wait_for_release(before: Mapping[str, float]) -> None:
    """Wait until the pools' processes have given back their GPUs and cores: the next phase asks for them at once."""
    import ray

    deadline = time.monotonic() + RELEASE_SECONDS
    while time.monotonic() < deadline:
        now = ray.available_resources()
        if all(now.get(name, 0.0) >= before.get(name, 0.0) for name in ("CPU", "GPU")):
            return
        time.sleep(0.05)
