"""Pairs that share rows: each is there once and whole, no row is longer than the longest pair, little is padding."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batch import Batch
from data_pipelines.views.seq2seq import MULTIPLE, Pair, fields_of
from data_pipelines.views.sharing import first_fit, sharing_rows
from data_pipelines.views.tokens import NOT_ASKED

PAD, START, SIZE = 0, 1, 40
lengths_of_pairs = st.lists(st.tuples(st.integers(1, SIZE), st.integers(1, SIZE)), min_size=1, max_size=20)


def batch_of(lengths):
    """Pairs whose every token is another one."""
    fresh = iter(range(2, 10_000))
    pairs = [Pair(*(np.array([next(fresh) for _ in range(size)]) for size in both)) for both in lengths]
    rows = [fields_of([pair], START, PAD, SIZE, SIZE) for pair in pairs]
    fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    count = torch.arange(len(pairs))
    return pairs, Batch(fields, ("",) * len(pairs), count, (count % 3 != 2).float(), count)


def tokens_of(found, name, side, row, number):
    return found[name][row][found[f"{side}_attention"][row] == number].tolist()


@settings(deadline=None, max_examples=100)
@given(lengths_of_pairs)
def test_every_pair_is_there_once_and_whole(lengths):
    pairs, batch = batch_of(lengths)
    found = sharing_rows(batch, PAD)
    seen = []
    for row in range(len(found["source"])):
        for number in range(1, int(found["source_attention"][row].max()) + 1):
            source = tokens_of(found, "source", "source", row, number)
            place = next(place for place, pair in enumerate(pairs) if pair.source.tolist() == source)
            target = pairs[place].target.tolist()
            assert tokens_of(found, "target", "target", row, number) == [START, *target[:-1]]
            asked = target if batch.weight[place] else [NOT_ASKED] * len(target)
            assert tokens_of(found, "labels", "target", row, number) == asked
            for side in ("source", "target"):
                places = tokens_of(found, f"{side}_positions", side, row, number)
                assert places == list(range(len(places)))
            seen.append(place)
    assert sorted(seen) == list(range(len(pairs)))


@settings(deadline=None, max_examples=100)
@given(lengths_of_pairs)
def test_rows_are_padded_and_as_long_as_the_longest_pair_needs(lengths):
    _, batch = batch_of(lengths)
    found = sharing_rows(batch, PAD)
    for column, side in enumerate(("source", "target")):
        longest = max(both[column] for both in lengths)
        assert longest <= found[side].shape[1] < longest + MULTIPLE
        padding = found[f"{side}_attention"] == 0
        assert (found[side][padding] == PAD).all() and (found[f"{side}_positions"][padding] == 0).all()
    assert (found["labels"][found["target_attention"] == 0] == NOT_ASKED).all()
    assert {tensor.dtype for tensor in found.fields.values()} == {torch.int64}


def test_short_sentences_leave_little_padding():
    lengths = np.random.default_rng(0).poisson((12, 12), size=(128, 2)) + 3
    lengths[0] = 56
    rows = first_fit(lengths, np.array([56, 56]))
    assert len(rows) * 56 < 1.15 * lengths.sum(axis=0).max()
