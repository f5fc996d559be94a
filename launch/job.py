"""The folder of one submission: what was asked, every start, and how it went.

    runs/NAME/logs/jobs/pretrain-1/
      config.yaml, cluster.yaml   resolved; what the job was given
      code/                       the packages as they were, so that a restart runs what the start ran
      job.json                    who took the folder, then kind and id of the job
      starts/                     one file a start: the newest checkpoint there was
      outcomes/                   exit codes that say what shall happen next, by start
      stop                        the user wants it down

`python -m launch.job begin FOLDER START` and `end FOLDER START EXIT_CODE` is what the batch script asks before
and after srun; START is SLURM's count of restarts.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.base import SavedAndStopped, UserError, write_atomically
from pretrain.run.process import describe

DONE = 0
USER_ERROR = UserError.exit_code
SAVED = SavedAndStopped.exit_code

MANIFEST = "MANIFEST.json"
"""What makes a folder a checkpoint (`pretrain.checkpoint`, which would import torch)."""

MAX_STALLED_STARTS = 3
"""Starts in a row from one and the same checkpoint; then the job stays down."""


@dataclass(frozen=True)
class Submission:
    """A job at a scheduler.

    Attributes:
        kind: of the cluster.
        job_id: the scheduler's name for it.
        folder: of the job.
        process: what tells a local process from a later one with the same number.
        exit_code: known at once where the job ran inside the submitting process.
    """

    kind: str
    job_id: str
    folder: str
    process: dict[str, Any] | None = None
    exit_code: int | None = None

    @property
    def log(self) -> Path:
        """What rank 0 says."""
        return Path(self.folder) / f"{self.job_id}_0_log.out"


@dataclass(frozen=True)
class Job:
    """Names and readers of a job's folder."""

    folder: Path

    @classmethod
    def next(cls, run: Path, name: str) -> Job:
        """The first free folder of that name; not made yet."""
        jobs = run.absolute() / "logs" / "jobs"
        taken = max((_number(path) for path in jobs.glob(f"{name}-*")), default=0)
        return cls(jobs / f"{name}-{taken + 1}")

    @property
    def number(self) -> int:
        """Which of its name this is, from 1."""
        return _number(self.folder)

    @property
    def before(self) -> Job | None:
        """The previous one of the same name."""
        name = self.folder.name.rpartition("-")[0]
        return Job(self.folder.with_name(f"{name}-{self.number - 1}")) if self.number > 1 else None

    @property
    def run(self) -> Path:
        """The run the job works on."""
        return self.folder.parents[2]

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.folder / "config.yaml"

    @property
    def cluster(self) -> Path:
        """The cluster it was submitted to."""
        return self.folder / "cluster.yaml"

    @property
    def code(self) -> Path:
        """The packages as they were."""
        return self.folder / "code"

    @property
    def stop(self) -> Path:
        """Present when the user wants the job down."""
        return self.folder / "stop"

    def claim(self) -> bool:
        """Make the folder; False when another process was first."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder.mkdir()
        except FileExistsError:
            return False
        self._write("job.json", {"claimed_by": describe()})
        return True

    def record(self, submission: Submission) -> Submission:
        """Put the scheduler's name for the job on disk."""
        self._write("job.json", {"submission": asdict(submission), "claimed_by": describe()})
        return submission

    def submission(self) -> Submission | None:
        """The job at the scheduler; None while it is being submitted, or was never."""
        found = self._read("job.json").get("submission")
        return Submission(**found) if found else None

    def submitter(self) -> dict[str, Any] | None:
        """The process that made the folder."""
        process: dict[str, Any] | None = self._read("job.json").get("claimed_by")
        return process

    def begin(self, lane: str = "job", start: int | None = None) -> int:
        """Note a start.

        Args:
            lane: who counts; the batch script, or a rank where there is no such script.
            start: its number where the scheduler counts too; the next one when unset.

        Returns:
            Its number, from 0.
        """
        if start is None:
            start = len(self._starts(lane))
        self._write(f"starts/{lane}-{start}.json", {"newest": self.newest_checkpoint()})
        return start

    def leave(self, start: int, code: int) -> None:
        """A rank's exit code that says what shall happen next; srun may report another rank's."""
        if code in (USER_ERROR, SAVED):
            outcome = self.folder / "outcomes" / f"{start}-{code}"
            outcome.parent.mkdir(exist_ok=True)
            outcome.touch()

    def what_next(self, start: int, code: int, lane: str = "job") -> Verdict:
        """Whether the job shall be requeued after a start of it ended with `code`."""
        if self.stop.exists():
            return Verdict(False, "the user stopped it")
        starts = self._starts(lane)
        if start < max(starts, default=0):  # of a node that was lost and ran on
            return Verdict(False, f"start {max(starts)} has taken over from start {start}")
        outcomes = {int(path.name.split("-")[1]) for path in self.folder.glob(f"outcomes/{start}-*")}
        return what_next(code, outcomes, stalled(list(starts.values()), self.newest_checkpoint()))

    def newest_checkpoint(self) -> str:
        """Name of the newest committed checkpoint, "" before the first."""
        names = [path.parent.name for path in self.run.glob(f"checkpoints/step-*/{MANIFEST}")]
        return max((name for name in names if name.removeprefix("step-").isdigit()), default="")

    def spare(self, checkpoint: Path) -> None:
        """Keep the run from deleting a checkpoint: what is being exported stays (`pretrain.session`)."""
        (self.run / "exports" / f".{checkpoint.name}.{self.folder.name}").mkdir(parents=True, exist_ok=True)

    def release(self) -> None:
        """End `spare`."""
        for mark in self.run.glob(f"exports/.step-*.{glob.escape(self.folder.name)}"):
            mark.rmdir()

    def finish(self, code: int, message: str = "") -> None:
        """How an eval job ended, for the watcher; its checkpoint may go now."""
        self._write("outcome.json", {"exit_code": code, "message": message})
        self.release()

    def finished(self) -> dict[str, Any] | None:
        """What `finish` wrote; None while the job has not got that far."""
        return self._read("outcome.json") or None

    def _starts(self, lane: str) -> dict[int, str]:
        """The newest checkpoint when a start began, by the start's number, ascending."""
        paths = sorted(self.folder.glob(f"starts/{lane}-*.json"), key=_number)
        return {_number(path): self._read(f"starts/{path.name}").get("newest", "") for path in paths}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.folder / name, json.dumps(content, ensure_ascii=False))

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content


