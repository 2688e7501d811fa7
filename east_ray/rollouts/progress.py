"""How far the rollouts are: engines report to a small actor, the driver shows its sums in one live line."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from east_ray.console import progress
from east_ray.rollouts.engine import Refusal, Result

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
PATIENCE_SECONDS = 120.0  # without a first token; loading a large model takes about that long


class ShardProgress:
    """Adds up one shard's finished requests and tells the tally now and then; absolute counts, so a redo overwrites them."""

    def __init__(self, tally: Any, key: tuple[int, int], tokens: Any, samples: Any) -> None:
        self._tally, self._key, self._tokens, self._samples = tally, key, tokens, samples
        self._lock = threading.Lock()
        self._counts = {"questions": 0, "samples": 0, "tokens": 0, "truncated": 0}
        self._sent = time.monotonic()

    def add(self, result: Result) -> None:
        """Count one request that the engine has finished; from any of its threads."""
        completions = [] if isinstance(result, Refusal) else result
        tokens, truncated = (
            sum(c.num_tokens for c in completions),
            sum(c.finish_reason == "length" for c in completions),
        )
        with self._lock:
            for name, value in zip(self._counts, (1, len(completions), tokens, truncated), strict=True):
                self._counts[name] += value
        if tokens:
            self._tokens.inc(tokens)
        for reason, count in (("stop", len(completions) - truncated), ("length", truncated)):
            if count:
                self._samples.inc(count, {"finish_reason": reason})
        if time.monotonic() - self._sent >= REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        """Tell the tally now: all that was counted so far."""
        self._sent = time.monotonic()
        self._tally.report.remote(self._key, dict(self._counts))


class Tally:
    """Adds up what the engines report, by shard, so that a shard begun again counts once. Runs as a Ray actor."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], dict[str, int]] = {}

    def report(self, shard: tuple[int, int], counts: dict[str, int]) -> None:
        """Replace what was known of a shard, (job, number)."""
        self._counts[shard] = counts

    def totals(self) -> dict[str, int]:
        """ShardSums over all shards."""
        total = Counter[str]()
        for counts in self._counts.values():
            total.update(counts)
        return dict(total)


class LiveLine:
    """What engines and graders have done so far: the engines' counts come from the tally, the graders' from finished shards."""

    def __init__(self) -> None:
        from east_ray.runs.cluster import on_driver_node

        self.tally = on_driver_node(Tally)
        self._sampled, self._graded = Counter[str](), Counter[str]()
        self._began = time.monotonic()
        self._first_token: float | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a shard that came out of the graders."""
        self._graded.update({"questions": row["questions"], "samples": row["graded"], "correct": row["correct"]})

    def refresh(self) -> None:
        """Ask the tally; when it does not answer, the line keeps what it had."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError, TimeoutError):
            self._sampled = Counter(ray.get(self.tally.totals.remote(), timeout=10))
        if self._sampled["tokens"] and self._first_token is None:
            self._first_token = time.monotonic() - REPORT_SECONDS

    @property
    def questions(self) -> int:
        """Finished questions: sampled ones, or graded ones where that is further (shards that needed no engine)."""
        return max(self._sampled["questions"], self._graded["questions"])

    @property
    def is_waiting(self) -> bool:
        """Whether nothing has come from any engine or grader for longer than a start takes."""
        return not (self._first_token or self._graded) and time.monotonic() - self._began > PATIENCE_SECONDS

    def measures(self) -> dict[str, float]:
        """Rates and shares of what was done since this began: only those that there is something for."""
        found: dict[str, float] = {}
        sampled, graded = self._sampled, self._graded
        if sampled["samples"] and self._first_token is not None:
            found["samples"] = sampled["samples"]
            found["tokens_per_second"] = sampled["tokens"] / max(time.monotonic() - self._first_token, REPORT_SECONDS)
            found["mean_length"] = sampled["tokens"] / sampled["samples"]
            found["truncated"] = sampled["truncated"] / sampled["samples"]
        if graded["samples"]:
            found["accuracy"] = graded["correct"] / graded["samples"]
        return found


@contextmanager
def live_line(title: str, questions: int) -> Iterator[LiveLine]:
    """Show what engines and graders do in one line, refreshed every second, while the block runs."""
    import ray

    line, stop = LiveLine(), threading.Event()

    def show() -> None:
        line.refresh()
        bar.update(line.questions, **{_SHORT.get(n, n): _shown(n, value) for n, value in line.measures().items()})

    def keep_showing() -> None:
        warned = False
        while not stop.wait(REPORT_SECONDS):
            show()
            if line.is_waiting and not warned:
                warned = True
                logger.warning(
                    "no engine has answered for %.0f s: it loads its model, or no node has the GPUs, cores and labels that "
                    "sampling asks for (`ray status` shows what is pending)",
                    PATIENCE_SECONDS,
                )

    with progress(title, questions) as bar:
        thread = threading.Thread(target=keep_showing, daemon=True)
        thread.start()
        try:
            yield line
            show()
        finally:
            stop.set()
            thread.join()
            ray.kill(line.tally)


_SHORT = {"tokens_per_second": "tok/s", "mean_length": "length", "accuracy": "correct"}


def _shown(name: str, value: float) -> Any:
    return f"{value:.1%}" if name in ("truncated", "accuracy") else value
