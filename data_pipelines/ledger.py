"""The proof that a run read what its order says: a 128-bit sum of one hash a slot.

A sum knows no order, so ranks add theirs up in any way and every world size arrives at the same number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from data_pipelines.hashing import mix
from data_pipelines.order import Order

BITS = 128
LIMB_BITS = 16
NUM_LIMBS = BITS // LIMB_BITS
SLOTS_AT_ONCE = 2**16


class Indexed(Protocol):
    """What the ledger asks of a dataset."""

    def key(self, shard: int, member: int) -> str:
        """The sample's name."""
        ...

    def payload_digest(self, shard: int, member: int) -> int:
        """Digest of the sample's bytes, as the shard's index states it."""
        ...


def slot_hash(
    position: int | np.ndarray, key_hash: int | np.ndarray, payload_digest: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower half, uint64, of the 128-bit hash that says: this sample, with these bytes, stood at this slot.

    Args:
        position: slot number g.
        key_hash: `mix("key", key)`.
        payload_digest: 64-bit digest of the sample's bytes.
    """
    upper = mix("ledger upper", position, key_hash, payload_digest)
    lower = mix("ledger lower", position, key_hash, payload_digest)
    return np.asarray(upper), np.asarray(lower)


def total(hashes: tuple[np.ndarray, np.ndarray]) -> int:
    """Sum modulo 2**128 of hashes from `slot_hash`; 0 of none."""
    upper, lower = hashes
    return ((_exact_sum(upper) << 64) + _exact_sum(lower)) % 2**BITS


def _exact_sum(values: np.ndarray) -> int:
    # Halves of 32 bits: 2**32 of them fit into a uint64 without wrapping.
    high = int((values >> np.uint64(32)).sum(dtype=np.uint64))
    low = int((values & np.uint64(2**32 - 1)).sum(dtype=np.uint64))
    return (high << 32) + low


def to_limbs(total: int) -> np.ndarray:
    """(8,) float64, 16 bits each, lowest first. Sums over up to 2**37 ranks are exact, so they ride any all-reduce."""
    return np.array([(total >> (LIMB_BITS * limb)) & (2**LIMB_BITS - 1) for limb in range(NUM_LIMBS)], dtype=np.float64)


def from_limbs(sum_of_limbs: np.ndarray) -> int:
    """The 128-bit sum whose limbs, added up over ranks, are `sum_of_limbs`."""
    return sum(int(value) << (LIMB_BITS * limb) for limb, value in enumerate(sum_of_limbs)) % 2**BITS


def expected(
    order: Order,
    datasets: Sequence[Indexed],
    start: int,
    stop: int,
    replaced: Mapping[int, tuple[int, int, int]] | None = None,
) -> int:
    """The ledger that slots [start, stop) must have, recomputed from the order and the shards' indexes.

    Args:
        datasets: in the order of `order.streams`.
        replaced: (dataset, shard, member) that stood in at a slot, from the quarantine files.
    """
    replaced = replaced or {}
    ledger = 0
    for first in range(start, stop, SLOTS_AT_ONCE):
        slots = order.slots(np.arange(first, min(first + SLOTS_AT_ONCE, stop)))
        rows = zip(slots.dataset.tolist(), slots.shard.tolist(), slots.member.tolist(), strict=True)
        samples = [replaced.get(position, row) for position, row in zip(slots.positions.tolist(), rows, strict=True)]
        key_hash = [int(mix("key", datasets[d].key(shard, member))) for d, shard, member in samples]
        payload_digest = [datasets[d].payload_digest(shard, member) for d, shard, member in samples]
        words = np.array(key_hash, dtype=np.uint64), np.array(payload_digest, dtype=np.uint64)
        ledger += total(slot_hash(slots.positions, *words))
    return ledger % 2**BITS
