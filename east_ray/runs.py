"""A run directory on any filesystem: atomic files, manifests written last, fingerprints that decide skip or refuse.

A stage directory is complete exactly when its `manifest.json` exists. Nothing relies on rename: object stores make a
file visible when it is closed; on a local disk, where they do not, the file is written beside its place and moved in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from east_ray.records import UserError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunDirectory:
    """Where one run keeps everything. Picklable: the filesystem is opened again wherever it is used."""

    uri: str

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri or self.uri.startswith("file://")

    @property
    def root(self) -> str:
        return self._resolve()[1]

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._resolve()[0]

    def _resolve(self) -> tuple[pafs.FileSystem, str]:
        if self.is_local:
            return pafs.LocalFileSystem(), str(Path(self.uri.removeprefix("file://")).expanduser().absolute())
        try:
            return pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"run.dir={self.uri!r} cannot be opened: {error}") from None

    def path(self, *parts: str) -> str:
        """Absolute path on `filesystem` of a file or directory inside the run."""
        return "/".join([self.root, *parts])

    def uri_of(self, *parts: str) -> str:
        """The same as something a user, vLLM or Ray Data can open: a plain path, or scheme://..."""
        return self.path(*parts) if self.is_local else "/".join([self.uri.rstrip("/"), *parts])

    def exists(self, *parts: str) -> bool:
        return self.filesystem.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def list(self, *parts: str, suffix: str = "") -> list[str]:
        """Sorted names of the files directly inside a directory; empty when it does not exist."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.File and i.base_name.endswith(suffix))

    def read_bytes(self, *parts: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a whole file at once: readers see the old file, the new one, or none, never half."""
        filesystem, target = self.filesystem, self.path(*parts)
        if not self.is_local:
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        attempt = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(attempt, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(attempt, target)
        except OSError as error:
            Path(attempt).unlink(missing_ok=True)
            raise UserError(
                f"cannot write {target}: {error.strerror}; free space or fix permissions, then run the same command again"
            ) from None

    def read_json(self, *parts: str) -> Any:
        try:
            return json.loads(self.read_bytes(*parts))
        except ValueError as error:
            raise UserError(
                f"{self.uri_of(*parts)} is damaged ({error}); delete it and run the same command again"
            ) from None

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), *parts)

    def read_table(self, *parts: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file, or every `.parquet` file of a directory in name order."""
        return pq.read_table(self.path(*parts), filesystem=self.filesystem, columns=columns)

    def write_table(self, table: pa.Table, *parts: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(sink.getvalue().to_pybytes(), *parts)

    def delete(self, *parts: str) -> None:
        """Delete a directory and all in it; nothing happens when it does not exist."""
        if self.exists(*parts):
            self.filesystem.delete_dir(self.path(*parts))

    def append_metrics(self, **fields: Any) -> None:
        """Add one line to metrics.jsonl (rewritten whole on object stores, which cannot append)."""
        old = self.read_bytes("metrics.jsonl") if self.exists("metrics.jsonl") else b""
        self.write_bytes(
            old + (json.dumps({"time": time.time(), **fields}, sort_keys=True) + "\n").encode(), "metrics.jsonl"
        )

    def stage(self, *parts: str) -> Stage:
        return Stage(self, "/".join(parts))


@dataclass(frozen=True)
class Stage:
    """One stage's directory and its manifest: `inputs` are fingerprints by name, `settings` the config that shaped it."""

    run: RunDirectory
    name: str

    def manifest(self) -> dict[str, Any] | None:
        return self.run.read_json(self.name, MANIFEST) if self.run.exists(self.name, MANIFEST) else None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what this finished stage holds; the next stage records it as an input."""
        manifest = self.manifest()
        assert manifest is not None, f"{self.name} is not finished"
        return manifest["fingerprint"]

    def is_current(self, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
        """True: skip. False: (re)do. UserError: finished, or begun, under other settings or inputs."""
        intent = {"inputs": dict(inputs), "settings": jsonable(settings)}
        manifest = self.manifest()
        begun = self.run.read_json(self.name, "intent.json") if self.run.exists(self.name, "intent.json") else None
        for old in (manifest, begun):
            if old is not None and (changed := _first_difference(old, intent)):
                where, before, now = changed
                raise UserError(
                    f"{self.run.uri_of(self.name)} was made with {where} = {before!r}, now it is {now!r}. Two ways on: "
                    f"another run directory (--set run.dir=...), or --restart-from {self.name.rsplit('/', 1)[-1]} to redo "
                    f"this stage and all after it"
                )
        return manifest is not None

    def begin(self, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        """Record what this stage is about to be made of, so that a resumed run cannot mix two settings."""
        self.run.write_json({"inputs": dict(inputs), "settings": jsonable(settings)}, self.name, "intent.json")

    def complete(
        self, inputs: Mapping[str, str], settings: Mapping[str, Any], content: str | None = None, **facts: Any
    ) -> None:
        """Write the manifest, last. `content` fingerprints the output where it can be told apart from how it was made."""
        intent = {"inputs": dict(inputs), "settings": jsonable(settings)}
        self.run.write_json(
            {**intent, "fingerprint": content or fingerprint(intent), "facts": jsonable(facts)}, self.name, MANIFEST
        )


def fingerprint(value: Any) -> str:
    """16 hex digits of any JSON-like value; equal values give equal digits on every machine."""
    return hashlib.sha256(json.dumps(jsonable(value), sort_keys=True).encode()).hexdigest()[:16]


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


def _first_difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if not where:
        old, new = ({key: value[key] for key in ("settings", "inputs")} for value in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=lambda k: (k != "settings", k)):
            name = key if where in ("", "settings", "inputs") else f"{where}.{key}"
            if changed := _first_difference(old.get(key), new.get(key), name if where else key):
                return changed
        return None
    return None if old == new else (where, old, new)
