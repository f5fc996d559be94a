"""Tars indexed by many jobs side by side: each does its share, the one that ends last commits them all.

runs/index-NAME-DIGEST/
  tars.json                   what is indexed: addresses, in their order
  parts-of-N/K.json           tars that job K has indexed so far, and whether that is its whole share
  logs/jobs/                  one folder a job
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data_pipelines.base import Strict, UserError, digest_of, write_atomically
from data_pipelines.indexing import Indexed, commit, index_tars, is_folder, plain_tars
from data_pipelines.storage import local_path
from launch.cluster import Cluster
from launch.entry import Entry, exit_code_of
from launch.job import DONE, Job

TARS_A_JOB = 1000
MOST_JOBS = 64
SAVED_EVERY = 20
"""Tars after which a job that is killed does not do them again."""


class Part(Strict):
    """What a job has done of its share."""

    is_whole: bool
    tars: tuple[Indexed, ...]


@dataclass(frozen=True)
class IndexEntry(Entry):
    """The share of one job: every `parts`-th tar, from number `part` on."""

    part: int
    parts: int

    def work(self) -> int:
        """Index, then commit if all other shares are whole."""
        return exit_code_of(self._index)

    def __call__(self) -> None:
        """Early warnings are passed over: what is cut off at the end, another submission goes on with."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.exit(self.work())

    def _index(self) -> int:
        plan = json.loads((self.job.run / "tars.json").read_text())
        share = plan["tars"][self.part :: self.parts]
        before = _read_part(self.job.run, self.part, self.parts)
        known = {indexed.shard.file: indexed for indexed in before.tars} if before else {}
        done: list[Indexed] = []
        for indexed in index_tars(share, known=known):
            done.append(indexed)
            print(indexed.line(), flush=True)
            if len(done) % SAVED_EVERY == 0:
                _write_part(self.job.run, self.part, self.parts, Part(is_whole=False, tars=tuple(done)))
        _write_part(self.job.run, self.part, self.parts, Part(is_whole=True, tars=tuple(done)))
        parts = [_read_part(self.job.run, part, self.parts) for part in range(self.parts)]
        if all(part is not None and part.is_whole for part in parts):
            by_file = {indexed.shard.file: indexed for part in parts if part is not None for indexed in part.tars}
            commit(plan["path"], [by_file[tar.rsplit("/", 1)[-1]] for tar in plan["tars"]])
            print(f"{plan['path']}: {len(plan['tars'])} tars indexed; its manifest is written", flush=True)
        return DONE


def submit_indexing(path: str, cluster: Cluster, jobs: int | None = None) -> list[str]:
    """Submit jobs that index the tars of a folder; submitted again, they go on where the first ones were.

    Args:
        jobs: how many; one for each thousand tars when None.

    Returns:
        One line a job, and where they are.

    Raises:
        UserError: no tars there, gzipped ones among them, not a folder of them, or the scheduler refuses.
    """
    path = path.rstrip("/") or path
    if local_path(path) is not None:
        path = str(Path(path).absolute())  # jobs may start anywhere
    tars = plain_tars(path)
    if not is_folder(path, tars):
        raise UserError(f"data index {path}: jobs index a whole folder of tars, which gets a manifest; name the folder")
    jobs = min(len(tars), jobs if jobs is not None else min(MOST_JOBS, -(-len(tars) // TARS_A_JOB)))
    if jobs < 1:
        raise UserError(f"data index: --jobs must be at least 1, got {jobs}")
    room = (Path("runs") / f"index-{path.rsplit('/', 1)[-1]}-{digest_of(path)[:8]}").absolute()
    write_atomically(room / "tars.json", json.dumps({"path": path, "tars": tars}))
    for part in range(jobs):
        if before := _read_part(room, part, jobs):  # of an earlier submission, perhaps of other tars
            _write_part(room, part, jobs, Part(is_whole=False, tars=before.tars))
    lines = []
    for part in range(jobs):
        job = Job.next(room, "index")
        if not job.claim():
            raise UserError(f"data index {path}: another process submits the same at this moment")
        submission = cluster.for_evals().submit(job, IndexEntry(str(job.folder), part, jobs))
        lines.append(f"job {submission.kind} {submission.job_id}: part {part + 1} of {jobs}, log {submission.log}")
    return [*lines, f"{path}: {len(tars)} tars; its manifest is written when all parts are whole, see {room}"]


def _part_file(room: Path, part: int, parts: int) -> Path:
    return room / f"parts-of-{parts}" / f"{part}.json"


def _write_part(room: Path, part: int, parts: int, content: Part) -> None:
    write_atomically(_part_file(room, part, parts), content.model_dump_json())


def _read_part(room: Path, part: int, parts: int) -> Part | None:
    try:
        return Part.model_validate_json(_part_file(room, part, parts).read_bytes())
    except (OSError, ValidationError):
        return None
