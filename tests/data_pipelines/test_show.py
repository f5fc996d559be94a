import io
import re

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.batch import Sample
from data_pipelines.contact_sheet import CELL, HIDDEN, seen, sheet, stored, to_png, to_terminal
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.show import contact_sheet, describe
from data_pipelines.views import Draw
from data_pipelines.views.clips import ClipPair, MaskedClip
from data_pipelines.views.image import Crop, MaskedImage
from data_pipelines.views.two_crops import Augmentation, TwoCrops

WHOLE = Crop(area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
RED = np.array([200, 30, 30])


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def red(size=16):
    return np.broadcast_to(RED.astype(np.uint8), (size, size, 3)).copy()


def clip(frames=10):
    """A clip that brightens, and a label map that is no frame."""
    fields = {f"{number:02d}.png": png(np.full((16, 16, 3), 10 * number, np.uint8)) for number in range(frames)}
    return Sample("clip", {**fields, "03.labels.png": png(np.zeros((16, 16), np.uint8))})


@pytest.fixture
def pictures():
    return [Sample("good", {"png": png(red())}), Sample("bad", {"png": b"none"}), Sample("text", {"txt": b"river"})]


def test_stored_pictures_are_shown_as_they_are(pictures):
    [[picture]] = stored(pictures)
    assert (picture == RED).all()


def test_clips_are_shown_by_frames_from_first_to_last():
    [strip] = stored([clip()])
    assert [int(frame[0, 0, 0]) for frame in strip] == [0, 10, 30, 40, 50, 60, 80, 90]


def test_a_mask_is_drawn_over_what_the_network_does_not_see(pictures):
    [[original, image, masked]] = seen(pictures, MaskedImage(image_size=16, patch_size=4, mask_ratio=0.75, crop=WHOLE))
    assert (original == RED).all() and np.abs(image - RED).max() <= 1
    hidden = (masked == HIDDEN).all(axis=2)
    assert hidden.mean() == 0.75
    assert np.array_equal(hidden, hidden[::4, ::4].repeat(4, axis=0).repeat(4, axis=1))  # whole patches
    assert (masked[~hidden] == image[~hidden]).all()


def test_both_views_are_shown_beside_the_image(pictures):
    plain = {"area": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": 0.0, "jitter": 0.0}
    view = TwoCrops(image_size=8, first=Augmentation(**plain, grey=0.0), second=Augmentation(**plain, grey=1.0))
    [[_, first, second]] = seen(pictures, view)
    assert first.shape == second.shape == (8, 8, 3)
    assert np.ptp(first.mean(axis=(0, 1))) > 100 > 2 > np.ptp(second.mean(axis=(0, 1)))


def test_a_clips_frames_are_shown_with_their_tubes():
    view = MaskedClip(image_size=16, patch_size=8, frames=4, stride=2, tubelet_size=2, mask_ratio=0.5, crop=WHOLE)
    original, frames, masked = seen([clip()], view)
    assert (len(original), len(frames), len(masked)) == (8, 4, 4)
    steps = np.diff([int(frame[0, 0, 0]) for frame in frames])
    assert np.abs(steps - 20).max() <= 1
    hidden = [(frame == HIDDEN).all(axis=2) for frame in masked]
    drawn = view.sample(clip(), Draw(0, 0))["mask"].reshape(2, 2, 2)  # moments, rows, columns
    for number, places in enumerate(hidden):
        assert np.array_equal(places, drawn[number // 2].repeat(8, axis=0).repeat(8, axis=1))


def test_a_pair_of_frames_stands_below_its_clip():
    original, pair = seen([clip()], ClipPair(image_size=8, distance=(2, 4)))
    assert (len(original), len(pair)) == (8, 2)


def test_single_pictures_fill_a_square_and_strips_stand_below_each_other():
    assert sheet([[red()]] * 5).shape == (2 * CELL, 3 * CELL, 3)
    page = sheet([[red()] * 3, [red()]])
    assert page.shape == (2 * CELL, 3 * CELL, 3)
    assert (page[CELL // 2, CELL // 2] == RED).all() and (page[CELL + CELL // 2, CELL + CELL // 2] == 255).all()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(page)))), page)


def test_a_page_is_drawn_in_the_terminal():
    lines = to_terminal(sheet([[red()]]), columns=12)
    assert len(lines) == 6
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) == 12 for line in lines)
    assert "38;2;200;30;30;48;2;200;30;30" in lines[3]


def test_a_set_is_described_and_drawn(tmp_path):
    samples = [("one", dict(clip().fields)), ("two", {"txt": b"river"})]
    split = Split("train", samples, 2, 0, lambda: (Facts(), ()))
    [dataset] = write_sets(tmp_path / "set", [split], PackConfig(), name="toy", source="test")
    first, second = describe(dataset, 2)
    assert re.fullmatch(r"'one': 10 frames \d+ B, 03\.labels\.png \d+ B", first)
    assert second == "'two': txt 5 B"
    assert contact_sheet(dataset, 2).shape == (CELL, 8 * CELL, 3)
    with pytest.raises(UserError, match="no images among its first 0 samples"):
        contact_sheet(dataset, 0)
