"""Files on a local disk, s3:// or gs:// through pyarrow, and node-local copies of directories that live on a store.

Both stores are strongly consistent (S3 since 2020): a file that was closed is seen by every later read and listing, and a
write that was killed leaves nothing. Credentials, region and endpoint come from where the cloud's own tools look (roles,
environment, ~/.aws), or from the address itself: `s3://bucket/run?endpoint_override=127.0.0.1:9000&scheme=http`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from east_ray.records import UserError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "EAST_RAY_CACHE"
IN_USE_SECONDS = 3600.0  # a copy handed out this recently is not evicted: an engine may still be reading it

P = ParamSpec("P")
R = TypeVar("R")


def is_local(uri: str) -> bool:
    """Is it a path on this machine, or the name of a hub model?"""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """`uri` without its dependence on the working directory, which differs between a driver and workers on other nodes.

    Inside a submitted Ray job a relative path is refused: it would lie in the job's unpacked upload, deleted afterwards.
    """
    if not is_local(uri):
        return uri.rstrip("/")
    path = Path(uri.removeprefix("file://")).expanduser()
    if not path.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise UserError(
            f"run.dir={uri!r} is relative, and this is a submitted job, whose working directory is deleted when it ends: "
            f"use s3://bucket/prefix, gs://bucket/prefix or an absolute path that every node shares"
        )
    return str(path.absolute())


def join(uri: str, *parts: str) -> str:
    """`uri` of something below a directory; a store's options stay behind the `?`."""
    base, question, options = uri.partition("?")
    return "/".join([base.rstrip("/"), *parts]) + question + options


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem behind `uri` and the path on it. UserError when the scheme or an option is unknown."""
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
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{_without_secrets(uri)} cannot be opened: {_first_line(error)}. {_remedy(uri)}") from None


def explain_errors(method: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Turn what a store answers (no such bucket, access denied, no connection) into a UserError that names the address.

    For functions whose first argument is a uri. A missing file stays a FileNotFoundError; local errors pass unchanged.
    """

    @functools.wraps(method)
    def wrapped(uri: str, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(uri, *args, **kwargs)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            if is_local(uri):
                raise
            raise UserError(f"{_without_secrets(uri)}: {_first_line(error)}. {_remedy(uri)}") from None

    return wrapped


@explain_errors
def exists(uri: str) -> bool:
    """Is there such a file or directory?"""
    filesystem, path = open_filesystem(uri)
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


@explain_errors
def list_files(uri: str, recursive: bool = False) -> list[pafs.FileInfo]:
    """The files below a directory, by path; empty when it does not exist."""
    filesystem, path = open_filesystem(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=recursive))
    return sorted((info for info in infos if info.type == pafs.FileType.File), key=lambda info: info.path)


@explain_errors
def listing(uri: str) -> list[tuple[str, int, int | None]]:
    """Name below `uri`, bytes and modification time (ns) of every file of a directory, or of the one file that it is."""
    filesystem, path = open_filesystem(uri)
    own = filesystem.get_file_info(path)
    files = [own] if own.type == pafs.FileType.File else list_files(uri, recursive=True)
    return [(info.path.removeprefix(path).lstrip("/"), info.size, info.mtime_ns) for info in files]


@explain_errors
def read_bytes(uri: str) -> bytes:
    """A whole file. FileNotFoundError when there is none."""
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


@explain_errors
def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file at once: readers see the old file, the new one, or none, never half."""
    filesystem, path = open_filesystem(uri)
    if not is_local(uri):
        with filesystem.open_output_stream(path) as stream:
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
        with contextlib.suppress(OSError):
            Path(attempt).unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}; free space or fix permissions, then run the same command again"
        ) from None


@explain_errors
def read_parquet(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file, or every `.parquet` file directly inside a directory in name order."""
    filesystem, path = open_filesystem(uri)
    paths = [path]
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        paths = [info.path for info in list_files(uri) if info.path.endswith(".parquet")]
    # Without partitioning=None a directory called `a=1` (an arm) would add a column `a`.
    return pa.concat_tables(
        pq.read_table(name, filesystem=filesystem, columns=columns, partitioning=None)  # type: ignore[arg-type]
        for name in paths
    )


