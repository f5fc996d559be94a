"""What one process has open of a dataset: indexes, readers, and samples that are on their way."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from data_pipelines.index import Index
from data_pipelines.storage import Reader

OPEN_INDEXES = 1024
OPEN_SHARDS = 512
IN_FLIGHT = 16
"""Samples asked of a remote store at once."""

Value = TypeVar("Value")
Sought = tuple[int, int]
"""(shard, member)."""


class Recent(Generic[Value]):
    """The last `size` values that were made, by shard; each is made once, however many threads ask."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[int, Value] = OrderedDict()
        self._making: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, shard: int, make: Callable[[int], Value]) -> Value:
        """The shard's value."""
        with self._lock:
            if shard in self._values:
                self._values.move_to_end(shard)
                return self._values[shard]
            making = self._making.setdefault(shard, threading.Lock())
        with making:  # not the other lock: opening a remote shard may take seconds
            if shard in self._values:
                return self._values[shard]
            try:
                value = make(shard)
            finally:
                with self._lock:
                    self._making.pop(shard, None)
            with self._lock:
                self._values[shard] = value
                while len(self._values) > self._size:
                    self._values.popitem(last=False)
        return value


class ReadAhead:
    """Reads of many samples that run side by side; the outcome of each, failure too, waits until it is taken."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._coming: dict[Sought, Future[bytes]] = {}

    def ask(self, places: Iterable[Sought], read: Callable[[int, int], bytes]) -> None:
        """Begin to read; what was asked for before and not taken is dropped."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="read ahead")
        self._coming = {place: self._pool.submit(read, *place) for place in places}

    def take(self, place: Sought) -> bytes | None:
        """The bytes once they are here, None where they were not asked for; raises what reading them raised."""
        coming = self._coming.pop(place, None)
        return None if coming is None else coming.result()


class Opened:
    """All of it; a forked or unpickled copy starts with nothing open."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.indexes: Recent[Index] = Recent(OPEN_INDEXES)
        self.readers: Recent[Reader] = Recent(OPEN_SHARDS)
        self.ahead = ReadAhead()

    def __reduce__(self) -> tuple[type[Opened], tuple[()]]:
        return Opened, ()