def stalled(starts: Sequence[str], newest: str) -> int:
    """How many of the latest starts began at the checkpoint that still is the newest.

    >>> stalled(["", "step-00000010", "step-00000010"], "step-00000010")
    2
    """
    count = 0
    for start in reversed(starts):
        if start != newest:
            break
        count += 1
    return count


@dataclass(frozen=True)
class Verdict:
    """Attributes: again: requeue the job; words: why, or why not."""

    again: bool
    words: str


def what_next(code: int, outcomes: set[int], stalled_starts: int) -> Verdict:
    """Requeue everything but success and the user's mistake, while starts make progress.

    Args:
        code: of the whole job step: the highest of its ranks, 128 + signal for killed ones.
        outcomes: codes that ranks left behind on purpose. They count more than `code`: the first rank
            to leave gets its peers killed, and then the step's code is theirs.
        stalled_starts: starts in a row without a new checkpoint, this one included.
    """
    saved = SAVED in outcomes or code == SAVED
    if not saved and (USER_ERROR in outcomes or code == USER_ERROR):
        return Verdict(False, "the recipe, a path or an option is at fault")
    if not saved and code == DONE:
        return Verdict(False, "done")
    what = "saved on request" if saved else f"failed with exit code {code}"
    if stalled_starts >= MAX_STALLED_STARTS:
        return Verdict(False, f"{what}, but {stalled_starts} starts in a row brought no new checkpoint")
    return Verdict(True, what)


def _number(path: Path) -> int:
    tail = path.name.removesuffix(".json").rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0


def main(argv: Sequence[str]) -> int:
    """Exit code 0 of `end` means: start again."""
    verb, folder, start, *code = argv
    job = Job(Path(folder))
    if verb == "begin":
        job.begin(start=int(start))
        return 0
    verdict = job.what_next(int(start), int(code[0]))
    print(f"thalweg: {verdict.words}; {'starting again' if verdict.again else 'staying down'}", flush=True)
    return 0 if verdict.again else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
