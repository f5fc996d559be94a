"""Which process is meant, and whether it lives: ids are used again, and mean something in one place only."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def describe(pid: int | None = None) -> dict[str, Any]:
    """What tells a process of this machine from every later one with its number; this one by default."""
    pid = os.getpid() if pid is None else pid
    return {"pid": pid, "started": psutil.Process(pid).create_time(), "space": _space()}


def is_running(process: Mapping[str, Any]) -> bool | None:
    """Whether a described process lives; None when that cannot be seen from this machine."""
    if process.get("space") != _space():
        return None
    try:
        found = psutil.Process(process["pid"])
        return bool(found.create_time() == process["started"] and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _space() -> str:
    """One boot of one machine, one container: where a process id means something."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not namespace.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {namespace.readlink()}"
