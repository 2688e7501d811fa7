"""Sampling and grading as one Ray Data pipeline over shards: engines and graders overlap, every shard is one file.

The rows that flow are shard numbers and counts. Completions go from the sampler's node to the run directory and from
there to the grader's, so neither the driver nor the object store ever holds them, and a lost node costs the shards it
was at. A set that is finished starts nothing, not even Ray.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq

from east_ray import adaptive, shards
from east_ray.engine import OpenEngine
from east_ray.records import UserError
from east_ray.rollout_actors import GradingWorker, Plan, RolloutJob, Sampler
from east_ray.rollout_progress import live_line
from east_ray.runs import RunDirectory, fingerprint
from east_ray.sampling import open_engine
from east_ray.sections import GradingConfig, ModelConfig, SamplingConfig
from east_ray.shard_tasks import silence_ray_data

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

REQUESTS_IN_FLIGHT = 2048  # completions an engine should have at hand: twice vLLM's largest default batch
RELEASE_SECONDS = 10.0


@dataclass(frozen=True)
class RolloutSummary:
    """What a finished set holds; counts are of completions unless the name says otherwise."""

    shards: int
    reused_shards: int
    questions: int
    failed_questions: int
    samples: int
    tokens: int
    truncated: int
    correct: int
    incorrect: int
    errors: int
    unanswered: int
    digest: str


def run_rollouts(
    run: RunDirectory,
    jobs: Sequence[RolloutJob],
    *,
    model: ModelConfig,
    sampling: SamplingConfig,
    grading: GradingConfig,
    seed: int,
    round_index: int,
    title: str = "sample",
    resume: Literal["auto", "never", "require"] = "auto",
    open_engine: OpenEngine = open_engine,
) -> list[RolloutSummary]:
    """Sample and grade every job's questions, one summary per job, in order; finished shards are kept.

    Jobs share one pool of engines: the weights are exchanged in place, so their models must have one shape. UserError
    when more than sampling.max_failed_share of the questions failed; the rest is kept and a next call goes on from it.
    With sampling.adaptive the questions are gone through once per level, each graded before the next decides who gets more.
    """
    if sampling.temperature == 0 and sampling.num_samples > 1:
        raise UserError(
            f"sampling.temperature=0 draws the same completion {sampling.num_samples} times; set num_samples=1 or a temperature"
        )
    _prepare(run, jobs, resume)
    most = sampling.num_samples
    summaries: list[RolloutSummary] = []
    for level in adaptive.levels(sampling.adaptive.min_samples, most) if sampling.adaptive else [most]:
        at_level = sampling.model_copy(update={"num_samples": level})
        summaries = _roll_out(
            run,
            jobs,
            model=model,
            sampling=at_level,
            grading=grading,
            seed=seed,
            round_index=round_index,
            title=title if level == most else f"{title} {level}",
            more_is_fine=level < most,
            open_engine=open_engine,
        )
    return summaries


def _roll_out(
    run: RunDirectory,
    jobs: Sequence[RolloutJob],
    *,
    model: ModelConfig,
    sampling: SamplingConfig,
    grading: GradingConfig,
    seed: int,
    round_index: int,
    title: str,
    more_is_fine: bool,
    open_engine: OpenEngine,
) -> list[RolloutSummary]:
    """Bring every job's shards to sampling.num_samples; shards that hold more are left as they are if `more_is_fine`."""
    sizes = [_num_questions(run, job.questions) for job in jobs]
    counts = [shards.count_shards(size, sampling.questions_per_shard) for size in sizes]

    def todo(retry_failed: bool) -> list[dict[str, Any]]:
        return [
            _row(number, shard)
            for number, (job, count) in enumerate(zip(jobs, counts, strict=True))
            for shard in shards.unfinished(
                run,
                job.samples,
                job.grades,
                count,
                sampling.num_samples,
                retry_failed=retry_failed,
                more_is_fine=more_is_fine,
            )
        ]

    allowed = sampling.max_failed_share * sum(sizes)
    failed = sum(
        footer["failed"]
        for job, count in zip(jobs, counts, strict=True)
        for footer in _present(run, job.samples, count)
    )
    rows = todo(retry_failed=failed > allowed)
    failed = 0 if failed > allowed else failed
    redone = Counter(row["job"] for row in rows)
    logger.info("%s: %d of %d shards reused", title, sum(counts) - len(rows), sum(counts))
    while rows:
        plan = Plan(
            run, jobs, model, sampling, seed, round_index, _longest_prompt(run, jobs), uuid.uuid4().hex, open_engine
        )
        questions = sum(
            min(sampling.questions_per_shard, sizes[r["job"]] - r["shard"] * sampling.questions_per_shard) for r in rows
        )
        try:
            _work_off(rows, run, jobs, grading, plan, title=title, questions=questions, may_fail=allowed - failed)
        finally:
            for job in jobs:
                run.delete(job.samples, "attempts")
        rows = todo(retry_failed=False)  # empty unless another command wrote to the same directories meanwhile
    return [
        summarise(run, job.samples, job.grades, count, count - redone[number])
        for number, (job, count) in enumerate(zip(jobs, counts, strict=True))
    ]


