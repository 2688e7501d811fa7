"""What a person sees while a run works: one live line per stage on a terminal, one plain line now and then in a job log."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column

logger = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

LOG_EVERY_SECONDS = 15.0


def set_up_logging(verbose: bool = False) -> None:
    """Our own lines at INFO (DEBUG when verbose); libraries only speak from WARNING (ERROR for the chatty ones) on."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(
            console=console, show_path=False, show_level=False, markup=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("east_ray").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        return
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it sets its logger's level when it is imported, later
    for name in ("ray", "ray.data", "ray.train", "vllm", "deepspeed", "transformers", "torch", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


class Progress:
    """How far one stage is. `update` may be called as often as is handy."""

    def __init__(self, stage: str, total: int, unit: str, bars: Bars | None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self._bars = bars
        self._task = bars.add_task(stage, total=total, note="") if bars else None
        self._logged, self._line = time.monotonic(), ""

    def update(self, completed: int, **fields: Any) -> None:
        """Set the count of finished units; `fields` are shown beside it, in order, as `name value`."""
        note = "  ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in fields.items())
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=completed, note=note)
            return
        self._line = f"{self.stage}: {completed}/{self.total} {self.unit}  {note}"
        if time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self.log()

    def log(self) -> None:
        """Write the newest line to the log, once."""
        if self._line:
            logger.info("%s", self._line)
        self._logged, self._line = time.monotonic(), ""


@contextmanager
def progress(stage: str, total: int, unit: str = "questions") -> Iterator[Progress]:
    """Show the progress of one stage: a live bar on a terminal, otherwise a line at most every 15 seconds and the last."""
    if not sys.stderr.isatty():
        shown = Progress(stage, total, unit, None)
        try:
            yield shown
        finally:
            shown.log()
        return
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("[dim]{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        expand=True,  # the note takes what is left of the line, and is cut before the figures to its left are
    )
    with bars:
        yield Progress(stage, total, unit, bars)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
