"""Stop requests: a handler only sets a flag, ranks agree at a step boundary."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
SAME_REQUEST_S = 3.0
"""Launchers send a signal to a process, then to its group: within this time it is one request."""


class StopFlag:
    """Set by a first signal; a later second one leaves at once."""

    def __init__(self) -> None:
        self.name = ""
        self._first = 0.0
        self._owner = os.getpid()

    def install(self) -> StopFlag:
        """Take the stop signals over in this process; forked children ignore them."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        return self

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return bool(self.name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return
        now = time.monotonic()
        if not self.name:
            self.name, self._first = signal.Signals(number).name, now
        elif now - self._first > SAME_REQUEST_S:
            os._exit(128 + number)
