"""Question files: JSON Lines, Parquet or a hub dataset, read and checked row by row."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from east_ray.records import UserError

MAX_LINE_BYTES = 64 << 20


def read_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each JSON line or Parquet row, one at a time. UserError names the line that is not a JSON object."""
    if source.startswith("hf://"):
        yield from _hub_rows(source)
        return
    filesystem, path = _open(source)
    if not _is_file(filesystem, path):
        raise UserError(
            f"no file at {source}; give a .jsonl, .jsonl.gz, .json or .parquet file, or hf://owner/name[/config]:split"
        )
    if path.endswith(".parquet"):
        try:
            with filesystem.open_input_file(path) as stream:
                batches = pq.ParquetFile(stream).iter_batches(batch_size=64)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, start=1):
                    yield f"{source}, row {number}", row
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise UserError(f"{source} is not readable as Parquet: {error}; fetch or write it again") from None
    elif path.endswith(".json"):
        yield from _json_document(source, filesystem, path)
    elif path.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(source, filesystem, path)
    else:
        raise UserError(f"{source}: unknown file type; use .jsonl, .jsonl.gz, .json or .parquet")


def _open(source: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in source:
        return pafs.LocalFileSystem(), str(Path(source).expanduser().absolute())
    try:
        return pafs.FileSystem.from_uri(source)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{source} cannot be opened: {error}; check the address and your credentials") from None


def _is_file(filesystem: pafs.FileSystem, path: str) -> bool:
    try:
        return filesystem.get_file_info(path).type == pafs.FileType.File
    except (pa.ArrowException, OSError, ValueError):  # a loop of links, a NUL byte in the name
        return False


def _json_document(source: str, filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """An array of objects, or one object over several lines; else the file holds JSON Lines under another name."""
    with filesystem.open_input_file(path) as stream:
        data = stream.read()
    try:
        document = _parse(data)
    except (ValueError, RecursionError) as error:
        if data.lstrip().startswith(b"["):
            raise UserError(f"{source}: not a JSON array in UTF-8 ({error}); fetch or write it again") from None
        yield from _json_lines(source, filesystem, path)
        return
    for number, row in enumerate(document if isinstance(document, list) else [document], start=1):
        yield (where := f"{source}, row {number}"), _as_object(row, where)


def _json_lines(source: str, filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with filesystem.open_input_stream(path) as raw:  # unzips .gz
            stream = io.BufferedReader(raw)
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if line.strip():
                    where = f"{source}, line {number}"
                    yield where, _json_object(line, where)
    except OSError as error:
        raise UserError(
            f"{source}, after line {number}: the file is damaged ({error}); fetch or write it again"
        ) from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    if len(line) == MAX_LINE_BYTES:
        raise UserError(f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB; expected one JSON object per line")
    try:
        row = _parse(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object in UTF-8 ({error}); fix or delete the line") from None
    return _as_object(row, where)


def _parse(data: bytes) -> Any:
    value = json.loads(data.decode("utf-8-sig"))
    if b"\\u" in data:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    return value


def _as_object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}; fix or delete it")
    return row


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    path, config, split = parse_hub(source)
    try:
        dataset = load_dataset(path, config, split=split)
    except Exception as error:  # the hub client raises many unrelated types
        raise UserError(
            f"{source} cannot be loaded: {error}; check the name, the split, `hf auth login` and the network"
        ) from None
    for number, row in enumerate(dataset, start=1):
        yield f"{source}, row {number}", dict(row)


def parse_hub(source: str) -> tuple[str, str | None, str]:
    """`hf://owner/name[/config]:split` -> (owner/name, config, split); a local data set's directory is a name too."""
    name, separator, split = source.removeprefix("hf://").rpartition(":")
    if not separator or not name:
        raise UserError(f"{source}: name the split as well, e.g. hf://openai/gsm8k/main:train")
    parts = name.split("/")
    return (name, None, split) if Path(name).is_dir() else ("/".join(parts[:2]), "/".join(parts[2:]) or None, split)


def text_key(text: str) -> str:
    """Equal for texts that differ only in spaces and case."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()
