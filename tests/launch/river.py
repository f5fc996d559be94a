"""A run in miniature: the signal, checkpoint and exit protocol of a real one, in a second instead of ten.

Importable on the nodes by its path, because jobs import what they run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.base import write_atomically
from launch.entry import PretrainEntry

STEPS = 40


@dataclass(frozen=True)
class River(PretrainEntry):
    """Flows so many steps of 0.1 s; `fate` says what befalls it."""

    fate: str = "flows"
    steps: int = STEPS

    def train(self) -> int:
        rank = int(os.environ["RANK"])
        if (self.fate == "crashes on rank 1" and rank == 1) or self.fate == "crashes":
            write_line(self.job.run, rank, {"began": 0})
            raise RuntimeError("a bug")
        if self.fate == "is refused":
            write_line(self.job.run, rank, {"began": 0})
            return 2
        import torch
        import torch.distributed as dist

        import launch
        from pretrain.signals import StopFlag

        stop = StopFlag().install()
        dist.init_process_group("gloo")
        done = step = newest(self.job.run)
        place = {"local_rank": int(os.environ["LOCAL_RANK"]), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
        known = {"world_size": dist.get_world_size(), "code": launch.__file__}
        write_line(self.job.run, rank, {"began": done, **known, **place})
        while step < self.steps:
            time.sleep(0.1)
            step += 1
            write_line(self.job.run, rank, {"step": step})
            flag = torch.tensor(float(stop.is_set))
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            tenth = self.fate == "saves each tenth step" and step % 10 == 0
            if flag or tenth or step == self.steps:
                commit(self.job.run, step) if rank == 0 else None
                dist.barrier()
            if flag and step < self.steps:
                return 85
        return 0


def commit(run: Path, step: int) -> None:
    write_atomically(run / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json", "{}")


def newest(run: Path) -> int:
    return max((int(path.parent.name[5:]) for path in run.glob("checkpoints/step-*/MANIFEST.json")), default=0)


def write_line(run: Path, rank: int, line: dict[str, Any]) -> None:
    with (run / f"rank-{rank}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines(run: Path, rank: int) -> list[dict[str, Any]]:
    path = run / f"rank-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def eventually(holds: Callable[[], object], what: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.2)
