"""Runs whose data fails them: all ranks stop at a step boundary, with a checkpoint, and in words."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_pipelines.shards import Dataset
from launch.cli import main
from pretrain.checkpoint import committed
from pretrain.config import load_recipe
from pretrain.run.directory import RunDirectory
from pretrain.run.records import read_lines
from pretrain.sources import open_sources
from tests.river import TINY, finish, rank_processes, start, steps_done, thalweg, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("river")]

BATCH = TINY["train"]["global_batch"]


def damage(folder: Path, shard: int, member: int) -> str:
    """Flip a byte of a sample on the disk itself; the shard's name."""
    dataset = Dataset.open(str(folder))
    tar = Path(dataset.place(shard)[0])
    content = bytearray(tar.read_bytes())
    content[dataset.index(shard).span(member)[0]] ^= 0xFF
    tar.write_bytes(content)
    return tar.name


def test_unreadable_samples_are_counted_over_all_ranks_and_attempts(tmp_path, digits):
    """Six bad samples on each rank, none of which alone is too much; the eleventh is met in step 6."""
    bad = tmp_path / "bad"
    shutil.copytree(digits / "train", bad)
    recipe = write_recipe(tmp_path, "bad", digits, data={"path": str(bad), "workers": 0})
    loaded = load_recipe(str(recipe))
    slots = open_sources(loaded).order(loaded).slots(np.arange(6 * BATCH))
    of_both_ranks = [step * BATCH + rank for step in range(6) for rank in (0, 1)]
    damaged = {damage(bad, int(slots.shard[g]), int(slots.member[g])) for g in of_both_ranks}
    code, output = finish(start("pretrain", str(recipe), "--ranks", "2"))
    assert code == 2, output
    run = RunDirectory(tmp_path / "runs" / "bad")
    assert output.count(f"12 of {6 * BATCH} samples were unreadable") == 1, output
    assert all(name in output.split("worst shards: ")[1] for name in damaged)
    assert {number: record["exit_code"] for number, record in run.attempts().items()} == {1: 2}, "and stays down"
    assert steps_done(run) == 6 and 6 in committed(run.checkpoints)
    lines = [line for rank in (0, 1) for line in read_lines(run.quarantine / f"rank-{rank}.jsonl")]
    assert sorted({line["g"] for line in lines}) == of_both_ranks
    assert main(["pretrain", str(recipe), "--ranks", "1"]) == 2, "a new start does not count anew"
    assert steps_done(run) == 7
    thalweg("pretrain", str(recipe), "data.max_quarantined=0.1", "--ranks", "1")
    assert "are exactly what the order says" in thalweg("runs", "verify", str(run.root))


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, r"data worker \d+ was killed by SIGKILL"), (signal.SIGSTOP, "gave nothing for 12 s")],
)
def test_a_data_worker_that_is_killed_or_hangs_costs_no_step(tmp_path, digits, number, words):
    """One that hangs is given up before the watchdog, which saves nothing, bites."""
    long = {"train": {**TINY["train"], "steps": 50000}, "monitor": {**TINY["monitor"], "watchdog_s": 15}}
    recipe = write_recipe(tmp_path, "worker", digits, **long)
    process = start(str(recipe), "data.workers=1", "checkpoint.every=100000", module="pretrain")
    run = RunDirectory(tmp_path / "runs" / "worker")
    until(lambda: steps_done(run) >= 3, process)
    rank = psutil.Process(rank_processes(run)[0])
    [worker] = [child for child in rank.children() if child.cmdline() == rank.cmdline()]  # a fork of it
    os.kill(worker.pid, number)
    code, output = finish(process)
    assert code == 1, output
    assert re.search(words, output)
    assert committed(run.checkpoints) == [steps_done(run)]
    assert f"saved at step {steps_done(run)}" in output
