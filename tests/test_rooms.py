"""The table of rooms: which room may import which, for every file; and the one door of each heavy library.

`docs/design.md` shows the same table to readers.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).resolve().parent.parent / "east_ray"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

# A row a room (a folder, or a file beside the folders), from the ground up: what it may import besides itself. Every
# room may import `records`.
ROOMS: dict[str, set[str]] = {
    "records": set(),
    "formatting": set(),
    "console": set(),
    "config": set(),
    "runs": {"config", "console"},
    "answers": {"config"},
    "models": {"config", "runs"},
    "questions": {"config", "runs", "models", "answers"},
    "rollouts": {"config", "runs", "models", "answers", "questions", "console"},
    "weighting": {"config", "runs"},
    "examples": {"config", "runs"},
    "training": {"config", "runs", "models", "console"},
    "evaluation": {"config", "runs", "rollouts", "formatting"},
    "figures": {"formatting"},
    "analysis": {"config", "runs", "answers", "questions", "rollouts", "weighting", "evaluation", "figures"},
    "arms": {"config", "runs", "weighting"},
    "preflight": {
        "config",
        "runs",
        "models",
        "questions",
        "answers",
        "rollouts",
        "training",
        "evaluation",
        "formatting",
    },
    "report": {"config", "runs", "arms", "weighting", "evaluation", "analysis", "figures", "formatting", "preflight"},
    "steps": {"config", "runs", "arms", "questions", "rollouts", "weighting", "examples", "training", "evaluation"},
    "pipeline": {"config", "runs", "arms", "steps"},
    "launch": {
        "config",
        "runs",
        "models",
        "console",
        "training",
        "evaluation",
        "report",
        "preflight",
        "steps",
        "pipeline",
    },
    "cli": {"config", "runs", "console", "arms", "analysis", "evaluation", "examples", "report", "preflight", "launch"},
    "__main__": {"cli"},
    "tiny": set(),
}
# The only files that may import a library at all, even inside a function.
DOORS = {
    "vllm": "rollouts/vllm_engine.py",
    "trl": "training/trainers.py",
    "sympy": "answers/math_verify_worker.py",
    "math_verify": "answers/math_verify_worker.py",
}


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("east_ray.")} - {room_of(path)}


def test_the_table_has_a_row_for_every_room_and_no_other() -> None:
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_imports_only_what_its_room_may(path: Path) -> None:
    assert rooms_imported(path) <= ROOMS[room_of(path)] | {"records"}


def test_the_table_allows_nothing_that_no_file_uses() -> None:
    used = {room: set[str]() for room in ROOMS}
    for path in FILES:
        used[room_of(path)] |= rooms_imported(path)
    assert {room: allowed - used[room] for room, allowed in ROOMS.items() if allowed - used[room]} == {}


def test_no_two_rooms_import_each_other() -> None:
    graphlib.TopologicalSorter(ROOMS).prepare()


def test_no_two_files_import_each_other() -> None:
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}

    def targets(path: Path) -> set[str]:
        return {name for full in imported(path) for name in (full, full.rpartition(".")[0]) if name in names}

    graphlib.TopologicalSorter({name: targets(path) for name, path in names.items()}).prepare()


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_heavy_library_has_one_door(library: str) -> None:
    users = {str(p.relative_to(PACKAGE)) for p in FILES if any(name.split(".")[0] == library for name in imported(p))}
    assert users == {DOORS[library]}


def test_every_library_that_a_file_imports_is_declared_in_pyproject() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    names = {Requirement(line).name.lower().replace("_", "-") for line in declared}
    homes = importlib.metadata.packages_distributions()
    tops = (
        {name.split(".")[0] for path in FILES for name in imported(path)} - set(sys.stdlib_module_names) - {"east_ray"}
    )
    undeclared = {top for top in tops if not {home.lower().replace("_", "-") for home in homes[top]} & names}
    assert undeclared == set()


def test_importing_the_package_and_asking_for_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import east_ray; from east_ray.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'vllm', 'transformers', 'trl', 'sympy', 'matplotlib', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
