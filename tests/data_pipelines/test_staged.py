"""Views that change from stage to stage: in each, batches are those of a run that never knew another."""

from __future__ import annotations

import io
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import SampleError, UserError, parse
from data_pipelines.batch import Sample
from data_pipelines.loader import Loader
from data_pipelines.manifest import Facts
from data_pipelines.order import Order, Stream
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset
from data_pipelines.views import Draw
from data_pipelines.views.denoising import Denoising
from data_pipelines.views.image import MaskedImage
from data_pipelines.views.span_corruption import SpanCorruption
from data_pipelines.views.staged import Staged
from data_pipelines.views.tokens import BEGINS_WORD, MaskedTokens, PlainTokens
from tests.data_pipelines.packed_rows import FACTS, SPECIAL, npy, row_of

BATCH = 4
ROW = {"row_tokens": 6, "vocabulary_size": 20, "special_tokens": {"pad": 0, "mask": 1}}


def view_of(size: int) -> MaskedImage:
    return MaskedImage(image_size=size, patch_size=4, channels=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    def png(number: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)).save(file, "png")
        return file.getvalue()

    samples = [(f"k{number:02d}", {"png": png(number)}) for number in range(20)]
    split = Split("train", samples, len(samples), 0, lambda: (Facts(), ()))
    [dataset] = write_sets(tmp_path_factory.mktemp("images") / "a", [split], PackConfig(), name="toy", source="test")
    return dataset


@pytest.mark.parametrize("workers", [0, 1])
def test_in_each_stage_batches_are_those_of_its_own_view(images: Dataset, workers: int) -> None:
    order = Order(0, [Stream("toy", images.shard_sizes, BATCH)], BATCH)

    def batches(view):
        loader = Loader(
            [images], order, view, seed=0, global_batch=BATCH, accumulation=2, rank=0, world_size=2, start=0,
            workers=workers, prefetch=2, quarantine=None,
        )  # fmt: skip
        try:
            return [view.batch(batch) for batch in islice(loader, 10)]
        finally:
            loader.close()

    small, large = view_of(8), view_of(16)
    staged = batches(Staged([(0, small), (3 * BATCH, large)]))
    for number, (batch, alone) in enumerate(zip(staged, [*batches(small)[:6], *batches(large)[6:]], strict=True)):
        assert batch["image"].shape[-1] == (8 if number < 6 else 16)
        assert batch.positions.tolist() == alone.positions.tolist()
        assert all(batch[name].equal(alone[name]) for name in ("image", "mask"))


def row() -> Sample:
    fields = {"tokens": [5, 6, 7, 8, 9, 0], "segments": [0, 0, 1, 1, 1, 1], "marks": [BEGINS_WORD] * 5 + [0]}
    return Sample("k", {f"{name}.npy": npy(np.array(values)) for name, values in fields.items()})


def test_a_row_that_is_cut_short_begins_as_the_whole_one() -> None:
    whole, cut = PlainTokens(**ROW), PlainTokens(**ROW, max_tokens=4)
    long, short = whole.row(row()), cut.row(row())
    assert {name: values[:4].tolist() for name, values in long.items()} == {n: v.tolist() for n, v in short.items()}
    masked = MaskedTokens(**ROW, max_tokens=4, whole_word=True).sample(row(), Draw(0, 0))
    assert {name: values.shape for name, values in masked.items()} == dict.fromkeys(masked, (4,))


@pytest.mark.parametrize("view", [Denoising, SpanCorruption])
def test_pairs_are_made_of_the_beginning_of_a_row_alone(view: type[Denoising] | type[SpanCorruption]) -> None:
    sample = row_of([10, 20, 12])
    beginning = set(PlainTokens(**FACTS, max_tokens=16).row(sample)["tokens"].tolist())
    pair = view(**FACTS, max_tokens=16).sample(sample, Draw(0, 0))
    shown = {*pair["source"].tolist(), *pair["target"].tolist()}
    assert shown - set(SPECIAL.values()) <= beginning and len(shown) > 10


def test_a_cut_row_is_still_wanted_whole() -> None:
    with pytest.raises(SampleError, match="want 5 integers"):
        PlainTokens(**{**ROW, "row_tokens": 5}, max_tokens=4).row(row())
    with pytest.raises(UserError, match="max_tokens=7 is more than the rows' 6 tokens"):
        parse(PlainTokens, {**ROW, "max_tokens": 7}, "recipe")
