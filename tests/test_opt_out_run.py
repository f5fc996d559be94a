"""A run whose opt-out list grows while it lives: obeyed, on record, verified."""

from __future__ import annotations

import pytest

from data_pipelines.quarantine import read_lines
from data_pipelines.shards import Dataset
from launch.cli import main
from pretrain.run.directory import RunDirectory
from tests.river import write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("river")]


def test_a_list_that_grows_is_obeyed_from_the_next_start_on_and_verified(tmp_path, digits, capsys):
    dataset = Dataset.open(str(digits / "train"))
    keys = [dataset.key(shard, member) for shard, size in enumerate(dataset.shard_sizes) for member in range(int(size))]
    (tmp_path / "out.txt").write_text("".join(f"{key}\n" for key in keys[::8]))
    data = {"path": str(digits / "train"), "workers": 0, "opt_out": str(tmp_path / "out.txt"), "max_quarantined": 0.0}
    recipe = write_recipe(tmp_path, "opted", digits, data=data)
    run = RunDirectory(tmp_path / "runs" / "opted")
    assert main(["pretrain", str(recipe), "--ranks", "1"]) == 0
    assert {line.key for line in read_lines(run.quarantine)} <= set(keys[::8])
    assert run.info()["opt_out"] is not None

    (tmp_path / "grown.txt").write_text("".join(f"{key}\n" for key in keys[::4]))
    grown = f"data.opt_out={tmp_path / 'grown.txt'}"
    assert main(["pretrain", str(recipe), grown, "--ranks", "1", "--rollback-to", "9"]) == 0
    lines = read_lines(run.quarantine)
    late = {line.key for line in lines if line.attempt == 2}
    assert late & set(keys[4::8]) and all(line.reason == "opted out" for line in lines)
    [older, newer] = [event for event in run.events() if event["kind"] == "opt_out"]
    assert older["digest"] != newer["digest"] and newer["keys"] == len(keys[::4])
    assert not [event for event in run.events() if event["kind"] == "quarantine"]
    (tmp_path / "grown.txt").unlink()
    capsys.readouterr()
    assert main(["runs", "verify", str(run.root)]) == 0
    words = capsys.readouterr().out
    assert "are exactly what the order says" in words and "0 replaced" in words and " opted out, 2 attempts" in words
