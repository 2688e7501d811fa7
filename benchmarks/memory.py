"""Peak resident memory of the driver and of the graders, by the kernel's own account: `python benchmarks/memory.py [QUESTIONS ...]`.

A rollout of 128 samples per question through an engine without a model, in a process of its own, which this one watches:
VmHWM of /proc, the largest resident size that a process ever had. A grader counts with all of its children; pages that
processes share count in each. Default 50 questions, whose answers all
need the graders' symbolic processes, 1,000, and 100,000, which take about ten minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
DRIVER, GRADER = "driver", "grader with its children"
PROMISED_MIB = {DRIVER: 250, GRADER: 400}


def main() -> None:
    if sys.argv[1:2] == ["driver"]:
        roll_out(int(sys.argv[2]))
        return
    print("| questions x 128 samples | " + " | ".join(f"{name}, MiB" for name in PROMISED_MIB) + " | seconds |")
    print("|---|---|---|---|")
    for count in [int(argument) for argument in sys.argv[1:]] or [50, 1_000, 100_000]:
        started = time.monotonic()
        command = [sys.executable, __file__, "driver", str(count)]
        as_the_command = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
        peaks = watch(subprocess.Popen(command, stderr=subprocess.DEVNULL, env=as_the_command))
        shown = " | ".join(f"{peaks[name]:.1f} (at most {most})" for name, most in PROMISED_MIB.items())
        print(f"| {count:,} | {shown} | {time.monotonic() - started:.0f} |", flush=True)


def watch(driver: subprocess.Popen[bytes]) -> dict[str, float]:
    """The peak of the driver, and the largest of a grader and its children, MiB."""
    peak_of: dict[int, float] = {}
    graders: dict[int, set[int]] = defaultdict(set)
    while driver.poll() is None:
        peak_of[driver.pid] = peak_mib(driver.pid) or peak_of.get(driver.pid, 0.0)
        for process in descendants(driver.pid):
            try:
                if "GradingWorker" in " ".join(process.cmdline()):
                    graders[process.pid] |= {process.pid, *(child.pid for child in process.children(recursive=True))}
            except psutil.Error:  # gone
                continue
        for pid in set().union(*graders.values()):
            peak_of[pid] = peak_mib(pid) or peak_of.get(pid, 0.0)
        time.sleep(0.5)
    assert driver.returncode == 0, f"the driver ended with {driver.returncode}"
    together = [sum(peak_of.get(pid, 0.0) for pid in pids) for pids in graders.values()]
    return {DRIVER: peak_of[driver.pid], GRADER: max(together, default=0.0)}


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def peak_mib(pid: int) -> float:
    """What a process held at most. getrusage would not do: a child begins with the peak of the process that started it."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def roll_out(count: int) -> None:
    """One rollout; questions are made in a process of their own, as a run reads them from a file."""
    sys.path.insert(0, str(ROOT))
    from east_ray.config.sections import GradingConfig, ModelConfig, SamplingConfig
    from east_ray.rollouts.run import RolloutJob, run_rollouts
    from east_ray.runs.directory import RunDirectory
    from tests.support.fake_engine import FakeEngine

    with tempfile.TemporaryDirectory() as directory:
        code = f"from pathlib import Path; from tests.support.rollout_runs import make_run; make_run(Path({directory!r}), {count})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        start_ray()
        model = str(ROOT / "east_ray" / "tiny" / "model")
        run_rollouts(
            RunDirectory(f"{directory}/run"),
            [RolloutJob(model, "questions/train.parquet", "samples", "grades")],
            model=ModelConfig(path=model),
            sampling=SamplingConfig(
                num_samples=128, max_failed_share=0, engine_args={"symbolic" if count <= 50 else "shortest": True}
            ),
            grading=GradingConfig(),
            seed=0,
            round_index=0,
            open_engine=FakeEngine,
        )


def start_ray() -> None:
    """As a run starts it, with the path of the engine without a model."""
    from east_ray.runs import cluster

    os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    cluster.start_ray()


if __name__ == "__main__":
    main()
