from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import DataError, SampleError, UserError
from data_pipelines.hashing import mix
from data_pipelines.ledger import expected
from data_pipelines.order import micro_positions
from data_pipelines.quarantine import read_lines, replaced
from data_pipelines.views import Draw
from tests.data_pipelines.small_sets import (
    MODULUS,
    Acting,
    Reading,
    assert_equal,
    damage,
    loader_of,
    order_of,
    read,
    sets_of,
    shard_sizes,
    sixty_samples,
)


@pytest.fixture
def packed(tmp_path):
    return sixty_samples(tmp_path)


runs = st.fixed_dictionaries(
    {
        "all_shard_sizes": st.lists(shard_sizes, min_size=1, max_size=2),
        "seed": st.integers(0, 2**40),
        "world_size": st.sampled_from([1, 2, 4]),
        "accumulation": st.sampled_from([1, 2]),
        "global_batch": st.sampled_from([8, 16]),
        "shuffle": st.sampled_from(["window", "full", "none"]),
        "first_step": st.integers(0, 50),
    }
)


def check_against_the_order(run, workers):
    """Three steps of all ranks hold what the order says, with the draws of their slots, and prove it."""
    batch, accumulation, world_size = run["global_batch"], run["accumulation"], run["world_size"]
    start = run["first_step"] * batch
    with sets_of(run["all_shard_sizes"]) as datasets:
        order = order_of(datasets, run["seed"], shuffle=run["shuffle"])
        ledger = 0
        for rank in range(world_size):
            loader = loader_of(
                datasets, order, seed=run["seed"], global_batch=batch, accumulation=accumulation,
                rank=rank, world_size=world_size, start=start, workers=workers,
            )  # fmt: skip
            for number, found in enumerate(read(loader, 3 * accumulation)):
                step, micro = divmod(number, accumulation)
                wanted = micro_positions(start + step * batch, batch, accumulation, micro, rank, world_size)
                assert found.positions.tolist() == wanted.tolist()
                slots = order.slots(wanted)
                places = zip(slots.dataset.tolist(), slots.shard.tolist(), slots.member.tolist(), strict=True)
                for row, (dataset, shard, member) in enumerate(places):
                    key = datasets[dataset].key(shard, member)
                    assert found.keys[row] == key
                    assert bytes(found["text"][row].tolist()).split()[1:] == [b"%d" % shard, b"%d" % member]
                    noise = Draw(run["seed"], int(wanted[row])).rng("noise").random(3).astype(np.float32)
                    assert found["noise"][row].tolist() == noise.tolist()
                    assert int(found.key_hash[row]) % 2**64 == int(mix("key", key))
                assert found.weight.tolist() == [1.0] * len(wanted)
                ledger += found.ledger
        assert ledger % MODULUS == expected(order, datasets, start, start + 3 * batch)


@settings(deadline=None, max_examples=20)
@given(runs)
def test_every_step_holds_what_the_order_says(run):
    check_against_the_order(run, workers=0)


