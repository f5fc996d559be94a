"""Views of clips: which frames they take, and that all of them are seen alike."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from data_pipelines.views.clips import ClipPair, MaskedClip, frame_fields
from data_pipelines.views.image import Crop
from data_pipelines.views.two_crops import Augmentation, TwoCrops

STILL = Augmentation(area=(1, 1), aspect=(1, 1), flip=0, jitter=0, grey=0)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def clip_of(frames, height=16, width=16, picture=None):
    """A sample whose frame n has brightness 8 n, or `picture` plus n."""
    picture = np.zeros((height, width, 3), np.uint8) if picture is None else picture
    scale = 1 if picture.any() else 8
    fields = {f"{n:02d}.png": encoded(picture + np.uint8(scale * n)) for n in range(frames)}
    fields["03.labels.png"] = encoded(np.full((height, width), 200, np.uint8))
    return Sample("a clip", dict(reversed(fields.items())), shard="a shard")


def batch_of(view, rows):
    fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    count = len(rows)
    return view.batch(Batch(fields, ("k",) * count, torch.arange(count), torch.ones(count), torch.arange(count)))


def masked(**changes):
    settings = {"image_size": 16, "patch_size": 4, "frames": 4, "stride": 2, "tubelet_size": 2, "mask_ratio": 0.5}
    return MaskedClip(**{**settings, **changes})


def test_frames_are_found_in_the_order_of_time():
    names = frame_fields(Sample("k", {"10.jpg": b"", "9.jpg": b"", "9.labels.png": b"", "cls": b"", "100.png": b""}))
    assert names == ["9.jpg", "10.jpg", "100.png"]
    with pytest.raises(SampleError, match="no frames among fields"):
        frame_fields(Sample("k", {"jpg": b"", "3.labels.png": b""}))


def test_a_clip_takes_every_second_frame_from_anywhere():
    view, sample = masked(crop=Crop(area=(1, 1), aspect=(1, 1), flip=0)), clip_of(12)
    starts = set()
    for slot in range(60):
        brightness = view.sample(sample, Draw(0, slot))["clip"][:, 0, 0, 0] // 8
        assert brightness.tolist() == [brightness[0] + n for n in (0, 2, 4, 6)]
        starts.add(int(brightness[0]))
    assert starts == set(range(6))


def test_all_frames_of_a_clip_are_cropped_alike():
    picture = np.random.default_rng(0).integers(60, 180, (24, 40, 3)).astype(np.uint8)
    crops = []
    for slot in range(8):
        clip = masked(stride=1).sample(clip_of(4, picture=picture), Draw(0, slot))["clip"].astype(int)
        for number in range(1, 4):
            assert abs(clip[number] - clip[0] - number).max() <= 2  # rounded resampling
        crops.append(clip[0])
    assert (crops[0] != crops[1]).any()


def test_tubes_hide_the_same_places_at_every_moment():
    row = masked().sample(clip_of(12), Draw(0, 3))
    tubes = row["mask"].reshape(2, 16)
    assert (tubes[0] == tubes[1]).all() and tubes[0].sum() == 8
    assert (masked().sample(clip_of(12), Draw(0, 4))["mask"] != row["mask"]).any()


def test_a_batch_of_clips_is_normalised():
    view = masked(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), crop=Crop(area=(1, 1), aspect=(1, 1)), stride=1)
    batch = batch_of(view, [view.sample(clip_of(4), Draw(0, slot)) for slot in range(2)])
    assert batch["clip"].shape == (2, 4, 3, 16, 16) and batch["mask"].shape == (2, 32)
    for number in range(4):
        expected = torch.tensor((8 * number / 255 - 0.5) / 0.25)
        torch.testing.assert_close(batch["clip"][:, number], expected.expand(2, 3, 16, 16))


def test_a_short_clip_is_quarantined_with_words():
    with pytest.raises(SampleError, match="6 frames, a clip of 4 at stride 2 takes 7"):
        masked().sample(clip_of(6), Draw(0, 0))
    with pytest.raises(SampleError, match="2 frames, none of them 2 apart"):
        ClipPair(image_size=16, distance=(2, 3)).sample(clip_of(2), Draw(0, 0))


@pytest.mark.parametrize("crop_on", ["cpu", "device"])
def test_a_pair_is_two_frames_at_a_drawn_distance(crop_on):
    view = ClipPair(image_size=16, distance=(2, 5), crop_on=crop_on, first=STILL, mean=(0.0,), std=(1.0,))
    distances, first = set(), set()
    for slot in range(80):
        batch = batch_of(view, [view.sample(clip_of(9), Draw(0, slot))])
        frames = [round(float(batch[name].mean()) * 255 / 8) for name in ("view0", "view1")]
        distances.add(frames[1] - frames[0])
        first.add(min(frames))
    assert distances == {-5, -4, -3, -2, 2, 3, 4, 5} and first == set(range(7))


def test_distances_end_with_the_clip():
    view = ClipPair(image_size=16, distance=(1, 50), first=STILL)
    for slot in range(20):
        view.sample(clip_of(3), Draw(0, slot))


def test_each_view_of_a_pair_is_augmented_by_itself():
    picture = np.random.default_rng(0).integers(0, 200, (16, 16, 3)).astype(np.uint8)
    pair, crops = ClipPair(image_size=16, distance=(0, 0)), TwoCrops(image_size=16)
    still = Sample("k", {"00.png": encoded(picture)})
    drawn, expected = (view.sample(still, Draw(1, 5)) for view in (pair, crops))
    assert (drawn["crop0"] != drawn["crop1"]).any()
    for name in expected:  # one frame twice is what two crops of an image are
        np.testing.assert_array_equal(drawn[name], expected[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masked(patch_size=5), "patch_size=5 does not divide"),
        (lambda: masked(frames=5), "tubelet_size=2 does not divide frames=5"),
        (lambda: ClipPair(image_size=16, distance=(3, 2)), "distance must be at least 0 and rise"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValidationError, match=message):
        make()