def grade_samples(
    run: RunDirectory, samples: str, grades: str, *, grading: GradingConfig, title: str = "verify"
) -> RolloutSummary:
    """Grade completions that are there already, sampled or imported; shards graded before are kept."""
    count = len(run.list(samples, suffix=".parquet"))
    if count == 0:
        raise UserError(
            f"{run.uri_of(samples)} holds no completions; sample first, or import some with `east-ray import-samples`"
        )
    footers = _present(run, samples, count)
    pending = shards.unfinished(run, samples, grades, count, None)
    logger.info("%s: %d of %d shards reused", title, count - len(pending), count)
    if pending:
        rows = [_row(0, shard) for shard in pending]
        questions = sum(footers[shard.index]["questions"] for shard in pending)
        _work_off(rows, run, [RolloutJob("", "", samples, grades)], grading, None, title=title, questions=questions)
    return summarise(run, samples, grades, count, count - len(pending))


def summarise(run: RunDirectory, samples: str, grades: str, count: int, reused: int) -> RolloutSummary:
    """Add up the footers of a finished set. UserError when a shard is missing or was graded from other completions."""
    sampled, graded = shards.read_footers(run, samples, count), shards.read_footers(run, grades, count)
    for index, (s, g) in enumerate(zip(sampled, graded, strict=True)):
        if s is None or g is None or s["digest"] != g["digest"]:
            raise UserError(
                f"{run.uri_of(grades, shards.shard_name(index))} is not there or not of these samples; run the command again"
            )
    total = Counter[str]()
    for footer in [*sampled, *graded]:
        total.update({name: value for name, value in footer.items() if name not in ("digest", "num_samples")})  # type: ignore[union-attr]
    return RolloutSummary(
        shards=count,
        reused_shards=reused,
        questions=total["questions"] // 2,
        failed_questions=total["failed"],
        samples=total["samples"],
        tokens=total["tokens"],
        truncated=total["truncated"],
        correct=total["correct"],
        incorrect=total["incorrect"],
        errors=total["errors"],
        unanswered=total["unanswered"],
        digest=fingerprint([footer["digest"] for footer in sampled]),  # type: ignore[index]
    )


def _prepare(run: RunDirectory, jobs: Sequence[RolloutJob], resume: str) -> None:
    """Delete earlier shards (never), insist on them (require), or leave them to be reused (auto)."""
    if resume == "never":
        for job in jobs:
            run.delete(job.samples)
            run.delete(job.grades)
    elif resume == "require" and not any(run.list(job.samples, suffix=".parquet") for job in jobs):
        raise UserError(
            f"resume = require, but {run.uri_of(jobs[0].samples)} holds no shards; use --resume auto to start"
        )


def _work_off(
    rows: Sequence[Mapping[str, Any]],
    run: RunDirectory,
    jobs: Sequence[RolloutJob],
    grading: GradingConfig,
    plan: Plan | None,
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
    with live_line(title, questions) as line, _quiet_ray_data():
        # One row per block: a block is what one task works on.
        dataset = ray.data.from_items([dict(row) for row in rows], override_num_blocks=len(rows))
        engine_cpus = 0.0
        if plan and (count := sum(row["samples"] for row in rows)):
            _check_room(plan.sampling)
            engine_cpus = min(plan.sampling.min_engines, count) * plan.sampling.cpus_per_engine
            dataset = _sample(dataset, count, plan, line.tally)
        dataset = _grade(dataset, len(rows), run, jobs, grading, engine_cpus)
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


def _sample(dataset: ray.data.Dataset, num_shards: int, plan: Plan, tally: Any) -> ray.data.Dataset:
    """The pool of engines. Ray Data adds one, up to the most allowed, while more shards wait than the pool works on."""
    from ray.data import ActorPoolStrategy

    sampling = plan.sampling
    most = min(sampling.max_engines, num_shards)
    fewest = min(sampling.min_engines, most)
    concurrency = _shards_in_flight(sampling, num_shards, most)
    return dataset.map(
        Sampler,  # type: ignore[arg-type]
        fn_constructor_args=(plan, tally),
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


def _grade(
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


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data without bars and messages of its own: we have a live line, and it has a log file."""
    import ray.data

    silence_ray_data()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # one shard of long completions may take hours
    with ray.data.DataContext.current(context):
        yield


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


def _row(job: int, shard: shards.Shard) -> dict[str, Any]:
    """What travels through the pools: which shard, and what became of it so far."""
    return {"job": job, "shard": shard.index, "samples": shard.samples, "failed": 0, "fatal": ""}


def _num_questions(run: RunDirectory, questions: str) -> int:
    return pq.read_metadata(run.path(questions), filesystem=run.filesystem).num_rows


def _longest_prompt(run: RunDirectory, jobs: Sequence[RolloutJob]) -> int:
    longest = 0
    for questions in {job.questions for job in jobs}:
        with run.filesystem.open_input_file(run.path(questions)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(columns=["prompt_token_ids"]):
                longest = max(longest, *batch.column(0).value_lengths().to_pylist())
    return longest


def _present(run: RunDirectory, directory: str, count: int) -> list[dict[str, Any]]:
    return [footer for footer in shards.read_footers(run, directory, count) if footer is not None]


def _too_many_failed(plan: Plan, failed: int) -> str:
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
