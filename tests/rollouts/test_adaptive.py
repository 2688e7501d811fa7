"""Adaptive sampling through the real pipeline, with the engine without a model."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from east_ray.config.sections import AdaptiveConfig
from east_ray.runs.directory import RunDirectory
from tests.support.rollout_runs import content, make_run, roll_out

ADAPTIVE = {"adaptive": AdaptiveConfig(min_samples=4, width=1.2), "num_samples": 16}


def drawn(run: RunDirectory) -> dict[str, list[str]]:
    rows = [row for shard in content(run, "samples").values() for row in shard]
    return {row["question_id"]: row["completions"] for row in rows}


def expected(full: RunDirectory) -> dict[str, int]:
    """How many completions each question of a full run would have got, from the clusters of its prefixes."""
    rows = [row for shard in content(full, "grades").values() for row in shard]
    return {row["question_id"]: _stops_at(row["clusters"]) for row in rows}


def _stops_at(clusters: list[int]) -> int:
    for n in (4, 8):
        counts = list(Counter(clusters[:n]).values())
        shares = [count / (n + 1) for count in [*counts, 1]]
        mean = -sum(p * math.log(p) for p in shares)
        variance = max(sum(p * math.log(p) ** 2 for p in shares) - mean**2, 0.0)
        if 2 * 1.959964 * math.sqrt(variance / n) + (len(counts) - 1) / n <= 1.2:
            return n
    return 16


@pytest.mark.usefixtures("ray_session")
def test_an_adaptive_run_draws_the_prefix_that_a_replay_of_the_full_run_predicts_even_when_stopped(
    tmp_path: Path,
) -> None:
    full, run = make_run(tmp_path / "full"), make_run(tmp_path / "adaptive")
    roll_out(full, num_samples=16)
    roll_out(run, **{**ADAPTIVE, "num_samples": 8})  # as if stopped before the last level
    (summary,) = roll_out(run, **ADAPTIVE)
    all_drawn, counts = drawn(full), expected(full)
    assert len(set(counts.values())) > 1  # some stop early, some do not
    assert drawn(run) == {name: all_drawn[name][:count] for name, count in counts.items()}
    assert summary.samples == summary.correct + summary.incorrect + summary.errors == sum(counts.values())
    before = content(run)
    (again,) = roll_out(run, **ADAPTIVE)
    assert again.reused_shards == again.shards
    assert content(run) == before
