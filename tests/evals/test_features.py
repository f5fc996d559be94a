"""Features: in file order, computed once, forgotten in time."""

from __future__ import annotations

import os

import pytest
import torch

from data_pipelines.views.image import PlainImage
from evals import features
from evals.features import Source, extract, forget_oldest
from tests.evals.judged_runs import SIDE, pack_blobs

VIEW = PlainImage(image_size=SIDE, channels=1)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def blobs(tmp_path):
    return pack_blobs(tmp_path / "set")


class Counted:
    """A source that counts how often it is opened."""

    def __init__(self) -> None:
        self.opened = 0

    def source(self, digest: str = "a", view: PlainImage = VIEW) -> Source:
        return Source(digest, view, self._open)

    def _open(self, device):
        self.opened += 1
        return lambda images: {"mean": images.mean(dim=(2, 3)), "flat": images.flatten(1)}


def test_rows_are_the_samples_in_file_order(blobs):
    table = extract(Counted().source(), blobs[0])
    assert table.kinds["flat"].shape == (120, SIDE * SIDE)
    sample = VIEW.sample(blobs[0].read(1, 3), draw=None)
    expected = (torch.tensor(sample["image"][..., 0]).float() / 255 - 0.5) / 0.5
    row = int(blobs[0].shard_sizes[0]) + 3
    torch.testing.assert_close(table.kinds["flat"][row], expected.flatten())
    assert table.labels[row] == int(sample["label"])


def test_features_are_computed_once(blobs):
    counted = Counted()
    first, again = extract(counted.source(), blobs[0]), extract(counted.source(), blobs[0])
    assert counted.opened == 1
    torch.testing.assert_close(again.kinds, first.kinds, rtol=0, atol=0)
    assert torch.equal(again.labels, first.labels)


def test_another_source_set_or_view_is_another_table(blobs):
    counted = Counted()
    extract(counted.source(), blobs[0])
    extract(counted.source("b"), blobs[0])
    extract(counted.source(), blobs[1])
    extract(counted.source(view=PlainImage(image_size=8, channels=1)), blobs[0])
    assert counted.opened == 4


def test_a_damaged_table_is_made_anew(blobs):
    counted = Counted()
    extract(counted.source(), blobs[0])
    (path,) = features.cache_folder("features").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert len(extract(counted.source(), blobs[0]).labels) == 120
    assert counted.opened == 2


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path):
    for age, name in enumerate("abcd"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    forget_oldest(tmp_path, 250)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "b"]
    forget_oldest(tmp_path, 0)
    assert [path.stem for path in tmp_path.iterdir()] == ["a"]
