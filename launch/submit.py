"""From a recipe or an eval to a job."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from data_pipelines.base import ThalwegError, UserError, digest_of, parse, write_atomically
from launch.cluster import Cluster, cluster_class, load_cluster
from launch.entry import EvalEntry, PretrainEntry, file_digest
from launch.job import Job, Submission

if TYPE_CHECKING:
    from pretrain.config import EvalSpec, Recipe


def submit_pretrain(
    recipe: str, overrides: Sequence[str], cluster: Cluster, *, nodes: int | None = None
) -> tuple[Job, Submission]:
    """Submit a run; an existing one goes on from its newest checkpoint.

    Args:
        recipe: a recipe's name or file.
        nodes: instead of the cluster's own number.

    Raises:
        UserError: the recipe does not fit this many ranks, or the run already has a job.
    """
    return _submit_fitted(*fitted(recipe, overrides, cluster, nodes))


def resubmit(run: Path) -> tuple[Job, Submission]:
    """Submit the latest job of a run anew, with the config and the cluster it was given.

    Raises:
        UserError: the run was never launched, is finished, or already has a job.
    """
    from pretrain.run.directory import RunDirectory

    latest = Job.next(run, "pretrain").before
    if latest is None:
        raise UserError(f"run {run} was never launched; `thalweg launch {run}/config.yaml --cluster ...` does")
    if RunDirectory(run).finished():
        raise UserError(f"run {run} is finished; there is nothing to go on with")
    here = [f"runs={json.dumps(str(run.parent))}"]  # the config's own may be relative to where it was launched
    return _submit_fitted(*fitted(str(latest.config), here, load_cluster(latest.cluster), None))


def _submit_fitted(cluster: Cluster, resolved: Recipe) -> tuple[Job, Submission]:
    run = run_folder(resolved)
    refuse_second_job(run)
    job = Job.next(run, "pretrain")
    if not job.claim():
        raise UserError(f"run {run}: another launch took {job.folder.name} at this moment; it is in use")
    write_atomically(job.config, _config_text(resolved))
    write_atomically(job.cluster, yaml.safe_dump(cluster.config.model_dump(mode="json"), sort_keys=False))
    entry = PretrainEntry(str(job.folder), file_digest(job.config), bool(resolved.evals))
    return job, cluster.submit(job, entry)


def pretrain_script(recipe: str, overrides: Sequence[str], cluster: Cluster, *, nodes: int | None = None) -> str:
    """What `submit_pretrain` would run, to the letter; writes nothing.

    Raises:
        UserError: as `submit_pretrain`.
    """
    cluster, resolved = fitted(recipe, overrides, cluster, nodes)
    job = Job.next(run_folder(resolved), "pretrain")
    return cluster.script(job, PretrainEntry(str(job.folder), "", bool(resolved.evals)))


def submit_eval(name: str, checkpoint: Path, overrides: Sequence[str], cluster: Cluster) -> tuple[Job, Submission]:
    """Submit one eval of one checkpoint as a job of its own.

    Raises:
        UserError: the checkpoint is gone, or another process submits the same eval right now.
    """
    job = eval_job(name, checkpoint, overrides)
    release_abandoned(job.run)
    submission = claim_and_submit(job, name, checkpoint, overrides, cluster)
    if submission is None:
        raise UserError(f"eval {name} of {checkpoint}: another process submits it at this moment")
    return job, submission


def claim_and_submit(
    job: Job, name: str, checkpoint: Path, overrides: Sequence[str], cluster: Cluster
) -> Submission | None:
    """Submit an eval unless another process has claimed the job's folder."""
    if not job.claim():
        return None
    job.spare(checkpoint)
    from evals.protocol import eval_module, takes_many_ranks

    entry = EvalEntry(str(job.folder), name, str(checkpoint.absolute()), tuple(overrides))
    try:
        return cluster.for_evals(takes_many_ranks(eval_module(name))).submit(job, entry)
    except ThalwegError as error:
        job.finish(error.exit_code, str(error))
        raise


