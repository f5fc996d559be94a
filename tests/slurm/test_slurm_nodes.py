"""Two real runs lose a node: one dies there, the other runs on there, unseen. Both must come out whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_tools import eventually, job_facts, lose, processes_on, repair

from launch.cli import main
from launch.job import Job, Submission
from pretrain.checkpoint import committed
from pretrain.run.directory import RunDirectory
from tests.river import TINY, steps_done, write_recipe

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

CLUSTER = """
kind: slurm
nodes: {nodes}
tasks_per_node: 1
cpus_per_task: 1
signal_delay_s: 60
env: {{OMP_NUM_THREADS: "1", HF_HUB_OFFLINE: "1"}}
"""
STEPS, EVERY = 60, 5


@dataclass
class Launched:
    """A run on SLURM. Attributes: node: where its rank 0 and its batch script are."""

    run: RunDirectory
    submission: Submission
    node: str = ""

    def ended(self) -> bool:
        return job_facts(self.submission.job_id)["JobState"] in {"COMPLETED", "FAILED", "CANCELLED"}


def launch(folder: Path, digits: Path, name: str, nodes: int) -> Launched:
    cluster = folder / f"{name}-cluster.yaml"
    cluster.write_text(CLUSTER.format(nodes=nodes))
    changes = {"train": {"global_batch": 16, "steps": STEPS}, "checkpoint": {"every": EVERY}}
    recipe = write_recipe(folder, name, digits, **{key: {**TINY[key], **value} for key, value in changes.items()})
    assert main(["launch", str(recipe), "--cluster", str(cluster)]) == 0
    submission = Job(folder / "runs" / name / "logs" / "jobs" / "pretrain-1").submission()
    assert submission is not None
    return Launched(RunDirectory(folder / "runs" / name), submission)


@pytest.fixture(scope="module")
def runs(slurm: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launched, Launched]]:
    """A run that dies on its node, and one that is frozen there and wakes up when another has done its work."""
    folder = tmp_path_factory.mktemp("nodes")
    dying, frozen = launch(folder, digits, "dying", nodes=2), launch(folder, digits, "frozen", nodes=1)
    for it in (dying, frozen):
        eventually(lambda: committed(it.run.checkpoints), f"{it.run.name} saved", within_s=120)  # noqa: B023
        it.node = job_facts(it.submission.job_id)["BatchHost"]
    asleep = processes_on(frozen.node, frozen.submission.job_id)
    for process in asleep:
        process.send_signal(signal.SIGSTOP)
    lost = {dying.node, frozen.node}
    for node in lost:
        lose(slurm, node)
    for process in processes_on(dying.node, dying.submission.job_id):
        process.kill()
    for it in (dying, frozen):
        eventually(it.ended, f"{it.run.name} ended", within_s=200)
    for process in asleep:
        process.send_signal(signal.SIGCONT)
    eventually(lambda: not any(process.is_running() for process in asleep), "the woken ranks have left")
    yield dying, frozen
    for node in lost:
        repair(slurm, node)


def test_a_run_goes_on_without_the_node_it_lost(runs: tuple[Launched, Launched]) -> None:
    dying, _frozen = runs
    is_whole(dying)
    facts = job_facts(dying.submission.job_id)
    assert facts["BatchHost"] != dying.node


def test_ranks_that_run_on_at_a_lost_node_cannot_write(runs: tuple[Launched, Launched]) -> None:
    _dying, frozen = runs
    is_whole(frozen)
    told = frozen.submission.log.read_text()
    assert "attempt 2 has taken over, attempt 1 leaves" in told
    assert "start 1 has taken over from start 0; staying down" in told


def is_whole(it: Launched) -> None:
    facts = job_facts(it.submission.job_id)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), it.submission.log.read_text()
    assert it.run.finished()
    began = it.run.attempts()[2]["began_at_step"]
    assert 0 < began < STEPS
    assert began % EVERY == 0
    assert steps_done(it.run) == STEPS
    assert [line["step"] for line in it.run.metrics()] == list(range(1, STEPS + 1))
    assert main(["runs", "verify", str(it.run.root)]) == 0
