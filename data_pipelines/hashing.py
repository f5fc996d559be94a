"""One integer hash for order, noise and ledger: splitmix64 chained over named 64-bit words.

`data_pipelines.device.mix_torch` is its twin in int64 torch ops; golden vectors hold both to the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
FIRST_FACTOR = 0xBF58476D1CE4E5B9
SECOND_FACTOR = 0x94D049BB133111EB
MASK = 2**64 - 1

Scalar: TypeAlias = int | str | np.integer[Any]


def word(value: Scalar) -> np.uint64:
    """The 64-bit word of a name or a number.

    Args:
        value: integers wrap modulo 2**64, so that -1 and 2**64 - 1 are one word; strings are hashed by blake2b to
            8 bytes, read in little endian.
    """
    return np.uint64(_word(value))


def words(names: Sequence[str]) -> np.ndarray:
    """(n,) uint64, `word` of each name."""
    return np.frombuffer(b"".join(map(_digest, names)), dtype="<u8")


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _word(value: Scalar | np.ndarray) -> int:
    if isinstance(value, str):
        return int.from_bytes(_digest(value), "little")
    return int(value) & MASK


@overload
def mix(*words: Scalar) -> np.uint64: ...
@overload
def mix(*words: Scalar | np.ndarray) -> Any: ...
def mix(*words: Scalar | np.ndarray) -> np.uint64 | np.ndarray:
    """Hash a sequence of words: state = splitmix64(state ^ word) for each in turn, from state 0.

    Args:
        words: names, numbers and integer arrays; arrays broadcast, one of shape () is a number.

    Returns:
        uint64, of the arrays' common shape, or a scalar where no word is an array.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (output function and constants).

    >>> hex(mix(0))
    '0xe220a8397b1dcdaf'
    """
    state: int | np.ndarray = 0
    for value in words:
        if isinstance(value, np.ndarray) and value.ndim:
            state = _avalanche_array(_unsigned(value) ^ _as_uint64(state))
        elif isinstance(state, np.ndarray):
            state = _avalanche_array(state ^ np.uint64(_word(value)))
        else:
            state = _avalanche(state ^ _word(value))
    return np.uint64(state) if isinstance(state, int) else state


def _as_uint64(state: int | np.ndarray) -> np.ndarray | np.uint64:
    return np.uint64(state) if isinstance(state, int) else state


def _unsigned(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint64:
        return values
    if values.dtype.kind not in "iu":
        raise TypeError(f"only integers are hashed, got an array of {values.dtype}")
    return values.astype(np.int64, copy=False).view(np.uint64)


def _avalanche(state: int) -> int:
    """splitmix64 on a Python int: one draw is hashed per sample, where NumPy scalars are slow."""
    state = (state + GOLDEN) & MASK
    state = ((state ^ (state >> 30)) * FIRST_FACTOR) & MASK
    state = ((state ^ (state >> 27)) * SECOND_FACTOR) & MASK
    return state ^ (state >> 31)


def _avalanche_array(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(GOLDEN)
    state ^= state >> np.uint64(30)
    state *= np.uint64(FIRST_FACTOR)
    state ^= state >> np.uint64(27)
    state *= np.uint64(SECOND_FACTOR)
    state ^= state >> np.uint64(31)
    return state
