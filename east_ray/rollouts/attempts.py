"""What the engines of one pool report: which shards they began, and the starts that failed.

An actor on the driver's node, so that the record outlives every engine. It tells a shard or a question that kills its
engines from one whose machines were taken away, and an engine that cannot start whether to try again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

START_WAITS = (1.0, 10.0, 60.0, 120.0)  # seconds before an engine's second, third, ... start while nothing else goes on


@dataclass
class _Shard:
    engine: str = ""
    node: str | None = None  # where it is being sampled now
    question: str | None = None  # the one that is alone in its engine now
    deaths: int = 0
    deaths_of_question: Counter[str] = field(default_factory=Counter)


def alive_nodes() -> set[str]:
    """Ids of the nodes that Ray has not lost."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class Attempts:
    """Starts, shards and deaths of one pool's engines. Engines, nodes and shards go by their ids."""

    def __init__(self, alive_nodes: Callable[[], set[str]] = alive_nodes) -> None:
        self._alive_nodes = alive_nodes
        self._shards: dict[tuple[int, int], _Shard] = {}
        self._failed_starts = Counter[str]()
        self._slots: dict[str, int] = {}
        self._current_job: int | None = None
        self._news: list[str] = []

    def current_job(self) -> int | None:
        """The job whose shards are being sampled: what a new engine should open its model for. None at first."""
        return self._current_job

    def slot(self, engine: str) -> int:
        """Which of the pool's engines this one is, from 0; the same after a restart."""
        return self._slots.setdefault(engine, len(self._slots))

    def started(self, engine: str) -> None:
        """An engine is open. Whatever was wrong with others is not wrong with all, so they may try again."""
        self._failed_starts.clear()

    def start_failed(self, engine: str, node: str, reason: str) -> float | None:
        """Seconds until the engine should try again; None when it has tried often enough and nothing else went on meanwhile."""
        failed = self._failed_starts[engine]
        self._failed_starts[engine] += 1
        wait = START_WAITS[failed] if failed < len(START_WAITS) else None
        on = f"an engine did not start on node {node[:12]}: {reason}"
        self._news.append(f"{on}; it tries again in {wait:.0f} s" if wait is not None else f"{on}; it is given up")
        return wait

    def begin(self, job: int, shard: int, engine: str, node: str) -> tuple[int, dict[str, int]]:
        """A shard is being sampled. How many engines died of it, and of which of its questions when they were alone.

        An engine that went with its whole node died of nothing of its own: spot machines are taken away.
        """
        record = self._shards.setdefault((job, shard), _Shard())
        if record.node is not None and record.node in self._alive_nodes():
            record.deaths += 1
            if record.question is not None:
                record.deaths_of_question[record.question] += 1
        record.engine, record.node, record.question = engine, node, None
        self._current_job = job
        return record.deaths, dict(record.deaths_of_question)

    def alone(self, job: int, shard: int, question: str) -> None:
        """A question of the shard is the only one in its engine now."""
        self._shards[job, shard].question = question

    def finish(self, job: int, shard: int) -> None:
        """The shard's completions are written."""
        self._shards[job, shard].node = None
        self._failed_starts.clear()

    def leave(self, engine: str) -> None:
        """An engine ends for a reason that is no fault of the shards it has begun."""
        for record in self._shards.values():
            if record.engine == engine:
                record.node = None

    def news(self) -> tuple[bool, list[str]]:
        """Has any shard been begun? And what no call has returned before."""
        news, self._news = self._news, []
        return bool(self._shards), news
