"""A process that saves checkpoints, and trains meanwhile, until it is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import deepspeed  # noqa: F401 - imported once, by the server that the savers are forked from
import torch

from pretrain import checkpoint
from pretrain.config import EngineConfig, Optim, Train
from pretrain.distributed import World
from pretrain.engine import Engine
from tests.pretrain.toys import AutoEncoder, make_batch

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")


def save_steps(folder: str, first: int, count: int, die_at: int | None) -> None:
    """Save steps [first, first + count).

    Args:
        die_at: SIGKILL oneself just before the n-th call of the file system below `folder`.
    """
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    world = World.start(timeout_s=60)
    engine = Engine(AutoEncoder(), EngineConfig(zero_stage=0), Optim(), Train(global_batch=4), world)
    if die_at is not None:
        kill_at(folder, die_at)
    for step in range(first, first + count):
        save = checkpoint.Save(Path(folder), engine, world, {"progress": {"step": step}}, attempt=first)
        engine.accumulate([make_batch(range(4))])
        engine.apply(1e-3, 0.5)
        save.commit()
        checkpoint.retain(Path(folder), keep_last=2, keep_every=None, spared=set())


def kill_at(folder: str, number: int) -> None:
    """Python tells of a call of the file system before it makes it."""
    calls = 0

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal calls
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(folder):
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
