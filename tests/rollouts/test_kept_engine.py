"""Engines that outlive their pool: used again where that changes nothing, replaced where it might."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import LastingFakeEngine, OtherLastingFakeEngine
from tests.support.rollout_runs import JOB, content, make_run, roll_out

pytestmark = pytest.mark.usefixtures("ray_session")

OTHERS = [replace(JOB, model=f"model-{name}", samples=f"{name}/samples", grades=f"{name}/grades") for name in "bc"]


def two_pools(directory: Path, **behaviour: Any) -> tuple[dict[str, Any], int]:
    """What a pool of one model and then one of two others write, and how many engines were opened for them."""
    run = make_run(directory)
    settings = {"open_engine": LastingFakeEngine, "behaviour": {"directory": str(directory), **behaviour}}
    roll_out(run, **settings)
    roll_out(run, *OTHERS, **settings)
    written = content(run, "samples", "grades", *(f"{name}/{kind}" for name in "bc" for kind in ("samples", "grades")))
    return written, len(list(directory.glob("engine-*")))


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = make_run(tmp_path_factory.mktemp("undisturbed"))
    roll_out(run)
    roll_out(run, *OTHERS)
    return content(run, "samples", "grades", *(f"{name}/{kind}" for name in "bc" for kind in ("samples", "grades")))


def test_a_second_pool_goes_on_with_the_engine_of_the_first(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    assert two_pools(tmp_path) == (undisturbed, 1)


def test_an_engine_that_cannot_become_what_is_asked_for_is_replaced(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    assert two_pools(tmp_path, lasts=False) == (undisturbed, 2)


def test_an_engine_of_another_kind_is_replaced(tmp_path: Path) -> None:
    run, behaviour = make_run(tmp_path), {"directory": str(tmp_path)}
    roll_out(run, open_engine=LastingFakeEngine, behaviour=behaviour)
    first = set(tmp_path.glob("engine-*"))
    roll_out(run, OTHERS[0], open_engine=OtherLastingFakeEngine, behaviour=behaviour)
    assert len(set(tmp_path.glob("engine-*")) - first) == 1


def test_an_engine_that_cannot_exchange_its_weights_is_replaced_for_each_model(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    assert two_pools(tmp_path, no_exchange=True) == (undisturbed, 3)


def test_a_kept_engine_that_dies_is_opened_again_and_its_shards_are_sampled_again(tmp_path: Path) -> None:
    run, plain = make_run(tmp_path / "kept"), make_run(tmp_path / "plain")
    behaviour = {"die_on": ["q3"], "directory": str(tmp_path)}
    roll_out(run, open_engine=LastingFakeEngine, behaviour=behaviour)
    roll_out(plain, behaviour={"die_on": ["q3"]})
    assert content(run) == content(plain)
    assert len(list(tmp_path.glob("engine-*"))) > 1
