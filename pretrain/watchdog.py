"""A step that never ends is a failure too: a roll call tells who is silent, then out.

No rank sends heartbeats: when a step takes too long, every rank finds so by itself and leaves a file.
A stopped process and a lost machine cannot. So the call costs nothing while a run is well, needs no
connection, which may be what hangs, and works wherever the run's folder is seen.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pretrain.run.process import is_running
from pretrain.run.records import LineWriter

if TYPE_CHECKING:
    from pretrain.session import Session

log = logging.getLogger("pretrain")

MAX_PERIOD_S = 5.0
MAX_CALL_S = 60.0
"""Time for the others' files to be seen here: stores show new names late."""


class Watchdog:
    """Ends the process when no step was finished for `monitor.watchdog_s` seconds."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._limit_s = session.recipe.monitor.watchdog_s
        self._steps = 0
        self._waits_for_data = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A step was finished."""
        self._steps += 1

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A rank that hangs in here keeps the others waiting."""
        self._waits_for_data = True
        yield
        self._waits_for_data = False

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()  # a call that has begun is finished: the peers that left meanwhile are no news

    def _watch(self) -> None:
        """Counts its own waits and no clock: time in which this process was stopped is not the others' fault."""
        period_s = min(self._limit_s / 4, MAX_PERIOD_S)
        seen, quiet_s = self._steps, 0.0
        while quiet_s < self._limit_s:
            if self._done.wait(period_s):
                return
            quiet_s = quiet_s + period_s if seen == self._steps else 0.0
            seen = self._steps
        try:
            self._call()
        finally:
            os._exit(1)

    def _call(self) -> None:
        session, rank = self._session, self._session.world.rank
        logs = session.run.logs(session.attempt_number)
        self._answer(logs / f"stacks-rank-{rank}.txt")
        time.sleep(min(self._limit_s / 2, MAX_CALL_S))
        answers = {number: _read(logs / f"stacks-rank-{number}.txt") for number in range(session.world.world_size)}
        silent = [number for number, answer in answers.items() if answer is None]
        words = (
            f"no step for {self._limit_s:g} s after step {session.progress.step}: {self._blame(answers)}; "
            f"stacks of the ranks that answer: {logs}/stacks-rank-*.txt; start again to resume"
        )
        log.error("rank %d: %s", rank, words)
        if rank == min(number for number, answer in answers.items() if answer is not None):
            self._tell(words, silent)
        self._end_stopped(silent)
        if session.attempt is not None:
            session.attempt.end(1, words)

    def _answer(self, path: Path) -> None:
        """Who we are and what we do, then the stacks of all threads."""
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            file.write(json.dumps({"waits_for_data": self._waits_for_data}) + "\n")
            file.flush()
            faulthandler.dump_traceback(file)
        partial.replace(path)

    def _blame(self, answers: dict[int, dict[str, Any] | None]) -> str:
        silent = [self._name(rank) for rank, answer in answers.items() if answer is None]
        reading = [self._name(rank) for rank, answer in answers.items() if answer and answer["waits_for_data"]]
        if silent:
            return f"{', '.join(silent)} did not answer"
        return f"{', '.join(reading)} still waits for data" if reading else "all ranks answer, none gets on"

    def _name(self, rank: int) -> str:
        process = self._session.processes[rank]
        return f"rank {rank} (process {process['pid']} on {process['host']})"

    def _tell(self, words: str, silent: list[int]) -> None:
        """Write the event; rank 0, which holds the pen, may be the silent one."""
        session = self._session
        if session.world.rank != 0:
            print(f"thalweg: {words}", file=sys.stderr, flush=True)
        with LineWriter(session.run.root / "events.jsonl", attempt=session.attempt_number) as events:
            line = {"step": session.progress.step, "time": time.time(), "kind": "hang", "words": words}
            events.write({**line, "silent": silent})

    def _end_stopped(self, silent: list[int]) -> None:
        """Kill silent ranks of this machine: a stopped process takes no SIGTERM, and launchers wait for it."""
        for rank in silent:
            process = self._session.processes[rank]
            if is_running(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process["pid"], signal.SIGKILL)


def _read(path: Path) -> dict[str, Any] | None:
    """The first line of a rank's answer; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        answer: dict[str, Any] = json.loads(path.read_text().splitlines()[0])
        return answer
    return None
