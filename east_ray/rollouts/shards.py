"""Rollouts on disk: which shards exist, what each holds, which have still to be sampled or graded.

Shard i holds the questions [i * size, (i + 1) * size) of a questions file, in file order, in one Parquet file that is
written whole or not at all. Its footer carries counts and a digest of the completions, so that resuming, checking a
finished set and adding it up read footers only, never text.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from east_ray.records import GRADES, SAMPLES, UserError, check_schema
from east_ray.runs.directory import RunDirectory

FOOTER = b"east_ray"
# All columns but the token ids: ids repeat as their words do, which zstd finds in whole numbers, but not in a dictionary's
# indices of 13 bits or so.
DICTIONARIES = [
    f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
    for field in SAMPLES
    if field.name != "completion_ids"
]
ASKED = ["question_id", "reference", "prompt_hash", "prompt_token_ids"]  # of a question, to sample it


@dataclass(frozen=True)
class Shard:
    """An unfinished shard: to be sampled and graded, or (`samples` false) only graded. `begun`: it has completions."""

    index: int
    samples: bool
    begun: bool = True


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def shard_size(num_questions: int, engines: int, most: int) -> int:
    """Questions per shard: `most` for up to 8 engines. For more fewer, so that each has 30 shards and few of them wait for the
    last ones; but of a small set no more than 8 times as many shards.
    """
    if engines <= 8:
        return most
    return min(most, max(1, most // 8, num_questions // (30 * engines)))


def count_shards(num_questions: int, questions_per_shard: int) -> int:
    """Number of shards for so many questions; the last may hold fewer."""
    return -(-num_questions // questions_per_shard)


def write_samples(
    run: RunDirectory,
    table: pa.Table,
    directory: str,
    index: int,
    num_samples: int | None,
    weights: str | None = None,
    *,
    questions_per_shard: int | None = None,
) -> dict[str, Any]:
    """Commit one shard of completions and return its footer. `num_samples`: how many were asked for; None when imported.

    `weights`: "loaded" when the engine was opened on the model, "exchanged" when it showed that an exchange had worked.
    """
    table = check_schema(table, SAMPLES, f"{directory}/{shard_name(index)}")
    tokens = [count for counts in table["completion_tokens"].to_pylist() for count in counts]
    finish = [reason for reasons in table["finish_reasons"].to_pylist() for reason in reasons]
    footer = {
        "num_samples": num_samples,
        "weights": weights,
        "questions_per_shard": questions_per_shard,
        "digest": digest(table),
        "questions": table.num_rows,
        "samples": len(tokens),
        "tokens": sum(tokens),
        "truncated": finish.count("length"),
        "failed": table.num_rows - table["shortfall"].null_count,
    }
    _write(run, table, footer, directory, index, DICTIONARIES)
    return footer


def write_grades(
    run: RunDirectory, table: pa.Table, directory: str, index: int, samples: Mapping[str, Any]
) -> dict[str, Any]:
    """Commit one shard of grades and return its footer. `samples` is the footer of the completions that were graded."""
    table = check_schema(table, GRADES, f"{directory}/{shard_name(index)}")
    counts = {name: sum(table[f"num_{name}"].to_pylist()) for name in ("correct", "incorrect", "errors", "unanswered")}
    footer = {"digest": samples["digest"], "questions": table.num_rows, **counts}
    _write(run, table, footer, directory, index)
    return footer


def read_shard_and_footer(run: RunDirectory, directory: str, index: int) -> tuple[pa.Table, dict[str, Any]]:
    """One shard of completions or grades with its footer, fetched at once. UserError when the file is damaged."""
    name = shard_name(index)
    content = run.read_bytes(directory, name)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        return file.read(), json.loads(file.metadata.metadata[FOOTER])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise run.damaged(error, directory, name) from None


def read_footer(run: RunDirectory, directory: str, index: int) -> dict[str, Any] | None:
    """The facts that `write_samples` or `write_grades` returned for this shard; None when it does not exist."""
    content = _read_footer(run, directory, index)
    return None if content is None else json.loads(content)


def _read_footer(run: RunDirectory, directory: str, index: int) -> bytes | None:
    try:
        metadata = pq.read_metadata(run.path(directory, shard_name(index)), filesystem=run.filesystem).metadata
        json.loads(metadata[FOOTER])  # or the file is damaged
        return metadata[FOOTER]
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise run.damaged(error, directory, shard_name(index)) from None


def read_footers(run: RunDirectory, directory: str, count: int) -> Iterator[dict[str, Any] | None]:
    """The footers of shards 0..count-1; many at a time on an object store, where each costs round trips.

    A file that this process has read before, and whose size and time are the same, is not read again.
    """
    versions = {info.base_name: (info.path, info.size, info.mtime_ns) for info in run.files(directory)}

    def footer(index: int) -> bytes | None:
        if (version := versions.get(shard_name(index))) is None:
            return None
        if version not in _footers:
            _footers[version] = _read_footer(run, directory, index)
        return _footers[version]

    with ThreadPoolExecutor(max_workers=16) as pool:
        each = map if run.is_local else pool.map  # a thread keeps a heap of its own
        for start in range(0, count, 256):  # what waits in a pool costs more than a footer
            for content in each(footer, range(start, min(start + 256, count))):
                yield None if content is None else json.loads(content)


# As they are in the files: thousands of them stay small.
_footers: dict[tuple[str, int, int], bytes | None] = {}


def recorded_size(run: RunDirectory, directory: str) -> int | None:
    """Questions per shard of the completions that are there; None where there are none, or they do not say."""
    names = run.list(directory, suffix=".parquet")
    footer = (
        read_footer(run, directory, int(names[0].removeprefix("shard-").removesuffix(".parquet"))) if names else None
    )
    return footer.get("questions_per_shard") if footer else None


def unfinished(
    run: RunDirectory,
    samples: str,
    grades: str,
    count: int,
    num_samples: int | None,
    *,
    retry_failed: bool = False,
) -> list[Shard]:
    """The unfinished shards, in order: no completions, fewer than `num_samples`, or no grades of these completions.

    `num_samples` None: take the completions as they are. With `retry_failed` shards that hold failed questions count as
    unsampled. UserError when a shard holds more completions per question than asked for.
    """
    shards = []
    for index, (sampled, graded) in enumerate(
        zip(read_footers(run, samples, count), read_footers(run, grades, count), strict=True)
    ):
        had = sampled["num_samples"] if sampled else None
        if num_samples is not None and had is not None and had > num_samples:
            raise UserError(
                f"{run.uri_of(samples, shard_name(index))} holds {had} samples per question, but "
                f"sampling.num_samples={num_samples}; set it to {had} or choose another run.dir"
            )
        too_few = num_samples is not None and (had is None or had < num_samples)
        if sampled is None or too_few or (retry_failed and sampled["failed"]):
            shards.append(Shard(index, samples=True, begun=sampled is not None))
        elif graded is None or graded["digest"] != sampled["digest"]:
            shards.append(Shard(index, samples=False))
    return shards


def digest(samples: pa.Table) -> str:
    """16 hex digits over every question's id, completions and finish reasons, in order."""
    state = hashlib.sha256()
    for batch in samples.select(["question_id", "completions", "finish_reasons"]).to_batches():
        for row in batch.to_pylist():
            state.update(json.dumps(row, sort_keys=True).encode())
    return state.hexdigest()[:16]


