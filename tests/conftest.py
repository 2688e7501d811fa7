"""Fixtures that several test files share: real data beside the checkout, the bundled tiny model, one Ray instance."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from east_ray.console import QUIET
from east_ray.runs.cluster import ENVIRONMENT
from east_ray.runs.directory import RunDirectory

# Nothing is timed in a test: on a busy machine the first example of a property may take seconds.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name, value in (QUIET | ENVIRONMENT).items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).resolve().parent.parent


class Lines(logging.Handler):
    """Keeps (level, message) of every record."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelname, record.getMessage()))


@pytest.fixture
def log_lines() -> Iterator[list[tuple[str, str]]]:
    """(level, message) of what reading, importing and the pools log. Unlike caplog it does not pass through the root logger, whose
    handlers libraries that an earlier test started may have replaced.
    """
    handler, loggers = (
        Lines(),
        [logging.getLogger(f"east_ray.{n}") for n in ("questions.questions", "rollouts.imported", "rollouts.progress")],
    )
    logging.disable(logging.NOTSET)
    for logger in loggers:
        logger.disabled = False
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    yield handler.records
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real questions and real model responses; kept beside the checkout, never inside it."""
    path = Path(os.environ.get("EAST_RAY_SHARED", ROOT.parent / "shared")) / "data"
    if not path.is_dir():
        pytest.skip(f"needs the verification data at {path} (set EAST_RAY_SHARED to the folder that holds data/)")
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory on the local disk."""
    return RunDirectory(str(tmp_path / "run"))


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The bundled character-level model."""
    return ROOT / "east_ray" / "tiny" / "model"


@pytest.fixture(scope="session")
def tiny_questions() -> Path:
    """The directory with the bundled train.jsonl and test.jsonl."""
    return ROOT / "east_ray" / "tiny"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole run, two CPUs, no dashboard."""
    import ray

    from east_ray.runs.cluster import any_agent_port

    started = not ray.is_initialized()
    if started:
        with any_agent_port():
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=400 << 20)
    yield
    if started:
        ray.shutdown()
