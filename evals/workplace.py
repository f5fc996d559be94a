"""Where an eval of many ranks works: its ranks, its folder, and who may ask it to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pretrain.config import EngineConfig
from pretrain.distributed import World
from pretrain.scribe import start_logging
from pretrain.session import on_rank_0
from pretrain.signals import STOP_SIGNALS, StopFlag

POLL_S = 2.0


@dataclass(frozen=True)
class Workplace:
    """What `run_on_ranks` is given beside its data; made alike on every rank.

    Attributes:
        world: the ranks that the environment names: those of torchrun or `srun`, or this process alone.
        folder: of this eval at this checkpoint; what is kept in it is not computed again after a restart.
        stop: set by a signal that asks the job to save and leave.
    """

    world: World
    folder: Path
    stop: StopFlag


@contextmanager
def ranks() -> Iterator[tuple[World, StopFlag]]:
    """The ranks of this job, started; signals and the environment are as before afterwards."""
    environment, handlers = dict(os.environ), {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop = StopFlag().install()
    world = World.start(EngineConfig().collective_timeout_s)
    start_logging(None, 0, world.rank)
    try:
        yield world, stop
    finally:
        world.stop()
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def alone(world: World, path: Path) -> Iterator[None]:
    """`evals.features.alone` for all ranks of a job; they wait by polls, as no collective may last for hours."""
    lock = None
    if world.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    try:
        while not on_rank_0(world, lambda: lock is None or _is_locked(lock.fileno())):
            time.sleep(POLL_S)
        yield
    finally:
        if lock is not None:
            lock.close()


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the work may be done twice, the result is the same
        pass
    return True
