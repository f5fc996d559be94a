"""Helpers of tests that start real runs: a tiny recipe, real processes, what they left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pretrain.run.directory import RunDirectory

TINY = {
    "objective": {
        "name": "mae",
        "encoder": {
            "architecture": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 64, "patch_size": 7,
        },
        "decoder": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    },
    "train": {"global_batch": 16, "steps": 12},
    "optim": {"base_lr": 1.0e-3, "lr_scaling": "none"},
    "engine": {"zero_stage": 2},
    "checkpoint": {"every": 3},
    "validation": {"every": 100, "max_samples": 32},
    "monitor": {"log_every": 1, "tensorboard": False},
}  # fmt: skip


def write_recipe(folder: Path, name: str, digits: Path, **changes: Any) -> Path:
    """A recipe file of a run that takes seconds; `changes` replace whole groups."""
    data = {"path": str(digits / "train"), "validation": str(digits / "val"), "workers": 0}
    tree = {"name": name, "runs": str(folder / "runs"), "data": data, **TINY, **changes}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(*arguments: str, module: str = "launch.cli", **environment: str) -> subprocess.Popen[str]:
    """`thalweg ARGUMENTS` as a process of its own; `module="pretrain"` is one rank, without a supervisor."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> tuple[int, str]:
    """Exit code and everything it said; the process is gone afterwards, whatever happened."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"no end after {timeout_s} s:\n{output}") from None
    return process.returncode, output


def thalweg(*arguments: str, **environment: str) -> str:
    """Run a command that must succeed; what it said."""
    code, output = finish(start(*arguments, **environment))
    assert code == 0, output
    return output


def until(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    """Wait while a process works towards a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def steps_done(run: RunDirectory) -> int:
    """The last step in the ledger."""
    ledger = run.ledger()
    return ledger[-1]["step"] if ledger else 0


def losses(run: RunDirectory) -> dict[int, float]:
    """Loss by step, to the last bit."""
    return {line["step"]: line["loss"] for line in run.metrics()}


def ledger(run: RunDirectory) -> dict[int, str]:
    """Digest of all samples consumed, by step."""
    return {line["step"]: line["total"] for line in run.ledger()}


def rank_processes(run: RunDirectory) -> list[int]:
    """Process ids of the ranks of the newest attempt, once they are known."""
    records = run.attempts()
    return records[max(records)].get("processes", []) if records else []


def newest_result(run: RunDirectory, name: str) -> dict[str, Any]:
    """The result of an eval on the newest judged checkpoint."""
    paths = sorted(run.evals.glob(f"step-*/{name}-*.json"))
    result: dict[str, Any] = json.loads(paths[-1].read_text())
    return result
