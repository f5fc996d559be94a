"""Whole shards on local disk, never more than a cap, shared by all processes of the machine.

A shard is named by its address and entity tag, so that changed content is another file. While it is on its way, ranges
are read from the store. Files in use are locked and stay: where that leaves no room, ranges go on being read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.base import DataError
from data_pipelines.storage.local import LocalReader
from data_pipelines.storage.node import file_name, locked
from data_pipelines.storage.remote import RemoteReader

FETCH_BYTES = 1 << 23
"""Asked for at once while a shard is fetched."""
PARTIAL = ".partial"

log = logging.getLogger("data_pipelines")


class CachedReader:
    """A remote object; read from local disk from the moment when it is there."""

    def __init__(self, remote: RemoteReader, cache: ShardCache) -> None:
        self.size = remote.size
        self._remote, self._cache = remote, cache
        self._local: LocalReader | None = cache.open(remote)
        if self._local is None:
            cache.want(remote)

    def pread(self, offset: int, size: int) -> bytes:
        """See `Reader.pread`."""
        if self._local is None:
            self._local = self._cache.open(self._remote)
        return (self._local or self._remote).pread(offset, size)


class ShardCache:
    """A folder of shards.

    Args:
        folder: on a local disk; all processes that share it are to give the same cap.
        cap_bytes: most that it may hold, shards on their way included.
    """

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self._folder, self._cap_bytes = folder, cap_bytes
        self._wanted: queue.SimpleQueue[RemoteReader] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def of(folder: Path, cap_bytes: int) -> ShardCache:
        """The one of this process; a forked process has none of its parent's threads."""
        key = (os.getpid(), folder, cap_bytes)
        if key not in _caches:
            _caches[key] = ShardCache(folder, cap_bytes)
        return _caches[key]

    def open(self, remote: RemoteReader) -> LocalReader | None:
        """The local copy of an object, held while it is in use; None when there is none."""
        try:
            reader = LocalReader(str(self._path(remote)))
        except FileNotFoundError:
            return None
        fcntl.flock(reader.descriptor, fcntl.LOCK_SH)
        os.utime(reader.descriptor)  # the time of last use
        return reader

    def want(self, remote: RemoteReader) -> None:
        """Fetch an object in the background."""
        self._wanted.put(remote)
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch_all, name="shard cache", daemon=True)
            self._thread.start()

    def fetch(self, remote: RemoteReader) -> bool:
        """Put an object on disk; False when another process is at it, or there is no room."""
        path = self._path(remote)
        with self._reserve(path, remote.size) as partial:
            if partial is None:
                return False
            for start in range(0, remote.size, FETCH_BYTES):
                _write(partial, remote.pread(start, FETCH_BYTES), start)
            with locked(self._folder / ".lock"):
                path.with_suffix(PARTIAL).rename(path)
        return True

    def _fetch_all(self) -> None:
        while True:
            remote = self._wanted.get()
            try:
                self.fetch(remote)
            except (OSError, DataError) as error:  # whoever reads the object meets the same and can say it better
                log.warning("%s is not cached: %s", remote.address, error)

    def _path(self, remote: RemoteReader) -> Path:
        return self._folder / f"{file_name(remote.address, remote.tag)}.tar"

    @contextmanager
    def _reserve(self, path: Path, size: int) -> Iterator[int | None]:
        """A locked file that takes up its room already; None when it is not to be had."""
        partial = path.with_suffix(PARTIAL)
        with locked(self._folder / ".lock"):
            descriptor = None if path.exists() or not self._make_room(size, partial) else _create(partial)
            if descriptor is not None:
                os.ftruncate(descriptor, size)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                with locked(self._folder / ".lock"):
                    partial.unlink(missing_ok=True)
                os.close(descriptor)

    def _make_room(self, size: int, partial: Path) -> bool:
        """Drop what was used longest ago until `size` fits; the folder's lock is held."""
        files = sorted((p for p in self._folder.iterdir() if p.name != ".lock"), key=lambda p: p.stat().st_mtime_ns)
        left = [path for path in files if path.suffix != PARTIAL or not _drop(path)]  # of processes that are gone
        if partial in left:
            return False
        excess = sum(path.stat().st_size for path in left) + size - self._cap_bytes
        for path in left:
            if excess <= 0:
                break
            freed = path.stat().st_size
            excess -= freed if _drop(path) else 0
        return excess <= 0


_caches: dict[tuple[int, Path, int], ShardCache] = {}


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _drop(path: Path) -> bool:
    """Remove a file unless somebody holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
