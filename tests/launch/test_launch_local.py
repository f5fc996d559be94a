"""Jobs on this machine: real processes through submitit's local executor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from river import STEPS, River, eventually, lines, newest

from launch.cluster import Cluster, load_cluster
from launch.entry import file_digest
from launch.job import Job, Submission
from launch.submit import stop_run, wait

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    path = tmp_path / "cluster.yaml"
    here = Path(__file__).parent
    path.write_text(f'kind: local\ntasks_per_node: 2\nenv: {{PYTHONPATH: {here}, OMP_NUM_THREADS: "1"}}')
    return load_cluster(path)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; no process of its jobs survives the test."""
    folder = tmp_path / "runs" / 'it\'s a "river"'
    yield folder
    for path in folder.glob("logs/jobs/*"):
        submission = Job(path).submission()
        for process in family(submission) if submission else ():
            process.kill()


def family(submission: Submission) -> list[psutil.Process]:
    try:
        controller = psutil.Process(int(submission.job_id))
        return [controller, *controller.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def submit(run: Path, cluster: Cluster, fate: str = "flows") -> tuple[Job, Submission]:
    job = Job.next(run, "pretrain")
    assert job.claim()
    job.config.write_text("{}")
    return job, cluster.submit(job, River(str(job.folder), file_digest(job.config), fate=fate))


def flows(run: Path) -> bool:
    return all(any(line.get("step", 0) >= 3 for line in lines(run, rank)) for rank in (0, 1))


def steps(run: Path, rank: int) -> list[int]:
    return [line["step"] for line in lines(run, rank) if "step" in line]


def test_both_ranks_of_a_job_run_the_code_it_was_submitted_with(run: Path, cluster: Cluster) -> None:
    _job, submission = submit(run, cluster)
    wait(submission, timeout_s=90)
    for rank in (0, 1):
        assert steps(run, rank) == list(range(1, STEPS + 1))
        began = [line for line in lines(run, rank) if "began" in line]
        assert [line["world_size"] for line in began] == [2]
        assert [Path(line["code"]).parents[2] for line in began] == [run / "logs" / "code"]


def test_a_killed_rank_is_started_again_from_the_newest_checkpoint(run: Path, cluster: Cluster) -> None:
    _job, submission = submit(run, cluster, fate="saves each tenth step")
    eventually(lambda: newest(run) >= 10, "a checkpoint")
    ranks = [process for process in family(submission) if "_submit" in " ".join(process.cmdline())]
    ranks[-1].send_signal(signal.SIGKILL)
    wait(submission, timeout_s=90)
    assert newest(run) == STEPS
    began = [line["began"] for line in lines(run, 0) if "began" in line]
    assert len(began) == 2
    assert began[0] == 0 and began[1] >= 10


def test_a_stopped_run_saves_and_stays_down(run: Path, cluster: Cluster) -> None:
    _job, submission = submit(run, cluster)
    eventually(lambda: flows(run), "both ranks work")
    assert stop_run(run) == [submission]
    wait(submission, timeout_s=60)
    assert 3 <= newest(run) < STEPS
    assert len([line for line in lines(run, 0) if "began" in line]) == 1


def test_the_users_mistake_and_a_crash_without_progress_end(run: Path, cluster: Cluster) -> None:
    _job, refused = submit(run, cluster, fate="is refused")
    wait(refused, timeout_s=60)
    assert len([line for line in lines(run, 0) if "began" in line]) == 1
    _job, crashing = submit(run, cluster, fate="crashes")
    wait(crashing, timeout_s=120)
    assert len([line for line in lines(run, 0) if "began" in line]) == 1 + 3


def test_who_submits_can_leave_at_once(run: Path, cluster: Cluster, tmp_path: Path) -> None:
    """A job that held the pipes of its submitter would hang whoever reads them."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_launch_local import submit, load_cluster;"
        "print(submit(Path(sys.argv[2]), load_cluster(sys.argv[3]))[1].job_id)"
    )
    arguments = [str(Path(__file__).parent), str(run), str(tmp_path / "cluster.yaml")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    os.kill(int(done.stdout), 0)
    eventually(lambda: flows(run), "the job works on")
    stop_run(run)
