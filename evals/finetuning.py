"""Training inside an eval: a run of the pretraining engine, with its order, ranks, ZeRO and resume.

A run below the eval's own folder is started by every rank of the job and resumed by a job that starts again; what it
has become is opened from its last checkpoint.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from data_pipelines.base import ThalwegError
from evals.workplace import Workplace
from pretrain.checkpoint import CheckpointReader, newest_whole
from pretrain.config import Recipe
from pretrain.engine.buffers import persistent_buffers
from pretrain.loop import train
from pretrain.objective import DataFacts, Objective
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


def forget_checkpoints(run: RunDirectory, place: Workplace) -> None:
    """Drop what only resuming needs; metrics and config stay."""
    on_rank_0(place.world, lambda: shutil.rmtree(run.checkpoints, ignore_errors=True))


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
