"""Disturb a small run as a cluster would, resume it with the same command, and compare what is left.

    python benchmarks/chaos.py --seeds 0 1 2 --rounds 3 --every 20 60 DIRECTORY
    python benchmarks/chaos.py --outage 180 --rounds 1 DIRECTORY

The run samples, trains an SFT and a DPO arm and evaluates, on the bundled model. The first command kills a random process
every 20 to 60 seconds by SIGKILL: the driver, an engine, a grader, a trainer's rank or Ray's raylet, each found below the
command that this script started. The second one keeps the run on an S3 server, which answers 503 for 180 seconds in every
step. The files are then those of an undisturbed run, or the script exits with 1 and names those that differ. All runs take
place in DIRECTORY/run and are renamed afterwards: a trained model's card names the directory of its base, so its fingerprint, and
from the third round on the names of tokenised examples, depend on it. One line of JSON for each run is printed, and kept in
DIRECTORY/chaos.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from east_ray.runs.storage import Directory  # noqa: E402
from tests.support.ray_processes import ENVIRONMENT, short_directory  # noqa: E402
from tests.support.s3_server import S3Server, s3_server  # noqa: E402
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


# What is there as soon as a step of the first round is at work.
SIGNS = {
    "questions": "questions/intent.json",
    "sample": "round-00/samples/intent.json",
    "verify": "round-00/samples/shard-00000.parquet",
    "weigh": "round-00/weights/intent.json",
    "select": "round-00/examples/intent.json",
    "train": "round-00/arms/sft/training/state",
    "evaluate": "base/evaluation/intent.json",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="for the runs, which are left there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=float, nargs=2, default=(20, 60), metavar=("LEAST", "MOST"), help="seconds")
    parser.add_argument(
        "--outage", type=float, metavar="SECONDS", help="no kills, but a store that is away in each step"
    )
    arguments = parser.parse_args()
    calm, place, started = arguments.directory / "calm", arguments.directory / "run", time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    if not (calm / "report.html").exists():
        if run_once(calm, str(place), arguments.rounds) != 0:
            print("the undisturbed run failed", file=sys.stderr)
            return 1
        place.rename(calm)
        print(f"undisturbed: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if arguments.outage is not None:
        with s3_server() as server:
            os.environ.update(server.environment)
            trouble = Outages(server, "s3://east/run", arguments.outage)
            return disturb(calm, "outages", trouble.run, arguments.rounds, trouble)
    failed = 0
    for seed in arguments.seeds:
        kept = calm.with_name(f"killed-{seed}")
        shutil.rmtree(kept, ignore_errors=True)
        failed |= disturb(calm, kept.name, str(place), arguments.rounds, Kills(random.Random(seed), arguments.every))
        place.rename(kept)
    return failed


def disturb(calm: Path, name: str, run: str, rounds: int, trouble: Kills | Outages) -> int:
    """Run until the command ends well, and print how that went; 1 when the files are not those of `calm`."""
    commands, before, started = 1, 0, time.monotonic()
    while (status := run_once(calm.with_name(name), run, rounds, trouble)) != 0:
        print(f"{time.monotonic() - started:.0f} s: command {commands} ended with {status}", file=sys.stderr)
        if trouble.counts.total() == before:
            print(f"it failed undisturbed: see {name}.log", file=sys.stderr)
            return 1
        commands, before = commands + 1, trouble.counts.total()
    expected, found = artefacts(str(calm)), artefacts(run)
    different = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    seconds = round(time.monotonic() - started)
    facts = {"run": name, "rounds": rounds, "trouble": trouble.counts, "commands": commands, "seconds": seconds}
    line = json.dumps({**facts, "files": len(expected), "different": different})
    print(line, flush=True)
    with calm.with_name("chaos.jsonl").open("a") as file:
        file.write(line + "\n")
    return 1 if different else 0


@dataclass
class Kills:
    """Kills one process after another of a command; `counts` says of which kinds."""

    chance: random.Random
    every: Sequence[float]
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, command: subprocess.Popen[bytes]) -> None:
        while command.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                command.wait(timeout=self.chance.uniform(*self.every))
            if command.poll() is None:
                self.counts[kill_one(command, self.chance)] += 1


@dataclass
class Outages:
    """Has the server refuse everything for a while in each step; `counts` says in which."""

    server: S3Server
    run: str
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, command: subprocess.Popen[bytes]) -> None:
        for step, sign in SIGNS.items():
            while not Directory(self.run).exists(sign):
                if command.poll() is not None:
                    return
                time.sleep(0.1)
            self.server.refuse(float("inf"))
            self.counts[step] += 1
            time.sleep(self.seconds)
            self.server.refuse(0)


def run_once(
    where: Path, run: str, rounds: int, trouble: Callable[[subprocess.Popen[bytes]], None] | None = None
) -> int:
    """One command to its end, disturbed when there is `trouble`; its exit status. Config and log lie beside `where`."""
    where.parent.mkdir(parents=True, exist_ok=True)
    config = where.with_suffix(".toml")
    config.write_text(CONFIG.format(directory=run, root=ROOT, rounds=rounds))
    with short_directory() as scratch, where.with_suffix(".log").open("a") as log:
        command = subprocess.Popen(
            [sys.executable, "-m", "east_ray", "run", str(config)],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": str(scratch), "EAST_RAY_CACHE": f"{where}-cache"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if trouble is not None:
                trouble(command)
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
    for process in psutil.wait_procs(processes, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
