"""The global reduction: grades of all questions -> a weight per question and mapping, the funnel, weight health.

    weights/shard-00000.parquet ...   records.MEASURES + one float64 column per mapping; mirrors grades/ file by file, row by row
    weights/weights.json              {"funnel": ..., "mappings": {column: {..., "log_normaliser", "health": {...}}}}

Two passes over the narrow columns of `grades` (more only when weights are clipped): the first sums what the normalisers
need, for all mappings at once; the second writes the weights. Shards add up in the order of their names, so that neither
the workers nor the order in which they finish matters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from east_ray.config.sections import SelectionConfig, WeightingConfig
from east_ray.records import MEASURES, UserError
from east_ray.runs.directory import RunDirectory
from east_ray.runs.shard_tasks import ShardSums, reduce_shards
from east_ray.weighting.health import WeightHealth, unhealthy
from east_ray.weighting.keep import REASONS, REMEDIES, drop_codes, drop_reasons
from east_ray.weighting.mappings import FittedMapping, MeasureBlock, WeightMapping, entropies, fit, totals_of

logger = logging.getLogger(__name__)

# Completions by verdict and use; COLUMNS is all that weighing reads.
_COUNTED = ("correct", "incorrect", "errors", "unanswered", "truncated", "positives", "negatives")
COUNT_COLUMNS = tuple(f"num_{name}" for name in _COUNTED)
COLUMNS = ["question_id", "cluster_sizes", "num_samples", *COUNT_COLUMNS, "largest_wrong", "mean_tokens", "shortfall"]


@dataclass(frozen=True)
class WeighingSummary:
    """Questions in and kept, why the others were dropped, and each mapping's health."""

    questions: int
    kept: int
    dropped: dict[str, int]
    mean_entropy: float  # nats, over the kept questions
    health: dict[str, dict[str, float]]
    warnings: list[str] = field(default_factory=list)


def weigh(
    run: RunDirectory,
    *,
    grades: str,
    output: str,
    mappings: Sequence[WeightMapping],
    selection: SelectionConfig,
    weighting: WeightingConfig,
    excluded: Collection[str] = frozenset(),
) -> WeighingSummary:
    """Write the weights of every question in `grades` to `output`. Both are directories relative to the run.

    `excluded` are the ids of questions that are also in the test set. UserError when no question is kept (with the
    funnel), when a mapping does not fit the measures, or when weights are unhealthy and `on_unhealthy` = "stop".
    """
    shards = run.list(grades, suffix=".parquet")
    if not shards:
        raise UserError(f"{run.uri_of(grades)} holds no grades; run `east-ray verify CONFIG` first")
    funnel, fits = fit_mappings(run, grades, shards, mappings, selection.keep, excluded)
    write = partial(_write_shard, run, grades, output, selection.keep, excluded, fits)
    healths = reduce_shards(write, shards)

    health = {column: healths[column].figures() for column in fits}
    run.write_json(
        {
            "funnel": funnel,
            "mappings": {
                column: {**asdict(fitted.mapping), "log_normaliser": fitted.log_normaliser, "capped": fitted.capped}
                | {"health": health[column]}
                for column, fitted in fits.items()
            },
        },
        output,
        "weights.json",
    )
    _log(funnel, health)
    warnings = [warning for column in fits for warning in unhealthy(column, health[column], weighting)]
    for warning in warnings:
        logger.warning(warning)
    if warnings and weighting.on_unhealthy == "stop":
        raise UserError("\n".join([*warnings, 'weighting.on_unhealthy = "stop", so nothing was trained']))
    questions = funnel["questions"]
    return WeighingSummary(
        questions["total"], questions["kept"], questions["dropped"], funnel["mean_entropy"], health, warnings
    )


def measure_table(grades: pa.Table, keep: str, excluded: Collection[str] = frozenset()) -> pa.Table:
    """GRADES rows (the columns in COLUMNS) -> MEASURES rows, in the same order."""
    columns = {
        "question_id": grades["question_id"],
        "num_clusters": np.diff(grades["cluster_sizes"].combine_chunks().offsets.to_numpy()),
        **{name: measure(grades) for name, measure in MEASURE_FUNCTIONS.items() if name in MEASURES.names},
        "mean_tokens": grades["mean_tokens"],
        "reason": drop_reasons(grades, keep, excluded),
    }
    return pa.table(columns, schema=MEASURES)


def _entropy(grades: pa.Table) -> np.ndarray:
    sizes = grades["cluster_sizes"].combine_chunks()
    offsets = sizes.offsets.to_numpy()
    return entropies(sizes.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])


def _inaccuracy(grades: pa.Table) -> np.ndarray:
    wrong = grades["num_incorrect"].to_numpy()
    return wrong / np.maximum(grades["num_correct"].to_numpy() + wrong, 1)


def _dominant_wrong(grades: pa.Table) -> np.ndarray:
    return grades["largest_wrong"].to_numpy() / np.maximum(grades["num_samples"].to_numpy(), 1)


# From the columns in COLUMNS of GRADES rows to one number per question: finite, not negative, larger for a larger weight.
MEASURE_FUNCTIONS: dict[str, Callable[[pa.Table], np.ndarray]] = {
    "entropy": _entropy,
    "inaccuracy": _inaccuracy,
    "dominant_wrong": _dominant_wrong,
}


