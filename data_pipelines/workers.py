"""Processes that read ahead: torch's DataLoader as machinery, with ends in words instead of hangs.

Workers are no part of the order: tasks are dealt to them in turn and their results come back in the tasks' order.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from data_pipelines.base import DataError

Task = TypeVar("Task", contravariant=True)
Result = TypeVar("Result", covariant=True)

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers and terminals send to whole process groups; the parent answers for its workers."""
PR_SET_PDEATHSIG = 1
CLOSE_S = 5.0
"""Time that workers have to end by themselves."""

_ABANDONED: list[Any] = []


class Reader(Protocol[Task, Result]):
    """Does one task; runs in the workers."""

    def __getitem__(self, task: Task, /) -> Result:
        """The task's result; anything that pickles."""
        ...


class _WorkerDiedError(RuntimeError):
    """Raised out of a wait for a result that cannot come any more."""


class Workers(Generic[Task, Result]):
    """Results of `tasks` in their order, from `num_workers` processes, or from this one when it is 0.

    Args:
        prefetch: tasks that each worker is ahead.
        timeout_s: longest wait for one result.
        pin_memory: results are pinned by their own method `pin_memory`.
    """

    def __init__(
        self,
        reader: Reader[Task, Result],
        tasks: Iterable[Task],
        *,
        num_workers: int,
        prefetch: int,
        timeout_s: float,
        pin_memory: bool,
    ) -> None:
        import torch
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            reader,  # type: ignore[arg-type]  # any __getitem__ will do; torch asks for its own base class
            sampler=tasks,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            timeout=timeout_s if num_workers else 0,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            worker_init_fn=begin_worker,
            multiprocessing_context="fork" if num_workers else None,
            generator=torch.Generator(),  # else the start of a loader moves the process's own generator
        )
        self._timeout_s = timeout_s
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        with _signals_held_back():  # until a fresh worker ignores them, they would end it
            self._results: Iterator[Result] | None = iter(loader)
        if _in_main_thread():
            # torch's handler raises wherever the process happens to be, in a collective for instance; ours only here.
            signal.signal(signal.SIGCHLD, handler)
        self._processes = [child for child in multiprocessing.active_children() if child not in before]
        atexit.register(self._abandon)  # multiprocessing would wait at exit for workers that ignore its SIGTERM

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """The next result.

        Raises:
            DataError: a worker died, or nothing came in time.
        """
        if self._results is None:
            raise StopIteration
        try:
            with self._noticing_deaths():
                return next(self._results)
        except RuntimeError as error:
            words = self._death() or self._silence(error)
            if words is None:
                raise
            self._abandon()
            raise DataError(words) from None

    @contextmanager
    def _noticing_deaths(self) -> Iterator[None]:
        """While a result is awaited, a worker's death ends the wait at once."""
        if not _in_main_thread() or not self._processes:
            yield
            return
        previous = signal.getsignal(signal.SIGCHLD)

        def on_child_exit(number: int, frame: FrameType | None) -> None:
            if callable(previous):
                previous(number, frame)
            self._raise_if_dead()

        signal.signal(signal.SIGCHLD, on_child_exit)
        try:
            self._raise_if_dead()  # it may have died before the handler stood
            yield
        finally:
            signal.signal(signal.SIGCHLD, previous)

    def _raise_if_dead(self) -> None:
        if words := self._death():
            raise _WorkerDiedError(words)

    def _death(self) -> str | None:
        dead = [process for process in self._processes if process.exitcode]  # 0: all its tasks are done
        return f"data worker {dead[0].pid} {_cause(dead[0].exitcode)}" if dead else None

    def _silence(self, error: RuntimeError) -> str | None:
        if not str(error).startswith("DataLoader timed out"):
            return None
        return (
            f"the data workers (processes {', '.join(map(str, self.pids))}) gave nothing for {self._timeout_s:g} s; "
            f"the store hangs or is too slow"
        )

    def close(self) -> None:
        """End the workers, those that hang after a few seconds."""
        if self._results is None:
            return
        if self._processes:
            # torch waits for each worker in turn, and for locks that a killed one may hold
            ending = threading.Thread(target=self._results._shutdown_workers, daemon=True)  # type: ignore[attr-defined]
            ending.start()
            ending.join(CLOSE_S)
            if ending.is_alive():
                self._abandon()
        atexit.unregister(self._abandon)
        self._results, self._processes = None, []

    def _abandon(self) -> None:
        """Kill the workers and keep torch's side of them: its own clean-up may wait for a killed one for ever."""
        atexit.unregister(self._abandon)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        if self._processes:
            _ABANDONED.append(self._results)
        self._results, self._processes = None, []


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(result: Any) -> Any:
    return result


def begin_worker(_: int = 0) -> None:
    """A worker leaves signals to its parent, and does not outlive it."""
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS_SIGNALS)
    if sys.platform == "linux":
        # A worker that hangs in a read would outlive a parent that was killed.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != multiprocessing.parent_process().pid:  # type: ignore[union-attr]  # a worker has a parent
            os._exit(1)


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code > 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = {
        "SIGKILL": "; most often the machine was out of memory: lower data.workers or data.prefetch",
        "SIGBUS": "; most often /dev/shm is full: lower data.workers or data.prefetch, or enlarge it",
    }
    return f"was killed by {name}{hint.get(name, '')}"