@explain_errors
def delete_file(uri: str) -> None:
    """Delete a file; nothing happens when it does not exist."""
    if exists(uri):
        filesystem, path = open_filesystem(uri)
        filesystem.delete_file(path)


@explain_errors
def delete_directory(uri: str) -> None:
    """Delete a directory and all in it; nothing happens when it does not exist."""
    if exists(uri):
        filesystem, path = open_filesystem(uri)
        with suppress(FileNotFoundError):  # gs:// deletes the content, then misses the directory's own, optional object
            filesystem.delete_dir(path)


@explain_errors
def upload_directory(uri: str, source: str) -> None:
    """Copy a local directory to `uri` file by file, streaming; files that are there are overwritten, others stay."""
    filesystem, path = open_filesystem(uri)
    for file in sorted(p for p in Path(source).rglob("*") if p.is_file()):
        target = f"{path}/{file.relative_to(source).as_posix()}"
        if is_local(uri):
            os.makedirs(os.path.dirname(target), exist_ok=True)
        pafs.copy_files(str(file), target, pafs.LocalFileSystem(), filesystem, chunk_size=8 << 20)


@explain_errors
def local_copy(uri: str) -> str:
    """A path on this node for a directory: itself when local, else a copy under $EAST_RAY_CACHE (~/.cache/east-ray).

    The copy is keyed by the names, sizes and times of what the store holds, so a directory written anew is fetched anew
    and one that is there is fetched once per node. Two processes may ask at the same time. Copies not asked for within
    the last hour make room, oldest first, when the disk lacks space. A hub name such as owner/model comes back as it is.
    """
    if is_local(uri):
        return uri.removeprefix("file://")
    files = listing(uri)
    if not files:
        raise FileNotFoundError(f"{_without_secrets(uri)} holds no files")
    filesystem, root = open_filesystem(uri)
    key = hashlib.sha256(repr((_without_secrets(uri), files)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get(CACHE_VARIABLE, "~/.cache/east-ray")).expanduser() / "copies"
    copy = cache / key
    if not copy.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _make_room(cache, sum(size for _, size, _ in files), uri)
        attempt = cache / f".{key}.{uuid.uuid4().hex[:8]}"
        started = time.monotonic()
        try:
            for name, _, _ in files:
                target = attempt / name
                target.parent.mkdir(parents=True, exist_ok=True)
                pafs.copy_files(f"{root}/{name}", str(target), filesystem, pafs.LocalFileSystem(), chunk_size=8 << 20)
            attempt.rename(copy)
        except OSError:
            if not copy.is_dir():  # another process was first: its copy is as good
                raise
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        logger.info("fetched %s (%d files) in %.1f s", _without_secrets(uri), len(files), time.monotonic() - started)
    os.utime(copy)
    return str(copy)


def _make_room(cache: Path, needed_bytes: int, uri: str) -> None:
    idle = sorted(
        (path for path in cache.iterdir() if time.time() - path.stat().st_mtime > IN_USE_SECONDS),
        key=lambda path: path.stat().st_mtime,
    )
    for path in idle:
        if shutil.disk_usage(cache).free > 1.1 * needed_bytes:
            return
        shutil.rmtree(path, ignore_errors=True)
    if (free := shutil.disk_usage(cache).free) < needed_bytes:
        raise UserError(
            f"{cache} has {free / 2**30:.1f} GiB free, and a copy of {_without_secrets(uri)} needs "
            f"{needed_bytes / 2**30:.1f} GiB: set {CACHE_VARIABLE} to a larger disk, or free space"
        )


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
