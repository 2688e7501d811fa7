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

# Nothing is timed in a test: on a busy machine the first example of a property may take seconds.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name, value in (QUIET | ENVIRONMENT).items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def heard() -> None:
    """Let our loggers be heard in every test: commands and libraries that an earlier test ran may have switched them off."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "east_ray" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real questions and real model responses; kept beside the checkout, never inside it."""
    path = Path(os.environ.get("EAST_RAY_SHARED", ROOT.parent / "shared")) / "data"
    if not path.is_dir():
        pytest.skip(f"needs the verification data at {path} (set EAST_RAY_SHARED to the folder that holds data/)")
    return path


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

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=400 << 20)
    yield
    if started:
        ray.shutdown()
