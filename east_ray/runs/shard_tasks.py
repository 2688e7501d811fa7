"""Map and reduce over a run's shards with Ray Data.

Only shard names travel to the tasks; they read their files themselves, one at a time.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from east_ray.console import quiet_ray_data

MAX_TASKS = 256
IN_PROCESS = 32  # as many shards are added up in less than the 5 to 10 s that Ray's worker processes take to start


@dataclass(frozen=True)
class ShardSums:
    """Anything that adds up over shards, by name."""

    parts: dict[Any, Any] = field(default_factory=dict)

    def __add__(self, other: ShardSums) -> ShardSums:
        merged = dict(self.parts)
        for name, part in other.parts.items():
            merged[name] = merged[name] + part if name in merged else part
        return ShardSums(merged)


def reduce_shards(of_shard: Callable[[str], ShardSums], shards: Sequence[str]) -> dict[Any, Any]:
    """The parts of all `of_shard(name)` added up, in this process when they are few, otherwise by Ray Data tasks.

    Both add neighbouring shards first and then the groups, in order, so the result has the same bits.
    """

    def add_up(names: Sequence[str]) -> ShardSums:
        return sum((of_shard(name) for name in names), ShardSums())

    groups = [group.tolist() for group in np.array_split(np.array(shards), min(len(shards), MAX_TASKS))]
    if len(shards) <= IN_PROCESS:
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # pyarrow and numpy leave the interpreter to the others
            return sum(threads.map(add_up, groups), ShardSums()).parts

    def of_group(rows: pa.Table) -> pa.Table:
        return pa.table({"sums": [pickle.dumps(add_up(rows["shards"][0].as_py()))]})

    found = _map_rows(of_group, [{"shards": group} for group in groups])
    return sum((pickle.loads(table["sums"][0].as_py()) for table in found), ShardSums()).parts


def map_shards(of_shard: Callable[[str], pa.Table], shards: Sequence[str]) -> Iterator[pa.Table]:
    """The tables `of_shard(name)` in the shards' order, none of which is kept; a few shards are read in this process, one at a
    time, more by Ray Data tasks.
    """
    if len(shards) <= IN_PROCESS:
        return map(of_shard, shards)

    def of_row(row: pa.Table) -> pa.Table:
        return of_shard(row["shard"][0].as_py())

    return _map_rows(of_row, [{"shard": name} for name in shards])


def _map_rows(of_row: Callable[[pa.Table], pa.Table], rows: list[dict[str, Any]]) -> Iterator[pa.Table]:
    """`of_row` of every row, in order."""
    import ray.data

    with quiet_ray_data():
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_TASKS))
    dataset = dataset.map_batches(of_row, batch_size=1, batch_format="pyarrow")
    dataset.context.execution_options.preserve_order = True
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
