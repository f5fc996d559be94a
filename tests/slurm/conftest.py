"""A real SLURM of four nodes with two counted GPUs each, for these tests."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "launch")]

from slurm_tools import GPUS, NODES, ask, eventually  # noqa: E402

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Brings SLURM up for the session; what it started goes down with it. Gives its state folder."""
    search = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    missing = [tool for tool in TOOLS if shutil.which(tool, path=search) is None]
    if os.geteuid() != 0:
        pytest.skip("a local SLURM needs root: its daemons start jobs as the submitting user")
    if missing:
        pytest.skip(f"a local SLURM needs {', '.join(missing)}: run `make system` (Debian: slurm-wlm, munge)")
    state = tmp_path_factory.mktemp("slurm")
    environment = {**os.environ, "SLURM_LOCAL_DIR": str(state)}
    size = ["--nodes", str(NODES), "--fake-gpus", str(GPUS)]
    subprocess.run([HERE / "up", *size, "--port", str(free_ports(60))], env=environment, check=True, timeout=120)
    old = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(state / "slurm.conf")
    try:
        yield state
    finally:
        subprocess.run([HERE / "down"], env=environment, check=True, timeout=120)
        if old is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = old


@pytest.fixture
def clean_queue(slurm: Path) -> Iterator[None]:
    """Each test finds the nodes free and leaves them so."""
    yield
    subprocess.run(["scancel", "--user", str(os.geteuid())], check=True, timeout=30)
    eventually(lambda: not ask("squeue", "--noheader").strip(), "the queue is empty")


def free_ports(count: int) -> int:
    """The first of `count` TCP ports that nobody listens on, below the ephemeral ones."""
    for _ in range(100):
        first = random.randrange(18000, 32000 - count, 100)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
