"""This package against the alternatives: `make bench` prints one table, in about twenty minutes on two cores.

    python benchmarks/bench.py [--data ../shared/data] [--only grading rollouts training weighting resume]

Each row compares two things measured in one run, in turns where both are long. Grading, training and the reduction's
second row count process time, which a busy machine does not change; the rest is wall time. The numbers behind a row
come from the script of its name, which says more.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})

Row = tuple[str, str, str, str, str]  # what, ours, the other's, ratio, promised


def grading(data: Path) -> Iterator[Row]:
    from grading import measure_speed

    for name, size, sampled, least in (
        ("MATH", None, 24, "at least 25 x"),
        ("MATH", 128, 8, "at least 100 x"),
        ("GSM8K", None, 24, ""),
        ("GSM8K", 128, 8, "at least 100 x"),
    ):
        s = measure_speed(data, name, size, sampled)
        for peer, seconds, promised in (
            ("verify each + union-find", s.each, least),
            ("deduplicate, then pairs", s.distinct, "at least 10 x"),
        ):
            yield (
                f"grade and cluster {s.label}, against {peer}",
                f"{s.ours:.2f} s",
                f"{seconds:.1f} s",
                f"{seconds / s.ours:,.0f} x faster",
                promised,
            )


def rollouts(data: Path) -> Iterator[Row]:
    from rollouts import NAMES, measure_rates

    measured = measure_rates(questions=32, repeats=5)
    rates = {kind: statistics.median(m["seconds"] for m in turns) for kind, turns in measured.items()}
    bare, theirs = rates["bare"], rates["ray_data_llm"]
    for kind, least in (("sampling", 1.25), ("graded", 1.25)):
        yield (
            f"{NAMES[kind]}, against {NAMES['bare']}",
            f"{rates[kind]:,.0f} tokens/s",
            f"{bare:,.0f} tokens/s",
            f"{rates[kind] / bare:.3f}",
            f"at least {least:.2f}",
        )
    yield (
        f"{NAMES['graded']}, against {NAMES['ray_data_llm']}",
        f"{rates['graded']:,.0f} tokens/s",
        f"{theirs:,.0f} tokens/s",
        f"{rates['graded'] / theirs:.2f} x faster",
        "",
    )


def training(data: Path) -> Iterator[Row]:
    import torch
    from sweep import sweep
    from training import measure, process_clock, random_model, throughput

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = random_model("small", scratch)
        for loss in ("sft", "dpo", "kto"):
            c = measure(loss, "none", model, scratch, "cpu", 40, process_clock)
            yield (
                f"weighted {loss} step, against TRL's own",
                f"{c.ours_ms:.1f} ms",
                f"{c.stock_ms:.1f} ms",
                f"{c.ours_ms / c.stock_ms:.3f}",
                "at most 1.02",
            )
    if data.is_dir():
        for loss, least in (("sft", "at least 1.5 x"), ("dpo", "at least 1.3 x"), ("kto", "")):
            t = throughput(loss, data)
            yield (
                f"{loss} without padding on GSM8K's lengths, against TRL's own",
                f"{t['ours']:.2f} examples/s",
                f"{t['stock']:.2f} examples/s",
                f"{t['ratio']:.2f} x faster",
                least,
            )
    shared, alone = sweep(arms=12, alone=5)
    yield (
        "12 SFT arms with two sets of workers, killed and resumed, against a set each, undisturbed",
        f"{shared:.0f} s",
        f"{alone:.0f} s",
        f"{shared / alone:.2f}",
        "at most 0.4",
    )


def weighting(data: Path) -> Iterator[Row]:
    import ray
    from weighting import PROMISE, RunDirectory, compare, start_ray, write_grades

    start_ray()
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory(directory)
        c = compare(run, write_grades(run, 1_000_000))
    ray.shutdown()
    for clock, ours, reading in (("wall", c.in_process, c.reading), ("CPU", c.reduction_cpu, c.reading_cpu)):
        yield (
            f"weigh 1,000,000 questions, 16 exponents, against pyarrow reading them, {clock}",
            f"{ours:.2f} s",
            f"{reading:.2f} s",
            f"{ours / reading:.2f}",
            f"at most {PROMISE:g}" if clock == "wall" else "",
        )


def resume(data: Path) -> Iterator[Row]:
    from rollouts import in_a_process

    rerun = in_a_process(["one", "rerun", "--questions", "1000"])
    yield (
        "1,000 finished questions asked for again, against sampling them without a model",
        f"{rerun['again']:.2f} s",
        f"{rerun['first']:.1f} s",
        f"{rerun['first'] / rerun['again']:.0f} x faster",
        "under 5 s",
    )
    with tempfile.TemporaryDirectory() as directory:
        config = ["jobs/configs/tiny.toml", "--set", f"run.dir={directory}/run", "--set", "questions.train_limit=50"]
        seconds = []
        for _ in range(2):
            start = time.monotonic()
            subprocess.run(
                [Path(sys.executable).with_name("east-ray"), "run", *config], cwd=ROOT, check=True, capture_output=True
            )
            seconds.append(time.monotonic() - start)
    first, again = seconds
    yield (
        "a finished run (tiny model, 50 questions) run again, against the run",
        f"{again:.1f} s",
        f"{first:.0f} s",
        f"{first / again:.0f} x faster",
        "",
    )


PARTS = {part.__name__: part for part in (grading, rollouts, training, weighting, resume)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with responses/")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if "grading" in arguments.only and not arguments.data.is_dir():
        print(f"grading is left out: {arguments.data} is not there; give its real responses with --data\n")
        arguments.only.remove("grading")
    print(f"{machine()}\n\n| what | ours | the other's | ratio | promised |\n|---|---|---|---|---|", flush=True)
    for name in arguments.only:
        for row in PARTS[name](arguments.data):
            print(f"| {' | '.join(row)} |", flush=True)


def machine() -> str:
    memory = psutil.virtual_memory().total >> 30
    load = os.getloadavg()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}, load "
        f"{load:.1f} at the start, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
