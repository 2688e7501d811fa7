"""How the time of rollouts grows with questions and completions: `python benchmarks/growth.py`.

An engine without a model, so that all time is the pipeline's own: shards read, completions written, graded and counted.
Each measurement is a process of its own, from the engine's first request to the last grade on disk; wall time, and
processor time of the driver, the sampler and the grader together, which other work on the machine hardly changes.
100,000 questions take about five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

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
        print(json.dumps(measure(*arguments.one)))
        return
    print(
        "| questions | completions each | seconds | microseconds per completion | of processor time |\n|---|---|---|---|---|"
    )
    sizes = [*((count, 128) for count in arguments.questions), *((1_000, count) for count in arguments.completions)]
    for questions, completions in dict.fromkeys(sizes):
        taken = in_a_process(["--one", str(questions), str(completions)], __file__)
        each, cpu = (1e6 * taken[name] / (questions * completions) for name in ("seconds", "cpu"))
        print(f"| {questions:,} | {completions} | {taken['seconds']:.1f} | {each:.1f} | {cpu:.1f} |", flush=True)


def measure(questions: int, completions: int) -> dict[str, float]:
    from tests.support.rollout_runs import make_run

    with tempfile.TemporaryDirectory() as directory:
        os.environ["EAST_RAY_STARTED"] = notes = f"{directory}/notes"
        Path(notes).mkdir()
        run = make_run(Path(directory), questions)
        start_ray()
        clock = ProcessorTime(Path(notes))
        clock.start()
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
        ended = max(file.stat().st_mtime for file in Path(run.path(JOB.grades)).glob("*.parquet"))
        return {"seconds": ended - started, "cpu": clock.taken()}


class ProcessorTime(threading.Thread):
    """Of this process and the pools' since an engine's first request."""

    def __init__(self, notes: Path) -> None:
        super().__init__(daemon=True)
        self._notes, self._before, self._seconds = notes, dict[int, float](), dict[int, float]()

    def run(self) -> None:
        while True:
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error):
                    if process.pid == os.getpid() or "MapWorker" in " ".join(process.cmdline()):
                        self._seconds[process.pid] = sum(process.cpu_times()[:2])
            if not self._before and any(self._notes.glob("*.started")):
                self._before = dict(self._seconds)
            time.sleep(0.2)

    def taken(self) -> float:
        return sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._seconds.items())


def open_fake(settings: EngineSettings) -> Timed:
    from tests.support.fake_engine import FakeEngine

    return Timed(FakeEngine(settings), os.environ["EAST_RAY_STARTED"])


if __name__ == "__main__":
    main()
