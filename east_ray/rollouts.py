"""Sampling and grading as one Ray Data pipeline over shards: engines and graders overlap, every shard is one file.

The rows that flow are shard numbers and counts. Completions go from the sampler's node to the run directory and from
there to the grader's, so neither the driver nor the object store ever holds them, and a lost node costs the shards it
was at. A set that is finished starts nothing, not even Ray.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq

from east_ray import shards
from east_ray.config import GradingConfig, ModelConfig, SamplingConfig
from east_ray.engine import OpenEngine
from east_ray.records import UserError
from east_ray.rollout_actors import GradingWorker, Plan, RolloutJob, Sampler
from east_ray.rollout_progress import Tally, live_line
from east_ray.runs import RunDirectory, fingerprint
from east_ray.sampling import open_engine

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

REQUESTS_IN_FLIGHT = 2048  # completions an engine should have at hand: twice vLLM's largest default batch
RELEASE_SECONDS = 30.0


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
    """
    if sampling.temperature == 0 and sampling.num_samples > 1:
        raise UserError(
            f"sampling.temperature=0 draws the same completion {sampling.num_samples} times; set num_samples=1 or a temperature"
        )
    sizes = [_num_questions(run, job.questions) for job in jobs]
    counts = [shards.count_shards(size, sampling.questions_per_shard) for size in sizes]
    _prepare(run, jobs, resume)

    def todo(retry_failed: bool) -> list[dict[str, Any]]:
        return [
            {"job": number, "shard": shard.index, "samples": shard.samples}
            for number, (job, count) in enumerate(zip(jobs, counts, strict=True))
            for shard in shards.unfinished(
                run, job.samples, job.grades, count, sampling.num_samples, retry_failed=retry_failed
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
            run, jobs, model, sampling, grading, seed, round_index, _longest_prompt(run, jobs), uuid.uuid4().hex, None
        )
        questions = sum(
            min(sampling.questions_per_shard, sizes[r["job"]] - r["shard"] * sampling.questions_per_shard) for r in rows
        )
        _stream(plan, rows, title, questions, allowed - failed, open_engine)
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
        plan = Plan(
            run,
            [RolloutJob("", "", samples, grades)],
            ModelConfig(path=""),
            SamplingConfig(),
            grading,
            0,
            0,
            0,
            "",
            None,
        )
        questions = sum(footers[shard.index]["questions"] for shard in pending)
        rows = [{"job": 0, "shard": shard.index, "samples": False} for shard in pending]
        _stream(plan, rows, title, questions, float("inf"), open_engine)
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


def _stream(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    title: str,
    questions: int,
    allowed_failures: float,
    open_engine: OpenEngine,
) -> None:
    """Send every shard through the pools and watch the counts that come back. Everything started here is gone after."""
    import ray

    before = ray.available_resources()
    tally = ray.remote(num_cpus=0)(Tally).remote()
    failed = 0
    with live_line(title, questions, tally) as add:
        batches = _pipeline(replace(plan, tally=tally), rows, open_engine).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        )
        # Closed by hand: on an error or Ctrl-C the traceback would keep the iterator, and with it the pools, alive.
        with closing(iter(batches)) as results:
            for row in (row for batch in results for row in batch.to_pylist()):
                if row["fatal"]:
                    raise UserError(row["fatal"])
                add(row)
                failed += row["failed"]
                if failed > allowed_failures:
                    raise UserError(_too_many_failed(plan, failed, allowed_failures))
    ray.kill(tally)
    _wait_for_release(before)


def _pipeline(plan: Plan, rows: Sequence[Mapping[str, Any]], open_engine: OpenEngine) -> ray.data.Dataset:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # what it has to say is in its log file; we have a live line of our own
    sampling, grading = plan.sampling, plan.grading
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # one shard of long completions may take hours
    sampled = [row for row in rows if row["samples"]]
    max_engines = min(sampling.max_engines, len(sampled))
    min_engines = min(sampling.min_engines, max_engines)
    engine_cpus = min_engines * sampling.cpus_per_engine
    with DataContext.current(context):
        # One row per block: a block is what one task works on.
        dataset = ray.data.from_items(
            [{**row, "failed": 0, "fatal": ""} for row in rows], override_num_blocks=len(rows)
        )
        if sampled:
            concurrency = _shards_in_flight(sampling, len(sampled), max_engines)
            dataset = dataset.map(
                Sampler,
                fn_constructor_args=(plan, open_engine),
                compute=ActorPoolStrategy(
                    min_size=min_engines,
                    max_size=max_engines,
                    max_concurrent_calls_per_actor=concurrency,
                    # Ray Data adds engines while more shards wait than run; a pool of fixed size needs none waiting.
                    max_tasks_in_flight_per_actor=concurrency * (2 if max_engines > min_engines else 1),
                    enable_true_multi_threading=True,
                ),
                num_cpus=sampling.cpus_per_engine,
                num_gpus=sampling.gpus_per_engine,
                label_selector=sampling.labels or None,
            )
        workers = min(grading.workers, len(rows))
        return dataset.map(
            GradingWorker,
            fn_constructor_args=(plan,),
            compute=ActorPoolStrategy(size=workers),
            num_cpus=_cpus_per_grader(workers, engine_cpus if sampled else 0),
            label_selector=grading.labels or None,
        )


def _shards_in_flight(sampling: SamplingConfig, num_shards: int, max_engines: int) -> int:
    """How many shards an engine works on at once: enough to fill its batch, at least two, and a fair share for each."""
    per_shard = sampling.questions_per_shard * sampling.num_samples
    return min(max(2, -(-REQUESTS_IN_FLIGHT // per_shard)), max(2, -(-num_shards // max_engines)))


def _cpus_per_grader(workers: int, engine_cpus: float) -> float:
    """One core each where there are enough; less, even none, rather than wait for ever on a machine with few cores."""
    import ray

    free = ray.cluster_resources().get("CPU", 0.0) - engine_cpus
    return min(1.0, max(0.0, free / workers))


def _num_questions(run: RunDirectory, questions: str) -> int:
    return pq.read_metadata(run.path(questions), filesystem=run.filesystem).num_rows


def _longest_prompt(run: RunDirectory, jobs: Sequence[RolloutJob]) -> int:
    lengths = [
        pc.max(
            pc.list_value_length(run.read_table(questions, columns=["prompt_token_ids"])["prompt_token_ids"])
        ).as_py()  # type: ignore[attr-defined]
        for questions in {job.questions for job in jobs}
    ]
    return max(length or 0 for length in lengths)


def _present(run: RunDirectory, directory: str, count: int) -> list[dict[str, Any]]:
    return [footer for footer in shards.read_footers(run, directory, count) if footer is not None]


def _too_many_failed(plan: Plan, failed: int, allowed: float) -> str:
    return (
        f"{failed} questions could not be sampled, more than sampling.max_failed_share={plan.sampling.max_failed_share:g} "
        f"allows ({allowed:g}); the column `shortfall` in {plan.run.uri_of(plan.jobs[0].samples)} says why. Mend the cause, "
        f"or raise sampling.max_failed_share, and run the same command again: what was sampled is kept"
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
