"""A run whose resolution and mixture change on the way: killed across the change, nothing is noticed."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest

from launch.cli import main
from pretrain.config import load_recipe
from pretrain.run.directory import RunDirectory
from pretrain.sources import open_sources
from tests.river import TINY, finish, ledger, losses, rank_processes, start, steps_done, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("river")]

CURRICULUM = [
    {"step": 0, "image_size": 14, "weights": {"mnist-train": 1}},
    {"step": 5, "image_size": 28},
    {"step": 7, "weights": {"mnist-train": 1, "mnist-val": 3}},
]


def test_a_run_that_is_killed_across_stages_reads_and_learns_the_same(tmp_path, digits):
    sets = [{"path": str(digits / name)} for name in ("train", "val")]
    changes = {"data": {"sources": sets, "workers": 0}, "curriculum": CURRICULUM}
    steps = {**TINY["train"], "steps": 10}
    whole = write_recipe(tmp_path, "whole", digits, **changes, train=steps)
    assert finish(start("pretrain", str(whole), "--ranks", "2"))[0] == 0
    killed = write_recipe(tmp_path, "killed", digits, **changes, train=steps, checkpoint={"every": 4})
    run = RunDirectory(tmp_path / "runs" / "killed")
    process = start("pretrain", str(killed), "--ranks", "2")
    until(lambda: steps_done(run) >= 6, process)
    time.sleep(random.random() / 50)
    os.kill(rank_processes(run)[random.choice([0, 1])], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert run.attempts()[2]["began_at_step"] in (4, 8)
    unbroken = RunDirectory(tmp_path / "runs" / "whole")
    assert losses(run) == losses(unbroken) and sorted(losses(run)) == list(range(1, 11))
    assert ledger(run) == ledger(unbroken)
    assert main(["runs", "verify", str(run.root)]) == 0
    recipe = load_recipe(str(killed))
    slots = open_sources(recipe).order(recipe).slots(np.arange(10 * 16))
    shares = [np.bincount(step, minlength=2).tolist() for step in slots.dataset.reshape(10, 16)]
    assert shares == [[16, 0]] * 7 + [[4, 12]] * 3
