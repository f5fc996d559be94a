"""The ranks of a run: who they are, and how they talk about small things."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipelines.base import ThalwegError, UserError


class PeerLostError(ThalwegError):
    """Another rank is gone or silent; a new start resumes from the last checkpoint."""


@dataclass(frozen=True)
class Place:
    """Where a process stands among the others, before anything is started."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int


@dataclass(frozen=True)
class World:
    """The ranks, started.

    Attributes:
        device: where this rank computes.
        cpu_group: gloo; carries small vectors without waiting for the device.
        device_group: nccl on GPUs, gloo on CPUs; carries gradients and embeddings.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    cpu_group: dist.ProcessGroup
    device_group: dist.ProcessGroup

    @classmethod
    def start(cls, timeout_s: float) -> World:
        """Join the other ranks: those of torchrun, of `srun`, or nobody in a plain process.

        Args:
            timeout_s: a collective that takes longer than this ends the rank with an error.
        """
        place = find_place(os.environ)
        _export(place)
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(place.local_rank)
        else:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed announces its choice on every start
            _set_threads(place.local_size)
        device = torch.device("cuda", place.local_rank) if on_gpu else torch.device("cpu")
        timeout = timedelta(seconds=timeout_s)
        _start_torch(place, device, timeout)
        device_group = dist.new_group(timeout=timeout)
        cpu_group = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else device_group
        _start_deepspeed(device, device_group, timeout)
        return cls(place.rank, place.world_size, place.local_rank, device, cpu_group, device_group)

    def sum(self, vector: np.ndarray) -> np.ndarray:
        """Sum of float64 vectors over all ranks."""
        tensor = torch.from_numpy(np.array(vector, dtype=np.float64))
        with self.watch_peers():
            dist.all_reduce(tensor, group=self.cpu_group)
        return tensor.numpy()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.sum(np.zeros(1))

    def broadcast_object(self, value: Any) -> Any:
        """What rank 0 passed, on every rank; plain data."""
        box = [value if self.rank == 0 else None]
        with self.watch_peers():
            dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        return box[0]

    def gather_object(self, value: Any) -> list[Any]:
        """What each rank passed, in order of rank, on every rank; plain data."""
        values: list[Any] = [None] * self.world_size
        with self.watch_peers():
            dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    @contextlib.contextmanager
    def watch_peers(self) -> Iterator[None]:
        """Turn the transport's error about a lost or silent peer into one line.

        Raises:
            PeerLostError: another rank died, or did not answer within the timeout.
        """
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not re.search(r"gloo|Connection (closed|reset)", str(error)):
                raise
            # gloo puts its source line in front, and advice behind the first sentence
            reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip().splitlines()[0]).split(". ")[0]
            raise PeerLostError(
                f"rank {self.rank}: another rank is gone or silent ({reason}); start again to resume"
            ) from error

    def stop(self) -> None:
        """Leave; the process may start a new world afterwards."""
        import deepspeed.comm as deepspeed_comm

        deepspeed_comm.destroy_process_group()


def find_place(environment: Any) -> Place:
    """Read the launcher's variables: torchrun's, else those of an `srun` step, else a process of its own.

    >>> find_place({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"}).rank
    1
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        world_size = int(environment["WORLD_SIZE"])
        return Place(
            rank=int(environment["RANK"]),
            world_size=world_size,
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", world_size)),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environment.get("MASTER_PORT") or 0),
        )
    # The batch script itself has SLURM_PROCID too; only a process of a step has SLURM_STEP_NUM_TASKS.
    if "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        return Place(
            rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment.get("SLURM_LOCALID", 0)),
            local_size=int(re.split(r"\D", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0]),
            address=environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
            port=int(environment.get("MASTER_PORT") or _port_of_job(environment)),
        )
    return Place(rank=0, world_size=1, local_rank=0, local_size=1, address="127.0.0.1", port=0)


def _first_host(node_list: str) -> str:
    if "[" not in node_list and "," not in node_list:
        return node_list
    names = subprocess.run(["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, check=True)
    return names.stdout.split()[0]


def _port_of_job(environment: Any) -> int:
    """Below the ephemeral range; another one after each requeue, as the old one may still be bound."""
    job = int(environment.get("SLURM_JOB_ID", 0)) * 31 + int(environment.get("SLURM_RESTART_COUNT", 0))
    return 20_000 + job % 12_000


def _export(place: Place) -> None:
    """DeepSpeed looks for MPI when any of the five is missing."""
    if place.world_size > 1 and not place.port:
        raise UserError(
            f"MASTER_PORT is not set, and {place.world_size} ranks must meet at one; start them with torchrun or srun"
        )
    port = place.port or _free_port()
    names = {"RANK": place.rank, "WORLD_SIZE": place.world_size, "LOCAL_RANK": place.local_rank}
    for name, value in {**names, "MASTER_ADDR": place.address, "MASTER_PORT": port}.items():
        os.environ[name] = str(value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _set_threads(local_size: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))


def _start_torch(place: Place, device: torch.device, timeout: timedelta) -> None:
    if place.world_size == 1:
        store = torch._C._distributed_c10d.HashStore()  # nobody to meet: no port to open, none to collide on
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    elif device.type == "cuda":
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)


def _start_deepspeed(device: torch.device, device_group: dist.ProcessGroup, timeout: timedelta) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import groups, logger

    logger.setLevel(logging.WARNING)
    # deepspeed 0.19 calls collectives by names that torch 2.13 is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    if device.type == "cpu":
        # Otherwise a C++ operator is compiled on every first start: 73 s, and a failure where there is no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
    # It would make a group of its own for all its collectives, with the backend's timeout instead of ours.
    groups._WORLD_GROUP = device_group
