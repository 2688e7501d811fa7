"""A run directory on any filesystem: atomic files, manifests written last, fingerprints that decide skip or refuse.

An artifact is complete exactly when its `manifest.json` exists. Nothing relies on rename: object stores make a file
visible when it is closed; on a local disk, which does not, the file is written under another name and moved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from east_ray.config.load import Config, from_dict
from east_ray.records import UserError
from east_ray.runs.storage import Directory, absolute, is_answer

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INTENT = "intent.json"


@dataclass(frozen=True)
class RunDirectory(Directory):
    """The directory that holds everything of one run."""

    def __post_init__(self) -> None:
        is_relative = self.is_local and not Path(self.uri.removeprefix("file://")).expanduser().is_absolute()
        if is_relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise UserError(
                f"run.dir={self.uri!r} is relative, and this is a submitted job, whose working directory is deleted when "
                f"it ends: use s3://bucket/prefix, gs://bucket/prefix or an absolute path that every node shares"
            )
        object.__setattr__(self, "uri", absolute(self.uri))

    def read_json(self, *parts: str) -> Any:
        """The value in a JSON file. FileNotFoundError when there is none, UserError when it is damaged."""
        try:
            return json.loads(self.read_bytes(*parts))
        except FileNotFoundError:
            raise
        except (ValueError, OSError, RecursionError) as error:
            raise self.damaged(error, *parts) from None

    def config(self) -> Config:
        """The settings of the run's last command. UserError when this is not a run directory."""
        if not self.exists("config.json"):
            raise UserError(
                f"{self.uri} is not a run directory (it has no config.json); `east-ray run CONFIG` makes one at its run.dir"
            )
        return from_dict(self.read_json("config.json"), self.uri_of("config.json"))

    def damaged(self, reason: object, *parts: str) -> UserError:
        """The error for a file of the run that cannot be used; the store's own where it was not even read."""
        if isinstance(reason, UserError):
            return reason
        if isinstance(reason, OSError) and is_answer(reason):
            return self.explain(reason, *parts)
        return UserError(f"{self.uri_of(*parts)} is damaged ({reason}); delete it and run the same command again")

    def write_json(self, value: Any, *parts: str) -> None:
        """Write plain JSON types (`jsonable`), indented, keys in order."""
        self.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), *parts)

    def read_table(self, *parts: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file, or every `.parquet` file of a directory in name order. UserError names a damaged file."""
        if not parts[-1].endswith(".parquet") and (names := self.list(*parts, suffix=".parquet")):
            return pa.concat_tables(self.read_table(*parts, name, columns=columns) for name in names)
        try:
            # Half the time that pq.read_table takes for a small file; pre_buffer fetches all columns in one request.
            with pq.ParquetFile(self.path(*parts), filesystem=self.filesystem, pre_buffer=True) as file:
                if missing := set(columns or ()) - set(file.schema_arrow.names):
                    raise pa.ArrowInvalid(f"no column {', '.join(sorted(missing))}")
                table = file.read(columns=columns)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(error, *parts) from None
        return table if columns is None else table.select(columns)

    def write_table(
        self, table: pa.Table, *parts: str, dictionaries: Any = True, row_group_size: int | None = None
    ) -> None:
        """Write one Parquet file at once; the table is in memory twice meanwhile. `dictionaries`: the columns that get one."""
        sink = pa.BufferOutputStream()
        settings = {"compression": "zstd", "compression_level": 9, "use_dictionary": dictionaries}
        pq.write_table(table, sink, row_group_size=row_group_size, **settings)
        self.write_bytes(sink.getvalue().to_pybytes(), *parts)

    def delete(self, *parts: str) -> None:
        """Delete a directory and all in it, if it exists; its manifest goes first, so that a kill leaves it unfinished."""
        self.delete_file(*parts, MANIFEST)
        self.delete_directory(*parts)

    def append_metrics(self, **fields: Any) -> None:
        """Add one line to metrics.jsonl (rewritten whole on object stores, which cannot append)."""
        old = self.read_bytes("metrics.jsonl") if self.exists("metrics.jsonl") else b""
        self.write_bytes(
            old + (json.dumps({"time": time.time(), **fields}, sort_keys=True) + "\n").encode(), "metrics.jsonl"
        )

    def finished_steps(self) -> list[dict[str, Any]]:
        """The record of every finished step in metrics.jsonl: `step`, `artifacts`, `seconds`; in the order they ended."""
        lines = self.read_bytes("metrics.jsonl").splitlines() if self.exists("metrics.jsonl") else []
        rows = [row for row in map(json.loads, lines) if "step" in row and "seconds" in row]
        return [
            {**row, "artifacts": row.get("artifacts", row.get("parts", []))} for row in rows
        ]  # `parts` in older runs

    def manifest(self, directory: str) -> dict[str, Any] | None:
        """An artifact's manifest: inputs, settings, fingerprint and facts; None while it is not complete."""
        return self._record(directory, MANIFEST, {"inputs": dict, "settings": dict, "fingerprint": str, "facts": dict})

    def intent(self, directory: str) -> dict[str, Any] | None:
        """The inputs and settings an artifact was begun with; None when it never was."""
        return self._record(directory, INTENT, {"inputs": dict, "settings": dict})

    def _record(self, directory: str, name: str, fields: Mapping[str, type]) -> dict[str, Any] | None:
        """A JSON object with these fields, None where there is no such file. UserError when it holds anything else."""
        if not self.exists(directory, name):
            return None
        record = self.read_json(directory, name)
        if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in fields.items()):
            raise self.damaged(f"it does not hold {', '.join(fields)}", directory, name)
        return record


def fingerprint(value: Any) -> str:
    """16 hex digits of any JSON-like value; equal values give equal digits on every machine."""
    return hashlib.sha256(json.dumps(jsonable(value), sort_keys=True).encode()).hexdigest()[:16]


def fingerprint_source(source: str, revision: str | None = None) -> str:
    """Fingerprint of a file, a directory (a model) or a name on a hub, by content as far as that is cheap.

    Files are read at their start, their end and every 64 MiB between, 64 KiB each, so that a large model costs little and
    other weights of the same shape still differ. On s3:// and gs:// names, sizes and times stand for the content.
    """
    if source.startswith(("s3://", "gs://")):
        return fingerprint([source, Directory(source).listing()])
    path = Path(source).expanduser()
    if not path.exists():
        return fingerprint([source, revision])
    files = (
        sorted(p for p in path.rglob("*") if p.is_file() and p.name not in (MANIFEST, INTENT))
        if path.is_dir()
        else [path]
    )
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as stream:
            for offset in sorted({*range(0, size, 64 << 20), max(0, size - (64 << 10))}):
                stream.seek(offset)
                digest.update(stream.read(64 << 10))
    return digest.hexdigest()[:16]


def jsonable(value: Any) -> Any:
    """`value` as plain JSON types: models and dataclasses become objects, tuples become arrays."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