def eval_job(name: str, checkpoint: Path, overrides: Sequence[str]) -> Job:
    """The next try of an eval on a checkpoint; tries are numbered, so each is claimed once.

    Raises:
        UserError: `checkpoint` is no folder of a run's checkpoints.
    """
    run = checkpoint.absolute().parents[1]
    if checkpoint.parent.name != "checkpoints" or not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no checkpoint here (want runs/NAME/checkpoints/step-N)")
    return Job.next(run, eval_job_name(name, checkpoint, overrides))


def release_abandoned(run: Path) -> None:
    """No longer spare checkpoints for evals whose jobs were killed: nobody else would notice where none watches."""
    for mark in run.glob("exports/.step-*-try-*"):
        job = Job(run.absolute() / "logs" / "jobs" / mark.name.split(".", 2)[2])
        submission = job.submission()
        if submission is not None and not cluster_class(submission.kind).is_alive(submission):
            job.release()


def eval_job_name(name: str, checkpoint: Path, overrides: Sequence[str]) -> str:
    """Names what is judged and how: the same eval of the same checkpoint has the same name."""
    return f"{name}-{digest_of([name, sorted(overrides)])[:8]}-{checkpoint.name}-try"


def overrides_of(spec: EvalSpec) -> list[str]:
    """The config of a recipe's eval as `key=value` words."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(spec.config.items())]


def run_folder(recipe: Recipe) -> Path:
    """Where the recipe runs, absolute.

    Raises:
        UserError: the name would leave the folder of runs.
    """
    from pretrain.run.directory import RunDirectory

    return RunDirectory.of(recipe).root.absolute()


def live_jobs(run: Path) -> list[tuple[Job, Submission]]:
    """The run's own jobs that wait or run, oldest first."""
    found = []
    for folder in sorted(run.glob("logs/jobs/pretrain-*"), key=lambda path: path.stat().st_mtime):
        submission = Job(folder).submission()
        if submission is not None and cluster_class(submission.kind).is_alive(submission):
            found.append((Job(folder), submission))
    return found


def refuse_second_job(run: Path) -> None:
    """Raises UserError when the run has a job already."""
    for _job, submission in live_jobs(run):
        raise UserError(
            f"run {run} already has a job ({submission.kind} {submission.job_id}); "
            f"follow it with `thalweg runs follow {run}`, or stop it with `thalweg runs stop {run}`"
        )


def stop_run(run: Path) -> list[Submission]:
    """Ask the run's jobs to save and to stay down.

    Raises:
        UserError: there is no job to stop.
    """
    live = live_jobs(run)
    if not live:
        raise UserError(f"run {run}: no job of it waits or runs")
    for job, submission in live:
        job.stop.touch()
        cluster_class(submission.kind).stop(submission)
    return [submission for _job, submission in live]


def wait(submission: Submission, timeout_s: float, poll_s: float = 0.5) -> None:
    """Block until a job has left its scheduler.

    Raises:
        ThalwegError: it is still there after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while cluster_class(submission.kind).is_alive(submission):
        if time.monotonic() > deadline:
            raise ThalwegError(f"{submission.kind} job {submission.job_id} is still there after {timeout_s:g} s")
        time.sleep(poll_s)


def fitted(recipe: str, overrides: Sequence[str], cluster: Cluster, nodes: int | None) -> tuple[Cluster, Recipe]:
    """The cluster with its number of nodes, and the resolved recipe; refuses what could only fail after the queue."""
    from data_pipelines.steps import check_batch, default_lanes
    from pretrain.config import load_recipe

    if nodes is not None:
        cluster = cluster.changed(nodes=nodes)
    resolved = load_recipe(recipe, list(overrides))
    train = resolved.train
    lanes = resolved.data.num_lanes or default_lanes(train.global_batch)
    check_batch(train.global_batch, train.accumulation, cluster.world_size, lanes)
    for spec in resolved.evals:
        _check_eval(spec)
    return cluster, resolved


def _check_eval(spec: EvalSpec) -> None:
    """Raises UserError for a name or a key that every job of this eval would trip over."""
    from evals.protocol import eval_module

    parse(eval_module(spec.name).Config, spec.config, f"recipe evals, {spec.name}")


def _config_text(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
