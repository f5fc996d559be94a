"""An eval that trains on every rank of its job, on two nodes of a real SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_tools import job_facts

from evals.protocol import run_eval
from launch.cli import main
from launch.job import Job
from launch.submit import wait
from pretrain.run.directory import RunDirectory
from tests.evals.judged_runs import MAE, make_run, pack_blobs, trained, write_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600), pytest.mark.usefixtures("clean_queue")]

CLUSTER = """
kind: slurm
cpus_per_task: 1
signal_delay_s: 60
parameters: {exclusive: true}
evals: {nodes: 2}
"""
PROBE = ["linear_probe_mae", "epochs=4", "global_batch=32", "warmup_epochs=1", "base_lr=3"]


def test_ranks_on_two_nodes_probe_together_and_find_what_one_process_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = (dataset.path for dataset in pack_blobs(tmp_path / "blobs"))
    (tmp_path / "cluster.yaml").write_text(
        f"{CLUSTER}env: {{OMP_NUM_THREADS: '1', HF_HUB_OFFLINE: '1', THALWEG_CACHE: '{tmp_path}/there'}}\n"
    )
    there, here = (judged_run(tmp_path / name, train, val) for name in ("there", "here"))
    name, *overrides = PROBE

    checkpoint = there.checkpoints / "step-00000004"
    assert main(["eval", name, str(checkpoint), *overrides, "--cluster", str(tmp_path / "cluster.yaml")]) == 0
    job = Job(next((there.root / "logs" / "jobs").glob(f"{name}-*")))
    submission = job.submission()
    assert submission is not None
    wait(submission, timeout_s=400)
    facts = job_facts(submission.job_id)
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), submission.log.read_text()
    assert "on 2 rank(s)" in next(there.evals.rglob("pretrained/events.jsonl")).read_text()

    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "here-cache"))
    alone = run_eval(name, here.root, overrides)
    together = run_eval(name, there.root, overrides)  # read, not made
    assert together.metrics == pytest.approx(alone.metrics, abs=1 / 60)
    assert together.controls.keys() == alone.controls.keys() == {"raw", "random_init"}


def judged_run(folder: Path, train: str, val: str) -> RunDirectory:
    run = make_run(folder, MAE, train=train, validation=val)
    write_checkpoint(run, trained(run))
    return run
