"""Bytes from any store, by address: local files through `os.pread`, all else through fsspec.

An address is a local path or a URL whose scheme is on a short list. Nothing here runs a shell, and
chained or unknown schemes are refused, so that a manifest cannot name more than data.
"""

from __future__ import annotations

import glob as local_glob
import os
import re
from pathlib import Path
from typing import Any, Protocol

import fsspec

from data_pipelines.base import UserError

SCHEMES = ("file", "s3", "gs", "http", "https", "memory")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(://|::)|^(pipe):")


class Reader(Protocol):
    """An open file that is read by position, from any thread."""

    size: int
    """Bytes, as of opening."""

    def pread(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer only at the file's end."""
        ...


class LocalReader:
    """A local file; `pread` shares no position, so threads and forks do not disturb each other."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def pread(self, offset: int, size: int) -> bytes:
        """See `Reader.pread`."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:  # Linux reads at most 2 GiB a call
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


class RemoteReader:
    """An object of any fsspec store, read by ranges."""

    def __init__(self, address: str) -> None:
        self._store, self._path = _remote(address)
        self.size = int(self._store.info(self._path)["size"])

    def pread(self, offset: int, size: int) -> bytes:
        """See `Reader.pread`."""
        stop = min(offset + size, self.size)
        return self._store.cat_file(self._path, start=offset, end=stop) if offset < stop else b""


def local_path(address: str) -> str | None:
    """The path behind a local address, None for a remote one.

    Raises:
        UserError: the scheme is not one of `SCHEMES`.
    """
    match = _SCHEME.match(address)
    if match is None:
        return address
    scheme = (match.group(1) or match.group(3)).lower()
    if scheme not in SCHEMES or match.group(2) != "://" or "::" in address:
        raise UserError(f"address {address!r}: want a path or one of {', '.join(f'{s}://' for s in SCHEMES)}")
    return address[len("file://") :] if scheme == "file" else None


def open_reader(address: str) -> Reader:
    """Open for positional reads.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = local_path(address)
    return RemoteReader(address) if path is None else LocalReader(path)


def read_bytes(address: str) -> bytes:
    """The whole of a small file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = local_path(address)
    if path is not None:
        return Path(path).read_bytes()
    store, inner = _remote(address)
    return store.cat_file(inner)


def fingerprint(address: str) -> str:
    """Changes when the file is replaced: size and time stamp or entity tag, whatever the store has.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = local_path(address)
    if path is not None:
        status = Path(path).stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    store, inner = _remote(address)
    facts = store.info(inner)
    return " ".join(str(facts[name]) for name in ("size", "ETag", "etag", "mtime", "LastModified") if name in facts)


def modified_before(address: str, other: str) -> bool:
    """Whether a local file is older than another; False for remote ones, whose stores keep no such order."""
    first, second = local_path(address), local_path(other)
    if first is None or second is None:
        return False
    return Path(first).stat().st_mtime_ns < Path(second).stat().st_mtime_ns


def exists(address: str) -> bool:
    """Whether there is a file or folder of this name."""
    path = local_path(address)
    if path is not None:
        return Path(path).exists()
    store, inner = _remote(address)
    return bool(store.exists(inner))


def names_in(folder: str) -> list[str]:
    """Sorted names of what lies directly in `folder`; empty when there is no such folder."""
    path = local_path(folder)
    try:
        if path is not None:
            return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths
        store, inner = _remote(folder)
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in store.ls(inner, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def glob(pattern: str) -> list[str]:
    """Sorted addresses that match a shell pattern."""
    path = local_path(pattern)
    if path is not None:
        return sorted(local_glob.glob(path))  # noqa: PTH207 - a pattern may start anywhere
    store, inner = _remote(pattern)
    return sorted(store.unstrip_protocol(match) for match in store.glob(inner))


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: below `$THALWEG_CACHE`, else below `~/.cache/thalweg`."""
    return Path(os.environ.get("THALWEG_CACHE") or Path.home() / ".cache" / "thalweg") / name


def join(folder: str, name: str) -> str:
    """Address of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def _remote(address: str) -> tuple[Any, str]:
    """The fsspec store of a remote address and the path inside it."""
    try:
        store, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(f"address {address!r}: {error}") from None
    return store, str(path)
