"""Questions to SLURM, and what befalls a node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import psutil
from river import eventually

__all__ = ["GPUS", "NODES", "ask", "eventually", "job_facts", "lose", "preempt", "processes_on", "repair"]

NODES, GPUS = 4, 2


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def job_facts(job_id: str) -> dict[str, str]:
    words = ask("scontrol", "--oneliner", "show", "job", job_id).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def preempt() -> None:
    """A short job that wants every node, and may take them."""
    ask("sbatch", "--partition=high", f"--nodes={NODES}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


def processes_on(node: str, job_id: str) -> list[psutil.Process]:
    """The processes of a job on a node, those that SLURM holds them by first."""
    place = {"SLURM_JOB_ID": job_id, "SLURMD_NODENAME": node}
    tasks, keepers = [], {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if place.items() <= process.environ().items():
                tasks.append(process)
                keepers |= {p.pid: p for p in process.parents() if p.name().startswith("slurmstepd")}
    return [*keepers.values(), *tasks]


def lose(state: Path, node: str) -> None:
    """SLURM hears nothing from the node any more."""
    os.kill(int((state / "run" / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)


def repair(state: Path, node: str) -> None:
    """The node is back; SLURM ends what should not run there any more."""
    subprocess.run(["/usr/sbin/slurmd", "-N", node, "-f", state / "slurm.conf"], check=True, timeout=30)
