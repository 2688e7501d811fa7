"""The identity of a finished run: trained ids are sampled ids, exchanged weights were verified, weights reached the gradient.

Reads a shard of samples at a time and changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from east_ray.records import UserError
from east_ray.rollouts.shards import read_footers
from east_ray.runs.directory import RunDirectory

TRAINED_IDS = ("completion_ids", "chosen_ids", "rejected_ids")
WEIGHT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Identity:
    """Counts over all rounds and arms. `as_text`: completions imported without ids, or sampled before ids were kept.

    `shards` counts shards of completions by the weights that sampled them: "loaded" by an engine opened on the model,
    "exchanged" by one that showed that its exchange had worked, None not recorded. `weight_error` is the largest relative
    error of a multiplier where it is applied, nan when no training recorded it.
    """

    trained: int
    sampled: int
    as_text: int
    shards: Mapping[str | None, int]
    weight_error: float

    @property
    def broken(self) -> bool:
        """Was something trained that was not sampled, or with other weights?"""
        return self.sampled + self.as_text < self.trained or self.weight_error > WEIGHT_TOLERANCE

    def render(self) -> str:
        """One line for the terminal."""
        of = self.trained - self.as_text
        text = f" ({self.as_text:,} more came as text)" if self.as_text else ""
        unknown = f", not recorded: {self.shards[None]:,}" if self.shards[None] else ""
        weights = "not recorded" if math.isnan(self.weight_error) else f"at most {self.weight_error:.1g} off"
        return (
            f"identity   {self.sampled:,} of {of:,} trained completions are the sampled token ids{text}; shards sampled with "
            f"weights as loaded: {self.shards['loaded']:,}, exchanged and verified: {self.shards['exchanged']:,}"
            f"{unknown}; weights at the gradient: {weights}"
        )

    def check(self) -> None:
        """UserError when the identity is broken."""
        if self.broken:
            raise UserError(
                f"what was trained is not what was sampled and weighed: {self.render()}; start again with "
                "--restart-from select, and report this as a bug"
            )


def identity(run: RunDirectory) -> Identity:
    """Compare every trained completion of a run with the samples of its question, and add up what the steps recorded."""
    directories = sorted({directory for step in run.finished_steps() for directory in step["artifacts"]})
    facts = {name: record["facts"] for name in directories if (record := run.manifest(name)) is not None}
    kinds = defaultdict(list[str])
    for name in facts:
        kinds[name.rpartition("/")[2]].append(name)

    wanted: dict[tuple[str, tuple[int, ...]], int] = defaultdict(int)
    as_text = 0
    for question_id, ids in _trained(run, kinds["examples"]):
        if ids is None:
            as_text += 1
        else:
            wanted[question_id, ids] += 1
    trained = as_text + sum(wanted.values())
    sampled = sum(wanted.pop(key, 0) for key in _sampled(run, kinds["samples"]))
    errors = [facts[name]["weight_error"] for name in kinds["training"] if facts[name].get("weight_error") is not None]
    evaluated = [f"{name}/samples" for name in kinds["evaluation"] + kinds["validation"]]
    shards = Counter(
        footer.get("weights")
        for directory in kinds["samples"] + evaluated
        for footer in read_footers(run, directory, len(run.list(directory, suffix=".parquet")))
        if footer is not None
    )
    return Identity(trained, sampled, as_text, shards, weight_error=max(errors, default=math.nan))


def _trained(run: RunDirectory, examples: list[str]) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Question and ids of every example's completions; None for text. Where an arm trained, the ids that it was given."""
    for directory in examples:
        for name in run.list(directory, suffix=".parquet"):
            table = run.read_table(directory, name)
            columns = [column for column in TRAINED_IDS if column in table.column_names]
            tokens, stem = f"{directory}/tokens", name.removesuffix(".parquet")
            given = [file for file in run.list(tokens, suffix=".parquet") if file.startswith(stem)]
            for column in columns or TRAINED_IDS[:1]:
                listed = table[column].to_pylist() if columns else [None] * len(table)
                for copy in [run.read_table(tokens, file)[column].to_pylist() for file in given] or [listed]:
                    for question_id, kept, ids in zip(table["question_id"].to_pylist(), listed, copy, strict=True):
                        yield question_id, None if kept is None else tuple(ids)


def _sampled(run: RunDirectory, samples: list[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Question and ids of every sampled completion, shard by shard."""
    for directory in samples:
        for shard in run.list(directory, suffix=".parquet"):
            table = run.read_table(directory, shard)
            if "completion_ids" not in table.column_names:
                continue
            for question_id, completions in zip(table["question_id"].to_pylist(), table["completion_ids"], strict=True):
                for ids in completions.as_py() or ():
                    if ids is not None:
                        yield question_id, tuple(ids)
