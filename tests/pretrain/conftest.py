"""A world of one rank inside the test process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pretrain.distributed import World


@pytest.fixture(scope="module")
def lonely_world() -> Iterator[World]:
    """A started world of this process alone; the environment is put back, as later tests start processes."""
    before = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    world = World.start(timeout_s=60)
    yield world
    world.stop()
    os.environ.clear()
    os.environ.update(before)
