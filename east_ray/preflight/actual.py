"""Planned and measured figures of one run: `plan.json` is written when it begins, its tables and metrics say the rest."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from east_ray.config.load import Config
from east_ray.formatting import duration, percent
from east_ray.preflight.devices import ASSUMED, read_devices
from east_ray.preflight.estimate import CostEstimate, estimate
from east_ray.preflight.machine_checks import list_gpus
from east_ray.runs.directory import RunDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figure:
    """One planned figure and what was measured, None for what the run has not reached."""

    name: str
    planned: float
    actual: float | None

    @property
    def cells(self) -> tuple[str, str, str]:
        """Name, planned and actual as a table shows them."""
        return self.name, self._format(self.planned), "" if self.actual is None else self._format(self.actual)

    def _format(self, value: float) -> str:
        if self.name.startswith("round "):
            return duration(value)
        return percent(value) if self.name == KEPT else f"{value:,.0f}"


KEPT = "kept questions"


def planned_figures(plan: CostEstimate) -> dict[str, float]:
    """The figures that a run measures later: questions, tokens, the share kept, and wall seconds of each phase on the first pool."""
    workload = plan.workload
    return {
        "training questions": workload.train,
        "validation questions": workload.validation,
        "test questions": workload.test,
        "prompt, tokens": workload.prompt_tokens,
        "completion, tokens": workload.completion_tokens,
        KEPT: ASSUMED.kept_share,
        **{phase.name: phase.seconds for phase in plan.pools[0].phases},
    }


def measured_figures(run: RunDirectory) -> dict[str, float]:
    """The same names as far as the run has come, from narrow columns of its tables and metrics.jsonl."""
    if not run.exists("questions", "train.parquet"):
        return {}
    prompts = run.read_table("questions", "train.parquet", columns=["prompt_token_ids"])["prompt_token_ids"]
    figures: dict[str, float] = {
        "training questions": len(prompts),
        "prompt, tokens": float(np.mean([len(ids) for ids in prompts])),
    }
    for split in ("validation", "test"):
        if run.exists("questions", f"{split}.parquet"):
            rows = run.read_table("questions", f"{split}.parquet", columns=["question_id"]).num_rows
            figures[f"{split} questions"] = rows
    if run.exists("round-00", "weights", "weights.json"):
        weights = run.read_table("round-00", "weights", columns=["mean_tokens", "reason"])
        figures["completion, tokens"] = float(np.mean(weights["mean_tokens"].to_numpy()))
        figures[KEPT] = weights["reason"].null_count / max(weights.num_rows, 1)
    for row in run.finished_steps():  # a step that was interrupted has several rows
        rounds = [int(directory[6:8]) for directory in row["artifacts"] if directory.startswith("round-")]
        name = f"round {max(rounds, default=0)}: {row['step']}"
        figures[name] = figures.get(name, 0.0) + row["seconds"]
    return figures


def compare(planned: dict[str, float], run: RunDirectory) -> list[Figure]:
    """Every planned figure with its measured one; none before the run has prepared its questions."""
    measured = measured_figures(run)
    return [Figure(name, value, measured.get(name)) for name, value in planned.items() if value] if measured else []


def record_plan(run: RunDirectory, config: Config) -> None:
    """Write plan.json, once, on the pool of this machine. Left out where the devices or the sizes are not known."""
    if run.exists("plan.json") or (pool := _this_pool(config)) is None:
        return
    try:
        plan = estimate(config, [pool])
    except Exception as error:  # a plan is never worth a run: what is wrong, the steps will say
        logger.debug("no plan recorded: %s", error)
        return
    run.write_json({"pool": pool, "figures": list(planned_figures(plan).items())}, "plan.json")


def recorded_comparison(run: RunDirectory) -> tuple[str, list[Figure]] | None:
    """The pool of plan.json, e.g. "2xCPU", and planned with actual figures; None where no plan was recorded."""
    if not run.exists("plan.json"):
        return None
    plan: dict[str, Any] = run.read_json("plan.json")
    return plan["pool"], compare(dict(plan["figures"]), run)


def _this_pool(config: Config) -> str | None:
    """The devices this config takes, as a pool of what this machine has; None when its GPUs are not in prices.toml."""
    if not config.training.use_gpu and config.sampling.gpus_per_engine == 0:
        return f"{len(os.sched_getaffinity(0))}xCPU"
    sampling = config.sampling
    count = max(int(sampling.max_engines * max(sampling.gpus_per_engine, 1)), config.training.workers)
    for gpu in list_gpus()[:1]:
        for key, device in read_devices().items():
            if key.split("-")[0] in gpu.name and abs(device.memory_gib - gpu.memory_gib) < 4:
                return f"{count}x{key}"
    return None
