"""The live line of the rollouts: counts and rates of the shards that are finished."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from east_ray.console import Progress, progress

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0  # loading a large model takes about that long
NEWS_SECONDS = 5.0


class LiveLine:
    """Adds up finished shards, the rows that come out of the graders, and shows their sums."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._graded, self._sampled = Counter[str](), Counter[str]()
        self._first, self._last = float("inf"), 0.0  # when the first shard's sampling began and the last one's ended

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one finished shard: its grades, and its completions where they were sampled just now."""
        self._graded.update({name: row[name] for name in ("questions", "graded", "correct")})
        self._sampled.update({name: row[name] for name in ("sampled", "tokens", "truncated")})
        if row["sampled"]:
            self._first, self._last = min(self._first, row["began"]), max(self._last, row["ended"])
        shown = {_SHORT.get(name, name): _format(name, value) for name, value in self.measures().items()}
        self._bar.update(self._graded["questions"], **shown)

    def measures(self) -> dict[str, float]:
        """Rates and shares of what was sampled and graded, without those that nothing was done for."""
        found: dict[str, float] = {}
        sampled, graded = self._sampled, self._graded
        if sampled["sampled"]:
            found["samples"] = sampled["sampled"]
            found["tokens_per_second"] = sampled["tokens"] / max(self._last - self._first, 1e-3)
            found["mean_length"] = sampled["tokens"] / sampled["sampled"]
            found["truncated"] = sampled["truncated"] / sampled["sampled"]
        if graded["graded"]:
            found["accuracy"] = graded["correct"] / graded["graded"]
        return found


@contextmanager
def live_line(title: str, questions: int, news: Callable[[], tuple[bool, list[str]]]) -> Iterator[LiveLine]:
    """Show the sums of finished shards while the block runs, and every few seconds what `news` gives: whether anything has
    begun (a warning when it has not after PATIENCE_SECONDS) and sentences that no call has returned before.
    """
    ended = threading.Event()

    def tell() -> bool:
        begun, sentences = news()
        for sentence in sentences:
            logger.warning("%s", sentence)
        return begun

    def watch() -> None:
        patience = time.monotonic() + PATIENCE_SECONDS
        while not ended.wait(NEWS_SECONDS):
            with suppress(Exception):  # Ray may be ending, or slow to answer
                if tell():
                    patience = float("inf")
                elif time.monotonic() > patience:
                    patience = float("inf")
                    logger.warning(
                        "no engine has started after %.0f s: it is loading its model, or no node has the GPUs, cores and "
                        "labels that sampling asks for (`ray status` shows what is pending)",
                        PATIENCE_SECONDS,
                    )

    with progress(title, questions) as bar:
        threading.Thread(target=watch, name="news", daemon=True).start()
        try:
            yield LiveLine(bar)
            tell()
        finally:
            ended.set()


_SHORT = {"tokens_per_second": "tok/s", "mean_length": "length", "accuracy": "correct"}


def _format(name: str, value: float) -> Any:
    return f"{value:.1%}" if name in ("truncated", "accuracy") else value
