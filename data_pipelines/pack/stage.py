"""Where a set is made until it is whole: beside OUT, under a name that an interrupted command finds again."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from data_pipelines.base import DataError, UserError, write_atomically
from data_pipelines.pack.shard import Record

IDENTITY, LOCK, RECORDS = "identity", "lock", "records"
"""What lies in a stage besides the sets, and goes when it gets its name."""


class Stage:
    """A folder of sets that are being made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, identity: str) -> None:
        """Keep what an interrupted command of the same identity has left, nothing else."""
        path = self.folder / IDENTITY
        if path.is_file() and path.read_text() == identity:
            return
        for name in os.listdir(self.folder):  # noqa: PTH208 - names, not paths
            if name != LOCK:
                _remove(self.folder / name)
        write_atomically(path, identity)

    @property
    def num_bytes(self) -> int:
        """Of what is there already."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def finished(self, tar: Path) -> Record | None:
        """The record of a shard that is whole already."""
        try:
            return Record.model_validate_json(self._record(tar).read_bytes())
        except (OSError, ValidationError):
            return None

    def finish(self, tar: Path, record: Record) -> None:
        """Note that a shard is whole; its bytes are on disk."""
        write_atomically(self._record(tar), record.model_dump_json())

    def _record(self, tar: Path) -> Path:
        return self.folder / RECORDS / f"{tar.name}.json"


def refuse_used(out: Path) -> None:
    """Raises UserError when `out` holds something already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"output {out} exists and is not empty; choose another folder or remove it")


@contextmanager
def staged(out: Path) -> Iterator[Stage]:
    """A stage beside `out` that takes its name at the end.

    It vanishes when packing fails, and stays when packing is interrupted: killed, by the keyboard, or for want of
    memory (DataError).

    Raises:
        UserError: `out` holds something already, another process makes it, or its disk is full.
    """
    refuse_used(out)
    folder = out.parent / f".{out.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"output {out}: {error.strerror}") from None
    try:
        # POSIX locks: workers that outlive a killed parent for a moment must not hold it.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"output {out}: another process packs into it at this moment") from None
    try:
        yield Stage(folder)
        for name in (IDENTITY, LOCK, RECORDS):
            _remove(folder / name)
        folder.replace(out)
    except (KeyboardInterrupt, DataError):
        raise
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise UserError(f"output {out}: no space left on its disk; nothing was kept of this attempt") from None
        raise
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
