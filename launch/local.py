"""Jobs on this machine, through the same entry points as on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from submitit.core.utils import environment_variables
from submitit.local.local import LocalExecutor

from launch.cluster import Cluster, ClusterConfig, exports, outside_any_job, quote
from launch.entry import Entry, PretrainEntry
from launch.job import Job, Submission
from launch.snapshot import SAFE_PATH, code_folder, take_snapshot
from pretrain.run.process import describe, is_running


class LocalCluster(Cluster):
    """Processes on this machine that outlive the command that started them."""

    class Config(ClusterConfig):
        """GPUs are counted from the first; 0 hides them all."""

        nodes: Literal[1] = 1

    config: Config

    def script(self, job: Job, entry: Entry) -> str:
        """The command of one rank; there is no batch script here."""
        lines = [
            f"# {self.config.ranks_per_node} of this, on this machine",
            *exports(self._environment(code_folder(job.run))),
            f"{quote(sys.executable)} -u -m submitit.core._submit {quote(str(job.folder))}",
        ]
        return "\n".join(lines)

    def submit(self, job: Job, entry: Entry) -> Submission:
        """Start submitit's controller, and a watcher beside it where the recipe has evals."""
        environment = self._environment(take_snapshot(job.run))
        with outside_any_job(), environment_variables(**environment), _output_to(job.folder / "controller.log"):
            executor = LocalExecutor(job.folder)
            executor.update_parameters(
                tasks_per_node=self.config.ranks_per_node,
                gpus_per_node=self.config.gpus_per_node,
                timeout_min=self.config.timeout_min,
                signal_delay_s=self.config.signal_delay_s,
                stderr_to_stdout=True,
            )
            started = executor.submit(entry)
            submission = job.record(Submission("local", started.job_id, str(job.folder), describe(int(started.job_id))))
            if isinstance(entry, PretrainEntry) and entry.has_evals:
                _start_watcher(job)
        return submission

    @staticmethod
    def is_alive(submission: Submission) -> bool:
        """Whether the controller lives; True where that cannot be seen from here."""
        return submission.process is None or is_running(submission.process) is not False

    @staticmethod
    def stop(submission: Submission) -> None:
        """TERM to the controller, which passes it on to all ranks."""
        if LocalCluster.is_alive(submission):
            with suppress(ProcessLookupError):
                os.kill(int(submission.job_id), signal.SIGTERM)

    def _environment(self, code: Path) -> dict[str, str]:
        own = self.config.env
        path = [str(code), *filter(None, [own.get("PYTHONPATH", os.environ.get("PYTHONPATH"))])]
        return {**own, **SAFE_PATH, "PYTHONPATH": os.pathsep.join(path)}


class DebugCluster(Cluster):
    """Runs the job in this process: a breakpoint stops in it."""

    class Config(ClusterConfig):
        """One rank."""

        nodes: Literal[1] = 1
        tasks_per_node: Literal[1] = 1

    config: Config

    def script(self, job: Job, entry: Entry) -> str:
        """What is called."""
        return f"# in this process\n{entry}"

    def submit(self, job: Job, entry: Entry) -> Submission:
        """Do the work, then the evals that it made due."""
        with environment_variables(**self.config.env):
            code = entry.work()
        submission = job.record(Submission("debug", str(os.getpid()), str(job.folder), exit_code=code))
        if isinstance(entry, PretrainEntry) and entry.has_evals and code == 0:
            from launch.watch import watch

            watch(job.run, self)
        return submission

    @staticmethod
    def is_alive(submission: Submission) -> bool:
        """Never: it ended before anyone could ask."""
        return False

    @staticmethod
    def stop(submission: Submission) -> None:
        """Nothing is left to stop."""


def _start_watcher(job: Job) -> None:
    with (job.folder / "watch.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "launch.watch", str(job.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Processes started meanwhile write to `path`: holding our pipes open would hang whoever reads them."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        yield
    finally:
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(log)
