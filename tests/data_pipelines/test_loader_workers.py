"""Workers that die, hang, or outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from itertools import islice

import psutil
import pytest

from data_pipelines.base import DataError
from tests.data_pipelines.small_sets import (
    Acting,
    loader_of,
    order_of,
    read,
    sixty_samples,
)


@pytest.fixture
def packed(tmp_path):
    return sixty_samples(tmp_path)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_in_words(packed):
    loader = loader_of([packed], order_of([packed]), Acting(8 * 6, kill_self), workers=2)
    with pytest.raises(DataError, match=r"data worker \d+ was killed by SIGKILL.*lower data.workers"):
        read(loader, 20)
    assert loader.pids == []


def test_a_worker_killed_between_batches_is_noticed_at_the_next(packed):
    loader = loader_of([packed], order_of([packed]), workers=2)
    batches = iter(loader)
    next(batches)
    for pid in loader.pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)  # the death itself must not raise here, in the middle of a training step
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        list(islice(batches, 20))


def test_a_hanging_worker_ends_the_run_in_words(packed):
    loader = loader_of([packed], order_of([packed]), Acting(8, lambda: time.sleep(3600)), workers=1, timeout_s=2)
    batches = iter(loader)
    next(batches)
    pids = loader.pids
    with pytest.raises(DataError, match=r"gave nothing for 2 s"):
        next(batches)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_leave_signals_to_their_parent(packed):
    loader = loader_of([packed], order_of([packed]), workers=2)
    batches = iter(loader)
    next(batches)
    for pid in loader.pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    assert len(list(islice(batches, 10))) == 10
    loader.close()


SCRIPT = """
    import sys, time
    import numpy as np
    from data_pipelines.loader import Loader
    from data_pipelines.order import Order, Stream
    from data_pipelines.shards import Dataset

    class Slow:
        def sample(self, sample, draw):
            if draw.position >= 32:
                time.sleep(3600)
            return {"n": np.zeros(1)}

    dataset = Dataset.open(sys.argv[1])
    order = Order(0, [Stream("set", dataset.shard_sizes, 4)], 4)
    loader = Loader([dataset], order, Slow(), seed=0, global_batch=8, accumulation=1, rank=0, world_size=1, start=0,
                    workers=2, prefetch=4, quarantine=None)
    batches = iter(loader)
    next(batches)
    print(*loader.pids, flush=True)
"""


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextmanager
def python(script, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    try:
        yield process, pids
    finally:  # a failed test leaves nothing behind
        process.kill()
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_until_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


@pytest.mark.slow
def test_a_process_that_ends_without_closing_ends(packed):
    with python(SCRIPT, packed.path) as (process, pids):
        assert len(pids) == 2
        assert process.wait(timeout=60) == 0
        wait_until_gone(pids)


@pytest.mark.slow
def test_workers_die_with_a_killed_parent(packed):
    with python(SCRIPT + "    time.sleep(3600)\n", packed.path) as (process, pids):
        assert len(pids) == 2 and all(map(is_running, pids))
        process.kill()
        wait_until_gone(pids)
