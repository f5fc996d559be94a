"""A window of the torch profiler, and words and a picture of the memory when it runs out."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from data_pipelines.base import ThalwegError, UserError

if TYPE_CHECKING:
    from pretrain.session import Session

log = logging.getLogger("pretrain")


class OutOfMemory(ThalwegError):  # noqa: N818 - what everybody calls it
    """A rank asked for more memory than there is."""


class Profiler:
    """Records steps START to STOP of rank 0 (`profile=START:STOP`) for a trace viewer.

    Raises:
        UserError: the window is empty.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._window = _window(session.recipe.profile) if session.recipe.profile and session.world.rank == 0 else None
        self._profile: Any = None
        self._step: Any = None

    def __enter__(self) -> Profiler:
        if self._window is not None and self._session.world.device.type == "cuda":
            # A snapshot of memory then tells who allocated what; it costs some microseconds an allocation.
            torch.cuda.memory._record_memory_history("state", stacks="python")
        self.step()
        return self

    def step(self) -> None:
        """Begin or end the recording where the window says so."""
        if self._window is None:
            return
        first, last = self._window
        done = self._session.progress.step
        if self._profile is None and first <= done < last:
            self._profile = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profile.start()
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if self._profile is not None and done < last:
            self._step = torch.profiler.record_function(f"step {done + 1}")
            self._step.__enter__()
        elif self._profile is not None:
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._write()
        if isinstance(error, torch.OutOfMemoryError):
            self._picture_memory()

    def _write(self) -> None:
        profile, self._profile, self._window = self._profile, None, None
        profile.stop()
        path = self._session.run.logs(self._session.attempt_number) / "profile.json"
        profile.export_chrome_trace(str(path))
        log.info("profile written to %s", path)

    def _picture_memory(self) -> None:
        """What the allocator holds, for pytorch.org/memory_viz; with stacks where a window was asked for."""
        path = self._session.run.logs(self._session.attempt_number) / f"memory-rank-{self._session.world.rank}.pickle"
        with contextlib.suppress(OSError, RuntimeError):
            torch.cuda.memory._dump_snapshot(str(path))
            log.warning("out of memory; what was allocated: %s (pytorch.org/memory_viz shows it)", path)


@contextlib.contextmanager
def memory_in_words(rank: int) -> Iterator[None]:
    """Turn the allocators' errors into one line.

    Raises:
        OutOfMemory: torch or NumPy, on the accelerator or the CPU, could not get the memory it asked for.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        wanted = _wanted(error)
        if wanted is None:
            raise
        raise OutOfMemory(
            f"rank {rank}: out of memory{wanted}; raise train.accumulation (fewer samples at a time), set "
            "engine.checkpoint_activations=true, raise engine.zero_stage, or start more ranks"
        ) from error


def _wanted(error: Exception) -> str | None:
    """What was asked for, in words that may be empty; None when the error is another one.

    >>> _wanted(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."))
    ' (4.0 GiB at once)'
    """
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
        return None
    found = re.search(r"allocate ([\d.]+) (bytes|[KMGTP]iB)", str(error))
    if found is None:
        return ""
    amount, unit = float(found[1]), found[2]
    return f" ({amount / 2**30:.1f} GiB at once)" if unit == "bytes" else f" ({amount:g} {unit} at once)"


def _window(text: str) -> tuple[int, int]:
    first, last = (int(part) for part in text.split(":"))
    if first >= last:
        raise UserError(f"profile={text}: want START:STOP with START below STOP")
    return first, last
