"""Saving: every rank writes what it owns, in the background; rank 0 commits."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.base import write_atomically
from pretrain.checkpoint.folder import path_of, staged_path
from pretrain.checkpoint.manifest import (
    NAME,
    STATE,
    Counters,
    FileLine,
    Manifest,
    TensorLine,
    done_name,
    slice_key,
    tensors_name,
)
from pretrain.checkpoint.tensors import digest_of_bytes, write_tensors
from pretrain.distributed import World
from pretrain.engine import Engine


class Save:
    """A checkpoint on its way: a copy of this moment that a thread writes while training goes on.

    Begun and committed by every rank at step boundaries. Until the last rename a reader sees the older
    checkpoints alone, and what is left behind has a name that no reader takes for one.

    Attributes:
        step: of the state.
    """

    def __init__(self, folder: Path, engine: Engine, world: World, state: dict[str, Any], attempt: int) -> None:
        """Copy what this rank owns to memory of its own, and begin to write it.

        Args:
            state: plain data; comes back as `CheckpointReader.state`. `state["progress"]["step"]` is the step.
            attempt: number of the run's start, in the staged folder's name.
        """
        self.step = int(state["progress"]["step"])
        self._staged, self._final = staged_path(folder, self.step, attempt), path_of(folder, self.step)
        self._world = world
        self._state = json.dumps(state, indent=1).encode()
        self._manifest = Manifest(
            step=self.step,
            attempt=attempt,
            world_size=world.world_size,
            engine=Counters(updates=engine.updates, steps=engine.steps),
            tensors={name: TensorLine.of(entry) for name, entry in engine.catalogue().items()},
            files={},
        )
        self._slices = [
            (slice_key(piece.name, piece.kind, piece.start), piece.tensor.detach().to("cpu", copy=True))
            for piece in engine.slices()
        ]
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._write, name="save", daemon=True)
        self._thread.start()

    @property
    def is_written(self) -> bool:
        """Whether this rank has nothing left to write, so that `commit` waits for other ranks at most."""
        return not self._thread.is_alive()

    def commit(self) -> Path:
        """Wait for all ranks' files, and make them a checkpoint.

        Returns:
            The checkpoint's path.

        Raises:
            OSError: a rank could not write; every rank raises it, with the same words, and the
                staged files are gone so that their space is free again.
        """
        try:
            _together(self._world, self._join)
            _together(self._world, lambda: self._commit() if self._world.rank == 0 else None)
        except OSError:
            if self._world.rank == 0:
                shutil.rmtree(self._staged, ignore_errors=True)
            raise
        return self._final

    def _write(self) -> None:
        """This rank's file, then its mark; file I/O only."""
        rank = self._world.rank
        try:
            self._staged.mkdir(parents=True, exist_ok=True)
            header = {"step": str(self.step), "rank": str(rank)}
            size, digest = write_tensors(self._staged / tensors_name(rank), self._slices, header)
            write_atomically(self._staged / done_name(rank), json.dumps({"size": size, "digest": digest}))
        except OSError as error:
            self._failure = error
        finally:
            self._slices = []

    def _join(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _commit(self) -> None:
        staged, final = self._staged, self._final
        write_atomically(staged / STATE, self._state)
        files = {STATE: FileLine(size=len(self._state), digest=digest_of_bytes(self._state))}
        for rank in range(self._world.world_size):
            files[tensors_name(rank)] = FileLine.model_validate_json((staged / done_name(rank)).read_bytes())
        write_atomically(staged / NAME, self._manifest.model_copy(update={"files": files}).to_json())
        sync_folder(staged)
        if final.exists():  # a damaged one that the run fell back from, or a twin of an attempt that went on
            replaced = final.with_name(f"{final.name}.replaced-{self._manifest.attempt}")
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
            staged.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            staged.rename(final)
        sync_folder(final.parent)


def save(folder: Path, engine: Engine, world: World, state: dict[str, Any], attempt: int) -> Path:
    """A `Save` without anything meanwhile."""
    return Save(folder, engine, world, state, attempt).commit()


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk; a rename is safe only then."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _together(world: World, work: Callable[[], None]) -> None:
    """Do `work`, and raise on every rank if it failed on one: all go on, or none."""
    failure: tuple[int, str] | None = None
    try:
        work()
    except OSError as error:
        failure = (error.errno or 0, f"rank {world.rank}: {error.strerror or error} ({error.filename})")
    failures = [f for f in world.gather_object(failure) if f is not None]
    if failures:
        raise OSError(*failures[0])
