"""Neighbours that are read at once: every sample once, in few reads, none of them larger than it may be."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.base import SampleError
from data_pipelines.spans import MAX_GAP_BYTES, MAX_RUN_BYTES, Span, runs
from data_pipelines.storage.local import LocalReader
from tests.data_pipelines.small_sets import damage, sixty_samples

sizes = st.lists(st.tuples(st.integers(0, 2 * MAX_GAP_BYTES), st.integers(1, MAX_RUN_BYTES)), max_size=40)


@given(sizes)
def test_runs_hold_every_span_once_and_keep_their_bounds(sizes):
    spans, end = [], 0
    for number, (gap, size) in enumerate(sizes):
        spans.append(Span(number, number, end + gap, end + gap + size))
        end += gap + size
    found = list(runs(spans))
    assert [span for run in found for span in run] == spans
    for run in found:
        assert len(run) == 1 or run[-1].stop - run[0].start <= MAX_RUN_BYTES
        assert all(after.start - before.stop <= MAX_GAP_BYTES for before, after in pairwise(run))
    for before, after in pairwise(found):  # none is cut without need
        gap, size = after[0].start - before[-1].stop, after[0].stop - before[0].start
        assert gap > MAX_GAP_BYTES or size > MAX_RUN_BYTES


def everywhere(dataset):
    return [(shard, member) for shard, size in enumerate(dataset.shard_sizes) for member in range(size)]


def test_many_samples_are_read_as_each_alone_in_one_read_a_shard(tmp_path, monkeypatch):
    dataset = sixty_samples(tmp_path)
    places = everywhere(dataset)
    alone = [dataset.read(*place) for place in places]
    reads = []
    plain = LocalReader.pread
    monkeypatch.setattr(LocalReader, "pread", lambda self, *where: reads.append(where) or plain(self, *where))
    asked = [places[number] for number in np.random.default_rng(0).permutation(60)] + [places[7]] * 2
    found = dict(dataset.read_all(asked))
    assert [found[row] for row in range(62)] == [alone[places.index(place)] for place in asked]
    assert len(reads) == 4


def test_of_neighbours_read_at_once_only_the_bad_ones_are_bad(tmp_path):
    dataset = sixty_samples(tmp_path)
    damage(dataset, "key20")
    offset, _ = dataset.index(2).span(10)
    os.truncate(dataset.place(2)[0], offset + 3)
    Path(dataset.place(3)[0]).unlink()
    places = everywhere(dataset)
    bad = {places[row]: sample.reason for row, sample in dataset.read_all(places) if isinstance(sample, SampleError)}
    assert set(bad) == {(1, 5), *((2, member) for member in range(10, 15)), *((3, member) for member in range(15))}
    assert "digest" in bad[1, 5] and f"truncated at byte {offset + 3}" in bad[2, 10]
    assert "unreadable: No such file" in bad[3, 0]
