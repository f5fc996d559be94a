"""A shard that was cut off on its disk is told by a run before its first step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_pipelines.shards import Dataset
from pretrain.run.directory import RunDirectory
from tests.river import finish, start, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("river")]


def test_a_truncated_shard_is_named_at_the_start_and_what_precedes_the_cut_is_served(tmp_path, digits):
    folder = tmp_path / "cut"
    shutil.copytree(digits / "train", folder)
    dataset = Dataset.open(str(folder))
    tar, members = Path(dataset.place(2)[0]), int(dataset.shard_sizes[2])
    os.truncate(tar, dataset.index(2).span(members - 5)[0])
    recipe = write_recipe(tmp_path, "cut", digits, data={"path": str(folder), "workers": 0})
    code, output = finish(start("pretrain", str(recipe), "train.steps=2", "--ranks", "2"))
    assert code == 0, output
    words = f"{tar.name} is truncated, "
    assert output.count(words) == 1, output  # by one rank
    assert output.index(words) < output.index("2 steps on 2 rank(s)")
    events = [
        event["words"] for event in RunDirectory(tmp_path / "runs" / "cut").events() if event["kind"] == "damaged"
    ]
    assert len(events) == 1 and f"and with them 5 of its {members} samples; they count as unreadable" in events[0]