@settings(deadline=None, max_examples=5)
@given(runs, st.integers(1, 2))
def test_workers_are_no_part_of_the_order(run, workers):
    check_against_the_order({**run, "world_size": min(run["world_size"], 2)}, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_equals_the_tail_bit_by_bit(packed, workers):
    order = order_of([packed])
    whole = read(loader_of([packed], order, accumulation=2), 20)
    tail = read(loader_of([packed], order, accumulation=2, start=6 * 8, workers=workers, prefetch=1), 8)
    for ours, theirs in zip(tail, whole[12:], strict=True):
        assert_equal(ours, theirs)


def test_sizes_that_do_not_fit_are_refused(packed):
    with pytest.raises(UserError, match="num_lanes=4 is no multiple of world_size=3"):
        loader_of([packed], order_of([packed]), world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_by_the_orders_next_readable_one(packed, tmp_path, workers):
    order, folder = order_of([packed]), tmp_path / "quarantine"
    slots = order.slots(np.arange(40))
    place = 0, int(slots.shard[17]), int(slots.member[17])
    first, second, third = islice(order.substitutes(17), 3)
    damage(packed, packed.key(*place[1:]))
    damage(packed, packed.key(*first[1:]))
    ledger = 0
    loader = loader_of([packed], order, quarantine=folder, workers=workers)
    for batch in islice(loader, 5):
        ledger += batch.ledger
        found = {17, *replaced(folder)} & set(batch.positions.tolist())
        if 17 in found:
            row = batch.positions.tolist().index(17)
            assert batch.keys[row] == packed.key(*second[1:])
            assert batch["noise"][row].tolist() == Draw(0, 17).rng("noise").random(3).astype(np.float32).tolist()
        assert batch.replaced == len(set(batch.positions.tolist()) & set(replaced(folder)))  # already on disk
    loader.close()
    assert replaced(folder)[17] == second != third
    lines = [line for line in read_lines(folder) if line.g == 17]
    assert [line.key for line in lines] == [packed.key(*place[1:]), packed.key(*first[1:])]
    assert lines[0].shard == packed.manifest.shards[place[1]].file and "digest" in lines[0].reason
    assert ledger % MODULUS == expected(order, [packed], 0, 40, replaced(folder))
    assert ledger % MODULUS != expected(order, [packed], 0, 40)


def test_a_replay_takes_the_same_substitutes_at_any_world_size(packed, tmp_path):
    order, folder = order_of([packed]), tmp_path / "quarantine"
    bad = ["key03", "key22", "key41"]
    for key in bad:
        damage(packed, key)
    first = read(loader_of([packed], order, quarantine=folder), 10)
    assert sum(batch.replaced for batch in first) >= 3
    for key in bad:
        damage(packed, key, back=True)  # readable again: the lines count, not the day's weather
    again = read(loader_of([packed], order, quarantine=folder, attempt=2, workers=1), 10)
    for ours, theirs in zip(again, first, strict=True):
        assert_equal(ours, theirs)
    halves = [read(loader_of([packed], order, quarantine=folder, world_size=2, rank=r), 10) for r in (0, 1)]
    for whole, even, odd in zip(first, *halves, strict=True):
        assert {*even.keys, *odd.keys} == set(whole.keys)
        assert (even.ledger + odd.ledger) % MODULUS == whole.ledger


def test_a_substitute_that_turns_bad_is_replaced_by_the_next(packed, tmp_path):
    order, folder = order_of([packed]), tmp_path / "quarantine"
    slots = order.slots(np.arange(8))
    damage(packed, packed.key(int(slots.shard[3]), int(slots.member[3])))
    read(loader_of([packed], order, quarantine=folder), 1)
    served = replaced(folder)[3]
    damage(packed, packed.key(*served[1:]))
    once = read(loader_of([packed], order, quarantine=folder, attempt=2), 1)
    assert replaced(folder)[3] not in (served, (0, int(slots.shard[3]), int(slots.member[3])))
    assert_equal(read(loader_of([packed], order, quarantine=folder, attempt=3), 1)[0], once[0])


def test_replaced_rows_are_counted_with_their_batch(packed, tmp_path):
    for n in range(30, 45):
        damage(packed, f"key{n}")
    order = order_of([packed], num_lanes=1)
    batches = read(loader_of([packed], order, quarantine=tmp_path, global_batch=10), 6)
    assert sum(batch.replaced for batch in batches) == 15 == len({line.g for line in read_lines(tmp_path)})
    for batch in batches:
        assert batch.replaced == len({line.g for line in read_lines(tmp_path)} & set(batch.positions.tolist()))


def test_a_cut_without_a_readable_sample_ends_in_words(packed):
    for n in range(60):
        damage(packed, f"key{n:02d}")
    with pytest.raises(DataError, match=r"none of the 60 samples that may stand at slot \d can be read"):
        read(loader_of([packed], order_of([packed]), workers=1), 1)


def test_what_the_view_cannot_decode_is_quarantined_by_name(packed, tmp_path):
    batch = next(
        iter(loader_of([packed], order_of([packed]), Undecodable("key07"), global_batch=60, quarantine=tmp_path))
    )
    (line,) = read_lines(tmp_path)
    assert (line.key, line.shard, line.reason) == ("key07", "train-000000.tar", "image damaged: truncated")
    assert batch.replaced == 1 and "key07" not in batch.keys


@dataclass(frozen=True)
class Undecodable(Reading):
    key: str

    def sample(self, sample, draw):
        if sample.key == self.key:
            raise SampleError("image damaged: truncated")
        return super().sample(sample, draw)


class Growing(Reading):
    def sample(self, sample, draw):
        return {"text": np.zeros(draw.position % 2)}


@pytest.mark.parametrize("workers", [0, 1])
def test_fields_of_unequal_shapes_are_named(packed, workers):
    with pytest.raises(DataError, match="field 'text' differs within a batch"):
        read(loader_of([packed], order_of([packed]), Growing(), workers=workers), 1)


def fail():
    raise ZeroDivisionError("a bug of the view")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_keeps_its_own_name(packed, workers):
    with pytest.raises(ZeroDivisionError, match="a bug of the view"):
        read(loader_of([packed], order_of([packed]), Acting(3, fail), workers=workers), 1)


def test_a_closed_loader_starts_again_at_its_start(packed):
    loader = loader_of([packed], order_of([packed]), workers=1)
    first = list(islice(loader, 3))
    again = list(islice(loader, 3))
    loader.close()
    for ours, theirs in zip(again, first, strict=True):
        assert_equal(ours, theirs)


def test_starting_a_loader_moves_no_random_state_of_the_process(packed):
    before = torch.get_rng_state()
    loader = loader_of([packed], order_of([packed]), workers=1)
    read(loader, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.waited_s > 0
