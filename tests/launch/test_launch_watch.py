"""Evals of a run's checkpoints: each once, failures apart, dead jobs again, the run untouched."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.base import UserError
from launch.cluster import Cluster, ClusterConfig
from launch.entry import Entry, EvalEntry
from launch.job import Job, Submission
from launch.submit import eval_job_name, overrides_of, submit_eval
from launch.watch import MAX_TRIES, Watcher, drain, failures, watch
from pretrain.config import EvalSpec, Recipe
from pretrain.run.directory import RunDirectory
from pretrain.run.process import describe

pytestmark = pytest.mark.timeout(60)

EVALS = [{"name": "knn", "config": {"k": [5, 20], "name": "ein 'Wort'"}}, {"name": "linear_probe"}]


class Notebook(Cluster):
    """A scheduler that only writes down what it is given; the test plays the jobs."""

    class Config(ClusterConfig):
        """Nothing more."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.jobs: list[tuple[Job, EvalEntry]] = []

    def for_evals(self, many_ranks: bool = False) -> Cluster:
        return self

    def script(self, job: Job, entry: Entry) -> str:
        return str(entry)

    def submit(self, job: Job, entry: Entry) -> Submission:
        assert isinstance(entry, EvalEntry)
        self.jobs.append((job, entry))
        return job.record(Submission("local", str(os.getpid()), str(job.folder), describe()))

    @staticmethod
    def is_alive(submission: Submission) -> bool:
        raise AssertionError("asked of the class that the record names")

    @staticmethod
    def stop(submission: Submission) -> None:
        raise AssertionError


