"""Public names of the package: few, all documented, none of which costs anything before it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import east_ray

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]


def public_methods(value: object) -> list[str]:
    own = [name for name in vars(value) if not name.startswith("_")] if inspect.isclass(value) else []
    return [name for name in own if isinstance(vars(value)[name], property) or inspect.isfunction(vars(value)[name])]


@pytest.mark.parametrize("name", east_ray.__all__)
def test_every_public_name_and_method_says_what_it_is(name: str) -> None:
    value = getattr(east_ray, name)
    own = (
        vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    )  # not one inherited, say from pydantic
    assert own, name
    assert not own.startswith(f"{name}("), f"{name} has only the docstring that dataclasses make up"
    assert name in (east_ray.__doc__ or "")
    for method in public_methods(value):
        assert inspect.getdoc(vars(value)[method]), f"{name}.{method}"


def test_names_that_do_not_exist_are_attribute_errors() -> None:
    assert not hasattr(east_ray, "nothing_of_this_name")


def test_importing_the_package_imports_none_of_its_modules() -> None:
    code = "import sys, east_ray; print([name for name in sys.modules if name.startswith('east_ray.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_has_the_distributions_name_so_that_pipx_finds_it() -> None:
    assert list(PROJECT["scripts"]) == [PROJECT["name"]]
    assert {"cpu", "gpu", "s3", "trackers", "dev"} <= set(PROJECT["optional-dependencies"])
