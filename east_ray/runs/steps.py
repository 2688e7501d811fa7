"""One step of Algorithm 1: what it reads, what shaped it, where it is kept; done, redone, skipped or refused by manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory, Stage, fingerprint, jsonable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One stage directory of a step. `needs` are the parts it reads, by name; `settings` what else shaped it."""

    stage: Stage
    settings: Mapping[str, Any]
    needs: Mapping[str, Part] = field(default_factory=dict)
    external: Mapping[str, str] = field(default_factory=dict)  # fingerprints of what comes from outside the run
    outputs: tuple[str, ...] = ()  # directories beside the stage that belong to it
    extendable: frozenset[str] = frozenset()  # settings that may be raised later: what there is then stays, as a part

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Fingerprint of everything it reads, by name."""
        return {**self.external, **{name: part.fingerprint for name, part in self.needs.items()}}

    @cached_property
    def fingerprint(self) -> str:
        """Known before the stage has run: it follows from the settings and inputs alone."""
        return fingerprint({"inputs": self.inputs, "settings": jsonable(self.settings)})

    @property
    def is_finished(self) -> bool:
        """Is there a manifest of just these inputs and settings? UserError when it is of others."""
        return self.stage.is_current(self.inputs, self.settings, self.extendable)

    def begin(self) -> None:
        """Record what is about to be made, before any of it is."""
        self.stage.begin(self.inputs, self.settings)

    def complete(self, **facts: Any) -> None:
        """Write the manifest, which makes it finished; `facts` go into it."""
        self.stage.complete(self.inputs, self.settings, **facts)

    @contextmanager
    def discard_on_user_error(self) -> Iterator[None]:
        """For work on a file from outside: when it has to be mended, its new fingerprint must not be refused."""
        try:
            yield
        except UserError:
            self.discard()
            raise

    def discard(self) -> None:
        """Delete what this part holds, its manifest first, so that a kill in between leaves it unfinished."""
        run = self.stage.run
        for name in (self.stage.name, *self.outputs):
            run.delete(name)


@dataclass(frozen=True)
class Step:
    """A named step over one or more parts. `work` takes the unfinished ones and gives their facts, in order.

    A part is complete as soon as its facts are there: what a generator has given before a kill is not done again.
    """

    name: str
    parts: Sequence[Part]
    work: Callable[[Sequence[Part]], Iterable[Any]]

    def __str__(self) -> str:
        places = {part.stage.name.split("/")[0] for part in self.parts}
        return f"{self.name} {', '.join(sorted(places - {self.name}))}".strip()

    def run(self, connect: Callable[[], None]) -> bool:
        """Do what is unfinished; True when there was something to do. `connect` starts Ray on the first real work."""
        pending = [part for part in self.parts if not part.is_finished]
        if not pending:
            logger.debug("%s: up to date", self)
            return False
        self._check_needs(pending)
        if self.name != "questions":
            connect()
        run, started = pending[0].stage.run, time.monotonic()
        for part in pending:
            part.begin()
        for part, facts in zip(pending, self.work(pending), strict=True):
            part.complete(**{"seconds": round(time.monotonic() - started, 3), **jsonable(facts)})
        seconds = time.monotonic() - started
        logger.info("%s finished in %.1f s", self, seconds)
        run.append_metrics(step=self.name, parts=[part.stage.name for part in pending], seconds=seconds)
        return True

    def _check_needs(self, pending: Sequence[Part]) -> None:
        for part in pending:
            for name, needed in part.needs.items():
                if not needed.is_finished:
                    raise UserError(
                        f"{self.name} needs {name}, but {needed.stage.name} is not finished; run the earlier steps first "
                        f"(`east-ray run CONFIG` runs them all)"
                    )


def run_steps(steps: Sequence[Step], connect: Callable[[], None], only: str | None = None) -> bool:
    """Run the steps in order, or only those of one name as far as their inputs are there. True when anything was done.

    Asked for one step by name, later rounds whose inputs do not exist yet are left alone; the first round's are an error.
    """
    done, seen = False, False
    for step in steps:
        if only is not None and step.name != only:
            continue
        if seen and only is not None and not _needs_finished(step):
            break
        done = step.run(connect) or done
        seen = True
    if only is not None and not seen:
        raise UserError(f"this config has no step {only!r}")
    return done


def restart_from(run: RunDirectory, steps: Sequence[Step], name: str) -> None:
    """Discard the first step of that name and every later one."""
    names = [step.name for step in steps]
    if name not in names:
        raise UserError(f"--restart-from {name!r}: choose one of {', '.join(dict.fromkeys(names))}")
    for step in reversed(steps[names.index(name) :]):
        for part in step.parts:
            part.discard()
    logger.info("discarded %s and what followed in %s", name, run.uri)


def _needs_finished(step: Step) -> bool:
    return all(needed.is_finished for part in step.parts for needed in part.needs.values())
