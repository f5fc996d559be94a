"""What is done with an address, wherever it leads."""

from __future__ import annotations

import glob as local_glob
import os
from pathlib import Path
from typing import Protocol

from data_pipelines.base import write_atomically
from data_pipelines.storage.address import local_path
from data_pipelines.storage.cache import CachedReader, ShardCache
from data_pipelines.storage.local import LocalReader
from data_pipelines.storage.node import cache_folder
from data_pipelines.storage.remote import Remote, RemoteReader
from data_pipelines.storage.settings import DEFAULTS, Storage


class Reader(Protocol):
    """An open file that is read by position, from any thread."""

    size: int
    """Bytes, as of opening."""

    def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer only at the file's end.

        Raises:
            OSError: these bytes cannot be had.
            DataError: the file was replaced by another one, or its whole store is out of reach.
        """
        ...


def open_reader(address: str, storage: Storage = DEFAULTS) -> Reader:
    """Open for positional reads.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = local_path(address)
    if path is not None:
        return LocalReader(path)
    reader = RemoteReader(Remote(address, storage.deadline_s))
    if not storage.cache_bytes:
        return reader
    return CachedReader(reader, ShardCache.of(cache_folder("shards"), storage.cache_bytes))


def read_bytes(address: str, storage: Storage = DEFAULTS) -> bytes:
    """The whole of a small file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = local_path(address)
    return Remote(address, storage.deadline_s).read_whole() if path is None else Path(path).read_bytes()


def write_bytes(address: str, content: bytes, storage: Storage = DEFAULTS) -> None:
    """Replace a small file; a reader sees the old one or the new one, never a part.

    Raises:
        UserError: its store only reads, as web servers do.
    """
    path = local_path(address)
    if path is None:
        Remote(address, storage.deadline_s).write(content)
    else:
        write_atomically(Path(path), content)


def fingerprint(address: str, storage: Storage = DEFAULTS) -> str:
    """Changes when the file is replaced: size and time stamp or entity tag, whatever the store has.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = local_path(address)
    if path is not None:
        status = Path(path).stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    head = Remote(address, storage.deadline_s).head()
    return f"{head.size} {head.tag}"


def modified_before(address: str, other: str) -> bool:
    """Whether a local file is older than another; False for remote ones, whose stores keep no such order."""
    first, second = local_path(address), local_path(other)
    if first is None or second is None:
        return False
    return Path(first).stat().st_mtime_ns < Path(second).stat().st_mtime_ns


def exists(address: str, storage: Storage = DEFAULTS) -> bool:
    """Whether there is a file or folder of this name."""
    path = local_path(address)
    return Remote(address, storage.deadline_s).exists() if path is None else Path(path).exists()


def names_in(folder: str, storage: Storage = DEFAULTS) -> list[str]:
    """Sorted names of what lies directly in `folder`; empty when there is no such folder, or it cannot be listed."""
    path = local_path(folder)
    try:
        if path is None:
            return Remote(folder, storage.deadline_s).names()
        return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def glob(pattern: str, storage: Storage = DEFAULTS) -> list[str]:
    """Sorted addresses that match a shell pattern."""
    path = local_path(pattern)
    if path is None:
        return Remote(pattern, storage.deadline_s).glob()
    return sorted(local_glob.glob(path))  # noqa: PTH207 - a pattern may start anywhere
