"""What runs inside a job: small, picklable, given the path and the digest of its config.

submitit pickles these objects by reference, so a restart imports the code anew: from the snapshot in
the job's folder. Nothing heavy is imported before the signals are in hand.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from data_pipelines.base import ThalwegError, UserError
from launch.job import DONE, SAVED, Job

LOCAL_RESTART = 144
"""Exit code that submitit's local controller answers with another start."""

FIRST_PORT, PORTS = 16384, 16384
"""Rendezvous ports: above the registered services, below the ephemeral ports of Linux (32768)."""


@dataclass(frozen=True)
class Place:
    """One rank's place in its job.

    Attributes:
        local_rank: on its node, which is also the number of its GPU among those it sees; 0 where it sees one alone.
        start: number of this start of the job, from 0.
        lane: who counts the starts (`Job.begin`).
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    leader: str
    job_id: str
    start: int
    lane: str = "job"

    def environment(self) -> dict[str, str]:
        """What torch.distributed reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.leader,
            "MASTER_PORT": str(rendezvous_port(self.job_id, self.start)),
        }


@dataclass(frozen=True)
class Entry(ABC):
    """Base of what a job runs.

    Attributes:
        folder: of the job (`launch.job.Job`).
    """

    folder: str

    @property
    def job(self) -> Job:
        """The job's folder."""
        return Job(Path(self.folder))

    @abstractmethod
    def work(self) -> int:
        """Do it in this process, in the place the environment names.

        Returns:
            Exit code 0, 1, 2 or 85.
        """

    @abstractmethod
    def __call__(self) -> None:
        """What the scheduler calls in each task; ends the process."""


@dataclass(frozen=True)
class PretrainEntry(Entry):
    """One rank of a run.

    Attributes:
        digest: of the config file in the folder, as it was when the job was submitted.
        has_evals: whether its checkpoints want evals.
    """

    digest: str
    has_evals: bool = False

    def work(self) -> int:
        """Train, unless the config is no longer the one that was submitted."""
        return exit_code_of(self._checked)

    def __call__(self) -> None:
        """Take the signals over, find the other ranks, train, and say how it ended."""
        place = place_of(os.environ)
        if place.lane != "job":
            place = replace(place, start=self.job.begin(place.lane))
        leave_on_signal(lambda: self._leave(place, SAVED))
        os.environ.update(place.environment())
        self._leave(place, self.work())

    def _checked(self) -> int:
        if file_digest(self.job.config) != self.digest:
            raise UserError(f"{self.job.config} was changed after the job was submitted; launch the run again")
        return self.train()

    def train(self) -> int:
        """The run itself."""
        from pretrain.__main__ import run_recipe
        from pretrain.config import load_recipe

        return run_recipe(load_recipe(str(self.job.config)))

    def _leave(self, place: Place, code: int) -> None:
        self.job.leave(place.start, code)
        if place.lane != "job" and self.job.what_next(place.start, code, place.lane).again:
            code = LOCAL_RESTART
        sys.stdout.flush()
        sys.stderr.flush()
        # A rank whose peers are gone can hang in the destructors of its process groups.
        os._exit(code)


@dataclass(frozen=True)
class EvalEntry(Entry):
    """One eval of one checkpoint, or one rank of it."""

    name: str
    checkpoint: str
    overrides: tuple[str, ...] = ()

    def work(self) -> int:
        """Run the eval; the first rank leaves the outcome for the watcher, unless it wants to be started again."""
        message: list[str] = []
        code = exit_code_of(self._judge, message.append)
        if code != SAVED and os.environ.get("RANK", "0") == "0":
            self.job.finish(code, "".join(message))
        return code

    def __call__(self) -> None:
        """Ignore the early warning of a preemption: the eval may be done before its time is up, or heeds it itself."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.environ.get("SLURM_NTASKS", os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")) == "1":
            sys.exit(self.work())
        os.environ.update(place_of(os.environ).environment())
        code = self.work()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # see `PretrainEntry._leave`

    def _judge(self) -> int:
        from evals.protocol import run_eval

        run_eval(self.name, Path(self.checkpoint), list(self.overrides))
        return DONE


def exit_code_of(work: Callable[[], int], say: Callable[[str], Any] = lambda message: None) -> int:
    """Call `work`; errors become exit codes, their message goes to the log and to `say`."""
    try:
        return work()
    except ThalwegError as error:
        print(f"thalweg: {error}", file=sys.stderr, flush=True)
        say(str(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        say(f"{type(error).__name__}: {error}")
        return 1


def leave_on_signal(leave: Callable[[], None]) -> None:
    """Until the training loop puts up its own flag there is nothing to save: a signal means go.

    Without this a signal during the imports kills the process by default, and the job fails instead of
    being requeued. Forked children inherit the handler and must not speak for their rank.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            leave()

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, handle)


def place_of(environment: Mapping[str, str]) -> Place:
    """This process's place in its job, at SLURM or on this machine."""
    if "SLURM_JOB_ID" in environment:
        return place_from_slurm(environment)
    rank, size = int(environment["SUBMITIT_LOCAL_GLOBALID"]), int(environment["SUBMITIT_LOCAL_NTASKS"])
    return Place(rank, size, rank, size, "127.0.0.1", environment["SUBMITIT_LOCAL_JOB_ID"], 0, f"rank-{rank}")


def place_from_slurm(environment: Mapping[str, str]) -> Place:
    """This task's place in a job step started by srun."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    size, nodes = int(environment["SLURM_NTASKS"]), int(environment["SLURM_JOB_NUM_NODES"])
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        world_size=size,
        local_rank=0 if _sees_one_gpu(environment) else int(environment["SLURM_LOCALID"]),
        local_world_size=size // nodes,
        leader=SlurmJobEnvironment().hostnames[0],
        job_id=environment["SLURM_JOB_ID"],
        start=int(environment.get("SLURM_RESTART_COUNT", "0")),
    )


def _sees_one_gpu(environment: Mapping[str, str]) -> bool:
    """Whether SLURM bound this task to a GPU of its own (--gpu-bind, --gpus-per-task)."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return bool(visible) and "," not in visible


def rendezvous_port(job_id: str, start: int) -> int:
    """The same on all ranks, another one at the next start."""
    digest = hashlib.blake2b(f"{job_id} {start}".encode(), digest_size=8).digest()
    return FIRST_PORT + int.from_bytes(digest, "little") % PORTS


def file_digest(path: Path) -> str:
    """32 hex digits of a file's bytes.

    Raises:
        UserError: the file is gone.
    """
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path} is gone; launch the run again") from None
