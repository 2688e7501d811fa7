"""Small runs to roll out in tests: a questions file of any length, and settings for the engine without a model."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from east_ray.config.sections import GradingConfig, ModelConfig, SamplingConfig
from east_ray.records import QUESTIONS, prompt_hash
from east_ray.rollouts.run import RolloutJob, RolloutSummary, run_rollouts
from east_ray.runs.directory import RunDirectory
from tests.support.fake_engine import FakeEngine

JOB = RolloutJob("model-a", "questions/train.parquet", "samples", "grades")


def make_run(directory: Path, num_questions: int = 10) -> RunDirectory:
    """A run whose question i has the reference `i % 4` and a prompt of its own."""
    rows = []
    for i in range(num_questions):
        ids = [1, *divmod(i, 100)]
        rows.append(
            {
                "question_id": f"q{i}",
                "question": f"What is {i} mod 4?",
                "reference": str(i % 4),
                "level": None,
                "subject": None,
                "prompt": f"{i}",
                "prompt_token_ids": ids,
                "prompt_hash": prompt_hash(ids),
            }
        )
    run = RunDirectory(str(directory / "run"))
    run.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS), "questions", "train.parquet")
    return run


def roll_out(
    run: RunDirectory, *jobs: RolloutJob, open_engine: Any = FakeEngine, **settings: Any
) -> list[RolloutSummary]:
    """`run_rollouts` with small settings; `behaviour` configures the fake engine."""
    behaviour = settings.pop("behaviour", {})
    seed = settings.pop("seed", 0)
    sampling = SamplingConfig(
        **{"num_samples": 4, "questions_per_shard": 2, "max_failed_share": 0.3, "cpus_per_engine": 0.5} | settings,
        engine_args=behaviour,
    )
    return run_rollouts(
        run,
        [replace(job, model=_directory(job.model)) for job in jobs or (JOB,)],
        model=ModelConfig(path=_directory(JOB.model)),
        sampling=sampling,
        grading=GradingConfig(),
        seed=seed,
        round_index=0,
        open_engine=open_engine,
    )


def _directory(model: str) -> str:
    """Where the engine without a model is opened: a directory of that name, with nothing in it."""
    path = Path(tempfile.gettempdir(), "east-ray-no-models", model)
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def content(run: RunDirectory, *directories: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every file below the directories: what must not depend on how often a run was killed."""
    return {
        f"{directory}/{name}": run.read_table(directory, name).to_pylist()
        for directory in directories or ("samples", "grades")
        for name in run.list(directory, suffix=".parquet")
    }
