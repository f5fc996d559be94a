"""What the processes of a machine share on its disk: a cache folder, locks, work done once for all of them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.base import write_atomically


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept: below `$THALWEG_CACHE`, else below `~/.cache/thalweg`."""
    return Path(os.environ.get("THALWEG_CACHE") or Path.home() / ".cache" / "thalweg") / name


def file_name(*words: str) -> str:
    """A file name that stands for `words`."""
    return hashlib.blake2b("\n".join(words).encode(), digest_size=16).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this name alone among all processes of the machine; it ends with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def once(name: str, make: Callable[[], bytes], max_age_s: float | None = None) -> bytes:
    """What `make` gives, made by the first process that asks and read by the others.

    Args:
        name: says what it is, and changes when it does.
        max_age_s: made anew when it is older than this.
    """
    path = cache_folder("once") / file_name(name)
    with locked(path.with_suffix(".lock")):
        try:
            if max_age_s is None or 0 <= time.time() - path.stat().st_mtime < max_age_s:
                return path.read_bytes()
        except FileNotFoundError:
            pass
        content = make()
        write_atomically(path, content)
        return content
