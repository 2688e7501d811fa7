"""Arms that share workers: a sweep of SFT arms of the bundled model, two at once, killed in the middle and given again.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py [--arms 12] [--alone 5]

Against it stand the same arms with a set of workers for each pair, undisturbed, of which only `--alone` pairs are trained
(their median). Wall time, from the start of the first command to the end of the second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from east_ray import tiny
from east_ray.config.sections import ModelConfig
from east_ray.config.training import TrainingConfig
from east_ray.runs.cluster import start_ray
from east_ray.runs.directory import RunDirectory
from east_ray.training.driver import train_all
from east_ray.training.job import ArmTraining

AT_ONCE = 2  # arms, a core each, as in the bundled model's config
MODEL = Path(tiny.__file__).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=12)
    parser.add_argument("--alone", type=int, default=5, help="pairs that are also trained by workers of their own")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(train(*arguments.part, arguments.arms)))
        return
    shared, alone = sweep(arguments.arms, arguments.alone)
    print(
        f"{arguments.arms} arms: {shared:.0f} s with two sets of workers, killed and resumed, {alone:.0f} s with a set "
        f"each: {shared / alone:.2f}"
    )


def sweep(arms: int, alone: int) -> tuple[float, float]:
    """Seconds for all arms with two sets of workers, killed and resumed, and with a set for each."""
    from tests.support.training_rows import examples

    with tempfile.TemporaryDirectory() as directory:
        RunDirectory(directory).write_table(examples("sft", 480), "examples/sft.parquet")
        pairs = command(directory, "alone", AT_ONCE * alone).communicate()[0]
        start = time.monotonic()
        first = command(directory, "shared", arms)
        while len(list(Path(directory).glob("shared-*/done"))) < arms // 2:
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.1)
        first.kill()
        assert command(directory, "shared", arms).wait() == 0
        return time.monotonic() - start, arms / AT_ONCE * statistics.median(json.loads(pairs.splitlines()[-1]))


def command(directory: str, kind: str, arms: int) -> subprocess.Popen[str]:
    line = [sys.executable, __file__, "--arms", str(arms), "--part", directory, kind]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True)


def train(directory: str, kind: str, arms: int) -> list[float]:
    """Train the arms that are not done yet, with as many seeds: together, or pair by pair; seconds of each call."""
    start_ray()
    run = RunDirectory(directory)
    training = TrainingConfig.model_validate(
        {"batch_size": 16, "micro_batch_size": 8, "epochs": 3, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    )
    every = [
        ArmTraining("examples/sft.parquet", "weight", str(MODEL), f"{kind}-{i}/model", training, i, f"{kind}-{i}")
        for i in range(arms)
    ]
    asked = [arm for arm in every if not run.exists(f"{arm.title}/done")]

    def train_group(group: list[ArmTraining], pending: list[ArmTraining]) -> float:
        start = time.monotonic()
        outcomes = train_all(run, group, pending, model=ModelConfig(path=str(MODEL)), at_once=AT_ONCE)
        for arm, outcome in zip(pending, outcomes, strict=True):
            assert not isinstance(outcome, Exception), outcome
            run.write_bytes(b"", arm.title, "done")
        return time.monotonic() - start

    if kind == "shared":
        return [train_group(every, asked)]
    return [train_group(pair, pair) for pair in (asked[i : i + AT_ONCE] for i in range(0, arms, AT_ONCE))]


if __name__ == "__main__":
    main()
