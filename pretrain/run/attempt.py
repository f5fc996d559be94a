"""Who works on a run: one attempt at a time, fenced by the highest number.

An attempt is a file made by exclusive creation. It beats: a counter in it grows while its process
lives. Clocks of two machines are never compared; an observer watches the counter on its own clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.base import ThalwegError, UserError, write_atomically
from pretrain.run.process import describe, is_running

BEAT_PERIOD_S = 2.0
STILL_PERIODS = 3


class FencedError(ThalwegError):
    """A later attempt has taken the run over; this process must not write any more."""


class Attempt:
    """The right to write into a run, held by rank 0."""

    def __init__(self, folder: Path, number: int, record: dict[str, Any]) -> None:
        self.number = number
        self._folder = folder
        self._record = record
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="attempt-beat", daemon=True)

    @classmethod
    def begin(cls, folder: Path, step: int) -> Attempt:
        """Take the run over.

        Args:
            folder: `attempts` of the run.
            step: steps done in the checkpoint this attempt starts from.

        Raises:
            UserError: another process is at work on the run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        earlier = attempts(folder)
        if earlier:
            refuse_if_alive(folder, max(earlier))
        number = max(earlier, default=0) + 1
        record = {"attempt": number, "began_at_step": step, "beat": 0, "status": "running", **_who_we_are()}
        try:
            with _path(folder, number).open("x") as file:
                json.dump(record, file)
        except FileExistsError:
            raise UserError(f"run {folder.parent}: another process started it at this moment; it is in use") from None
        attempt = cls(folder, number, record)
        attempt._thread.start()
        return attempt

    def check(self) -> None:
        """Called before every commit.

        Raises:
            FencedError: a later attempt exists.
        """
        highest = max(attempts(self._folder), default=0)
        if highest > self.number:
            raise FencedError(
                f"run {self._folder.parent}: attempt {highest} has taken over, attempt {self.number} leaves"
            )

    def update(self, **fields: Any) -> None:
        """Put more facts into the attempt's file."""
        with self._lock:
            self._record.update(fields)
            write_atomically(_path(self._folder, self.number), json.dumps(self._record))

    def end(self, exit_code: int, message: str = "") -> None:
        """Let go of the run."""
        self._ended.set()
        self._thread.join()
        self.update(status="ended", exit_code=exit_code, message=message)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_PERIOD_S):
            with contextlib.suppress(OSError):  # a full disk must not end the run here
                self.update(beat=self._record["beat"] + 1)


def attempts(folder: Path) -> dict[int, dict[str, Any]]:
    """Records by number; one that is being created right now reads as empty."""
    records: dict[int, dict[str, Any]] = {}
    for path in folder.glob("[0-9]*.json"):
        try:
            record = json.loads(path.read_text())
        except (ValueError, FileNotFoundError):
            record = {}
        records[int(path.stem)] = record
    return dict(sorted(records.items()))


def began(folder: Path) -> dict[int, int]:
    """By attempt, the steps done when it began; what `records.surviving` asks for."""
    records = attempts(folder).items()
    return {number: record["began_at_step"] for number, record in records if "began_at_step" in record}


def is_alive(folder: Path, number: int) -> bool:
    """Whether the process of an attempt still works; watches its counter where nothing quicker tells."""
    record = attempts(folder).get(number, {})
    if record.get("status") == "ended":
        return False
    seen = is_running(record.get("process", {}))
    if seen is not None:
        return seen
    deadline = time.monotonic() + STILL_PERIODS * BEAT_PERIOD_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_PERIOD_S / 4)
        now = attempts(folder).get(number, {})
        if now.get("status") == "ended":
            return False
        if now.get("beat") != record.get("beat"):
            return True
    return False


def refuse_if_alive(folder: Path, number: int) -> None:
    """Raises UserError when attempt `number` is at work, unless the scheduler has given its job to us."""
    if _is_earlier_start_of_our_job(attempts(folder).get(number, {})):
        return
    if is_alive(folder, number):
        record = attempts(folder)[number]
        raise UserError(
            f"run {folder.parent}: in use by attempt {number} (process {record['process']['pid']} on "
            f"{record['host']}); wait for it, or stop it first"
        )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def _is_earlier_start_of_our_job(record: Mapping[str, Any]) -> bool:
    """Whether SLURM has ended that attempt: it started its job again, as ours. A lost node's ranks may run on."""
    ours = _our_job()
    same = ours["job"] is not None and record.get("job") == ours["job"]
    return same and record.get("job_restarts", 0) < ours["job_restarts"]


def _who_we_are() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": describe(),
        **_our_job(),
        "began": time.time(),
        "period_s": BEAT_PERIOD_S,
    }


def _our_job() -> dict[str, Any]:
    return {
        "job": os.environ.get("SLURM_JOB_ID"),
        "job_restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }
