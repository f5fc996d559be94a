"""Saving: every rank writes what it owns, rank 0 commits."""

from __future__ import annotations

import json
import os
import shutil
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


def save(folder: Path, engine: Engine, world: World, state: dict[str, Any], attempt: int) -> Path:
    """Commit the engine's state and `state` as a checkpoint of step `state["progress"]["step"]`.

    Called by every rank at a step boundary. Until the last rename a reader sees the older
    checkpoints alone, and what is left behind has a name that no reader takes for one.

    Args:
        state: plain data; comes back as `CheckpointReader.state`.
        attempt: number of the run's start, in the staged folder's name.

    Returns:
        The checkpoint's path.

    Raises:
        OSError: a rank could not write; every rank raises it, with the same words, and the
            staged files are gone so that their space is free again.
    """
    step = int(state["progress"]["step"])
    staged, final = staged_path(folder, step, attempt), path_of(folder, step)
    try:
        _together(world, lambda: _clear(staged) if world.rank == 0 else None)
        _together(world, lambda: write_part(staged, engine, world.rank, step))
        _together(world, lambda: _commit(staged, final, engine, world, state, attempt) if world.rank == 0 else None)
    except OSError:
        if world.rank == 0:
            shutil.rmtree(staged, ignore_errors=True)
        raise
    return final


def write_part(staged: Path, engine: Engine, rank: int, step: int) -> None:
    """One rank's file, then its mark; file I/O only."""
    slices = ((slice_key(piece.name, piece.kind, piece.start), piece.tensor) for piece in engine.slices())
    size, digest = write_tensors(staged / tensors_name(rank), slices, {"step": str(step), "rank": str(rank)})
    write_atomically(staged / done_name(rank), json.dumps({"size": size, "digest": digest}))


def _clear(staged: Path) -> None:
    shutil.rmtree(staged, ignore_errors=True)  # of an earlier try of this attempt
    staged.mkdir(parents=True)


def _commit(staged: Path, final: Path, engine: Engine, world: World, state: dict[str, Any], attempt: int) -> None:
    text = json.dumps(state, indent=1).encode()
    write_atomically(staged / STATE, text)
    files = {STATE: FileLine(size=len(text), digest=digest_of_bytes(text))}
    for rank in range(world.world_size):
        files[tensors_name(rank)] = FileLine.model_validate_json((staged / done_name(rank)).read_bytes())
    manifest = Manifest(
        step=int(state["progress"]["step"]),
        attempt=attempt,
        world_size=world.world_size,
        engine=Counters(updates=engine.updates, steps=engine.steps),
        tensors={name: TensorLine.of(entry) for name, entry in engine.catalogue().items()},
        files=files,
    )
    write_atomically(staged / NAME, manifest.to_json())
    sync_folder(staged)
    if final.exists():  # a damaged one that the run fell back from, or a twin of an attempt that went on
        replaced = final.with_name(f"{final.name}.replaced-{attempt}")
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
        staged.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        staged.rename(final)
    sync_folder(final.parent)


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
