"""Evals as jobs of their own: real runs, real evals, submitit's local executor, a kill on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from river import eventually

from launch.cli import main
from launch.job import Job
from pretrain.run.directory import RunDirectory
from tests.river import write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("evals_of_a_run")]

RECIPE_EVALS = [{"name": "knn", "config": {"k": [5]}}, {"name": "knn", "config": {"data": {"test": "nowhere"}}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evals")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text('kind: local\nenv: {OMP_NUM_THREADS: "1", HF_HUB_OFFLINE: "1"}\nevals: {at_once: 2}')
    return str(path)


@pytest.fixture(scope="module")
def run(folder: Path, digits: Path, cluster: str) -> Iterator[RunDirectory]:
    """A run of two checkpoints that was launched, with its evals through; no process of it survives the tests."""
    recipe = write_recipe(folder, "run", digits, checkpoint={"every": 6}, evals=RECIPE_EVALS)
    assert main(["launch", str(recipe), "--cluster", cluster]) == 0
    run = RunDirectory(folder / "runs" / "run")
    try:
        eventually(lambda: len(outcomes(run)) == 4, "every eval of both checkpoints ended", within_s=200)
        yield run
    finally:
        for path in run.root.glob("logs/jobs/*"):
            kill(Job(path))


def outcomes(run: RunDirectory) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in run.root.glob("logs/jobs/*-try-*/outcome.json")}


def results(run: RunDirectory) -> list[Path]:
    return sorted(run.evals.glob("step-*/*.json"))


def kill(job: Job) -> None:
    submission = job.submission()
    if submission is not None and psutil.pid_exists(int(submission.job_id)):
        controller = psutil.Process(int(submission.job_id))
        for process in [controller, *controller.children(recursive=True)]:
            process.kill()


def test_every_eval_of_the_recipe_is_a_job_of_its_own_once_for_each_checkpoint(run: RunDirectory) -> None:
    told = outcomes(run)
    assert all(name.endswith("-try-1") for name in told)
    good = {name: it for name, it in told.items() if it["exit_code"] == 0}
    assert sorted(name.split("-", 2)[2] for name in good) == ["step-00000006-try-1", "step-00000012-try-1"]
    first, second = results(run)
    assert (first.parent.name, second.parent.name) == ("step-00000006", "step-00000012")
    assert first.name == second.name, "the same question has the same name at every checkpoint"
    assert json.loads(second.read_text())["controls"].keys() == {"raw", "random_init"}


def test_an_eval_that_fails_is_told_and_does_not_touch_the_run(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [it for it in outcomes(run).values() if it["exit_code"] != 0]
    assert [it["exit_code"] for it in bad] == [2, 2]
    assert run.finished()
    assert [record["exit_code"] for record in run.attempts().values()] == [0]
    assert main(["runs", "show", str(run.root)]) == 0
    failed = [line for line in capsys.readouterr().out.splitlines() if "eval FAILED" in line]
    assert len(failed) == 2
    assert all("nowhere" in line for line in failed)


def test_a_killed_eval_job_leaves_no_result_and_a_watch_by_hand_asks_again(
    run: RunDirectory, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((run.root / "config.yaml").read_text())
    tree["evals"].append({"name": "knn", "config": {"k": [3]}})
    (run.root / "config.yaml").write_text(yaml.safe_dump(tree))
    before = results(run)
    assert main(["eval", "knn", str(run.root), "k=[3]", "--cluster", cluster]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    eventually(lambda: Path(told["log"]).exists(), "it works")
    kill(Job(Path(told["log"]).parent))
    assert results(run) == before
    assert list(run.exports.glob(".step-00000012.knn-*-try-1")) != [], "a checkpoint is spared for the next try"

    assert main(["eval", "--watch", str(run.root), "--cluster", cluster]) == 1, "two evals have failed"
    assert "evals: 4 done, 0 open, 0 waiting, 2 failed" in capsys.readouterr().out.splitlines()[-1]
    assert sorted({*results(run)} - {*before}) == [
        run.evals / step / Path(told["result"]).name for step in ("step-00000006", "step-00000012")
    ]
    tries = sorted(name.split("-", 2)[2] for name in outcomes(run) if told["log"].split("/")[-2][:12] in name)
    assert tries == ["step-00000006-try-1", "step-00000012-try-2"]
    assert list(run.exports.glob(".step-*")) == []


def test_an_eval_that_is_forced_replaces_its_result(run: RunDirectory) -> None:
    path = results(run)[-1]
    before = json.loads(path.read_text())
    asked = ["eval", "knn", str(run.root), f"k={before['config']['k']}"]
    assert main(asked) == 0
    assert json.loads(path.read_text()) == before, "what is known is only read"
    assert main([*asked, "--force"]) == 0
    after = json.loads(path.read_text())
    assert after["created"] > before["created"]
    assert after["metrics"] == before["metrics"]
