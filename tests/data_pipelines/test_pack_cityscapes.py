"""Cityscapes' layout: snippets of 30 frames, label ids to train ids, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.decode import decode_image
from data_pipelines.pack import pack
from data_pipelines.pack.cityscapes_labels import CLASSES, COLOURS, LABELS, to_train_ids
from data_pipelines.shards import Dataset

HEIGHT, WIDTH = 16, 32


def shade_of(frame):
    return 40 + 6 * (frame % 30)


def add_snippet(root, split, city, sequence, first, *, frames=range(30), label=19, ids=7):
    """A snippet whose frames grow brighter; its label map holds one id, and another in its upper left quarter."""
    for kind in ("leftImg8bit_sequence", "gtFine"):
        (root / kind / split / city).mkdir(parents=True, exist_ok=True)
    for frame in frames:
        pixels = np.full((HEIGHT, WIDTH, 3), shade_of(frame), np.uint8)
        name = f"{city}_{sequence:06d}_{first + frame:06d}_leftImg8bit.png"
        Image.fromarray(pixels).save(root / "leftImg8bit_sequence" / split / city / name)
    if label is not None:
        classes = np.full((HEIGHT, WIDTH), ids, np.uint8)
        classes[: HEIGHT // 2, : WIDTH // 2] = 26
        name = f"{city}_{sequence:06d}_{first + label:06d}_gtFine_labelIds.png"
        Image.fromarray(classes).save(root / "gtFine" / split / city / name)


@pytest.fixture
def layout(tmp_path):
    """Two cities as the archives have them: frames counted anew by sequence, or on through one long sequence."""
    root = tmp_path / "cityscapes"
    add_snippet(root, "train", "aachen", 0, 0)
    add_snippet(root, "train", "aachen", 1, 0)
    add_snippet(root, "train", "hamburg", 0, 23)
    add_snippet(root, "train", "hamburg", 0, 53)  # follows at once
    add_snippet(root, "val", "frankfurt", 0, 275)
    return root


def samples_of(dataset):
    places = [(shard, member) for shard, size in enumerate(dataset.shard_sizes) for member in range(int(size))]
    return {sample.key: sample for sample in (dataset.read(*place) for place in places)}


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_snippets_are_packed_whole_with_train_ids(layout, tmp_path):
    train, val = pack("cityscapes", str(layout), tmp_path / "out", {"height": None})
    assert set(samples_of(train)) == {
        "aachen_000000_000000", "aachen_000001_000000", "hamburg_000000_000023", "hamburg_000000_000053"
    }  # fmt: skip
    sample = samples_of(val)["frankfurt_000000_000275"]
    assert sorted(sample.fields) == sorted([*(f"{n:02d}.jpg" for n in range(30)), "19.labels.png"])
    for number in range(30):
        assert abs(int(decode_image(sample.fields[f"{number:02d}.jpg"])[3, 3, 0]) - shade_of(number)) <= 2
    labels = pixels_of(sample.fields["19.labels.png"])
    assert labels.shape == (HEIGHT, WIDTH) and labels[0, 0] == 13 and labels[-1, -1] == 0
    facts = val.manifest.facts
    assert (facts.frames, facts.frames_per_second, facts.label_frames) == (30, 17.0, (19,))
    assert facts.image_size == (HEIGHT, WIDTH) and facts.channels == 3
    assert val.classes == CLASSES and facts.colours == COLOURS and facts.moving_classes == tuple(range(11, 19))
    assert Dataset.open(str(tmp_path / "out" / "train")).num_samples == 4


def test_frames_and_labels_shrink_together(layout, tmp_path):
    train, _ = pack("cityscapes", str(layout), tmp_path / "out", {"height": 8})
    assert train.manifest.facts.image_size == (8, 16)
    sample = samples_of(train)["aachen_000000_000000"]
    labels = pixels_of(sample.fields["19.labels.png"])
    assert labels.shape == (8, 16) and (labels[:4, :8] == 13).all() and (labels[4:] == 0).all()


def test_frames_alone_need_no_labels(layout, tmp_path):
    for path in (layout / "gtFine").rglob("*.png"):
        path.unlink()
    train, _ = pack("cityscapes", str(layout), tmp_path / "out", {"labels": False})
    assert train.manifest.facts.label_frames == () and train.classes is None
    assert not any("labels" in name for name in train.fields)


def test_single_labelled_images_are_snippets_of_one_frame(layout, tmp_path):
    for path in list((layout / "leftImg8bit_sequence").rglob("*.png")):
        if int(path.name.split("_")[2]) not in {19, 42, 72, 294}:
            path.unlink()
    (layout / "leftImg8bit_sequence").rename(layout / "leftImg8bit")
    train, _ = pack("cityscapes", str(layout), tmp_path / "out")
    assert train.manifest.facts.frames == 1 and train.manifest.facts.label_frames == (0,)
    assert "hamburg_000000_000042" in samples_of(train)


def refused(layout, tmp_path, config=None):
    with pytest.raises(UserError) as caught:
        pack("cityscapes", str(layout), tmp_path / "out", config)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    return str(caught.value)


def test_missing_labels_are_named_and_counted(layout, tmp_path):
    (layout / "gtFine/train/hamburg/hamburg_000000_000042_gtFine_labelIds.png").unlink()
    words = refused(layout, tmp_path)
    assert "1 of 4 snippets have no label map for frame 19 of the others" in words and "hamburg_000000_000023" in words
    (layout / "gtFine").rename(layout / "elsewhere")
    assert "gtFine/train is missing; unpack gtFine_trainvaltest.zip beside the images" in refused(layout, tmp_path)


def test_snippets_that_lack_frames_are_named_and_counted(layout, tmp_path):
    (layout / "leftImg8bit_sequence/train/aachen/aachen_000001_000029_leftImg8bit.png").unlink()
    words = refused(layout, tmp_path)
    assert "1 of 4 snippets" in words and "aachen_000001_000000 (29 of 30)" in words


def test_ids_of_no_label_are_refused(layout, tmp_path):
    add_snippet(layout, "val", "frankfurt", 1, 0, ids=255)
    words = refused(layout, tmp_path)
    assert "frankfurt_000001_000019_gtFine_labelIds.png: label ids 255; want the ids 0 to 33" in words


def test_a_map_of_colours_is_no_label_map(layout, tmp_path):
    path = layout / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    assert "is no label map, it holds uint8 of shape (16, 32, 3)" in refused(layout, tmp_path)
    path.write_bytes(b"no picture")
    assert "no readable label map" in refused(layout, tmp_path)


def test_other_folders_are_refused(tmp_path):
    assert "holds no leftImg8bit_sequence/{train,val}/CITY" in refused(tmp_path / "nothing", tmp_path)


def test_the_table_is_that_of_cityscapesscripts():
    published = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    theirs = {(row.name, row.id, row.trainId if row.id >= 0 else 255, row.color) for row in published}
    assert {(label.name, label.id, label.train_id, label.colour) for label in LABELS} == theirs and len(LABELS) == 35
    ids = np.arange(34, dtype=np.uint8)[None]
    assert to_train_ids(ids).tolist() == [[row.trainId for row in published if row.id >= 0]]
