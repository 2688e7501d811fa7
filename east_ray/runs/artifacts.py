"""Artifacts and the steps that write them: what each is made from, and the manifest that decides run, skip or refuse.

An artifact is a directory of the run that is complete exactly when its manifest exists; the manifest names the settings
and the fingerprints of the inputs that it was made from.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from east_ray.config.load import Config
from east_ray.records import UserError
from east_ray.runs.directory import INTENT, MANIFEST, RunDirectory, fingerprint, jsonable
from east_ray.runs.provenance import update_provenance

logger = logging.getLogger(__name__)

# The step that writes a directory, for messages.
STEP_OF_DIRECTORY = {
    "questions": "questions",
    "samples": "sample",
    "grades": "verify",
    "weights": "weigh",
    "examples": "select",
    "training": "train",
    "validation": "validate",
    "evaluation": "evaluate",
}
# Where the settings of an artifact come from, as far as they have the names that the config gives them.
SECTION_OF_STEP = {"sample": "sampling", "verify": "grading", "train": "training"}


class Refused(UserError):
    """A step that was asked for cannot begin: its settings are not those of what is there, or its inputs are missing."""


class Incomplete(UserError):
    """Some artifacts could not be made; everything that does not need them is there."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """A directory of the run, and all that shapes it. `inputs`: the artifacts it is made from, by name, or the
    fingerprint of something outside the run. `outputs`: other directories that belong to it.
    """

    run: RunDirectory
    directory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Artifact | str] = field(default_factory=dict)
    work: Callable[[], Any] | None = None  # makes it and returns its facts; None where a step makes several together
    outputs: tuple[str, ...] = ()
    extendable: frozenset[str] = frozenset()  # settings that may be raised later: what is there stays, as a part
    discard_on_user_error: bool = (
        False  # for a file from outside: once it is fixed, its new fingerprint must be accepted
    )

    @cached_property
    def fingerprint(self) -> str:
        """Known before the artifact is made: it follows from the settings and inputs alone."""
        return fingerprint(self._intent)

    @cached_property
    def _intent(self) -> dict[str, Any]:
        inputs = {name: i.fingerprint if isinstance(i, Artifact) else i for name, i in self.inputs.items()}
        return {"inputs": inputs, "settings": jsonable(self.settings)}

    @property
    def is_finished(self) -> bool:
        """Is there a manifest of just these inputs and settings? UserError when it was made, or begun, from others.

        False as well when only `extendable` settings changed and are now larger: the step then extends what is there.
        """
        manifest, begun = self.run.manifest(self.directory), self.run.intent(self.directory)
        larger = {name: self._intent["settings"][name] for name in self.extendable}
        grew = manifest is not None and any(_below(manifest["settings"].get(name), now) for name, now in larger.items())
        for old in (manifest, begun):
            if old is None:
                continue
            had = {name: old["settings"].get(name, now) for name, now in larger.items()}
            if all(had[name] == now or _below(had[name], now) for name, now in larger.items()):
                old = {**old, "settings": {**old["settings"], **larger}}
            if changed := _first_difference(old, self._intent):
                raise self._made_otherwise(*changed)
        return manifest is not None and not grew

    def _made_otherwise(self, name: str, before: Any, now: Any) -> Refused:
        last = self.directory.rsplit("/", 1)[-1]
        step = STEP_OF_DIRECTORY.get(last, last)
        section, keep = SECTION_OF_STEP.get(step), "Use"
        if section and name in Config.model_fields[section].annotation.model_fields:  # type: ignore[union-attr]
            name = f"{section}.{name}"
            keep = f"Keep it with --set {name}={json.dumps(before)}, use"  # its default may have changed since
        return Refused(
            f"{self.run.uri_of(self.directory)} was made with {name} = {before!r}, now it is {now!r}. {keep} another run "
            f"directory (--set run.dir=...), or discard this step and all later ones and do them again with "
            f"`east-ray run CONFIG --restart-from {step}`"
        )

    def begin(self) -> None:
        """Record what it is about to be made from, so that a resumed run cannot mix two settings."""
        self.run.write_json(self._intent, self.directory, INTENT)

    def make(self) -> Any:
        """Do its own work and return its facts."""
        assert self.work is not None, f"{self.directory} is made together with others"
        try:
            return self.work()
        except UserError:
            if self.discard_on_user_error:
                self.discard()
            raise

    def complete(self, **facts: Any) -> None:
        """Write the manifest, which makes it finished; `facts` go into it."""
        manifest = {**self._intent, "fingerprint": self.fingerprint, "facts": jsonable(facts)}
        self.run.write_json(manifest, self.directory, MANIFEST)

    def discard(self) -> None:
        """Delete it and its outputs, its manifest first, so that a kill in between leaves it unfinished."""
        for name in (self.directory, *self.outputs):
            self.run.delete(name)


@dataclass(frozen=True)
class Step:
    """A step of Algorithm 1 and the artifacts it writes. `work` makes the unfinished ones and yields their facts in order, or
    the error of one that cannot be made while others can.

    An artifact is complete as soon as its facts are there: those yielded before a kill are not made again.
    """

    name: str
    artifacts: Sequence[Artifact]
    work: Callable[[Sequence[Artifact]], Iterable[Any]] = lambda pending: map(Artifact.make, pending)
    uses_ray: bool = True

    def __str__(self) -> str:
        directories = {artifact.directory.split("/")[0] for artifact in self.artifacts}
        return f"{self.name} {', '.join(sorted(directories - {self.name}))}".strip()

    def run(self, connect: Callable[[], None], failed: dict[Artifact, Exception] | None = None) -> bool:
        """Make what is unfinished; True when there was something to make. `connect` starts Ray on the first real work.

        Artifacts that cannot be made, and those that need them, are added to `failed`; the error is raised when there are
        no others.
        """
        failed = {} if failed is None else failed
        pending = [artifact for artifact in self.artifacts if not artifact.is_finished]
        for artifact in pending:
            errors = [failed[i] for i in artifact.inputs.values() if isinstance(i, Artifact) and i in failed]
            if errors:
                failed[artifact] = errors[0]
        pending = [artifact for artifact in pending if artifact not in failed]
        if not pending:
            logger.debug("%s: up to date", self)
            return False
        for name, needed in _inputs(pending):
            if not needed.is_finished:
                raise Refused(
                    f"{self.name} needs {name}, but {needed.directory} is not finished; run the earlier steps first "
                    f"(`east-ray run CONFIG` runs them all)"
                )
        if self.uses_ray:
            connect()
        started = time.monotonic()
        for artifact in pending:
            artifact.begin()
        for artifact, facts in zip(pending, self.work(pending), strict=True):
            if isinstance(facts, Exception):
                failed[artifact] = facts
                logger.error("%s", facts)
                continue
            artifact.complete(**{"seconds": round(time.monotonic() - started, 3), **jsonable(facts)})
        if failed.keys() >= {*self.artifacts}:
            raise failed[pending[0]]
        seconds = time.monotonic() - started
        logger.info("%s finished in %.1f s", self, seconds)
        if self.uses_ray:
            update_provenance(pending[0].run)
        pending[0].run.append_metrics(step=self.name, artifacts=[a.directory for a in pending], seconds=seconds)
        return True


def run_steps(steps: Sequence[Step], connect: Callable[[], None], only: str | None = None) -> bool:
    """Run the steps in order, or only those of one name. True when anything was done.

    With `only`, later rounds whose inputs are not finished yet are left alone; the first round's are an error. Incomplete
    at the end when an artifact could not be made.
    """
    done, seen, failed = False, False, dict[Artifact, Exception]()
    for step in steps:
        if only is not None and step.name != only:
            continue
        if seen and only is not None and not all(needed.is_finished for _, needed in _inputs(step.artifacts)):
            break
        done = step.run(connect, failed) or done
        seen = True
    if only is not None and not seen:
        raise Refused(
            f"this config has no step {only!r}: `validate` needs questions.validation_share, `evaluate` needs questions.test"
        )
    if failed:
        errors = list(dict.fromkeys(map(str, failed.values())))
        raise Incomplete(
            f"{errors[0]}{f' (and {len(errors) - 1} more, logged above)' if errors[1:] else ''}; the rest is done"
        )
    return done


def restart_from(steps: Sequence[Step], name: str) -> None:
    """Discard the artifacts of the first step of that name and of every later one."""
    names = [step.name for step in steps]
    if name not in names:
        raise Refused(f"--restart-from {name!r}: choose one of {', '.join(dict.fromkeys(names))}")
    for step in reversed(steps[names.index(name) :]):
        for artifact in step.artifacts:
            artifact.discard()
    logger.info("discarded %s and all later steps", name)


def _inputs(artifacts: Iterable[Artifact]) -> Iterable[tuple[str, Artifact]]:
    """The artifacts that others are made from, with the names they go by."""
    return ((name, i) for a in artifacts for name, i in a.inputs.items() if isinstance(i, Artifact))


def _below(value: Any, other: Any) -> bool:
    return isinstance(value, int | float) and isinstance(other, int | float) and value < other


def _first_difference(old: Any, new: Any, where: str | None = None) -> tuple[str, Any, Any] | None:
    """The first setting or input that differs, by dotted name, with its old and its new value; None when none does."""
    if where is None:
        where = ""
        old, new = ({key: value[key] for key in ("settings", "inputs")} for value in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=lambda k: (k != "settings", k)):
            name = key if where in ("", "settings", "inputs") else f"{where}.{key}"
            if changed := _first_difference(old.get(key), new.get(key), name):
                return changed
        return None
    return None if old == new else (where, old, new)