def fit_mappings(
    run: RunDirectory,
    grades: str,
    shards: Sequence[str],
    mappings: Sequence[WeightMapping],
    keep: str,
    excluded: Collection[str] = frozenset(),
) -> tuple[dict[str, Any], dict[str, FittedMapping]]:
    """The funnel, and every mapping fitted to the kept questions, by column.

    One pass over the shards; more only for clipped mappings, until their caps settle.
    """
    fits: dict[str, FittedMapping] = {}
    funnel: dict[str, Any] = {}
    pending = {mapping.column: mapping for mapping in mappings}
    while pending:
        previous = {column: fits[column] for column in pending if column in fits}
        add = partial(_shard_sums, run, grades, keep, excluded, pending, previous)
        sums = reduce_shards(add, shards)
        funnel = funnel or _funnel(sums)
        for column, mapping in pending.items():
            try:
                fits[column] = fit(sums[column], mapping, previous.get(column))
            except ValueError as error:
                raise UserError(f"{column}: {error}") from None
        pending = {column: mapping for column, mapping in pending.items() if not fits[column].settled}
    return funnel, {mapping.column: fits[mapping.column] for mapping in mappings}


def _shard_sums(
    run: RunDirectory,
    grades: str,
    keep: str,
    excluded: Collection[str],
    mappings: dict[str, WeightMapping],
    previous: dict[str, FittedMapping],
    shard: str,
) -> ShardSums:
    """Contributions of one shard to the funnel and to every mapping's normaliser."""
    measures = {"entropy", *(mapping.measure for mapping in mappings.values())}
    # A measure that is not ours may read any of COLUMNS.
    unused = {"question_id", "largest_wrong", "mean_tokens"} if measures == {"entropy"} else set()
    columns = [name for name in COLUMNS if name not in unused or (excluded and name == "question_id")]
    table = run.read_table(grades, shard, columns=columns)
    codes = drop_codes(table, keep, excluded)
    kept = codes == 0
    parts: dict[Any, Any] = {"shortfall": len(table) - table["shortfall"].null_count}
    names = ("kept", *REASONS)
    questions = np.bincount(codes, minlength=len(names))
    completions = np.bincount(codes, weights=table["num_samples"].to_numpy(), minlength=len(names))
    for i, name in enumerate(names):
        parts["questions", name], parts["completions", name] = int(questions[i]), int(completions[i])
    is_kept, values = kept.astype(np.float64), np.empty(len(table))
    for name in COUNT_COLUMNS:
        values[:] = table[name].to_numpy()  # counts: exact, and summed several times faster than int32
        parts["all", name], parts["in_kept", name] = int(values.sum()), int(values @ is_kept)
    blocks = _blocks(table, kept, measures)
    parts["entropy"] = float(blocks["entropy"].values.sum())
    for column, mapping in mappings.items():
        parts[column] = totals_of(blocks[mapping.measure], mapping, previous.get(column))
    return ShardSums(parts)


def _blocks(grades: pa.Table, kept: np.ndarray, names: Collection[str]) -> dict[str, MeasureBlock]:
    """The named measures of the kept questions, each computed once."""
    return {name: MeasureBlock.of(MEASURE_FUNCTIONS[name](grades)[kept], name) for name in names}


def _funnel(sums: dict[Any, Any]) -> dict[str, Any]:
    """Questions and completions in, kept, and dropped by reason. UserError when none is kept."""
    kept, total = sums["questions", "kept"], sum(sums["questions", name] for name in ("kept", *REASONS))
    dropped = {name: sums["questions", name] for name in REASONS if sums["questions", name]}
    if not kept:
        reasons = "; ".join(f"{count} {name} ({REASONS[name]})" for name, count in dropped.items())
        remedy = REMEDIES[max(dropped, key=lambda name: dropped[name])]
        raise UserError(f"none of the {total} questions can be trained on: {reasons}. For most of them: {remedy}")
    return {
        "questions": {"total": total, "kept": kept, "dropped": dropped, "shortfall": sums["shortfall"]},
        "completions": {
            "total": sum(sums["completions", name] for name in ("kept", *REASONS)),
            "kept": sums["completions", "kept"],
            "dropped": {name: sums["completions", name] for name in dropped},
            **{scope: {name: sums[scope, f"num_{name}"] for name in _COUNTED} for scope in ("all", "in_kept")},
        },
        "mean_entropy": sums["entropy"] / kept,
    }


def _write_shard(
    run: RunDirectory,
    grades: str,
    output: str,
    keep: str,
    excluded: Collection[str],
    fits: dict[str, FittedMapping],
    shard: str,
) -> ShardSums:
    """Write one shard of weights; returns the health sums of each column."""
    graded = run.read_table(grades, shard, columns=COLUMNS)
    table = measure_table(graded, keep, excluded)
    kept = table["reason"].is_null().to_numpy()
    tokens = table["mean_tokens"].to_numpy()[kept]
    blocks = _blocks(graded, kept, {fitted.mapping.measure for fitted in fits.values()})
    parts: dict[Any, Any] = {}
    for column, fitted in fits.items():
        weights = fitted.weights(blocks[fitted.mapping.measure])
        parts[column] = WeightHealth.of(weights, tokens)
        full = np.zeros(len(table))
        full[kept] = weights
        table = table.append_column(column, pa.array(full, mask=~kept))
    run.write_table(table, output, shard)
    return ShardSums(parts)


def _log(funnel: dict[str, Any], health: dict[str, dict[str, float]]) -> None:
    questions, completions = funnel["questions"], funnel["completions"]
    counts = {"completions": completions["total"], **completions["all"]}
    dropped = ", ".join(f"{count:,} {name}" for name, count in questions["dropped"].items()) or "none dropped"
    shown = ", ".join(f"{counts[name]:,} {name}" for name in ("completions", "correct", "errors", "truncated"))
    logger.info(f"weigh: {questions['kept']:,} of {questions['total']:,} questions kept ({dropped}); {shown}")
    for column, figures in health.items():
        message = "weigh: {}: effective sample size {effective_sample_size:.0f} of {kept}, max weight {max_weight:.3g}"
        logger.info(message.format(column, **figures))
