"""Training inside an eval: a run of the pretraining engine, with its order, ranks, ZeRO and resume.

A run below the eval's own folder is started by every rank of the job and resumed by a job that starts again; what it
has become is opened from its last checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from data_pipelines.base import ThalwegError, write_atomically
from evals.workplace import Workplace, alone
from pretrain.checkpoint import CheckpointReader, newest_whole
from pretrain.config import Recipe
from pretrain.engine.buffers import persistent_buffers
from pretrain.export import write_encoder
from pretrain.loop import train
from pretrain.objective import DataFacts, Encoder, Objective
from pretrain.objectives import build
from pretrain.run.directory import RunDirectory
from pretrain.session import Session, on_rank_0

_SAMPLES_WORTH_WORKERS = 2_000
_MOST_WORKERS = 16


def finish(recipe: Recipe, place: Workplace) -> RunDirectory:
    """Train to the last step on the ranks of the job; a run that was begun goes on, a finished one is only named.

    Args:
        recipe: its `runs` is a folder of the eval's.

    Raises:
        SavedAndStopped: a signal asked for it; the same call goes on from there.
        UserError: the recipe or its data do not allow it, or the run is another one's.
    """
    session = Session.start(recipe, place.world)
    if session is not None:
        exit_code, words = 1, ""
        try:
            train(session, place.stop)
            exit_code = 0
        except ThalwegError as error:
            exit_code, words = error.exit_code, str(error)
            raise
        finally:
            session.close()
            if session.attempt is not None:
                session.attempt.end(exit_code, words)
    return RunDirectory.of(recipe)


def opened(run: RunDirectory, place: Workplace) -> Objective:
    """The objective of a finished run with the weights of its last checkpoint, on this rank's device, in eval mode.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    recipe = run.recipe()
    objective = build(recipe.objective, DataFacts.from_plain(run.info()["facts"]), recipe.seed)
    reader, damaged = newest_whole(run.checkpoints, place.world)
    if reader is None:
        raise ThalwegError(f"run {run.root} has no whole checkpoint {'; '.join(damaged)}")
    _fill(objective, reader)
    return objective.to(place.world.device).eval()


def taught(recipe: Recipe, place: Workplace, examine: Callable[[Objective], str]) -> str:
    """What an exam says of a run that teaches: trained and examined the first time, then read from beside the run.

    Args:
        examine: called on every rank with the trained objective.

    Raises:
        SavedAndStopped, UserError: see `finish`.
    """
    kept = _kept(Path(recipe.runs) / recipe.name)
    known: str | None = on_rank_0(place.world, lambda: _read(kept))
    if known is not None:
        return known
    run = finish(recipe, place)
    found = examine(opened(run, place))
    on_rank_0(place.world, lambda: write_atomically(kept, found))
    if place.world.rank == 0:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # only resuming needs them; metrics and config stay
    return found


def control_taught(network: Encoder, where: Path, place: Workplace, teach: Callable[[Path], str]) -> str:
    """What an exam says of a control; nothing but that is kept.

    Args:
        where: folder of its run, named by what the control depends on; other jobs may want the same.
        teach: given the folder of the network's export, calls `taught` with a run in `where`.
    """
    world = place.world
    with alone(world, where):
        known: str | None = on_rank_0(world, lambda: _read(_kept(where)))
        if known is not None:
            return known
        export = where.with_name(f"{where.name}-encoder")
        on_rank_0(world, lambda: _write_anew(network, export))
        found = teach(export)
        for folder in (export, where) if world.rank == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)
        return found


def _kept(where: Path) -> Path:
    return where.with_name(f"{where.name}.json")


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _write_anew(network: Encoder, folder: Path) -> Path:
    """What a killed job left is not trusted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_encoder(network, {}, folder)
    return folder


def loader_workers(num_samples: int) -> int:
    """Loader processes of one rank: the cores it may use but one; none where there is little to read."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) // ranks_here
    return min(_MOST_WORKERS, max(1, cores - 1)) if num_samples > _SAMPLES_WORTH_WORKERS else 0


@torch.no_grad()
def _fill(module: nn.Module, reader: CheckpointReader) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(reader.read(name, "w").view(parameter.shape))
    for name, buffer in persistent_buffers(module):
        buffer.copy_(reader.read(name, "buffer").view(buffer.shape))
