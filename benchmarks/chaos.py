"""Kill a random process of a small run every 20 to 60 seconds, resume with the same command, and compare what is left.

    python benchmarks/chaos.py --seed 0 --rounds 3 DIRECTORY

The run samples, trains an SFT and a DPO arm and evaluates, on the bundled model. Killed by SIGKILL are the driver, an
engine, a grader, a trainer's rank and Ray's raylet, each found below the command that this script started. The files are then
those of an undisturbed run, or the script exits with 1 and names those that differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.ray_processes import ENVIRONMENT, short_directory  # noqa: E402
from tests.support.small_run import artefacts  # noqa: E402

TITLES = {"engine": "Map(Sampler)", "grader": "Map(GradingWorker)", "rank": "RayTrainWorker", "raylet": "raylet/raylet"}
CONFIG = """
run = {{ dir = "{directory}", rounds = {rounds} }}
model = {{ path = "{root}/east_ray/tiny/model", dtype = "float32" }}
questions.train = "{root}/east_ray/tiny/train.jsonl"
questions.test = "{root}/east_ray/tiny/test.jsonl"
questions.train_limit = 64
questions.test_limit = 32
questions.system_prompt = ""
sampling = {{ num_samples = 16, max_new_tokens = 96, questions_per_shard = 8, kv_cache_gib = 1 }}
training = {{ epochs = 2, micro_batch_size = 4, max_length = 256, checkpoint_steps = 4, report_to = ["none"] }}
arms = [{{ name = "sft" }}, {{ name = "dpo", set = {{ "training.loss" = "dpo" }} }}]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="for the runs, which are left there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    calm, disturbed = arguments.directory / "calm", arguments.directory / f"disturbed-{arguments.seed}"
    started = time.monotonic()
    if not (calm / "report.html").exists() and run_once(calm, arguments.rounds, None, Counter()) != 0:
        print("the undisturbed run failed", file=sys.stderr)
        return 1
    calm_seconds = time.monotonic() - started

    chance, kills, commands = random.Random(arguments.seed), Counter[str](), 1
    started = time.monotonic()
    while (status := run_once(disturbed, arguments.rounds, chance, kills)) != 0:
        print(f"{time.monotonic() - started:.0f} s: command {commands} ended with {status}", file=sys.stderr)
        commands += 1
    expected, found = artefacts(str(calm)), artefacts(str(disturbed))
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(
        json.dumps(
            {
                "seed": arguments.seed,
                "kills": dict(kills),
                "commands": commands,
                "seconds": round(time.monotonic() - started),
                "seconds_undisturbed": round(calm_seconds),
                "files": len(expected),
                "different": different,
            }
        )
    )
    return 1 if different else 0


def run_once(directory: Path, rounds: int, chance: random.Random | None, kills: Counter[str]) -> int:
    """One command to its end, disturbed when there is a `chance`; its exit status."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory.with_suffix(".toml")
    config.write_text(CONFIG.format(directory=directory, root=ROOT, rounds=rounds))
    with short_directory() as scratch, directory.with_suffix(".log").open("a") as log:
        command = subprocess.Popen(
            [sys.executable, "-m", "east_ray", "run", str(config)],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(scratch)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while chance is not None and command.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    command.wait(timeout=chance.uniform(20, 60))
                if command.poll() is None:
                    kills[kill_one(command, chance)] += 1
            return command.wait()
        finally:
            end_all(below(command.pid) if command.poll() is None else remains(scratch))


def kill_one(command: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill one process of a random kind among those that are there; returns the kind."""
    running: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(command.pid)]}
    for process in below(command.pid):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            for kind, part in TITLES.items():
                if part in title:
                    running.setdefault(kind, []).append(process)
    kind = chance.choice(sorted(running))
    with suppress(psutil.NoSuchProcess):
        chance.choice(running[kind]).kill()
    return kind


def below(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def remains(scratch: Path) -> list[psutil.Process]:
    """What a killed command left: processes whose Ray lies in its own scratch directory, which nobody else's does."""
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_TMPDIR") == str(scratch):
                left.append(process)
    return left


def end_all(processes: Sequence[psutil.Process]) -> None:
    """Give them the time to end by themselves."""
    for process in psutil.wait_procs(processes, timeout=20)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
