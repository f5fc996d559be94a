"""Coverage-guided fuzzing of the tar reader and the index parser; `make atheris` installs what it needs.

    python -m tests.fuzz.readers tar|index [CORPUS] [libFuzzer's options, such as -max_total_time=60]

It ends with a traceback at the first input that breaks a promise: a tar is served exactly or its damage is told, and
an index is refused or leads nowhere outside its shard.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["data_pipelines"]):
    from data_pipelines.base import DataError
    from data_pipelines.index import Index
    from data_pipelines.indexer import split_name
    from tests.data_pipelines.test_fuzz import BLOCK, original, served, use, write

SHARD = Path(tempfile.mkdtemp(prefix="fuzz-")) / "a.tar"
MAX_BYTES = 16 * BLOCK
FORGED = ["offsets", "sizes", "starts", "key_starts", "field_ids", "key_bytes"]
WHOLE = served(SHARD, write(original(3, 300), tarfile.USTAR_FORMAT))[0]


def one_tar(data: bytes) -> None:
    """Serve what there is, and lose nothing that Python's own reader finds without a word."""
    index, _ = served(SHARD, data)
    if not index.header.damage:
        lost = plainly_read(data) - members_of(index)
        assert not lost, f"not served, not told: {lost}"


def members_of(index: Index) -> set[tuple[tuple[str, str], int]]:
    """(key, field) and size of all that is served; a key may stand in several places of a shard."""
    return {
        ((index.key(number), index.header.fields[index.field_ids[member]]), int(index.sizes[member]))
        for number in range(index.num_samples)
        for member in range(index.starts[number], index.starts[number + 1])
    }


def plainly_read(data: bytes) -> set[tuple[tuple[str, str], int]]:
    """The same of the regular files that `tarfile` finds; nothing where it gives up."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="backslashreplace") as tar:
            found = {(split_name(m.name), m.size) for m in tar if m.isreg() and not m.issparse()}
    except Exception:  # whatever that reader stumbles over is no fault of ours
        return set()
    return {(place, size) for place, size in found if place is not None}


def mutated_tar(data: bytes, max_size: int, seed: int) -> bytes:
    """A mutation whose headers mostly have a right checksum: else few would be read any further."""
    changed = bytearray(atheris.Mutate(data, min(max_size, MAX_BYTES)))
    if seed % 8:
        for start in range(0, len(changed) - BLOCK + 1, BLOCK):
            block = changed[start : start + BLOCK]
            if block[257:262] == b"ustar":
                total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
                changed[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(changed)


def one_index(data: bytes) -> None:
    """Any bytes; and a whole sidecar in which they change some numbers, by a forger who makes the digest right."""
    try:
        Index.from_bytes(data, "any")
    except DataError as error:
        assert "damaged" in str(error)
    draw = atheris.FuzzedDataProvider(data)
    arrays = {name: getattr(WHOLE, name).copy() for name in FORGED}
    for _ in range(draw.ConsumeIntInRange(0, 4)):
        name = draw.PickValueInList(FORGED)
        array = arrays[name][: draw.ConsumeIntInRange(1, len(arrays[name]))] if draw.ConsumeBool() else arrays[name]
        most = np.iinfo(array.dtype).max >> draw.ConsumeIntInRange(0, 62)
        array[draw.ConsumeIntInRange(0, len(array) - 1)] = draw.ConsumeIntInRange(
            -most if array.dtype == np.int64 else 0, most
        )
        arrays[name] = array
    use(replace(WHOLE, **arrays))


def seeds(folder: Path) -> None:
    """Whole tars of each format to begin with."""
    for number, format in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        samples = original(2, 300)
        if format != tarfile.USTAR_FORMAT:
            samples = {f"{'long/' * 30}{key}": fields for key, fields in samples.items()}
        (folder / f"seed-{number}").write_bytes(write(samples, format).rstrip(b"\0") + bytes(2 * BLOCK))


def main() -> None:
    target, *options = [sys.argv[1], f"-artifact_prefix={SHARD.parent}/", *sys.argv[2:]]
    if not any(not option.startswith("-") for option in options):
        options.append(tempfile.mkdtemp(prefix="corpus-"))
    if target == "tar":
        seeds(next(Path(option) for option in options if not option.startswith("-")))
        atheris.Setup([sys.argv[0], f"-max_len={MAX_BYTES}", *options], one_tar, custom_mutator=mutated_tar)
    else:
        atheris.Setup([sys.argv[0], *options], one_index)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
