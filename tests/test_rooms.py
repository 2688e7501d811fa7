"""The house has one direction: pure files, then stages, then the pipeline, then the command. Heavy libraries have one door each."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "east_ray"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

# Pure files know nothing of Ray, files or the command; each may import only these of ours.
PURE = {
    "records": set(),
    "answers": {"records"},
    "notation": set(),
    "arithmetic": set(),
    "expressions": {"arithmetic"},
    "meaning": {"arithmetic"},
    "canonical": {"arithmetic", "expressions", "meaning", "notation"},
    "sandbox": set(),
    "uncertainty": set(),
    "adaptive": set(),
    "statistics": set(),
    "batches": {"records"},
    "drawn": {"records"},
    "engine": {"records", "sections"},
    "samples": {"engine", "records"},
    "selection": {"records"},
    "sections": set(),
    "training_section": {"sections"},
    "config": {"records", "sections", "training_section"},
}
# The only files that may import a library at all, even inside a function.
DOORS = {
    "vllm": {"sampling"},
    "trl": {"trainers"},
    "sympy": {"symbolic"},
    "math_verify": {"symbolic"},
}
TOP = {"cli", "launch"}


def imported(module: str) -> set[str]:
    """Dotted names of everything a module imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def ours(module: str) -> set[str]:
    names = {name.split(".")[1] for name in imported(module) if name.startswith("east_ray.")}
    return names & set(MODULES)


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_files_import_only_what_is_below_them(module: str) -> None:
    assert ours(module) <= PURE[module]
    assert not {name.split(".")[0] for name in imported(module)} & {
        "ray",
        "torch",
        "transformers",
        "vllm",
        "trl",
        "deepspeed",
    }


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_heavy_library_has_its_door(library: str) -> None:
    users = {module for module in MODULES if any(name.split(".")[0] == library for name in imported(module))}
    assert users <= DOORS[library]
    assert users, f"nothing imports {library} any more: take it from the list"


def test_no_two_files_import_each_other() -> None:
    graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", sorted(set(MODULES) - TOP))
def test_nothing_imports_the_command(module: str) -> None:
    assert not ours(module) & TOP


def test_importing_the_package_and_asking_for_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import east_ray; from east_ray.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'vllm', 'transformers', 'trl', 'sympy', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