def count_questions(run: RunDirectory, questions: str) -> int:
    """Number of rows of a questions file, from its footer."""
    with run.open_file(questions) as stream:
        return pq.read_metadata(stream).num_rows


def longest_prompt(run: RunDirectory, questions: str) -> int:
    """Tokens of the longest prompt in a questions file."""
    with run.open_file(questions) as stream:
        batches = pq.ParquetFile(stream).iter_batches(columns=["prompt_token_ids"])
        return max((length for batch in batches for length in batch.column(0).value_lengths().to_pylist()), default=0)


class QuestionsFile:
    """A questions file, opened once and read shard by shard; several threads may ask."""

    def __init__(self, run: RunDirectory, questions: str) -> None:
        self._run, self._name, self._lock = run, questions, threading.Lock()
        with run.explained(questions):
            # Buffered, the columns of a row group are one request.
            self._file = pq.ParquetFile(run.filesystem.open_input_file(run.path(questions)), pre_buffer=True)

    def shard(self, index: int, questions_per_shard: int) -> pa.Table:
        """The columns ASKED of rows [index * size, (index + 1) * size), reading only the row groups they are in."""
        start, stop = index * questions_per_shard, (index + 1) * questions_per_shard
        groups = list(_row_groups(self._file, start, stop))
        with self._lock, self._run.explained(self._name):
            table = self._file.read_row_groups([group for group, _ in groups], columns=ASKED)
        return table.slice(start - groups[0][1], min(stop, self._file.metadata.num_rows) - start)


def _row_groups(file: pq.ParquetFile, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """(row group, its first row) of the row groups that hold rows [start, stop)."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if first < stop and first + rows > start:
            yield group, first
        first += rows


def _write(
    run: RunDirectory,
    table: pa.Table,
    footer: Mapping[str, Any],
    directory: str,
    index: int,
    dictionaries: bool | list[str] = True,
) -> None:
    metadata = {FOOTER: json.dumps(footer, sort_keys=True).encode()}
    table = table.replace_schema_metadata(metadata)
    run.write_table(table, directory, shard_name(index), dictionaries=dictionaries)
