"""Time of the global reduction, all 16 exponents in one pass over 1 and 10 million questions, against pyarrow's reading alone.

    python benchmarks/weighting.py [QUESTIONS ...]        default 1,000,000 and 10,000,000

Grades of 128 samples per question are written once (the columns that weighing reads, 50,000 questions per file), read by
pyarrow with all cores, batch by batch, and reduced by `weighting.fit_mappings`, with Ray's tasks and in this process (whose
CPU time says what the work costs however busy the machine is). The driver's memory is its resident size after Ray's
reductions less that before; both reductions must agree to the bit, and the first shard's weights with the equation.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import ray

from east_ray.records import GRADES
from east_ray.runs import shard_tasks
from east_ray.runs.directory import RunDirectory
from east_ray.weighting.mappings import MeasureBlock, WeightMapping
from east_ray.weighting.weigh import COLUMNS, fit_mappings, measure_table

EXPONENTS = (-3, -2.5, -2, -1.5, -1.25, -1, -0.5, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 2.5, 3)
NUM_SAMPLES = 128
ROWS_PER_SHARD = 50_000
MAX_CLUSTERS = 24
PROMISE = 1.5  # times pyarrow's reading


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or [1_000_000, 10_000_000]
    start_ray()
    for count in counts:
        with tempfile.TemporaryDirectory() as directory:
            run = RunDirectory(directory)
            c = compare(run, write_grades(run, count))
            print(
                f"{count:,} questions, {len(EXPONENTS)} exponents: CPU seconds {c.reading_cpu:.2f} for pyarrow's reading and "
                f"{c.reduction_cpu:.2f} for the reduction ({c.reduction_cpu / c.reading_cpu:.2f} x; promised {PROMISE:g} x); wall "
                f"seconds {c.reading:.2f} and {c.in_process:.2f} ({c.in_process / c.reading:.2f} x), with Ray's tasks "
                f"{c.with_ray:.2f}, driver + {c.grown_mib:.0f} MiB",
                flush=True,
            )


def start_ray() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=400 << 20)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Compared:
    """Seconds, medians, by the wall and of the CPU, and by how much the driver's resident memory grew."""

    reading: float
    with_ray: float
    in_process: float
    reading_cpu: float
    reduction_cpu: float
    grown_mib: float


def compare(run: RunDirectory, shards: list[str]) -> Compared:
    """Reduce with Ray; then read and reduce in turns, so that a busy machine is as busy for one as for the other."""
    mappings = [WeightMapping(exponent=exponent) for exponent in EXPONENTS]

    def reduce(in_process: bool) -> tuple:
        shard_tasks.IN_PROCESS = len(shards) if in_process else 0
        return fit_mappings(run, "grades", shards, mappings, "mixed")

    found = reduce(in_process=False)  # starts Ray's workers
    before = resident()
    with_ray = [measured(lambda: reduce(in_process=False)) for _ in range(3)]
    grown = resident() - before
    here = [(*measured(lambda: read(run)), *measured(lambda: reduce(in_process=True))) for _ in range(7)]
    assert reduce(in_process=True) == found
    check(run, shards[0], *found)
    reading, reading_cpu, in_process, reduction_cpu = (statistics.median(column) for column in zip(*here, strict=True))
    return Compared(reading, min(with_ray)[0], in_process, reading_cpu, reduction_cpu, grown)


def write_grades(run: RunDirectory, count: int) -> list[str]:
    """Grades of `count` questions with Dirichlet answer shares; the first cluster is correct."""
    names = []
    for i, start in enumerate(range(0, count, ROWS_PER_SHARD)):
        rows = min(ROWS_PER_SHARD, count - start)
        rng = np.random.default_rng(i)
        drawn = rng.multinomial(NUM_SAMPLES, rng.dirichlet(np.full(MAX_CLUSTERS, 0.3), size=rows))
        correct, sizes = drawn[:, 0], -np.sort(-drawn, axis=1)
        present = sizes > 0
        offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
        columns = {
            "question_id": pa.array([f"question-{start + k:08d}" for k in range(rows)]),
            "cluster_sizes": pa.ListArray.from_arrays(offsets, sizes[present].astype(np.int32)),
            "mean_tokens": rng.uniform(50, 500, rows),
            "shortfall": pa.nulls(rows, pa.string()),
            **dict.fromkeys(("num_errors", "num_unanswered", "num_truncated"), np.zeros(rows, dtype=np.int32)),
            **dict.fromkeys(("num_correct", "num_positives"), correct.astype(np.int32)),
            **dict.fromkeys(("num_incorrect", "num_negatives"), (NUM_SAMPLES - correct).astype(np.int32)),
            "largest_wrong": drawn[:, 1:].max(axis=1).astype(np.int32),
            "num_samples": np.full(rows, NUM_SAMPLES, dtype=np.int32),
        }
        schema = pa.schema([GRADES.field(name) for name in COLUMNS])
        names.append(f"shard-{i:05d}.parquet")
        run.write_table(pa.table(columns).select(COLUMNS).cast(schema), "grades", names[-1])
    return names


def read(run: RunDirectory) -> int:
    """Decode every batch of the columns that weighing reads."""
    batches = ds.dataset(run.path("grades"), format="parquet").scanner(columns=COLUMNS).to_batches()
    return sum(batch.num_rows for batch in batches)


def check(run: RunDirectory, shard: str, funnel: dict, fits: dict) -> None:
    """The first shard's weights are v^a over one constant, and the funnel counts everything."""
    measures = measure_table(run.read_table("grades", shard, columns=COLUMNS), "mixed")
    entropy = measures["entropy"].to_numpy()[measures["reason"].is_null().to_numpy()]
    for fitted in fits.values():
        ratio = fitted.weights(MeasureBlock.of(entropy)) / entropy**fitted.mapping.exponent
        assert np.ptp(ratio) < 1e-12 * ratio[0]
    assert funnel["questions"]["total"] == funnel["questions"]["kept"] + sum(funnel["questions"]["dropped"].values())


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall and of this process's CPU."""
    start, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - start, time.process_time() - cpu


def resident() -> float:
    return psutil.Process().memory_info().rss / 2**20


if __name__ == "__main__":
    main()
