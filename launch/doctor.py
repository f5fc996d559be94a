"""`thalweg doctor`: is this machine fit?"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "transformers", "webdataset", "submitit", "fsspec")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser("doctor", help="is this machine fit to pretrain?")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """One line a finding; exit code 1 when something must be mended first."""
    worst = 0
    for mark, words in findings():
        print(f"{mark:5} {words}")
        worst = max(worst, 1 if mark == "bad" else 0)
    return worst


def findings() -> Iterator[tuple[str, str]]:
    """("ok" | "note" | "bad", words)."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield ("ok" if sys.version_info >= (3, 11) else "bad"), f"python {python}"
    for package in PACKAGES:
        try:
            yield "ok", f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield "bad", f"{package} is missing: pip install thalweg"
    yield from _accelerators()
    yield "ok", f"{len(os.sched_getaffinity(0))} cores usable of {os.cpu_count()}"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield ("ok" if free > 5 else "note"), f"{free:.0f} GiB free on this disk"
    shm = Path("/dev/shm")
    if shm.exists():
        room = shutil.disk_usage(shm).free / 2**30
        fit = room > 1
        yield (
            ("ok" if fit else "note"),
            f"{room:.1f} GiB shared memory{'' if fit else ': batches of many workers may not fit'}",
        )
    slurm = shutil.which("sbatch")
    yield ("ok", f"SLURM: {slurm}") if slurm else ("note", "no SLURM here: `thalweg launch --cluster local` works")
    yield from _packaged_extras()


def _accelerators() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        yield "note", "no GPU visible: ranks run on the CPU (gloo)"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield "ok", f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    yield ("ok" if torch.distributed.is_nccl_available() else "bad"), "NCCL"


def _packaged_extras() -> Iterator[tuple[str, str]]:
    for extra, package, use in (("demo", "mlxtend", "`thalweg demo`"), ("s3", "s3fs", "s3:// paths")):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            yield "note", f"{use} needs: pip install 'thalweg[{extra}]'"
