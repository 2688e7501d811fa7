"""Directories on a local disk, s3:// or gs:// through pyarrow.

Both stores are strongly consistent (S3 since 2020): a file that was closed is seen by every later read and listing, and a
write that was killed leaves nothing. Credentials, region and endpoint come from where the cloud's own tools look (roles,
environment, ~/.aws), or from the address itself: `s3://bucket/run?endpoint_override=127.0.0.1:9000&scheme=http`.
"""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from east_ray.records import UserError
from east_ray.runs.node_copies import copy_on_this_node

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20
RETRIES = 14  # of a request that a store refuses for now; the waits double from 25 ms on, 409 s in all


@dataclass(frozen=True)
class Directory:
    """A directory, whether or not it exists. Picklable: its filesystem is opened again wherever it is used.

    What a store answers (no such bucket, access denied, no connection) becomes a UserError that names the address; a
    missing file stays a FileNotFoundError, and errors of a local disk pass unchanged. S3 is asked again for 7 minutes before that, gs:// for 15.
    """

    uri: str

    @property
    def is_local(self) -> bool:
        """Is it on this machine's own file system (or one mounted there), or the name of a hub model?"""
        return is_local(self.uri)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The Arrow filesystem it lies on, opened once per process. UserError when the scheme or an option is unknown."""
        return _open(self.uri)[0]

    @property
    def root(self) -> str:
        """Its path on `filesystem`, without a scheme."""
        return _open(self.uri)[1]

    def path(self, *parts: str) -> str:
        """Absolute path on `filesystem` of a file or directory in it."""
        return "/".join([self.root, *filter(None, parts)])

    def uri_of(self, *parts: str) -> str:
        """The same as an address, to print or to open as a Directory; a store's options stay after the `?`."""
        base, question, options = self.uri.partition("?")
        return "/".join([base.rstrip("/"), *parts]) + question + options

    def check_reachable(self) -> None:
        """UserError at once, and not after all retries, when there is no server at the address."""
        if self.uri.startswith("s3://"):
            with self.explained():
                options = self.filesystem.__reduce__()[1][0]
                try:
                    pafs.S3FileSystem(**options).get_file_info(self.root)
                except OSError as error:
                    if "NETWORK_CONNECTION" in str(error):
                        raise
                    logger.warning("%s answers: %s; trying on for 7 minutes", self, _first_line(error))

    def exists(self, *parts: str) -> bool:
        """Is there such a file or directory in it?"""
        with self.explained(*parts):
            return self.filesystem.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def files(self, *parts: str, recursive: bool = False) -> list[pafs.FileInfo]:
        """The files in a directory, by path; the file itself if it is one, empty when it does not exist."""
        with self.explained(*parts):
            selector = pafs.FileSelector(self.path(*parts), allow_not_found=True, recursive=recursive)
            infos = self.filesystem.get_file_info(selector)
        return sorted((info for info in infos if info.type == pafs.FileType.File), key=lambda info: info.path)

    def list(self, *parts: str, suffix: str = "") -> list[str]:
        """Sorted names of the files directly inside a directory; empty when it does not exist."""
        return [info.base_name for info in self.files(*parts) if info.base_name.endswith(suffix)]

    def listing(self) -> list[tuple[str, int, int | None]]:
        """Relative name, bytes and modification time (ns) of every file of a directory, or of the one file that it is."""
        with self.explained():
            own = self.filesystem.get_file_info(self.root)
        files = [own] if own.type == pafs.FileType.File else self.files(recursive=True)
        return [(info.path.removeprefix(self.root).lstrip("/"), info.size, info.mtime_ns) for info in files]

    def read_bytes(self, *parts: str) -> bytes:
        """A whole file. FileNotFoundError when there is none."""
        with self.explained(*parts), self.filesystem.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    @contextmanager
    def open_file(self, *parts: str) -> Iterator[pa.NativeFile]:
        """A file to read from anywhere. FileNotFoundError when there is none."""
        with self.explained(*parts), self.filesystem.open_input_file(self.path(*parts)) as stream:
            yield stream

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a whole file at once: readers see the old file, the new one, or none, never half."""
        path = self.path(*parts)
        if not self.is_local:
            with self.explained(*parts), self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        attempt = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(attempt, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(attempt, path)
        except OSError as error:
            with suppress(OSError):
                Path(attempt).unlink()
            raise UserError(
                f"cannot write {path}: {error.strerror}; free space or fix permissions, then run the same command again"
            ) from None

    def delete_file(self, *parts: str) -> None:
        """Delete a file; nothing happens when it does not exist."""
        if self.exists(*parts):
            with self.explained(*parts):
                self.filesystem.delete_file(self.path(*parts))

    def delete_directory(self, *parts: str) -> None:
        """Delete a directory and all in it; nothing happens when it does not exist."""
        if self.exists(*parts):
            # gs:// deletes the content, then misses the directory's own, optional object
            with self.explained(*parts), suppress(FileNotFoundError):
                self.filesystem.delete_dir(self.path(*parts))

    def upload(self, source: str, *parts: str) -> None:
        """Copy a directory of this node into it; files that are there are overwritten, others stay."""
        with self.explained(*parts):
            target = self.path(*parts)
            pafs.copy_files(source, target, pafs.LocalFileSystem(), self.filesystem, chunk_size=CHUNK_BYTES)

    def local_copy(self, *parts: str) -> str:
        """A path on this node for a directory: itself when local, else `copy_on_this_node`. A hub name comes back as it is."""
        source = Directory(self.uri_of(*parts))
        if source.is_local:
            return source.uri.removeprefix("file://")
        return copy_on_this_node(str(source), source.listing(), source.download)

    def download(self, target: str) -> None:
        """Copy it into a directory of this node."""
        with self.explained():
            pafs.copy_files(self.root, target, self.filesystem, pafs.LocalFileSystem(), chunk_size=CHUNK_BYTES)

    def __str__(self) -> str:
        return _without_secrets(self.uri)

    @contextmanager
    def explained(self, *parts: str) -> Iterator[None]:
        """Turn what the store answers within the block, about a file, into a UserError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            if self.is_local:
                raise
            raise self.explain(error, *parts) from None

    def explain(self, error: Exception, *parts: str) -> UserError:
        """The error for what a store answered to a request about a file."""
        return UserError(f"{_without_secrets(self.uri_of(*parts))}: {_first_line(error)}. {_remedy(self.uri)}")


