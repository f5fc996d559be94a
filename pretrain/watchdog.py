"""A step that never ends is a failure too: stacks in the log, then out (RELIABILITY 11)."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.session import Session

log = logging.getLogger("pretrain")


class Watchdog:
    """Ends the process when no step was finished for `monitor.watchdog_s` seconds."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._limit_s = session.recipe.monitor.watchdog_s
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A step was finished."""
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(self._limit_s / 4, 5.0)):
            if time.monotonic() - self._last < self._limit_s:
                continue
            rank = self._session.world.rank
            log.error(
                "rank %d: no step for %.0f s after step %d; see the stacks beside the rank's log, then start again",
                rank, self._limit_s, self._session.progress.step,
            )  # fmt: skip
            stacks = self._session.run.logs(self._session.attempt_number) / f"stacks-rank-{rank}.txt"
            with stacks.open("w") as file:
                faulthandler.dump_traceback(file)
            os._exit(1)
