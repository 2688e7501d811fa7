"""Logging and progress: one live line per step on a terminal, a plain line now and then in a job's log, and nothing
from the libraries.
"""

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
TRAINING_THREAD = "east-ray training"  # name of the driver's threads that are inside Ray Train's fit()

# What keeps libraries quiet; what the user has set stays.
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def set_up_logging(verbose: bool = False) -> None:
    """Our own lines from INFO (DEBUG when verbose); the libraries are silenced unless verbose."""
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
    if not verbose:
        silence_libraries()


def silence_libraries() -> None:
    """Let libraries speak from WARNING on, the chatty ones from ERROR, in this process and in those Ray starts from it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.data", "ray.train", "vllm", "deepspeed", "transformers", "torch", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Let datasets made within show no bars or messages of Ray Data's own: we have a live line, and it has a log file."""
    import ray.data  # makes the handlers, which print about every dataset where there is no terminal

    for handler in logging.getLogger(ray.data.__name__).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # one shard of long completions may take hours
    with ray.data.DataContext.current(context):
        yield


class Progress:
    """Progress of one step. `update` may be called as often as is convenient."""

    def __init__(self, step: str, total: int, unit: str, bars: Bars | None) -> None:
        self.step, self.total, self.unit = step, total, unit
        self._bars = bars
        self._task = bars.add_task(step, total=total, note="") if bars else None
        self._logged, self._line = time.monotonic(), ""

    def update(self, completed: int, **fields: Any) -> None:
        """Set the count of finished units; `fields` are shown after it, in order, as `name value`."""
        note = "  ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in fields.items())
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=completed, note=note)
            return
        self._line = f"{self.step}: {completed}/{self.total} {self.unit}  {note}"
        if time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self.log()

    def log(self) -> None:
        """Write the newest line to the log, once."""
        if self._line:
            logger.info("%s", self._line)
        self._logged, self._line = time.monotonic(), ""


@contextmanager
def progress(step: str, total: int, unit: str = "questions") -> Iterator[Progress]:
    """Show the progress of one step: a live bar on a terminal, otherwise a line at most every 15 seconds and the last."""
    if not sys.stderr.isatty():
        shown = Progress(step, total, unit, None)
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
        yield Progress(step, total, unit, bars)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
