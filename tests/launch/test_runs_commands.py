"""`thalweg runs` on runs in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.job import Job
from launch.runs_commands import time_left
from pretrain.checkpoint import committed
from pretrain.run.attempt import Attempt
from pretrain.run.directory import RunDirectory
from tests.evals.judged_runs import SIMCLR, make_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "one", SIMCLR, train="some/set")


def commit(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "MANIFEST.json").touch()


def measure(run: RunDirectory, **figures: float) -> None:
    with (run.root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"attempt": 1, "step": 4, "time": 1.0, **figures}) + "\n")


def judge(run: RunDirectory, top1: float) -> None:
    path = run.evals / "step-00000004" / "knn-0123.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metrics": {"top1": top1}}))


def test_compare_shows_what_differs_and_what_came_of_it(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path / "two", {**SIMCLR, "temperature": 0.25}, train="some/set")
    measure(run, loss=2.0)
    measure(run, validation_loss=3.0)
    measure(other, loss=1.5)
    judge(run, 0.5)
    judge(other, 0.75)
    assert main(["runs", "compare", str(run.root), str(other.root)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    assert ["objective.temperature", "-", "0.25"] in rows
    assert ["loss", "2", "1.5"] in rows
    assert ["validation_loss", "3", "-"] in rows
    assert ["knn-0123", "top1", "0.5", "0.75"] in rows
    assert not any("data.path" in row for row in rows), "what is equal is left out"


def test_prune_deletes_what_the_recipe_does_not_keep_and_only_names_it_when_dry(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(run, 1, 2, 3, 4)
    (run.exports / ".step-00000001.waiting-try-1").mkdir(parents=True)
    assert main(["runs", "prune", str(run.root), "--dry-run"]) == 0
    assert "checkpoints of 2 would be deleted" in capsys.readouterr().out
    assert committed(run.checkpoints) == [1, 2, 3, 4]
    assert main(["runs", "prune", str(run.root)]) == 0
    assert committed(run.checkpoints) == [1, 3, 4]


def test_prune_leaves_a_run_at_work_alone(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    commit(run, 1, 2, 3, 4)
    attempt = Attempt.begin(run.attempts_folder, step=0)
    try:
        assert main(["runs", "prune", str(run.root)]) == 2
    finally:
        attempt.end(0)
    assert "in use by attempt 1" in capsys.readouterr().err
    assert committed(run.checkpoints) == [1, 2, 3, 4]


def test_requeue_submits_the_latest_job_as_it_was(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no SLURM for this job: its own words end the command, the folder shows what was asked."""
    assert main(["runs", "requeue", str(run.root)]) == 2
    assert "never launched" in capsys.readouterr().err
    job = Job.next(run.root, "pretrain")
    assert job.claim()
    recipe = {**yaml.safe_load((run.root / "config.yaml").read_text()), "runs": "elsewhere", "seed": 7}
    job.config.write_text(yaml.safe_dump(recipe))
    job.cluster.write_text("kind: slurm\npartition: nowhere\nnodes: 2")
    assert main(["runs", "requeue", str(run.root)]) == 2
    assert "sbatch" in capsys.readouterr().err
    again = Job(job.folder.with_name("pretrain-2"))
    assert yaml.safe_load(again.config.read_text()) == {**recipe, "runs": str(run.root.parent)}
    assert yaml.safe_load(again.cluster.read_text())["partition"] == "nowhere"


def test_requeue_of_a_finished_run_is_refused(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert Job.next(run.root, "pretrain").claim()
    commit(run, 4)
    (run.root / "events.jsonl").write_text('{"kind": "end", "step": 4}\n')
    assert main(["runs", "requeue", str(run.root)]) == 2
    assert "is finished" in capsys.readouterr().err


def test_follow_says_what_is_left_at_the_latest_pace_of_this_attempt() -> None:
    lines = [{"attempt": 1, "step": 5, "time": 0.0}, *({"attempt": 2, "step": n, "time": 3.0 * n} for n in (10, 20))]
    assert time_left(lines, 100) == "  left 4 min 00 s"
    assert time_left(lines[:2], 100) == ""


def test_a_checkpoint_is_told_by_its_own_step(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"attempt": 1, "step": 0, "kind": "start", "words": "2 steps"},
        {"attempt": 1, "step": 3, "kind": "checkpoint", "words": "", "checkpoint": 2},
    ]
    (run.root / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert main(["runs", "follow", str(run.root)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "step 0: start: 2 steps",
        "step 3: checkpoint of step 2 written",
    ]
