"""The doctor: every check of this machine and of a config, each finding with its remedy. `probe.py` goes further."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from east_ray.config.load import Config
from east_ray.preflight import config_checks, machine_checks
from east_ray.preflight.machine_checks import Finding


def diagnose(config: Config | None) -> list[Finding]:
    """Check this machine and, given a config, everything it names. Nothing is changed or started."""
    return list(_findings(config))


def _findings(config: Config | None) -> Iterator[Finding]:
    gpus = machine_checks.list_gpus()
    yield machine_checks.check_python()
    yield from machine_checks.check_packages()
    yield from machine_checks.check_gpus(gpus, machine_checks.torch_cuda_version())
    yield machine_checks.check_compiler()
    yield machine_checks.check_shared_memory()
    yield machine_checks.check_open_files()
    yield machine_checks.check_temporary_directory(os.environ)
    yield machine_checks.check_ray_token(os.environ)
    if config is None:
        return
    yield from config_checks.check_devices(config, gpus)
    yield from config_checks.check_storage(config)
    yield from config_checks.check_model(config)


def render(findings: Sequence[Finding]) -> str:
    """One line per finding, its remedy below it, and a last line with the counts."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<{width + 8}}-> {finding.remedy}")
    counts = {status: sum(f.status == status for f in findings) for status in ("fail", "warn", "ok")}
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])
