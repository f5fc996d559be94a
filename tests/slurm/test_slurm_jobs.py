"""What a job on a real SLURM does when it is preempted, crashes, is refused, stopped or cancelled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from river import STEPS, River, lines, newest
from slurm_tools import ask, eventually, job_facts, preempt

from data_pipelines.base import UserError
from launch.cluster import load_cluster
from launch.entry import file_digest
from launch.job import Job, Submission
from launch.slurm import SlurmCluster
from launch.submit import refuse_second_job, stop_run

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("clean_queue")]

CLUSTER = f"""
kind: slurm
partition: main
nodes: 2
tasks_per_node: 1
cpus_per_task: 1
timeout_min: 5
signal_delay_s: 60
parameters: {{exclusive: true}}
env:
  PYTHONPATH: {Path(__file__).parent.parent / "launch"}
  OMP_NUM_THREADS: "1"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> SlurmCluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    loaded = load_cluster(path)
    assert isinstance(loaded, SlurmCluster)
    return loaded


def submit(run: Path, cluster: SlurmCluster, fate: str = "flows", steps: int = STEPS) -> tuple[Job, Submission]:
    job = Job.next(run, "pretrain")
    assert job.claim()
    job.config.write_text("{}")
    return job, cluster.submit(job, River(str(job.folder), file_digest(job.config), fate=fate, steps=steps))


def flows(run: Path, rank: int = 0, step: int = 5) -> bool:
    return any(line.get("step", 0) >= step for line in lines(run, rank))


def test_a_preempted_job_saves_is_requeued_and_goes_on_where_it_was(tmp_path: Path, cluster: SlurmCluster) -> None:
    run = tmp_path / "runs" / 'it\'s a "river" of ünïcode'
    job, submission = submit(run, cluster)
    eventually(lambda: flows(run, 0) and flows(run, 1), "both ranks work")
    preempt()
    eventually(lambda: newest(run) == STEPS, "the run reached its end", within_s=90)
    eventually(lambda: not cluster.is_alive(submission), "the job left")
    for rank in (0, 1):
        assert [line["step"] for line in lines(run, rank) if "step" in line] == list(range(1, STEPS + 1))
        assert [line["world_size"] for line in lines(run, rank) if "began" in line] == [2, 2]
    assert (job.folder / "outcomes" / "0-85").exists()
    facts = job_facts(submission.job_id)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1")
    assert "starting again" in submission.log.read_text()


def test_at_its_time_limit_a_job_saves_is_requeued_and_goes_on_where_it_was(
    tmp_path: Path, cluster: SlurmCluster
) -> None:
    run, steps = tmp_path / "run", 400
    limited = cluster.changed(timeout_min=1, signal_delay_s=50)  # the signal comes 10 s after the start, or earlier
    assert isinstance(limited, SlurmCluster)
    job, submission = submit(run, limited, steps=steps)
    eventually(lambda: newest(run) > 0, "the job saved", within_s=90)
    eventually(lambda: len([line for line in lines(run, 0) if "began" in line]) > 1, "it began again", within_s=60)
    saved = newest(run)
    ask("scancel", submission.job_id)
    assert 0 < saved < steps
    assert [line["began"] for line in lines(run, 0) if "began" in line][:2] == [0, saved]
    assert (job.folder / "outcomes" / "0-85").exists()
    assert int(job_facts(submission.job_id)["Restarts"]) >= 1


@pytest.mark.parametrize(
    ("binding", "gpus", "local_ranks"), [({}, "0,1", [0, 1]), ({"gpu-bind": "single:1"}, "", [0, 0])]
)
def test_each_task_has_one_of_the_gpus_that_slurm_shows_it(
    tmp_path: Path, cluster: SlurmCluster, binding: dict[str, str], gpus: str, local_ranks: list[int]
) -> None:
    run = tmp_path / "run"
    on_gpus = cluster.changed(gpus_per_node=2, tasks_per_node=None, parameters={"exclusive": True, **binding})
    assert isinstance(on_gpus, SlurmCluster)
    _job, submission = submit(run, on_gpus, steps=1)
    eventually(lambda: not cluster.is_alive(submission), "the job left")
    began = [line for rank in range(4) for line in lines(run, rank) if "began" in line]
    assert [line["world_size"] for line in began] == [4] * 4
    assert [line["local_rank"] for line in began] == local_ranks * 2
    assert [line["gpus"] for line in began] == ([gpus] * 4 if gpus else ["0", "1"] * 2)


def test_a_cancelled_job_stays_down(tmp_path: Path, cluster: SlurmCluster) -> None:
    _job, submission = submit(tmp_path / "run", cluster)
    eventually(lambda: flows(tmp_path / "run"), "it works")
    ask("scancel", submission.job_id)
    eventually(lambda: not cluster.is_alive(submission), "the job left")
    time.sleep(3)
    assert job_facts(submission.job_id)["JobState"] == "CANCELLED"


def test_a_stopped_run_saves_and_stays_down(tmp_path: Path, cluster: SlurmCluster) -> None:
    run = tmp_path / "run"
    _job, submission = submit(run, cluster)
    eventually(lambda: flows(run), "it works")
    with pytest.raises(UserError, match="already has a job"):
        refuse_second_job(run)
    assert stop_run(run) == [submission]
    eventually(lambda: not cluster.is_alive(submission), "the job left")
    assert 5 <= newest(run) < STEPS
    assert job_facts(submission.job_id)["Restarts"] == "0"
    with pytest.raises(UserError, match="no job of it"):
        stop_run(run)


def test_a_crash_is_tried_again_until_starts_make_no_progress(tmp_path: Path, cluster: SlurmCluster) -> None:
    run = tmp_path / "run"
    _job, submission = submit(run, cluster, fate="crashes on rank 1")
    eventually(lambda: not cluster.is_alive(submission), "the job left", within_s=90)
    assert [line["began"] for line in lines(run, 1)] == [0, 0, 0]
    assert "3 starts in a row brought no new checkpoint; staying down" in submission.log.read_text()
    facts = job_facts(submission.job_id)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "2")


def test_the_users_mistake_is_not_tried_again(tmp_path: Path, cluster: SlurmCluster) -> None:
    run = tmp_path / "run"
    _job, submission = submit(run, cluster, fate="is refused")
    eventually(lambda: not cluster.is_alive(submission), "the job left")
    assert len(lines(run, 0)) <= 1 and len(lines(run, 0) + lines(run, 1)) >= 1
    assert job_facts(submission.job_id)["Restarts"] == "0"


def test_a_config_changed_after_submission_is_refused(tmp_path: Path, cluster: SlurmCluster) -> None:
    run = tmp_path / "run"
    ask("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        job, submission = submit(run, cluster)
        job.config.write_text("{seed: 1}")
    finally:
        ask("scontrol", "update", "PartitionName=main", "State=UP")
    eventually(lambda: not cluster.is_alive(submission), "the job left")
    assert lines(run, 0) == []
    logs = "".join(path.read_text() for path in job.folder.glob("*_log.out"))
    assert "was changed after the job was submitted" in logs  # the first rank to say it ends the other
    assert job_facts(submission.job_id)["Restarts"] == "0"


def test_sbatch_says_why_it_refuses(tmp_path: Path, cluster: SlurmCluster) -> None:
    elsewhere = cluster.changed(partition="nowhere")
    assert isinstance(elsewhere, SlurmCluster)
    with pytest.raises(UserError, match="invalid partition"):
        submit(tmp_path / "run", elsewhere)
