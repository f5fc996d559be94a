"""Questions to SLURM."""

from __future__ import annotations

import subprocess

from river import eventually

__all__ = ["ask", "eventually", "job_facts"]


def ask(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def job_facts(job_id: str) -> dict[str, str]:
    words = ask("scontrol", "--oneliner", "show", "job", job_id).split()
    return dict(word.split("=", 1) for word in words if "=" in word)
