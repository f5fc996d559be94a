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
    """What a process knows of a store: which objects do not come, and whether anything does.

    Without it every sample of a lost shard, and then each of its substitutes, would wait a deadline of its own.
    """

    def __init__(self, name: str, probe: Callable[[str], object]) -> None:
        """Args: probe: asks for an object once."""
        self.name, self._probe = name, probe
        self._failing_since: float | None = None
        self._lost: set[str] = set()
        self._came_before: str | None = None
        self._said = False

    def answered(self, path: str) -> None:
        """Something came, if only a refusal."""
        if self._said:
            log.info("%s answers again", self.name)
        self._failing_since, self._said, self._came_before = None, False, path
        self._lost.discard(path)

    def gave_up(self, path: str) -> None:
        """An object did not come within a deadline; from now on it is tried once."""
        self._lost.add(path)

    def failed(self, path: str, error: OSError, asked_at: float, deadline_s: float) -> bool:
        """Nothing of use came of what was asked then; whether trying again is worth while.

        Raises:
            DataError: nothing has come from the store for that long, nor does what came before.
        """
        now = time.monotonic()
        since = self._failing_since = asked_at if self._failing_since is None else self._failing_since
        if now - since > WORTH_SAYING_S and not self._said:
            log.warning("%s fails: %s; trying again for up to %g s", self.name, error, deadline_s)
            self._said = True
        if path in self._lost:
            return False
        if now - since >= deadline_s and not self._is_alive():
            raise DataError(f"{self.name} has given nothing for {now - since:.0f} s: {error}") from None
        return True

    def _is_alive(self) -> bool:
        path = self._came_before
        if path is None:
            return False
        try:
            self._probe(path)
        except (FileNotFoundError, PermissionError):
            pass
        except OSError:
            return False
        self.answered(path)
        return True


def persist(work: Callable[[float], Result], health: Health, path: str, deadline_s: float) -> Result:
    """Do `work` on an object until it succeeds; it is given the seconds that are left.

    Raises:
        FileNotFoundError, PermissionError: an answer that asking again would not change.
        OSError: the last failure before the deadline.
        DataError: the whole store has been silent for that long already.
    """
    jitter, wait_s = random.Random(), FIRST_WAIT_S
    began = time.monotonic()
    while True:
        asked_at = time.monotonic()
        try:
            result = work(deadline_s - (asked_at - began))
            health.answered(path)
            return result
        except (FileNotFoundError, PermissionError):
            health.answered(path)
            raise
        except OSError as error:
            left_s = deadline_s - (time.monotonic() - began)
            if left_s <= 0:
                health.gave_up(path)
            if not health.failed(path, error, asked_at, deadline_s):
                raise
        time.sleep(min(left_s, jitter.uniform(0, wait_s)))
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
