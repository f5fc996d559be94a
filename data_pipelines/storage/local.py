"""Files of this machine."""

from __future__ import annotations

import os


class LocalReader:
    """A local file; `pread` shares no position, so threads and forks do not disturb each other."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def pread(self, offset: int, size: int) -> bytes:
        """See `Reader.pread`."""
        size = min(size, max(self.size - offset, 0))  # the system would set memory aside for what is not there
        data = os.pread(self.descriptor, size, offset)
        while len(data) < size:  # Linux reads at most 2 GiB a call
            more = os.pread(self.descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data
