"""One object of a remote store, read again and again until a deadline."""

from __future__ import annotations

from data_pipelines.storage.retry import persist
from data_pipelines.storage.stores import Head, store_of


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
        return persist(lambda left_s: self._store.head(self._path, left_s), self._store.health, self._deadline_s)

    def read(self, start: int, stop: int, tag: str) -> bytes:
        """Bytes [start, stop) of the content that `tag` names; after a break, from the byte where it came.

        Args:
            tag: "" takes any content.

        Raises:
            DataError: the object holds other content by now.
        """
        arrived = bytearray()

        def go_on(left_s: float) -> None:
            before = len(arrived)
            try:
                self._store.read(self._path, start + before, stop, tag, arrived, left_s)
            finally:
                if len(arrived) > before:
                    self._store.health.answered()

        persist(go_on, self._store.health, self._deadline_s)
        return bytes(arrived)

    def read_whole(self) -> bytes:
        """All of it."""
        head = self.head()
        return self.read(0, head.size, head.tag) if head.size else b""

    def exists(self) -> bool:
        """Whether it is an object, or a folder of some."""
        return persist(lambda left_s: self._store.exists(self._path, left_s), self._store.health, self._deadline_s)

    def names(self) -> list[str]:
        """Sorted names directly below it."""
        return persist(lambda left_s: self._store.names(self._path, left_s), self._store.health, self._deadline_s)

    def glob(self) -> list[str]:
        """Sorted addresses that match it."""
        return persist(lambda left_s: self._store.glob(self._path, left_s), self._store.health, self._deadline_s)


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
