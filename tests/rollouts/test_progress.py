"""The live line: sums and rates of the shards that are finished."""

from __future__ import annotations

from typing import Any

import pytest

from east_ray.rollouts.progress import live_line


def shard(
    questions: int, correct: int, sampled: int = 0, tokens: int = 0, cut: int = 0, **when: float
) -> dict[str, Any]:
    drawn = {"sampled": sampled, "tokens": tokens, "truncated": cut, "began": 0.0, "ended": 0.0}
    return {"questions": questions, "graded": 8 * questions, "correct": correct, **drawn, **when}


def test_rates_are_of_what_was_sampled_and_accuracy_of_all_that_was_graded() -> None:
    with live_line("sample", 12, lambda: (True, [])) as line:
        line.add(shard(4, correct=8))  # graded only
        line.add(shard(4, correct=16, sampled=32, tokens=640, cut=8, began=100.0, ended=108.0))
        line.add(shard(4, correct=24, sampled=32, tokens=320, cut=0, began=101.0, ended=112.0))
        assert line.measures() == {
            "samples": 64,
            "tokens_per_second": pytest.approx(960 / 12),
            "mean_length": 15,
            "truncated": 0.125,
            "accuracy": 0.5,
        }


def test_nothing_is_shown_of_what_was_not_done() -> None:
    with live_line("verify", 4, lambda: (True, [])) as line:
        assert line.measures() == {}
        line.add(shard(4, correct=0))
        assert line.measures() == {"accuracy": 0.0}
