"""Every eval of a recipe on every kept checkpoint, each once, as jobs that cannot touch the run.

A try of an eval is a job folder made by exclusive creation, so several watchers agree. A job that died
without an outcome is tried again, a failure that the eval reported itself is final.

`python -m launch.watch [--drain] JOB_FOLDER` is what runs beside a training job.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.base import ThalwegError
from launch.cluster import Cluster, cluster_class, load_cluster
from launch.job import MANIFEST, Job
from launch.submit import claim_and_submit, eval_job_name, overrides_of
from pretrain.config import EvalSpec
from pretrain.run.directory import RunDirectory
from pretrain.run.process import is_running

MAX_TRIES = 3
POLL_S = 5.0
SUBMITTING_S = 300.0
"""A claim from another machine that has no job after this time, on our own clock, was abandoned."""


@dataclass
class Tally:
    """How a run's evals stand.

    Attributes:
        waiting: not submitted yet.
        open: submitted, no outcome yet.
        done: have a result.
        failed: one line for each that will not be tried again.
    """

    waiting: int = 0
    open: int = 0
    done: int = 0
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"evals: {self.done} done, {self.open} open, {self.waiting} waiting, {len(self.failed)} failed"


@dataclass(frozen=True)
class Missing:
    """An eval to submit, in the folder that was free when it was found missing: one watcher can claim it."""

    spec: EvalSpec
    checkpoint: Path
    job: Job


class Watcher:
    """Looks at a run again and again."""

    def __init__(self, run: Path, cluster: Cluster) -> None:
        self.run = RunDirectory(run.absolute())
        self.cluster = cluster
        self._seen: dict[Path, float] = {}

    def look(self) -> Tally:
        """Submit what is missing and may be submitted."""
        tally = Tally()
        missing: list[Missing] = []
        specs = self.run.recipe().evals if self.run.exists() else ()
        for checkpoint in kept_checkpoints(self.run.checkpoints) if specs else ():
            for spec in specs:
                self._sort(spec, checkpoint, tally, missing)
        missing = [wanted for wanted in missing if _hold(wanted)]
        limit = self.cluster.config.evals.at_once
        room = len(missing) if limit is None else max(0, limit - tally.open)
        for wanted in missing[:room]:
            self._submit(wanted, tally)
        tally.waiting = len(missing[room:])
        return tally

    def over(self, job: Job | None) -> bool:
        """Whether no further checkpoint will come: the run is at its end, or its job has gone without it."""
        return (self.run.exists() and self.run.finished()) or (job is not None and self._is_gone(job))

    def _sort(self, spec: EvalSpec, checkpoint: Path, tally: Tally, missing: list[Missing]) -> None:
        free = Job.next(self.run.root, eval_job_name(spec.name, checkpoint, overrides_of(spec)))
        job, tries = free.before, free.number - 1
        if job is None:
            missing.append(Missing(spec, checkpoint, free))
            return
        gone = self._is_gone(job)  # before the outcome: a job leaves its outcome before it goes
        outcome = job.finished()
        if outcome is not None:
            job.release()  # another watcher may have held the checkpoint a moment too long
        if outcome is not None and outcome["exit_code"] == 0:
            tally.done += 1
        elif outcome is not None:
            tally.failed.append(f"{spec.name} on {checkpoint.name}: {outcome['message']}")
        elif not gone:
            tally.open += 1
        elif tries < MAX_TRIES:
            job.release()
            missing.append(Missing(spec, checkpoint, free))
        else:
            job.release()
            tally.failed.append(f"{spec.name} on {checkpoint.name}: its job died {tries} times, see {job.folder}")

    def _submit(self, wanted: Missing, tally: Tally) -> None:
        spec, checkpoint, job = wanted.spec, wanted.checkpoint, wanted.job
        tally.open += 1
        try:
            submission = claim_and_submit(job, spec.name, checkpoint, overrides_of(spec), self.cluster)
        except ThalwegError as error:
            say(f"{spec.name} on {checkpoint.name} could not be submitted: {error}")
            return
        if submission is not None:
            say(f"{spec.name} on {checkpoint.name}: {submission.kind} job {submission.job_id}")

    def _is_gone(self, job: Job) -> bool:
        """Whether nobody will write the job's outcome any more."""
        submission = job.submission()
        if submission is not None:
            return not cluster_class(submission.kind).is_alive(submission)
        submitter = job.submitter()
        alive = is_running(submitter) if submitter is not None else None
        if alive is not None:
            return not alive
        return time.monotonic() - self._seen.setdefault(job.folder, time.monotonic()) > SUBMITTING_S


def watch(
    run: Path, cluster: Cluster, once: bool = False, *, job: Job | None = None, stop: threading.Event | None = None
) -> Tally:
    """Submit evals while the run lives, then see them through.

    Args:
        run: the run's folder.
        once: look once, wait for nothing.
        job: end with this job too; a run that was cancelled never gets to its end.
        stop: ends the watch when set.
    """
    watcher, stop = Watcher(run, cluster), stop or threading.Event()
    told = ""
    while True:
        over = watcher.over(job)  # before the look, not to miss the last checkpoint
        tally = watcher.look()
        told = _tell(tally, told)
        if once or stop.is_set() or (over and not tally.open and not tally.waiting):
            return tally
        stop.wait(POLL_S)


def drain(run: Path, cluster: Cluster) -> Tally:
    """Submit all that is missing; a training job must not hold its nodes until evals have run."""
    watcher = Watcher(run, cluster)
    while True:
        tally = watcher.look()
        if not tally.waiting:
            return tally
        time.sleep(POLL_S)


def failures(run: Path) -> list[str]:
    """One line for each eval of a run whose latest try ended badly, whoever asked for it."""
    latest: dict[str, Job] = {}
    for path in run.glob("logs/jobs/*-try-*"):
        job, name = Job(path), path.name.rpartition("-")[0]
        if name not in latest or latest[name].number < job.number:
            latest[name] = job
    outcomes = {name: job.finished() for name, job in sorted(latest.items())}
    return [
        f"{name.removesuffix('-try')}: {outcome['message']}"
        for name, outcome in outcomes.items()
        if outcome is not None and outcome["exit_code"] != 0
    ]


def _hold(wanted: Missing) -> bool:
    """Spare the checkpoint from now on, however long its eval waits; False where the run has just deleted it."""
    wanted.job.spare(wanted.checkpoint)
    if (wanted.checkpoint / MANIFEST).is_file():
        return True
    wanted.job.release()
    return False


def kept_checkpoints(folder: Path) -> list[Path]:
    """The committed checkpoints that are there now, oldest first."""
    found = (manifest.parent for manifest in folder.glob(f"step-*/{MANIFEST}"))
    return sorted(path for path in found if path.name.removeprefix("step-").isdigit())


def say(line: str) -> None:
    """One line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _tell(tally: Tally, told: str) -> str:
    text = "; ".join([str(tally), *tally.failed])
    if text != told:
        say(text)
    return text


def main(argv: Sequence[str]) -> int:
    """Watch the run of a training job, on the cluster it was submitted to."""
    parser = argparse.ArgumentParser(prog="launch.watch")
    parser.add_argument("job", type=Path)
    parser.add_argument("--drain", action="store_true")
    options = parser.parse_args(argv)
    job = Job(options.job)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        cluster = load_cluster(job.cluster)
        if options.drain:
            say(str(drain(job.run, cluster)))
        else:
            watch(job.run, cluster, job=job, stop=stop)
    except ThalwegError as error:
        say(f"thalweg: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
