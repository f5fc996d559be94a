"""Trying again: exponential back-off with jitter, until a deadline."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from data_pipelines.base import DataError

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 10.0
WORTH_SAYING_S = 5.0
"""Failures shorter than this are everyday life."""

log = logging.getLogger("data_pipelines")
Result = TypeVar("Result")


class Health:
    """Whether a store answers at all; shared by all reads that a process makes of it.

    Without it every sample, and then each of its substitutes, would wait a deadline of its own for a store that is
    gone.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._failing_since: float | None = None
        self._said = False

    def answered(self) -> None:
        """It sent something, if only a refusal."""
        if self._said:
            log.info("%s answers again", self.name)
        self._failing_since, self._said = None, False

    def failed(self, error: OSError, deadline_s: float) -> float:
        """It sent nothing of use; seconds since the first time that it did."""
        now = time.monotonic()
        since = self._failing_since = now if self._failing_since is None else self._failing_since
        if now - since > WORTH_SAYING_S and not self._said:
            log.warning("%s fails: %s; trying again for up to %g s", self.name, error, deadline_s)
            self._said = True
        return now - since


def persist(work: Callable[[float], Result], health: Health, deadline_s: float) -> Result:
    """Do `work` until it succeeds; it is given the seconds that are left.

    Raises:
        FileNotFoundError, PermissionError: an answer that asking again would not change.
        OSError: the last failure before the deadline.
        DataError: the whole store has been silent for that long already.
    """
    jitter = random.Random()
    wait_s = FIRST_WAIT_S
    began = time.monotonic()
    while True:
        try:
            result = work(deadline_s - (time.monotonic() - began))
            health.answered()
            return result
        except (FileNotFoundError, PermissionError):
            health.answered()
            raise
        except OSError as error:
            silent_s = health.failed(error, deadline_s)
            left_s = deadline_s - (time.monotonic() - began)
            if left_s <= 0:
                raise
            if silent_s >= deadline_s:
                raise DataError(f"{health.name} has given nothing for {silent_s:.0f} s: {error}") from None
        time.sleep(min(left_s, jitter.uniform(0, wait_s)))
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
