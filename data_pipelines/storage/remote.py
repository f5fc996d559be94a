"""One object of a remote store, read again and again until a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from data_pipelines.storage.retry import persist
from data_pipelines.storage.stores import Head, store_of

Result = TypeVar("Result")


class Remote:
    """An address in a remote store.

    All methods raise FileNotFoundError and PermissionError at once, any other OSError after the deadline, and DataError
    where the store as a whole is out of reach.
    """

    def __init__(self, address: str, deadline_s: float) -> None:
        self.address, self._deadline_s = address, deadline_s
        self._store, self._path = store_of(address)

    def head(self) -> Head:
        """Size and entity tag."""
        return self._persist(self._store.head)

    def read(self, start: int, stop: int, tag: str) -> bytes:
        """Bytes [start, stop) of the content that `tag` names; after a break, from the byte where it came.

        Args:
            tag: "" takes any content.

        Raises:
            DataError: the object holds other content by now.
        """
        arrived = bytearray()

        def go_on(path: str, left_s: float) -> None:
            before = len(arrived)
            try:
                self._store.read(path, start + before, stop, tag, arrived, left_s)
            finally:
                if len(arrived) > before:
                    self._store.health.answered(path)

        self._persist(go_on)
        return bytes(arrived)

    def read_whole(self) -> bytes:
        """All of it."""
        head = self.head()
        return self.read(0, head.size, head.tag) if head.size else b""

    def exists(self) -> bool:
        """Whether it is an object, or a folder of some."""
        return self._persist(self._store.exists)

    def names(self) -> list[str]:
        """Sorted names directly below it."""
        return self._persist(self._store.names)

    def glob(self) -> list[str]:
        """Sorted addresses that match it."""
        return self._persist(self._store.glob)

    def write(self, content: bytes) -> None:
        """Put it there as a whole.

        Raises:
            UserError: the store only reads.
        """
        self._persist(lambda path, left_s: self._store.write(path, content, left_s))

    def _persist(self, ask: Callable[[str, float], Result]) -> Result:
        return persist(lambda left_s: ask(self._path, left_s), self._store.health, self._path, self._deadline_s)


class RemoteReader:
    """An object read by ranges, all of one content."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.address = remote.address
        self.size, self.tag = remote.head()

    def pread(self, offset: int, size: int) -> bytes:
        """See `Reader.pread`."""
        stop = min(offset + size, self.size)
        return self._remote.read(offset, stop, self.tag) if offset < stop else b""
