"""Sample and grade the questions of a run: one Ray Data pipeline over shards, engines and graders overlapping.

The rows that flow are shard numbers and counts. Completions go from the sampler's node to the run directory and from
there to the grader's, so neither the driver nor the object store ever holds them, and a lost node costs only the shards
it was working on. A finished set starts nothing, not even Ray.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from east_ray.config.sections import GradingConfig, ModelConfig, SamplingConfig
from east_ray.records import UserError
from east_ray.rollouts import shards
from east_ray.rollouts.actors import RolloutJob, RolloutSpec
from east_ray.rollouts.engine import ExchangeRefused, OpenEngine
from east_ray.rollouts.pools import process_shards, shard_row
from east_ray.rollouts.vllm_engine import VllmEngine
from east_ray.runs.directory import RunDirectory, fingerprint

logger = logging.getLogger(__name__)

NOT_ADDED_UP = ("digest", "num_samples", "weights", "questions_per_shard")  # of a shard's footer


@dataclass(frozen=True)
class RolloutSummary:
    """Totals of a finished set; counts are of completions unless the name says otherwise."""

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
    open_engine: OpenEngine = VllmEngine,
) -> list[RolloutSummary]:
    """Sample and grade every job's questions; one summary per job, in order. Finished shards are kept.

    Jobs share one pool of engines, which exchange their weights where they can show that nothing of the old model is left;
    otherwise the jobs of each model get a pool of their own, one after the other. An engine that does not start is tried again; the shards of one that is given up go to another pool.
    UserError when more than sampling.max_failed_share of the questions failed, or no engine starts; a later call continues from the finished shards.
    """
    if sampling.temperature == 0 and sampling.num_samples > 1:
        raise UserError(
            f"sampling.temperature=0 draws the same completion {sampling.num_samples} times; set num_samples=1 or a temperature"
        )
    sizes = [shards.count_questions(run, job.questions) for job in jobs]
    recorded = (size for job in jobs if (size := shards.recorded_size(run, job.samples)))
    per_shard = next(recorded, None) or shards.shard_size(
        sum(sizes), sampling.max_engines, sampling.questions_per_shard
    )
    sampling = sampling.model_copy(update={"questions_per_shard": per_shard})
    spec = RolloutSpec(run, jobs, model, sampling, seed, round_index, open_engine)
    counts = [shards.count_shards(size, sampling.questions_per_shard) for size in sizes]

    def todo(retry_failed: bool) -> list[dict[str, Any]]:
        return [
            shard_row(number, shard)
            for number, (job, count) in enumerate(zip(jobs, counts, strict=True))
            for shard in shards.unfinished(
                run, job.samples, job.grades, count, sampling.num_samples, retry_failed=retry_failed
            )
        ]

    def count_failed() -> int:
        return sum(
            footer["failed"]
            for job, count in zip(jobs, counts, strict=True)
            for footer in _present(run, job.samples, count)
        )

    allowed = sampling.max_failed_share * sum(sizes)
    failed = count_failed()
    rows = todo(retry_failed=failed > allowed)
    failed = 0 if failed > allowed else failed
    redone = Counter(row["job"] for row in rows)
    logger.info("%s: %d of %d shards reused", title, sum(counts) - len(rows), sum(counts))
    exchange, given_up = True, ""
    while rows:
        if not exchange:
            rows = [row for row in rows if jobs[row["job"]].model == jobs[rows[0]["job"]].model]
        questions = sum(
            min(sampling.questions_per_shard, sizes[r["job"]] - r["shard"] * sampling.questions_per_shard) for r in rows
        )
        asked = {(row["job"], row["shard"]) for row in rows}
        try:
            given_up = process_shards(
                rows,
                run,
                jobs,
                grading,
                spec,
                title=title,
                questions=questions,
                allowed_failures=allowed - failed,
                keep=exchange,
            )
        except ExchangeRefused as error:
            exchange = False
            logger.info("%s: %s; each model gets a fresh engine", title, error)
        rows, failed = todo(retry_failed=False), count_failed()
        if given_up and asked <= {(row["job"], row["shard"]) for row in rows}:
            raise UserError(given_up)
    return [
        summarise(run, job.samples, job.grades, count, count - redone[number])
        for number, (job, count) in enumerate(zip(jobs, counts, strict=True))
    ]


def grade_samples(
    run: RunDirectory, samples: str, grades: str, *, grading: GradingConfig, title: str = "verify"
) -> RolloutSummary:
    """Grade existing completions, sampled or imported; shards that are already graded are kept."""
    count = len(run.list(samples, suffix=".parquet"))
    if count == 0:
        raise UserError(
            f"{run.uri_of(samples)} holds no completions; sample first, or import some with `east-ray import-samples`"
        )
    footers = list(_present(run, samples, count))
    pending = shards.unfinished(run, samples, grades, count, None)
    logger.info("%s: %d of %d shards reused", title, count - len(pending), count)
    if pending:
        rows = [shard_row(0, shard) for shard in pending]
        questions = sum(footers[shard.index]["questions"] for shard in pending)
        process_shards(
            rows, run, [RolloutJob("", "", samples, grades)], grading, None, title=title, questions=questions
        )
    return summarise(run, samples, grades, count, count - len(pending))


def summarise(run: RunDirectory, samples: str, grades: str, count: int, reused: int) -> RolloutSummary:
    """Add up the footers of a finished set. UserError when a shard is missing or was graded from other completions."""
    footers = zip(shards.read_footers(run, samples, count), shards.read_footers(run, grades, count), strict=True)
    total, digests = Counter[str](), []
    for index, (sampled, graded) in enumerate(footers):
        if sampled is None or graded is None or sampled["digest"] != graded["digest"]:
            raise UserError(
                f"{run.uri_of(grades, shards.shard_name(index))} is missing, or was graded from other samples; run the command again"
            )
        digests.append(sampled["digest"])
        for footer in (sampled, graded):
            total.update({name: value for name, value in footer.items() if name not in NOT_ADDED_UP})
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
        digest=fingerprint(digests),
    )


def _present(run: RunDirectory, directory: str, count: int) -> Iterator[dict[str, Any]]:
    return (footer for footer in shards.read_footers(run, directory, count) if footer is not None)
