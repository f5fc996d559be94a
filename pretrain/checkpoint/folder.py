"""A run's folder of checkpoints: which there are, which are whole, which go."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from data_pipelines.base import CheckpointError
from pretrain.checkpoint.manifest import NAME
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.distributed import World

_COMMITTED = re.compile(r"step-(\d{8,})")
_LEFT_BEHIND = re.compile(r"step-(\d{8,})\.(attempt|replaced|going)-\d+")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return folder / f"step-{step:08d}"


def staged_path(folder: Path, step: int, attempt: int) -> Path:
    """Where it is made; no reader takes this name for a checkpoint."""
    return folder / f"step-{step:08d}.attempt-{attempt}"


def committed(folder: Path) -> list[int]:
    """Steps that have a committed checkpoint, ascending."""
    if not folder.is_dir():
        return []
    matches = ((path, _COMMITTED.fullmatch(path.name)) for path in folder.iterdir())
    return sorted(int(match[1]) for path, match in matches if match and (path / NAME).is_file())


def newest_whole(folder: Path, world: World | None = None) -> tuple[CheckpointReader | None, list[str]]:
    """The newest checkpoint whose every file is as it was written.

    Args:
        world: ranks that share the reading; each gets the same answer.

    Returns:
        Its reader, None where there is none; and a line for each newer one that is damaged.
    """
    steps = committed(folder) if world is None or world.rank == 0 else []
    if world is not None:
        steps = world.broadcast_object(steps)
    damaged: list[str] = []
    for step in reversed(steps):
        reader, complaint = _verified(path_of(folder, step), world)
        complaints = world.gather_object(complaint) if world is not None else [complaint]
        if not any(complaints):
            return reader, damaged
        damaged.append(next(filter(None, complaints)))
    return None, damaged


def _verified(path: Path, world: World | None) -> tuple[CheckpointReader | None, str | None]:
    """A reader once this rank's share of the files is found whole, or what is wrong."""
    try:
        reader = CheckpointReader(path)
        reader.verify(*((world.rank, world.world_size) if world is not None else (0, 1)))
    except CheckpointError as error:
        return None, str(error)
    return reader, None


def surplus(folder: Path, keep_last: int, keep_every: int | None, spared: Collection[int]) -> list[int]:
    """Steps whose checkpoints need not stay.

    Args:
        keep_last: how many of the newest stay.
        keep_every: multiples of this step stay too.
        spared: steps that stay for another reason, such as an export being made of them.
    """
    steps = committed(folder)
    kept = set(steps[-keep_last:]) | set(spared)
    return [step for step in steps if step not in kept and not (keep_every and step % keep_every == 0)]


def retain(folder: Path, keep_last: int, keep_every: int | None, spared: Collection[int]) -> list[int]:
    """Delete the `surplus`, and what broken saves left behind; returns the steps that were deleted."""
    going = surplus(folder, keep_last, keep_every, spared)
    for step in going:
        # Out of the readers' sight first: a half deleted one must not be listed.
        leaving = folder / f"step-{step:08d}.going-0"
        shutil.rmtree(leaving, ignore_errors=True)
        path_of(folder, step).rename(leaving)
    for path in folder.iterdir():
        if _LEFT_BEHIND.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    return going
