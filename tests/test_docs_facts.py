"""Flags, defaults and Python versions named in the docs, in messages and in the doctor are those of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from east_ray.cli import _parser
from east_ray.config.load import Config
from east_ray.preflight.machine_checks import check_python

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_setting_with_its_default_in_brackets_has_that_default(page: Path) -> None:
    for section, key, value in re.findall(r"`(\w+)\.(\w+)` \((\d+(?:\.\d+)?)\)", page.read_text(encoding="utf-8")):
        settings = Config.model_fields[section].annotation
        assert settings.model_fields[key].default == float(value), f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_the_docs_name_is_a_flag_of_the_command(page: Path) -> None:
    commands = next(action.choices for action in _parser()._actions if isinstance(action.choices, dict))
    known = set(re.findall(r"--[a-z][a-z-]+", " ".join(sub.format_help() for sub in commands.values())))
    # A flag on its own in code style is ours too, but for tables, which name other tools.
    text = "\n".join(line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("|"))
    calls = rf"(?<![\w-])east-ray (?:{'|'.join(commands)}) [^`\n]*|`--[a-z][^`]*`"
    named = {
        flag
        for call in re.findall(calls, text)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", call.partition("#")[0])
    }
    assert named - known == set()


def test_doctor_the_readme_and_the_package_agree_on_python_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = SpecifierSet(project["requires-python"])
    for minor in range(9, 16):
        assert (check_python((3, minor)).status == "ok") == (f"3.{minor}.1" in wanted), minor
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"3\.(?:9|1\d)\b", re.findall(r"Python 3\.[^\n]*", readme)[0])) == {
        f"3.{minor}" for minor in range(9, 16) if f"3.{minor}.1" in wanted
    }


def test_every_test_and_probe_that_the_compatibility_page_names_exists() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"`(test_\w+)`", page))
    assert {name for name in tests if f"def {name}(" not in sources} == set()
    probes = (ROOT / "east_ray" / "preflight" / "probe.py").read_text(encoding="utf-8")
    named = set(re.findall(r"probe `([\w ]+)`|^\| `([\w ]+)` \|", page, re.MULTILINE))
    assert {name for pair in named for name in pair if name and f'"{name}' not in probes} == set()
