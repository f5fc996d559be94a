"""Who a process is among the others, and what the others see when one dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines.base import UserError
from pretrain.distributed import World, find_place
from tests.conftest import ROOT


def test_torchrun_tells_who_one_is():
    environment = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
    }
    place = find_place(environment)
    assert (place.rank, place.world_size, place.local_rank, place.local_size) == (5, 8, 1, 4)
    assert (place.address, place.port) == ("node1", 29500)


def test_a_step_of_slurm_tells_who_one_is():
    step = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    place = find_place(step | {"SLURM_STEP_NODELIST": "node7", "SLURM_JOB_ID": "123"})
    assert (place.rank, place.world_size, place.local_rank, place.local_size, place.address) == (3, 4, 1, 2, "node7")
    again = find_place(step | {"SLURM_STEP_NODELIST": "node7", "SLURM_JOB_ID": "123", "SLURM_RESTART_COUNT": "1"})
    assert place.port != again.port and 20_000 <= place.port < 32_768


def test_a_plain_process_is_alone_even_inside_a_batch_script():
    assert find_place({}).world_size == 1
    # The batch script itself has these, and no step around it.
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}).world_size == 1


def test_ranks_without_a_place_to_meet_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="MASTER_PORT"):
        World.start(10)


def test_a_world_of_one_sums_gathers_and_broadcasts(lonely_world):
    vector = np.array([1.0, 2.0**53 - 1, np.nan])
    np.testing.assert_array_equal(lonely_world.sum(vector), vector)
    assert lonely_world.gather_object({"a": 1}) == [{"a": 1}]
    assert lonely_world.broadcast_object("x") == "x"


def test_words_of_other_errors_are_left_alone(lonely_world):
    with pytest.raises(RuntimeError, match="out of memory"), lonely_world.watch_peers():
        raise RuntimeError("CUDA out of memory")


CHILD = """
import sys, time
import numpy as np
from pretrain.distributed import World, PeerLostError
world = World.start(60)
assert world.sum(np.array([world.rank, 2.0**40 + 0.5])).tolist() == [1.0, 2 * (2.0**40 + 0.5)]
assert world.gather_object(world.rank) == [0, 1]
assert world.broadcast_object(["zero", "one"][world.rank]) == "zero"
world.barrier()
print("ready", flush=True)
if world.rank == 1:
    time.sleep(600)
try:
    world.barrier()
except PeerLostError as error:
    print(error, flush=True)
    sys.exit(3)
"""


@pytest.mark.slow
def test_a_killed_rank_is_noticed_by_the_other_in_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(r),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(r),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    try:
        assert [rank.stdout.readline().strip() for rank in ranks] == ["ready", "ready"]
        time.sleep(0.5)
        ranks[1].send_signal(signal.SIGKILL)
        output, _ = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 3
        assert output.startswith("rank 0: another rank is gone or silent") and output.count("\n") == 1
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
