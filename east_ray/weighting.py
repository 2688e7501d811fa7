"""The one global reduction: grades of all questions -> a weight per question and mapping, the funnel, weight health.

    weights/shard-00000.parquet ...   records.MEASURES + one float64 column per mapping; mirrors grades/ file by file, row by row
    weights/weights.json              {"funnel": ..., "mappings": {column: {..., "log_normaliser", "health": {...}}}}

Two passes over the narrow columns of `grades` (more only when weights are clipped): the first sums what the
normalisers need, for all mappings at once; the second writes the weights. Sums are exact integers (`uncertainty`), so
nothing depends on how the questions are cut into shards or on which worker finishes first.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from east_ray.config import SelectionConfig, WeightingConfig
from east_ray.records import MEASURES, UserError
from east_ray.runs import RunDirectory
from east_ray.selection import REASONS, drop_reasons
from east_ray.uncertainty import Fit, Mapping, entropies, exact_mean, exact_sum, fit, totals_of

logger = logging.getLogger(__name__)

COUNTS = ("num_samples", "num_correct", "num_incorrect", "num_errors", "num_unanswered", "num_truncated")
COLUMNS = [
    *("question_id", "cluster_sizes", "num_positives", "num_negatives", "largest_wrong", "mean_tokens", "shortfall"),
    *COUNTS,
]
BINS_PER_OCTAVE = 64  # of the histogram behind `top1_share`: weights of one bin differ by 1.1% at most
MAX_TASKS = 256


@dataclass(frozen=True)
class WeighingSummary:
    """What weighing left: questions in and kept, why the others were dropped, and each mapping's health."""

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
    mappings: Sequence[Mapping],
    selection: SelectionConfig,
    weighting: WeightingConfig,
    excluded: Collection[str] = frozenset(),
) -> WeighingSummary:
    """Write the weights of every question in `grades` to `output`. Both are directories relative to the run.

    `excluded` are ids of questions that are also in the test set. UserError when no question is kept (with the
    funnel), when a mapping does not fit the measures, or when weights are unhealthy and `on_unhealthy` = "stop".
    """
    shards = run.list(grades, suffix=".parquet")
    if not shards:
        raise UserError(f"{run.uri_of(grades)} holds no grades; run `east-ray verify` first")
    measure = partial(measure_table, keep=selection.keep, excluded=frozenset(excluded))
    funnel, fits = _fit_all(run, grades, shards, mappings, measure)
    write = partial(_write_shard, run, grades, output, measure, fits)
    healths = reduce_shards(write, shards).parts

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
    _log_funnel(funnel)
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
    sizes = grades["cluster_sizes"].combine_chunks()
    judged = grades["num_correct"].to_numpy() + grades["num_incorrect"].to_numpy()
    offsets = sizes.offsets.to_numpy()
    flat = sizes.values.to_numpy()
    return pa.table(
        {
            "question_id": grades["question_id"],
            "num_clusters": pa.array(np.diff(offsets), pa.int32()),
            "entropy": entropies(flat[offsets[0] : offsets[-1]], offsets - offsets[0]),
            "inaccuracy": grades["num_incorrect"].to_numpy() / np.maximum(judged, 1),
            "dominant_wrong": grades["largest_wrong"].to_numpy() / np.maximum(grades["num_samples"].to_numpy(), 1),
            "mean_tokens": grades["mean_tokens"],
            "reason": drop_reasons(grades, keep, excluded),
        },
        schema=MEASURES,
    )


@dataclass(frozen=True)
class Sums:
    """Anything that adds up over shards: numbers, Totals and Health by name."""

    parts: dict[Any, Any] = field(default_factory=dict)

    def __add__(self, other: Sums) -> Sums:
        merged = dict(self.parts)
        for name, part in other.parts.items():
            merged[name] = merged[name] + part if name in merged else part
        return Sums(merged)


def reduce_shards(of_shard: Callable[[str], Sums], shards: Sequence[str]) -> Sums:
    """Add up `of_shard(name)` over the shards with a Ray Data aggregate; shards are read by the tasks, one at a time."""
    import ray.data
    from ray.data.aggregate import AggregateFnV2
    from ray.data.context import ShuffleStrategy

    class AddUp(AggregateFnV2):
        def __init__(self) -> None:
            super().__init__("sums", lambda: pickle.dumps(Sums()), on="shard", ignore_nulls=False)

        def aggregate_block(self, block: Any) -> bytes:
            return pickle.dumps(sum((of_shard(name) for name in block["shard"].to_pylist()), Sums()))

        def combine(self, current_accumulator: bytes, new: bytes) -> bytes:
            return pickle.dumps(pickle.loads(current_accumulator) + pickle.loads(new))

    rows = [{"shard": name} for name in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_TASKS))
    # 20 shards: 0.17 s so, 0.9 s with the default hash shuffle, whose aggregators are actors (Ray 2.60, two cores).
    dataset.context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    return pickle.loads(dataset.aggregate(AddUp())["sums"])


