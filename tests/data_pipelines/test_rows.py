"""Rows of a batch are written where they stay, and workers keep nothing of them."""

from __future__ import annotations

import io
from itertools import islice

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from data_pipelines.base import DataError
from data_pipelines.hashing import mix
from data_pipelines.loader import Loader
from data_pipelines.manifest import Facts
from data_pipelines.order import Order, Stream
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.rows import SHARED_BYTES, Row, RowBuffer
from data_pipelines.views.image import MaskedImage
from tests.data_pipelines.small_sets import Reading, loader_of, order_of, sixty_samples

EPOCHS, COUNT, BATCH = 10, 96, 8


def row_of(number, **fields):
    return Row({name: np.asarray(value) for name, value in fields.items()}, f"key{number}", number)


def test_rows_that_come_in_any_order_stand_in_their_places():
    buffer = RowBuffer(np.array([7, 3, 5]))
    for number in (2, 0, 1):
        buffer.put(number, row_of(number, value=np.full(4, number, np.uint8), label=number))
    rows = buffer.rows()
    assert rows.keys == ("key0", "key1", "key2")
    assert np.asarray(rows.fields["value"]).tolist() == [[0] * 4, [1] * 4, [2] * 4]
    assert np.asarray(rows.fields["label"]).tolist() == [0, 1, 2]
    assert rows.key_hash.view(np.uint64).tolist() == [int(mix("key", key)) for key in rows.keys]


@pytest.mark.parametrize("other", [{"value": np.zeros(5)}, {"value": np.zeros(4, np.float32)}, {"label": np.zeros(4)}])
def test_a_row_unlike_the_others_is_refused(other):
    buffer = RowBuffer(np.arange(2))
    buffer.put(0, row_of(0, value=np.zeros(4)))
    with pytest.raises(DataError, match="differ"):
        buffer.put(1, row_of(1, **other))


class Large(Reading):
    """Gives a large field, and says where a worker has written it."""

    def sample(self, sample, draw):
        return {"large": np.full(SHARED_BYTES, draw.position % 256, np.uint8), "small": np.zeros(2)}


def test_large_fields_come_out_of_a_worker_in_shared_memory(tmp_path):
    dataset = sixty_samples(tmp_path)
    loader = loader_of([dataset], order_of([dataset]), Large(), workers=1)
    batch = next(iter(loader))
    assert batch["large"].is_shared() and not batch["small"].is_shared()
    assert torch.equal(batch["large"][:, 0].long(), batch.positions % 256)
    loader.close()


@pytest.mark.slow
def test_the_memory_of_a_worker_stays_flat_over_epochs(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for number in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)).save(file, "JPEG")
        samples.append((f"key{number:03d}", {"jpg": file.getvalue()}))
    split = Split("train", samples, COUNT, 0, lambda: (Facts(), ()))
    [dataset] = write_sets(tmp_path / "set", [split], PackConfig(samples_per_shard=8), name="set", source="a test")
    order = Order(0, [Stream("set", dataset.shard_sizes, BATCH)], BATCH)
    loader = Loader(
        [dataset], order, MaskedImage(image_size=96, patch_size=16), seed=0, global_batch=BATCH, accumulation=1, rank=0,
        world_size=1, start=0, workers=1, prefetch=2, quarantine=None,
    )  # fmt: skip
    batches = iter(loader)
    [worker] = map(psutil.Process, loader.pids)
    most = []  # bytes, of each epoch
    for _ in range(EPOCHS):
        most.append(max(worker.memory_info().rss for _ in islice(batches, COUNT // BATCH)))
    loader.close()
    assert max(most[2:]) <= 1.05 * most[1], [round(bytes_ / 2**20) for bytes_ in most]
