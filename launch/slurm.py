"""Jobs on SLURM through submitit: srun starts the ranks, the batch script decides what comes after them.

Ranks never requeue their own job: `scontrol requeue` would kill them while others still save. They
leave an outcome in the job's folder, and the batch script asks `launch.job` once all have ended.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from data_pipelines.base import UserError
from launch.cluster import Cluster, ClusterConfig, OneLine, exports, outside_any_job, python_command, quote
from launch.entry import Entry, PretrainEntry
from launch.job import Job, Submission
from launch.snapshot import SAFE_PATH, code_folder, take_snapshot

ANSWER_S = 30.0
"""Seconds that SLURM's commands may take."""


class SlurmCluster(Cluster):
    """A partition of a SLURM cluster."""

    class Config(ClusterConfig):
        """The keys are sbatch's, by submitit's names."""

        partition: OneLine | None = None
        account: OneLine | None = None
        qos: OneLine | None = None
        cpus_per_task: int = Field(4, gt=0)
        """Cores a rank: its loader's workers and itself."""
        mem_gb: float | None = Field(None, gt=0)
        """Memory a node; the partition's default when unset."""
        setup: tuple[str, ...] = ()
        """Lines of bash that run before Python starts, exactly as they stand in the file."""
        container: str = ""
        """Command before Python on the nodes, e.g. "apptainer exec --nv /images/torch.sif"."""
        python: str | None = None
        """Python on the nodes; the submitter's own when unset, which must lie at the same path there."""
        parameters: dict[OneLine, OneLine | int | float | bool] = Field(default_factory=dict)
        """Further options of sbatch, e.g. {constraint: a100}."""
        submit_evals_from_job: bool = True
        """False where compute nodes may not submit: `thalweg eval --watch RUN` on a login node does it then."""

        @field_validator("parameters")
        @classmethod
        def _options(cls, parameters: dict[str, Any]) -> dict[str, Any]:
            for name in parameters:
                if not name.replace("-", "").replace("_", "").isalnum():
                    raise ValueError(f"{name!r} is no option of sbatch")
            return parameters

        def for_evals(self, many_ranks: bool) -> dict[str, Any]:
            """What changes when the job is an eval."""
            wanted = {
                "partition": self.evals.partition,
                "cpus_per_task": self.evals.cpus_per_task,
                "mem_gb": self.evals.mem_gb,
            }
            return {
                **super().for_evals(many_ranks),
                **{key: value for key, value in wanted.items() if value is not None},
            }

    config: Config

    def script(self, job: Job, entry: Entry) -> str:
        """The batch script, to the letter."""
        executor = self._executor(job, entry)
        return str(executor._make_submission_file_text(executor._submitit_command_str, uid=""))

    def submit(self, job: Job, entry: Entry) -> Submission:
        """Hand the batch script to sbatch."""
        take_snapshot(job.run)
        with outside_any_job():
            try:
                submitted = self._executor(job, entry).submit(entry)
            except FileNotFoundError:
                raise UserError(
                    "sbatch is not on this machine; submit from a login node, or use --cluster local"
                ) from None
            except (FailedJobError, FailedSubmissionError) as error:
                raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
        return job.record(Submission("slurm", submitted.job_id, str(job.folder)))

    @staticmethod
    def is_alive(submission: Submission) -> bool:
        """Whether squeue lists the job; True where squeue does not answer."""
        answer = _ask("squeue", "--noheader", "--jobs", submission.job_id, "--format=%T")
        if answer.returncode != 0:
            return "Invalid job id" not in answer.stderr
        return bool(answer.stdout.strip())

    @staticmethod
    def stop(submission: Submission) -> None:
        """USR2 to all ranks; a job that still waits in the queue is cancelled."""
        waiting = _ask("squeue", "--noheader", "--jobs", submission.job_id, "--states=PENDING", "--format=%T")
        signal = () if waiting.stdout.strip() else ("--signal=USR2",)
        answer = _ask("scancel", *signal, submission.job_id)
        if answer.returncode != 0:
            raise UserError(f"scancel {submission.job_id}: {' '.join(answer.stderr.split())}")

    def _executor(self, job: Job, entry: Entry) -> SlurmExecutor:
        config = self.config
        folder = _safe_folder(job.folder)
        executor = _AnywhereExecutor(folder, python=self._python)
        parameters = {
            "name": _job_name(job),
            "nodes": config.nodes,
            "tasks_per_node": config.ranks_per_node,
            "gpus_per_node": config.gpus_per_node or None,
            "cpus_per_task": config.cpus_per_task,
            "mem_gb": config.mem_gb,
            "timeout_min": config.timeout_min,
            "partition": config.partition,
            "account": config.account,
            "qos": config.qos,
        }
        converted = executor._convert_parameters({key: value for key, value in parameters.items() if value is not None})
        executor.update_parameters(
            **converted,
            signal_delay_s=config.signal_delay_s,
            stderr_to_stdout=True,
            srun_args=["--kill-on-bad-exit=1"],
            additional_parameters={"requeue": True, **config.parameters},
            setup=self._before_srun(job, entry),
            teardown=self._after_srun(job, entry),
        )
        return executor

    @property
    def _python(self) -> str:
        return python_command(self.config.container, self.config.python)

    def _before_srun(self, job: Job, entry: Entry) -> list[str]:
        lines = [
            *self.config.setup,
            *exports({**self.config.env, **SAFE_PATH}),
            f"export PYTHONPATH={quote(str(code_folder(job.run)))}${{PYTHONPATH:+:$PYTHONPATH}}",
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",  # srun stopped inheriting it with 22.05
        ]
        if isinstance(entry, PretrainEntry):
            lines += [f"job={quote(str(job.folder))}", "start=${SLURM_RESTART_COUNT:-0}"]
            lines += [f'{self._python} -m launch.job begin "$job" "$start"']
            if self._watches(entry):
                lines += [f'{self._python} -m launch.watch "$job" >>"$job/watch.log" 2>&1 &', "watcher=$!"]
        return lines

    def _after_srun(self, job: Job, entry: Entry) -> list[str]:
        if not isinstance(entry, PretrainEntry):
            return []
        lines = ["code=$?"]
        if self._watches(entry):
            lines += ['kill "$watcher" 2>/dev/null && wait "$watcher"']
        lines += [
            f'if {self._python} -m launch.job end "$job" "$start" "$code"; then',
            '  scontrol requeue "$SLURM_JOB_ID" && sleep 120  # SLURM ends this shell meanwhile',
            "fi",
        ]
        if self._watches(entry):
            lines += [f'{self._python} -m launch.watch --drain "$job" >>"$job/watch.log" 2>&1']
        return [*lines, 'exit "$code"']

    def _watches(self, entry: PretrainEntry) -> bool:
        return entry.has_evals and self.config.submit_evals_from_job


class _AnywhereExecutor(SlurmExecutor):
    """Writes batch scripts on machines without SLURM too, for `--dry-run` on a laptop."""

    @classmethod
    def name(cls) -> str:
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        return 2


def _job_name(job: Job) -> str:
    """Name of the run and the job, in characters that every tool around SLURM can take."""
    name = f"{job.run.name}.{job.folder.name}"
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _safe_folder(folder: Path) -> Path:
    """SLURM reads one option a line, and patterns in file names: what it cannot hold is refused."""
    text = str(folder)
    if not text.isprintable() or "%" in text or "\\" in text:
        raise UserError(
            f"{text!r}: SLURM cannot write logs to a path with line breaks, control characters, % or \\; "
            "give the run another name (name=...) or folder (runs=...)"
        )
    return folder


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} does not answer: {error}")
