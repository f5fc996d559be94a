"""Going back to an earlier checkpoint; what came after it is set aside, not deleted."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.base import UserError
from pretrain.checkpoint import committed
from pretrain.run.directory import RunDirectory

_OF_A_STEP = re.compile(r"step-(\d{8,})")


def roll_back(run: RunDirectory, step: int) -> None:
    """Put `dropped-` before all that later steps left, so that the run goes on from `step`.

    Exports and results go with their checkpoints: the steps will be reached again, by other weights.

    Raises:
        UserError: the run has no checkpoint of that step.
    """
    steps = committed(run.checkpoints)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "there are none yet"
        raise UserError(f"--rollback-to {step}: run {run.root} has no checkpoint of that step; {there}")
    for folder in (run.checkpoints, run.exports, run.evals, run.sketches):
        for path in sorted(folder.glob("step-*")):
            found = _OF_A_STEP.fullmatch(path.name)
            if found and int(found[1]) > step:
                path.rename(free_path(path.with_name(f"dropped-{path.name}")))


def free_path(path: Path) -> Path:
    """`path`, or with the first number behind its name that nothing has yet."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
