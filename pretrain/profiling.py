"""A window of the torch profiler, and the memory's history when the accelerator runs out of it."""

from __future__ import annotations

import contextlib
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pretrain.session import Session

log = logging.getLogger("pretrain")


class Profiler:
    """Records steps START to STOP of rank 0 (`profile=START:STOP`) for a trace viewer."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._window = tuple(int(n) for n in session.recipe.profile.split(":")) if session.recipe.profile else None
        self._profile: Any = None

    def __enter__(self) -> Profiler:
        self.step()
        return self

    def step(self) -> None:
        """Begin or end the recording where the window says so."""
        if self._window is None or self._session.world.rank != 0:
            return
        first, last = self._window
        if self._profile is None and first <= self._session.progress.step < last:
            self._profile = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profile.start()
        elif self._profile is not None and self._session.progress.step >= last:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._write()
        if isinstance(error, torch.OutOfMemoryError):
            path = (
                self._session.run.logs(self._session.attempt_number) / f"memory-rank-{self._session.world.rank}.pickle"
            )
            with contextlib.suppress(OSError, RuntimeError):
                torch.cuda.memory._dump_snapshot(str(path))
                log.warning("out of memory; what was allocated: %s (pytorch.org/memory_viz shows it)", path)

    def _write(self) -> None:
        profile, self._profile, self._window = self._profile, None, None
        profile.stop()
        path = self._session.run.logs(self._session.attempt_number) / "profile.json"
        profile.export_chrome_trace(str(path))
        log.info("profile written to %s", path)