def is_answer(error: OSError) -> bool:
    """Is it what a store, or the way to it, answered, and not something about the file's content?"""
    return any(client in str(error) for client in ("AWS Error", "google::cloud"))


def is_local(uri: str) -> bool:
    """Is it a path on this machine, or the name of a hub model?"""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """`uri` without its dependence on the working directory, which differs between a driver and workers on other nodes."""
    return str(Path(uri.removeprefix("file://")).expanduser().absolute()) if is_local(uri) else uri.rstrip("/")


def _open(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem behind `uri` and the path on it."""
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    base, question, options = uri.partition("?")
    scheme, _, rest = base.partition("://")
    authority, _, path = rest.partition("/")
    filesystem, bucket = _open_bucket(f"{scheme}://{authority}{question}{options}")
    return filesystem, f"{bucket}/{path}".rstrip("/")


@functools.lru_cache(maxsize=16)
def _open_bucket(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, bucket = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{_without_secrets(uri)} cannot be opened: {_first_line(error)}. {_remedy(uri)}") from None
    if isinstance(filesystem, pafs.S3FileSystem):
        filesystem = _patient(filesystem.__reduce__()[1][0])
    return filesystem, bucket


class _PatientS3(pafs.S3FileSystem):
    """S3 that repeats a refused request RETRIES times, also once it was pickled, which Arrow's own forgets."""

    def __reduce__(self) -> Any:
        return _patient, super().__reduce__()[1]


def _patient(options: dict[str, Any]) -> _PatientS3:
    strategy = pafs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES)
    # Delayed, a small file is one request; opened at once, it is the three of a multipart upload.
    return _PatientS3(**{**options, "allow_delayed_open": True}, retry_strategy=strategy)


def _without_secrets(uri: str) -> str:
    """`uri` as it may be printed: without keys before the `@` and options behind the `?`."""
    scheme, _, rest = uri.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rsplit('@', 1)[-1]}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _remedy(uri: str) -> str:
    tool = {"s3": "`aws s3 ls`", "gs": "`gcloud storage ls`"}.get(uri.partition("://")[0])
    if tool is None:
        return "Use a local path, s3://bucket/prefix or gs://bucket/prefix"
    return (
        f"Check on the same machine that {tool} sees the bucket (name, region, credentials, read and write permission); "
        f"for another endpoint add ?endpoint_override=HOST:PORT to the address"
    )
