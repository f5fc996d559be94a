"""How far a long command is."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """A bar with the time left on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._first = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `data_pipelines.pack.writer.Progress`."""
        if stage != self._stage:
            self._stage, self._first, self._started = stage, done, time.monotonic()
            self._task = self._bar.add_task(stage, total=total, completed=done) if self._bar is not None else None
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = time.monotonic()
            per_s = (done - self._first) / (self._last_line - self._started)  # what was there before took no time
            left = f", about {(total - done) / per_s:.0f} s left" if per_s else ""
            print(f"{stage}: {done} of {total}{left}", file=sys.stderr, flush=True)