@dataclass(frozen=True)
class Health:
    """Exact sums behind the health of one weight column; `+` merges. w is the weight, t the question's mean tokens."""

    count: int
    largest: float
    w: int
    ww: int
    wt: int
    t: int
    tt: int
    histogram: dict[int, tuple[int, int]]  # bin of log2 w -> number of weights, their sum

    @staticmethod
    def of(weights: np.ndarray, tokens: np.ndarray) -> Health:
        positive = weights[weights > 0]
        bins = np.floor(np.log2(positive) * BINS_PER_OCTAVE).astype(np.int64)
        histogram = {int(b): (int((bins == b).sum()), exact_sum(positive[bins == b])) for b in np.unique(bins)}
        sums = (exact_sum(x) for x in (weights, weights * weights, weights * tokens, tokens, tokens * tokens))
        return Health(len(weights), float(weights.max(initial=0.0)), *sums, histogram)

    def __add__(self, other: Health) -> Health:
        histogram = dict(self.histogram)
        for b, (count, total) in other.histogram.items():
            old_count, old_total = histogram.get(b, (0, 0))
            histogram[b] = (old_count + count, old_total + total)
        names = ("count", "w", "ww", "wt", "t", "tt")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Health(**sums, largest=max(self.largest, other.largest), histogram=histogram)

    def figures(self) -> dict[str, float]:
        """See `docs/uncertainty.md`; lengths are mean completion tokens per question."""
        w, ww, wt, t, tt = (exact_mean(units, self.count) for units in (self.w, self.ww, self.wt, self.t, self.tt))
        spread = math.sqrt(max(ww - w * w, 0.0) * max(tt - t * t, 0.0))
        effective = self.count * w * w / ww
        return {
            "kept": self.count,
            "mean_weight": w,
            "effective_sample_size": effective,
            "effective_share": effective / self.count,
            "max_weight": self.largest,
            "top1_share": self._top_share(0.01),
            "length_correlation": (wt - w * t) / spread if spread > 1e-12 * t else 0.0,
            # What a token-mean loss multiplies the learning rate by: the mean weight of a token.
            "token_weight": wt / t if t else 1.0,
        }

    def _top_share(self, share: float) -> float:
        """Share of all weight held by the heaviest `share` of the questions (at least one of them)."""
        wanted = left = max(math.ceil(share * self.count), 1)
        held = 0.0
        for b in sorted(self.histogram, reverse=True):
            count, units = self.histogram[b]
            taken = min(count, left)
            held += taken * exact_mean(units, count)
            left -= taken
            if not left:
                break
        assert wanted >= left
        return held / (self.count * exact_mean(self.w, self.count))


def unhealthy(column: str, health: dict[str, float], limits: WeightingConfig) -> list[str]:
    """One sentence per limit that a weight column breaks."""
    found = []
    if health["effective_share"] < limits.min_effective_share:
        found.append(
            f"{column}: {health['kept']} questions weigh only as much as {health['effective_sample_size']:.1f} equal ones "
            f"({health['effective_share']:.1%}, weighting.min_effective_share = {limits.min_effective_share:g}); the "
            f"heaviest weighs {health['max_weight']:.3g}. Use an exponent nearer 0, or set weighting.clip"
        )
    if abs(health["token_weight"] - 1) > limits.max_length_effect:
        found.append(
            f"{column}: weights follow completion length (correlation {health['length_correlation']:+.2f}), so a token-mean "
            f"loss acts as with {health['token_weight']:.2f} times the learning rate (weighting.max_length_effect = "
            f'{limits.max_length_effect:g}). Set training.normalization = "sequence", or divide the learning rate by it'
        )
    return found


