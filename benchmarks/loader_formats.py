"""Writes samples in the peers' own formats; runs in their environment.

python benchmarks/loader_formats.py KIND FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHUNK_BYTES = 2**24


def stored(folder: Path) -> Iterator[bytes]:
    """The samples' bytes, as `loader.write_set` left them."""
    with (folder / "stored").open("rb") as file:
        for size in (folder / "sizes").read_text().split():
            yield file.read(int(size))


def main(kind: str, folder: Path) -> None:
    """All formats that hold the kind."""
    import streaming
    from litdata.streaming.writer import BinaryWriter

    samples = list(stored(folder))
    with streaming.MDSWriter(out=str(folder / "mds"), columns={"data": "bytes"}, size_limit=CHUNK_BYTES) as mds:
        for data in samples:
            mds.write({"data": data})
    writer = BinaryWriter(str(folder / "litdata"), chunk_bytes=CHUNK_BYTES)
    for number, data in enumerate(samples):
        writer[number] = data
    writer.done()
    writer.merge()
    if kind.startswith("tokens"):
        import datasets

        rows = [np.frombuffer(data, np.uint16).astype(np.int32) for data in samples]
        datasets.Dataset.from_dict({"tokens": rows}).save_to_disk(str(folder / "arrow"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