def notebook(at_once: int | None = None) -> Notebook:
    return Notebook(Notebook.Config.model_validate({"kind": "local", "evals": {"at_once": at_once}}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    tree = {
        "name": "run",
        "objective": {"name": "mae"},
        "data": {"path": "x"},
        "train": {"global_batch": 8, "steps": 9},
    }
    recipe = Recipe.model_validate({**tree, "evals": EVALS})
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    (folder / "run.json").write_text(json.dumps({"schema": 1, "steps": 90}))
    return folder


def commit(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").touch()
    return folder


def dies(job: Job) -> None:
    """What is left of a job whose process is gone."""
    job.record(Submission("local", "1", str(job.folder), {**describe(), "started": 0.0}))


def test_each_eval_of_each_checkpoint_is_submitted_once(run: Path) -> None:
    cluster = notebook()
    watcher = Watcher(run, cluster)
    commit(run, 10)
    assert watcher.look().open == 2
    commit(run, 20)
    (run / "checkpoints" / "step-00000030.attempt-1").mkdir()
    assert watcher.look().open == 4
    assert watcher.look().open == 4
    asked = Counter((Path(entry.checkpoint).name, entry.name) for _job, entry in cluster.jobs)
    assert asked == {(f"step-000000{n}0", name): 1 for n in (1, 2) for name in ("knn", "linear_probe")}
    assert cluster.jobs[0][1].overrides == ("k=[5, 20]", "name=\"ein 'Wort'\"")


def test_watchers_side_by_side_submit_once(run: Path) -> None:
    for step in range(10, 60, 10):
        commit(run, step)
    clusters = [notebook() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda cluster: Watcher(run, cluster).look(), clusters))
    asked = Counter((entry.checkpoint, entry.name) for cluster in clusters for _job, entry in cluster.jobs)
    assert len(asked) == 10
    assert set(asked.values()) == {1}


def test_what_the_eval_reports_is_final(run: Path) -> None:
    cluster = notebook()
    commit(run, 10)
    watcher = Watcher(run, cluster)
    watcher.look()
    cluster.jobs[0][0].finish(0)
    cluster.jobs[1][0].finish(1, "out of memory")
    before = sorted(path for path in run.rglob("*") if "jobs" not in path.parts)
    tally = watcher.look()
    assert (tally.done, tally.open, tally.failed) == (1, 0, ["linear_probe on step-00000010: out of memory"])
    (told,) = failures(run)
    assert told.startswith("linear_probe-") and told.endswith("-step-00000010: out of memory")
    assert len(cluster.jobs) == 2
    assert sorted(path for path in run.rglob("*") if "jobs" not in path.parts) == before, "the run is not touched"


def test_a_job_that_died_is_tried_again_until_a_cap(run: Path) -> None:
    cluster = notebook()
    commit(run, 10)
    watcher = Watcher(run, cluster)
    for attempt in range(1, MAX_TRIES + 1):
        assert watcher.look().open == 2
        assert len(cluster.jobs) == 2 * attempt
        for job, _entry in cluster.jobs[-2:]:
            dies(job)
    tally = watcher.look()
    assert len(cluster.jobs) == 2 * MAX_TRIES
    assert len(tally.failed) == 2
    assert f"died {MAX_TRIES} times" in tally.failed[0]


def test_a_claim_whose_submitter_died_is_taken_over(run: Path) -> None:
    checkpoint = commit(run, 10)
    spec = EvalSpec.model_validate(EVALS[0])
    abandoned = Job.next(run, eval_job_name("knn", checkpoint, overrides_of(spec)))
    assert abandoned.claim()
    cluster = notebook()
    Watcher(run, cluster).look()
    assert [entry.name for _job, entry in cluster.jobs] == ["linear_probe"], "its submitter, this process, lives"
    (abandoned.folder / "job.json").write_text(json.dumps({"claimed_by": {**describe(), "started": 0.0}}))
    Watcher(run, cluster).look()
    assert [entry.name for _job, entry in cluster.jobs] == ["linear_probe", "knn"]


def test_no_more_than_the_cluster_allows_at_once(run: Path) -> None:
    cluster = notebook(at_once=1)
    commit(run, 10)
    watcher = Watcher(run, cluster)
    for _ in range(2):
        tally = watcher.look()
        assert (tally.open, tally.waiting) == (1, 1)
    cluster.jobs[0][0].finish(0)
    tally = watcher.look()
    assert (tally.done, tally.open, tally.waiting) == (1, 1, 0)


def test_a_watch_ends_when_the_run_and_its_evals_have(run: Path) -> None:
    cluster = notebook()
    assert watch(run.with_name("not yet there"), cluster, once=True).open == 0
    commit(run, 90)  # the last
    assert watch(run, cluster, once=True).open == 2
    (run / "events.jsonl").write_text('{"kind": "end", "step": 90}\n')
    for job, _entry in cluster.jobs:
        job.finish(0)
    assert watch(run, cluster).done == 2
    assert drain(run, cluster).done == 2


def test_an_eval_can_be_asked_for_by_hand_any_number_of_times(run: Path) -> None:
    cluster, checkpoint = notebook(), commit(run, 10)
    names = [submit_eval("knn", checkpoint, ["k=5"], cluster)[0].folder.name for _ in range(2)]
    assert [name[-5:] for name in names] == ["try-1", "try-2"]
    with pytest.raises(UserError, match="no checkpoint here"):
        submit_eval("knn", run / "checkpoints" / "step-00000099", [], cluster)


def test_a_checkpoint_is_spared_while_its_eval_waits(run: Path) -> None:
    """What the cluster's limit holds back must find its checkpoint once its time has come."""
    from pretrain.checkpoint import retain

    cluster, directory = notebook(at_once=1), RunDirectory(run)
    for step in (10, 20, 30):
        commit(run, step)
    watcher = Watcher(run, cluster)
    assert watcher.look().waiting == 5
    assert retain(directory.checkpoints, 1, None, directory.awaiting_export()) == []
    for number in range(6):
        assert Path(cluster.jobs[number][1].checkpoint).is_dir()
        cluster.jobs[number][0].finish(0)
        watcher.look()
    assert retain(directory.checkpoints, 1, None, directory.awaiting_export()) == [10, 20]


def test_a_checkpoint_that_goes_while_it_is_looked_at_is_left_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, gone = notebook(), commit(run, 10)
    kept = commit(run, 20)
    monkeypatch.setattr("launch.watch.kept_checkpoints", lambda folder: [gone, kept])
    shutil.rmtree(gone)
    assert Watcher(run, cluster).look().open == 2
    assert {Path(entry.checkpoint) for _job, entry in cluster.jobs} == {kept}
    assert [path.name for path in run.glob("exports/.step-00000010*")] == []


def test_a_checkpoint_is_spared_while_an_eval_needs_it(run: Path) -> None:

    cluster, directory = notebook(), RunDirectory(run)
    commit(run, 10)
    watcher = Watcher(run, cluster)
    watcher.look()
    assert directory.awaiting_export() == {10}
    cluster.jobs[0][0].finish(0)
    assert directory.awaiting_export() == {10}
    dies(cluster.jobs[1][0])
    watcher.look()
    assert directory.awaiting_export() == {10}, "its second try needs it too"
    cluster.jobs[2][0].finish(1, "a bug")
    assert directory.awaiting_export() == set()