def _fit_all(
    run: RunDirectory,
    grades: str,
    shards: Sequence[str],
    mappings: Sequence[Mapping],
    measure: Callable[[pa.Table], pa.Table],
) -> tuple[dict[str, Any], dict[str, Fit]]:
    """The funnel, and every mapping fitted; passes are repeated only for clipped mappings until their caps settle."""
    fits: dict[str, Fit] = {}
    pending = {mapping.column: mapping for mapping in mappings}
    funnel: dict[str, Any] = {}
    while pending:
        previous = {column: fits[column] for column in pending if column in fits}
        sums = reduce_shards(partial(_shard_sums, run, grades, measure, pending, previous), shards).parts
        if not funnel:
            funnel = _funnel(sums)
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
    measure: Callable[[pa.Table], pa.Table],
    mappings: dict[str, Mapping],
    previous: dict[str, Fit],
    shard: str,
) -> Sums:
    table = run.read_table(grades, shard, columns=COLUMNS)
    return table_sums(table, measure(table), mappings, previous)


def table_sums(grades: pa.Table, measures: pa.Table, mappings: dict[str, Mapping], previous: dict[str, Fit]) -> Sums:
    """What one block adds to the funnel and to every mapping's normaliser."""
    reasons = measures["reason"].combine_chunks().dictionary_encode()
    names = reasons.dictionary.to_pylist()
    codes = reasons.indices.fill_null(len(names)).to_numpy()
    kept = codes == len(names)
    samples = grades["num_samples"].to_numpy()
    parts: dict[Any, Any] = {}
    for code, name in enumerate([*names, "kept"]):
        parts["questions", name] = int((codes == code).sum())
        parts["completions", name] = int(samples[codes == code].sum())
    for name in (*COUNTS, "num_positives", "num_negatives"):
        values = grades[name].to_numpy()
        parts["all", name] = int(values.sum())
        parts["in kept", name] = int(values[kept].sum())
    parts["shortfall"] = len(grades) - grades["shortfall"].null_count
    parts["entropy"] = exact_sum(measures["entropy"].to_numpy()[kept])
    values = {name: measures[name].to_numpy()[kept] for name in {m.measure for m in mappings.values()}}
    for column, mapping in mappings.items():
        parts[column] = totals_of(values[mapping.measure], mapping, previous.get(column))
    return Sums(parts)


def _funnel(sums: dict[Any, Any]) -> dict[str, Any]:
    """Questions and completions in, kept, and dropped by reason. UserError when none is kept."""
    questions = {name: sums.get(("questions", name), 0) for name in [*REASONS, "kept"]}
    completions = {name: sums.get(("completions", name), 0) for name in [*REASONS, "kept"]}
    dropped = {name: count for name, count in questions.items() if name != "kept" and count}
    total = sum(questions.values())
    if not questions["kept"]:
        reasons = "; ".join(f"{count} {name} ({REASONS[name]})" for name, count in dropped.items())
        raise UserError(f"none of the {total} questions can be trained on: {reasons}")

    def verdicts(scope: str) -> dict[str, int]:
        return {
            name.removeprefix("num_"): sums[scope, name] for name in (*COUNTS[1:], "num_positives", "num_negatives")
        }

    return {
        "questions": {"total": total, "kept": questions["kept"], "dropped": dropped, "shortfall": sums["shortfall"]},
        "completions": {
            "total": sum(completions.values()),
            "kept": completions["kept"],
            "dropped": {name: count for name, count in completions.items() if name != "kept" and count},
            "all": verdicts("all"),
            "in_kept": verdicts("in kept"),
        },
        "mean_entropy": exact_mean(sums["entropy"], questions["kept"]),
    }


def _write_shard(
    run: RunDirectory,
    grades: str,
    output: str,
    measure: Callable[[pa.Table], pa.Table],
    fits: dict[str, Fit],
    shard: str,
) -> Sums:
    measures = measure(run.read_table(grades, shard, columns=COLUMNS))
    kept = measures["reason"].is_null().to_numpy()
    tokens = measures["mean_tokens"].to_numpy()[kept]
    table, parts = measures, {}
    for column, fitted in fits.items():
        weights = fitted.weights(measures[fitted.mapping.measure].to_numpy()[kept])
        parts[column] = Health.of(weights, tokens)
        full = np.zeros(len(measures))
        full[kept] = weights
        table = table.append_column(column, pa.array(full, mask=~kept))
    run.write_table(table, output, shard)
    return Sums(parts)


def _log_funnel(funnel: dict[str, Any]) -> None:
    questions, completions = funnel["questions"], funnel["completions"]
    lost = ", ".join(f"{count} {name}" for name, count in questions["dropped"].items()) or "none dropped"
    logger.info(
        "weigh: %d of %d questions kept (%s); %d completions, %d correct, %d errors, %d cut off",
        questions["kept"],
        questions["total"],
        lost,
        completions["total"],
        completions["all"]["correct"],
        completions["all"]["errors"],
        completions["all"]["truncated"],
    )
