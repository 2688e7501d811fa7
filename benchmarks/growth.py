"""How the time of rollouts grows with questions and completions: `python benchmarks/growth.py`.

An engine without a model, so that all time is the pipeline's own: shards read, completions written, graded and counted.
Each measurement is a process of its own, from the engine's first request to the last grade on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.rollouts import JOB, MODEL, Timed, in_a_process, start_ray
from east_ray.config.sections import GradingConfig, ModelConfig, SamplingConfig
from east_ray.rollouts.engine import EngineSettings
from east_ray.rollouts.run import run_rollouts

QUESTIONS = [100, 1_000, 10_000, 100_000]  # with 128 completions each
COMPLETIONS = [8, 32, 128, 512]  # of 1,000 questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="*", default=QUESTIONS)
    parser.add_argument("--completions", type=int, nargs="*", default=COMPLETIONS)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"seconds": measure(*arguments.one)}))
        return
    print("| questions | completions each | seconds | microseconds per completion |\n|---|---|---|---|")
    sizes = [*((count, 128) for count in arguments.questions), *((1_000, count) for count in arguments.completions)]
    for questions, completions in dict.fromkeys(sizes):
        seconds = in_a_process(["--one", str(questions), str(completions)], __file__)["seconds"]
        each = 1e6 * seconds / (questions * completions)
        print(f"| {questions:,} | {completions} | {seconds:.1f} | {each:.0f} |", flush=True)


def measure(questions: int, completions: int) -> float:
    from tests.support.rollout_runs import make_run

    with tempfile.TemporaryDirectory() as directory:
        os.environ["EAST_RAY_STARTED"] = notes = f"{directory}/notes"
        Path(notes).mkdir()
        run = make_run(Path(directory), questions)
        start_ray()
        settings: dict[str, Any] = {"num_samples": completions, "engine_args": {"shortest": True}}
        run_rollouts(
            run,
            [JOB],
            model=ModelConfig(path=MODEL),
            sampling=SamplingConfig(**settings),
            grading=GradingConfig(),
            seed=0,
            round_index=0,
            open_engine=open_fake,
        )
        started = min(float(file.read_text()) for file in Path(notes).glob("*.started"))
        return max(file.stat().st_mtime for file in Path(run.path(JOB.grades)).glob("*.parquet")) - started


def open_fake(settings: EngineSettings) -> Timed:
    from tests.support.fake_engine import FakeEngine

    return Timed(FakeEngine(settings), os.environ["EAST_RAY_STARTED"])


if __name__ == "__main__":
    main()
