from __future__ import annotations

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import DataError
from data_pipelines.loader import finite_batches
from tests.data_pipelines.small_sets import (
    Reading,
    assert_equal,
    damage,
    sets_of,
    shard_sizes,
    sixty_samples,
)


@pytest.fixture
def packed(tmp_path):
    return sixty_samples(tmp_path)


finite = {"seed": 0, "batch_size": 7, "rank": 0, "world_size": 1, "workers": 0}


@settings(deadline=None, max_examples=25)
@given(shard_sizes, st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(1, 40))
def test_a_finite_stream_holds_every_sample_once(sizes, world_size, batch_size, max_samples):
    with sets_of([sizes]) as (dataset,):
        every = [dataset.key(shard, member) for shard, size in enumerate(sizes) for member in range(size)]
        ranks = [
            list(
                finite_batches(
                    dataset, Reading(), seed=0, batch_size=batch_size, rank=rank, world_size=world_size, workers=0,
                    max_samples=max_samples,
                )
            )
            for rank in range(world_size)
        ]  # fmt: skip
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    rows = sorted(
        (position, key)
        for batches in ranks
        for batch in batches
        for position, key, weight in zip(batch.positions.tolist(), batch.keys, batch.weight.tolist(), strict=True)
        if weight
    )
    keys = [key for _, key in rows]
    if max_samples is None or max_samples >= len(every):
        assert keys == every
    else:
        assert len(keys) == len(set(keys)) == max_samples
        assert keys == sorted(keys, key=every.index)


def test_a_finite_stream_is_the_same_with_workers(packed):
    plain = list(finite_batches(packed, Reading(), **finite))
    worked = list(finite_batches(packed, Reading(), **{**finite, "workers": 2}))
    for ours, theirs in zip(worked, plain, strict=True):
        assert_equal(ours, theirs)


def test_samples_that_are_left_out_are_spread_over_sorted_files(packed):
    keys = [key for batch in finite_batches(packed, Reading(), **finite, max_samples=7) for key in batch.keys]
    assert keys == ["key00", "key08", "key17", "key25", "key34", "key42", "key51"]


def test_an_unreadable_sample_of_a_finite_stream_weighs_nothing(packed):
    damage(packed, "key59")
    batches = list(finite_batches(packed, Reading(), **finite))
    counted = [key for batch in batches for key, weight in zip(batch.keys, batch.weight, strict=True) if weight]
    assert counted == [f"key{n:02d}" for n in range(59)]
    assert sum(batch.replaced for batch in batches) == 1


def test_a_finite_stream_that_is_mostly_unreadable_is_refused(packed):
    for n in range(11):
        damage(packed, f"key{n:02d}")
    with pytest.raises(DataError, match=r"worst shards: train-000000\.tar"):
        list(finite_batches(packed, Reading(), **finite))


def test_a_finite_stream_that_is_left_early_leaves_no_worker(packed):
    before = set(psutil.Process().children())
    batches = finite_batches(packed, Reading(), **{**finite, "workers": 2})
    next(batches)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_running() for worker in workers)
