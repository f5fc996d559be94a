"""`thalweg launch --dry-run --estimate`: figures before there is data, a cluster or a GPU."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main
from tests.river import write_recipe

Estimate = Callable[..., dict[str, str]]


@pytest.fixture
def estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Estimate:
    """Lines that the command prints, by their first word; stages by their number."""
    monkeypatch.chdir(tmp_path)
    cluster = tmp_path / "c.yaml"
    cluster.write_text(
        "kind: slurm\nnodes: 128\ngpus_per_node: 8\n"
        "hardware: {memory_gib: 80, peak_tflops: 1000, mfu: 0.5, link_gb_per_s: 50, store_gb_per_s: 2}"
    )

    def ask(*arguments: str) -> dict[str, str]:
        capsys.readouterr()
        assert main(["launch", *arguments, "--cluster", str(cluster), "--dry-run", "--estimate"]) == 0
        rows = (line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert not (tmp_path / "runs").exists()
        return {row[0]: row[1] for row in rows if len(row) == 2}

    return ask


def test_175_billion_parameters_are_estimated_without_their_memory(estimate: Estimate) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = estimate("opt_175b")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20, "KiB"
    assert told["parameters"].startswith("174,604,468,224 trained")
    assert told["ranks"] == "1,024 on 128 node(s)"
    assert "rows of 2,048 tokens" in told["assumed"]
    assert told["checkpoint"].startswith("2,095.3 GB, 8.2 s over 128 node(s)")  # 12 bytes each; 256 GB/s
    assert "does not fit" in told["2"]
    assert "<- the recipe's" in told["3"] and "does not fit" not in told["3"]
    assert "the links need" in told["warning"]


def test_epochs_need_a_number_of_samples_and_a_given_pace_beats_the_assumed_one(
    estimate: Estimate,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = estimate("mae_vitb16", "--samples", "1281167", "--samples-per-s", "4096")
    assert told["steps"] == "500,456 of 4,096 samples"  # ceil(1600 * 1281167 / 4096)
    assert told["time"].startswith("5.79 days: 1 s a step, 4,096 samples/s as given")
    assert main(["launch", "mae_vitb16", "--cluster", "slurm_gpu", "--dry-run", "--estimate"]) == 2
    assert "--samples N" in capsys.readouterr().err
    assert main(["launch", "mae_vitb16", "--cluster", "slurm_gpu", "--estimate"]) == 2
    assert "say so with --dry-run" in capsys.readouterr().err


def test_data_that_is_here_is_counted(estimate: Estimate, tmp_path: Path, digits: Path) -> None:
    recipe = write_recipe(tmp_path, "r", digits, train={"global_batch": 1024, "epochs": 3})
    told = estimate(str(recipe))
    assert "assumed" not in told, "the set is here, and so are the cluster's GPUs"
    assert told["steps"] == "12 of 1,024 samples"
    assert "MB/s" in told["store"]
