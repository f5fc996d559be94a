"""Pairs of a micro batch in rows that they share: sentences are shorter than the longest of them, and padding is work.

The networks keep the pairs of a row apart as they keep documents (`pretrain.networks.documents`). What stands beside a
pair changes the last bits of its loss at most.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.batch import Batch
from data_pipelines.views.seq2seq import SIDES, row_size, without_padding
from data_pipelines.views.tokens import NOT_ASKED


def sharing_rows(batch: Batch, pad: int) -> Batch:
    """Pairs moved together into few rows, no longer than the longest pair needs.

    Args:
        batch: fields of `seq2seq.fields_of`, one pair a row.

    Returns:
        The fields in R <= B rows, int64, pairs numbered from 1 in each row; keys, positions and weights are still those
        of the B pairs. Labels of pairs without weight are not asked.
    """
    batch = without_padding(batch)
    batch = batch.with_fields(labels=batch["labels"].masked_fill((batch.weight == 0)[:, None], NOT_ASKED))
    room = np.array([row_size(batch[f"{side}_attention"]) for side in SIDES])
    lengths = np.stack([(batch[f"{side}_attention"] > 0).sum(dim=1).cpu().numpy() for side in SIDES], axis=1)
    rows = first_fit(lengths, room)
    fields = {}
    for column, (side, names) in enumerate(SIDES.items()):
        places, numbers = _layout(rows, lengths[:, column], int(room[column]), batch[side].shape[1])
        taken = batch.positions.new_tensor(places)  # (R, size)
        for name, filler in {**dict.fromkeys(names, pad), f"{side}_positions": 0}.items():
            found = batch[name].flatten()[taken]
            fields[name] = found.masked_fill(taken < 0, NOT_ASKED if name == "labels" else filler)
        fields[f"{side}_attention"] = batch.positions.new_tensor(numbers)
    return batch.with_fields(**fields)


def first_fit(lengths: np.ndarray, room: np.ndarray) -> list[list[int]]:
    """Which pairs share a row: from the longest on, each goes to the first row that has room for both its sides.

    Args:
        lengths: (B, 2) tokens of the sides.
        room: (2,) tokens of a row's sides, enough for any pair.
    """
    free = np.tile(room, (len(lengths), 1))
    rows: list[list[int]] = [[] for _ in lengths]
    for pair in np.argsort(-(lengths / room).max(axis=1), kind="stable"):
        row = int((free >= lengths[pair]).all(axis=1).argmax())
        rows[row].append(int(pair))
        free[row] -= lengths[pair]
    return [row for row in rows if row]


def _layout(rows: list[list[int]], lengths: np.ndarray, size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, size) places of tokens in the flattened (B, width) batch, -1: padding, and numbers of their pairs."""
    places, numbers = np.full((len(rows), size), -1), np.zeros((len(rows), size), np.int64)
    for row, pairs in enumerate(rows):
        place = 0
        for number, pair in enumerate(pairs, start=1):
            stop = place + int(lengths[pair])
            places[row, place:stop] = pair * width + np.arange(lengths[pair])
            numbers[row, place:stop] = number
            place = stop
    return places, numbers
