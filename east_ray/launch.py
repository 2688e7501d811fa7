"""Set up and finish a command: open and lock the run directory, start Ray, show the result."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from east_ray import steps
from east_ray.config.load import Config
from east_ray.console import console
from east_ray.models import pin
from east_ray.pipeline import run_algorithm
from east_ray.preflight.actual import record_plan
from east_ray.runs.artifacts import Incomplete, Refused, run_steps
from east_ray.runs.cluster import start_ray
from east_ray.runs.directory import RunDirectory
from east_ray.runs.lock import locked
from east_ray.runs.provenance import provenance

logger = logging.getLogger(__name__)


def run_and_show(config: Config, *, only: str | None = None, restart: str | None = None) -> int:
    """Run the algorithm, or one step, and show the table and the report where there is something to show, also when an arm
    could not be trained: Incomplete then comes after them.
    """
    with open_run(config) as (run, config):
        record_plan(run, config)
        incomplete = None
        try:
            changed = run_algorithm(run, config, start_ray, only=only, restart=restart)
        except Incomplete as error:
            changed, incomplete = True, error
        if only in (None, "evaluate"):
            _show(run, config, changed)
        if incomplete is not None:
            raise incomplete
    return 0


def import_file(config: Config, file: str) -> None:
    """Bring completions sampled elsewhere into round 0, in place of sampling."""
    with open_run(config) as (run, config):
        questions = steps.questions(run, config)
        run_steps([questions], lambda: None)
        if not run_steps([steps.import_samples(run, config, file, questions)], lambda: None):
            logger.info("%s was already imported", file)


def _show(run: RunDirectory, config: Config, changed: bool) -> None:
    """Print the table of what is evaluated, and write the report when something changed."""
    from east_ray.evaluation.summary import render_table

    if table := render_table(run):
        console.print(table)
    if changed or not run.exists("report.html"):
        from east_ray.report.page import write_report
        from east_ray.training.model_card import write_model_card

        for t, arm in itertools.product(range(config.run.rounds), config.arms):
            write_model_card(run, f"round-{t:02d}/arms/{arm.name}/model")
        write_report(run)
    done = "" if changed else "Nothing to do: this run is finished. "
    console.print(f"{done}Report: {run.uri_of('report.html')}")


@contextmanager
def open_run(config: Config) -> Iterator[tuple[RunDirectory, Config]]:
    """The run directory, created and locked against a second command, and the config with its hub model pinned.

    A command that is refused before it finished a step leaves the records of the settings as they were.
    """
    run = RunDirectory(config.run.dir)
    run.check_reachable()
    with locked(run):
        before = {name: run.read_bytes(name) for name in ("config.json", "plan.json") if run.exists(name)}
        finished = run.finished_steps()
        try:
            yield run, _record(run, config)
        except Refused:
            if run.finished_steps() == finished:
                for name, content in before.items():
                    run.write_bytes(content, name)
            raise


def _record(run: RunDirectory, config: Config) -> Config:
    """Write config.json and provenance.json, and give the config as it is written."""
    config = config.model_copy(update={"model": pin(run, config.model)})
    run.write_json(config.model_dump(mode="json"), "config.json")
    if not run.exists("provenance.json"):
        run.write_json(provenance(config), "provenance.json")
    return config
