"""Files of tensors in the safetensors format, written as a stream with a digest of every tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import xxhash
from torch import Tensor

_NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLOCK = 1 << 24


def digest_of_bytes(data: bytes | memoryview) -> str:
    """32 hex digits (xxh3, 128 bit): finds damage, does not resist forgery."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_of_file(path: Path) -> str:
    """Digest of a file's bytes, read once from the front."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def write_tensors(path: Path, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> tuple[int, str]:
    """Write 1-D tensors and bring them to the disk.

    Args:
        metadata: goes into the header, beside "digests": JSON, digest by key.

    Returns:
        Size in bytes and digest of the file.

    Raises:
        OSError: the file system refused; what was written is still there.
    """
    arrays = [(key, tensor.dtype, as_bytes(tensor)) for key, tensor in tensors]
    digests = {key: digest_of_bytes(data) for key, _, data in arrays}
    header: dict[str, object] = {"__metadata__": {**metadata, "digests": json.dumps(digests)}}
    offset = 0
    for key, dtype, data in arrays:
        shape = [data.nbytes // dtype.itemsize]
        header[key] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    state = xxhash.xxh3_128()
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            file.write(data)
            state.update(data)

        put(len(text).to_bytes(8, "little"))
        put(text)
        _put_all(put, (data for _, _, data in arrays))
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), state.hexdigest()


def _put_all(put: Callable[[memoryview], None], arrays: Iterable[memoryview]) -> None:
    for data in arrays:
        for start in range(0, data.nbytes, _BLOCK):
            put(data[start : start + _BLOCK])


def as_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes, on the CPU; no copy where it lies there."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
