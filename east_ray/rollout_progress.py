"""How far the rollouts are: engines report to a small actor, the driver shows its sums in one live line."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from east_ray.console import progress
from east_ray.engine import Refusal, Result

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
PATIENCE_SECONDS = 120.0  # without a first token; loading a large model takes about that long


class Report:
    """Adds up one shard's finished requests and tells the tally now and then; absolute counts, so a redo overwrites them."""

    def __init__(self, tally: Any, key: tuple[int, int], tokens: Any, samples: Any) -> None:
        self._tally, self._key, self._tokens, self._samples = tally, key, tokens, samples
        self._lock = threading.Lock()
        self._counts = {"questions": 0, "samples": 0, "tokens": 0, "truncated": 0}
        self._sent = time.monotonic()

    def add(self, result: Result) -> None:
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
        self._sent = time.monotonic()
        self._tally.report.remote(self._key, dict(self._counts))


class Tally:
    """Adds up what the engines report, by shard, so that a shard begun again counts once. Runs as a Ray actor."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], dict[str, int]] = {}

    def report(self, shard: tuple[int, int], counts: dict[str, int]) -> None:
        self._counts[shard] = counts

    def totals(self) -> dict[str, int]:
        total = Counter[str]()
        for counts in self._counts.values():
            total.update(counts)
        return dict(total)


@contextmanager
def live_line(title: str, questions: int, tally: Any) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Show what engines and graders have done, refreshed every second; yields a function that takes finished shards."""
    import ray
    from ray.exceptions import RayError

    graded, stop, began = Counter[str](), threading.Event(), time.monotonic()
    first_token: list[float] = []

    def add(row: Mapping[str, Any]) -> None:
        graded.update({"questions": row["questions"], "samples": row["graded"], "correct": row["correct"]})

    def show() -> None:
        with suppress(RayError, TimeoutError):
            total = Counter(ray.get(tally.totals.remote(), timeout=10))
            if total["tokens"] and not first_token:
                first_token.append(time.monotonic() - REPORT_SECONDS)
            seconds = time.monotonic() - first_token[0] if first_token else 0.0
            bar.update(max(total["questions"], graded["questions"]), **_fields(total, graded, seconds))

    def refresh() -> None:
        warned = False
        while not stop.wait(REPORT_SECONDS):
            show()
            if not (warned or first_token or graded) and time.monotonic() - began > PATIENCE_SECONDS:
                warned = True
                logger.warning(
                    "no engine has answered for %.0f s: it loads its model, or no node has the GPUs, cores and labels that "
                    "sampling asks for (`ray status` shows what is pending)",
                    PATIENCE_SECONDS,
                )

    with progress(title, questions) as bar:
        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield add
            show()
        finally:
            stop.set()
            thread.join()


def _fields(total: Counter[str], graded: Counter[str], seconds: float) -> dict[str, Any]:
    """What the line shows beside the count of questions: only what there is already."""
    fields: dict[str, Any] = {}
    if total["samples"]:
        fields["samples"] = total["samples"]
        fields["tokens/s"] = total["tokens"] / max(seconds, REPORT_SECONDS)
        fields["mean_length"] = total["tokens"] / total["samples"]
        fields["truncated"] = f"{total['truncated'] / total['samples']:.1%}"
    if graded["samples"]:
        fields["accuracy"] = f"{graded['correct'] / graded['samples']:.1%}"
    return fields
