"""Keyed permutations of [0, size) that need no table, however large the size."""

from __future__ import annotations

from math import isqrt

import numpy as np

from data_pipelines.hashing import Scalar, mix

SMALLEST_FEISTEL = 2**16  # below it, permutations drawn by eight half rounds are measurably uneven
HALF_ROUNDS = 8


class Permutation:
    """A permutation of [0, size), drawn by `key`.

    Sizes below 2**16 are sorted by hash; larger ones run a Feistel network on a square just large enough and walk
    along the cycle until they are back inside.

    Source: Black, Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking, generalised Feistel).
    """

    def __init__(self, size: int, *key: Scalar) -> None:
        self._size = size
        self._side = isqrt(size - 1) + 1  # the smallest square that holds the domain
        self._keys = [mix(*key, half_round) for half_round in range(HALF_ROUNDS)]
        self._table = (
            np.argsort(mix(*key, np.arange(size, dtype=np.int64)), kind="stable") if size < SMALLEST_FEISTEL else None
        )

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Images of `index`, int64 in [0, size), of any shape."""
        if self._table is not None:
            return self._table[index]
        flat = self._encipher(index.reshape(-1))
        outside = np.flatnonzero(flat >= self._size)
        while len(outside):
            flat[outside] = self._encipher(flat[outside])
            outside = outside[flat[outside] >= self._size]
        return flat.reshape(index.shape)

    def _encipher(self, index: np.ndarray) -> np.ndarray:
        left, right = np.divmod(index, self._side)
        for key in self._keys:
            left, right = right, (left + self._below_side(mix(key, right))) % self._side
        return left * self._side + right

    def _below_side(self, hashes: np.ndarray) -> np.ndarray:
        """Scale 64-bit hashes to [0, side) by their upper half: a product is cheaper than a remainder."""
        scaled = ((hashes >> np.uint64(32)) * np.uint64(self._side)) >> np.uint64(32)
        return scaled.astype(np.int64)
