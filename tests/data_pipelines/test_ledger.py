import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.hashing import mix
from data_pipelines.ledger import expected, from_limbs, slot_hash, to_limbs, total
from data_pipelines.order import Order, Stream, micro_positions


class Index:
    """Keys and digests of a dataset that exists in memory alone."""

    def __init__(self, name, damaged=None):
        self._name, self._damaged = name, damaged

    def key(self, shard, member):
        return f"{self._name}/{shard}/{member}"

    def payload_digest(self, shard, member):
        return int(mix("payload", self._name, shard, member)) ^ ((shard, member) == self._damaged)


@pytest.fixture
def order():
    return Order(3, [Stream("a", np.array([7, 0, 9]), 3), Stream("b", np.array([20]), 1)], 4, window=3)


DATASETS = [Index("a"), Index("b")]


def read(order, positions, datasets=DATASETS):
    """The ledger of a reader that walks over `positions`."""
    slots = order.slots(positions)
    rows = list(zip(slots.dataset.tolist(), slots.shard.tolist(), slots.member.tolist(), strict=True))
    keys = np.array([mix("key", datasets[d].key(shard, member)) for d, shard, member in rows]).view(np.int64)
    digests = np.array([datasets[d].payload_digest(shard, member) for d, shard, member in rows], dtype=np.uint64)
    return total(slot_hash(positions, keys, digests))


def test_ranks_add_up_to_what_the_order_expects_at_any_world_size(order):
    step = expected(order, DATASETS, 40, 80)
    for world_size in (1, 2, 4):
        limbs = np.zeros(8)
        for rank in range(world_size):
            mine = sum(read(order, micro_positions(40, 40, 2, micro, rank, world_size)) for micro in range(2))
            limbs += to_limbs(mine % 2**128)
        assert from_limbs(limbs) == step


def test_expected_of_a_range_is_the_sum_of_its_parts(order):
    whole = expected(order, DATASETS, 0, 100)
    assert (expected(order, DATASETS, 0, 37) + expected(order, DATASETS, 37, 100)) % 2**128 == whole
    assert expected(order, DATASETS, 5, 5) == 0


def test_a_substitute_is_part_of_what_is_expected(order):
    dataset, shard, member = next(order.substitutes(5))
    replaced = expected(order, DATASETS, 0, 8, {5: (dataset, shard, member)})
    others = read(order, np.array([0, 1, 2, 3, 4, 6, 7]))
    index = DATASETS[dataset]
    own = total(slot_hash(5, int(mix("key", index.key(shard, member))), index.payload_digest(shard, member)))
    assert replaced == (others + own) % 2**128
    assert replaced != expected(order, DATASETS, 0, 8)


def test_swapped_slots_and_changed_bytes_are_noticed(order):
    step = expected(order, DATASETS, 0, 16)
    first = order.slots(np.array([0]))
    damaged = (int(first.shard[0]), int(first.member[0]))
    datasets = [Index(name, damaged if number == first.dataset[0] else None) for number, name in enumerate("ab")]
    assert expected(order, datasets, 0, 16) != step
    slots = [(0, "x", 5), (1, "y", 6)]
    swapped = [(1, "x", 5), (0, "y", 6)]
    ledgers = [sum(total(slot_hash(g, int(mix("key", k)), d)) for g, k, d in case) for case in (slots, swapped)]
    assert ledgers[0] != ledgers[1]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=20), st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_sum_is_exact_and_knows_no_order(halves, rng: random.Random):
    shuffled = rng.sample(halves, len(halves))
    upper, lower = (np.array([pair[side] for pair in shuffled], dtype=np.uint64) for side in (0, 1))
    assert total((upper, lower)) == sum((high << 64) + low for high, low in halves) % 2**128


@given(st.integers(0, 2**128 - 1), st.integers(1, 4096))
@settings(max_examples=100, deadline=None)
def test_limbs_survive_a_float_sum_over_ranks(ledger, world_size):
    assert from_limbs(to_limbs(ledger) * world_size) == ledger * world_size % 2**128


def test_4096_ranks_of_full_limbs_do_not_round():
    full = 2**128 - 1
    limbs = np.zeros(8)
    for _ in range(4096):
        limbs += to_limbs(full)
    assert from_limbs(limbs) == full * 4096 % 2**128


def test_the_hash_of_a_slot_never_changes():
    upper, lower = slot_hash(5, 7, 9)
    assert (int(upper), int(lower)) == (0x4DDCC4BCDF2DB807, 0x4FC0D622F0361C3A)


@pytest.mark.parametrize("half", [0, 1])
def test_each_half_depends_on_slot_key_and_bytes(half):
    assert len({int(slot_hash(*words)[half]) for words in [(5, 7, 9), (6, 7, 9), (5, 8, 9), (5, 7, 8)]}) == 4
