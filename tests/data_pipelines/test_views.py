from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.decode import EncodedImage, image_bytes
from data_pipelines.hashing import mix
from data_pipelines.views import Draw
from data_pipelines.views.image import Crop, MaskedImage, PlainImage, central_square, resize
from data_pipelines.views.two_crops import Augmentation, TwoCrops

MNIST = Augmentation(
    area=(0.5, 1), flip=0, rotation=20, shift=0.1, jitter=1, brightness=0, contrast=0.4, gamma=(0.6, 1.6), grey=0
)
BYOL = {"first": Augmentation(blur=1.0), "second": Augmentation(blur=0.1, solarize=0.2)}
VIEWS = {
    "plain": lambda channels: PlainImage(image_size=16, channels=channels),
    "masked": lambda channels: MaskedImage(image_size=16, channels=channels, patch_size=4),
    "masked in blocks": lambda channels: MaskedImage(image_size=16, channels=channels, patch_size=4, mask="block"),
    "cpu crops": lambda channels: TwoCrops(image_size=16, channels=channels, **BYOL),
    "device crops": lambda channels: TwoCrops(image_size=16, channels=channels, crop_on="device", first=MNIST),
}


def picture(height=24, width=20, channels=3, seed=0):
    """A smooth picture: noise would not survive a resize."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    small = Image.fromarray(coarse[..., 0] if channels == 1 else coarse)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).reshape(height, width, channels)


def sample_of(pixels, label=None):
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    fields = {"png": file.getvalue()} | ({} if label is None else {"cls": str(label).encode()})
    return Sample("a sample", fields, shard="a shard")


def batch_of(view, samples, seed=1, first=0):
    rows = [view.sample(sample, Draw(seed, first + g)) for g, sample in enumerate(samples)]
    count = len(rows)
    fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return view.batch(
        Batch(fields, tuple("k" * count), torch.arange(count), torch.ones(count), torch.zeros(count, dtype=torch.int64))
    )


def test_draws_are_those_of_philox_by_seed_purpose_slot_and_view():
    key = mix(3, "crop", 17, 1)
    np.testing.assert_array_equal(
        Draw(3, 17).rng("crop", 1).random(9), np.random.Generator(np.random.Philox(key=int(key))).random(9)
    )


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_slot_draws_the_same_again_and_another_slot_another(name, channels):
    view, sample = VIEWS[name](channels), sample_of(picture(channels=channels), 3)
    first, again, later, reseeded = (
        view.sample(sample, draw) for draw in (Draw(1, 7), Draw(1, 7), Draw(1, 8), Draw(2, 7))
    )
    for field, value in first.items():
        assert value.dtype in (np.uint8, np.bool_, np.float32, np.int64)
        np.testing.assert_array_equal(value, again[field])
    random = first.keys() - {"label", "image"} if name != "plain" else ()
    for field in random:
        assert (first[field] != later[field]).any()
        assert (first[field] != reseeded[field]).any()


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("name", VIEWS)
def test_batches_are_finite_normalised_and_labelled(name, channels):
    view = VIEWS[name](channels)
    batch = batch_of(view, [sample_of(picture(channels=channels, seed=g), g if g else None) for g in range(6)])
    assert batch["label"].tolist() == [-1, 1, 2, 3, 4, 5]
    images = [batch[field] for field in ("image", "view0", "view1") if field in batch.fields]
    assert len(images) == (2 if "crops" in name else 1)
    for image in images:
        assert image.shape == (6, channels, 16, 16) and image.dtype == torch.float32
        unit = image * torch.tensor(view.std)[:, None, None] + torch.tensor(view.mean)[:, None, None]
        assert unit.min() >= -1e-5 and unit.max() <= 1 + 1e-5
        assert unit.std() > 0.05


@pytest.mark.parametrize("name", ["cpu crops", "device crops"])
def test_the_two_views_of_an_image_differ(name):
    view = VIEWS[name](3).model_copy(update={"second": None})  # both from one distribution
    row = view.sample(sample_of(picture()), Draw(0, 0))
    crop = "crop" if name == "cpu crops" else "affine"
    assert (row[f"{crop}0"] != row[f"{crop}1"]).any()
    assert (row["photometric0"] != row["photometric1"]).any()
    batch = batch_of(view, [sample_of(picture(seed=g)) for g in range(4)])
    assert (batch["view0"] - batch["view1"]).abs().amax(dim=(1, 2, 3)).min() > 0.05
    assert set(batch.fields) == {"view0", "view1", "label"}


@pytest.mark.parametrize("shorter_side", [16, 20])
def test_plain_image_is_the_middle_of_the_pillow_resize(shorter_side):
    pixels = picture(40, 60)
    whole = np.asarray(Image.fromarray(pixels).resize((shorter_side * 3 // 2, shorter_side), Image.Resampling.BICUBIC))
    top, left = (whole.shape[0] - 16) // 2, (whole.shape[1] - 16) // 2
    middle = central_square(pixels, 16, shorter_side)
    np.testing.assert_array_equal(middle, whole[top : top + 16, left : left + 16])


def test_an_image_of_the_right_size_is_not_resampled():
    pixels = picture(16, 16)
    assert central_square(pixels, 16) is pixels


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_a_crop_is_a_rectangle_inside_the_image(height, width, seed):
    box = Crop(area=(0.01, 1), aspect=(0.2, 5)).box(height, width, np.random.default_rng(seed))
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height


def test_crops_have_the_areas_and_aspects_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([Crop(area=(0.2, 0.8)).box(300, 400, rng) for _ in range(1000)])
    widths, heights = (boxes[:, 2:] - boxes[:, :2]).T
    areas, aspects = widths * heights / 120_000, widths / heights
    assert 0.19 < areas.min() < 0.22 and 0.76 < areas.max() < 0.81
    assert 0.74 < aspects.min() < 0.77 and 1.3 < aspects.max() < 1.35
    assert boxes[:, 0].min() < 5 and boxes[:, 2].max() > 395


def test_the_crop_fits_where_no_draw_does():
    box = Crop(area=(1, 1), aspect=(1, 1)).box(10, 100, np.random.default_rng(0))
    assert box == (45, 0, 55, 10)


def test_flips_exchange_left_and_right_in_half_of_the_crops():
    pixels = picture(16, 16)
    whole = {"area": (1, 1), "aspect": (1, 1)}
    rng = np.random.default_rng(0)
    image = EncodedImage(image_bytes(sample_of(pixels)))
    crops = [Crop(**whole).decode(image, 16, rng) for _ in range(200)]
    flipped = [(crop == pixels[:, ::-1]).all() for crop in crops]
    assert all(flip or (crop == pixels).all() for flip, crop in zip(flipped, crops, strict=True))
    assert 70 < sum(flipped) < 130


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, (0, 0, 64, 64), 8, 8)
    assert np.abs(small.astype(int) - 127).max() <= 8  # skipping pixels would give 0 or 255


def test_masks_hide_the_same_number_of_patches_in_every_row():
    for name in ("masked", "masked in blocks"):
        mask = batch_of(VIEWS[name](3), [sample_of(picture())] * 10)["mask"]
        assert mask.dtype == torch.bool and mask.shape == (10, 16)
        assert mask.sum(dim=1).tolist() == [12] * 10
        assert len({tuple(row) for row in mask.tolist()}) > 1


def test_the_mnist_recipe_stays_within_its_ranges():
    matrices = np.array([MNIST.affine(Draw(0, g).rng("crop")) for g in range(2000)])
    scale = np.linalg.norm(matrices[:, :, :2], axis=1)  # (x, y)
    assert (np.linalg.det(matrices[:, :, :2]) > 0).all()  # no flip
    degrees = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert -20 <= degrees.min() < -19 and 19 < degrees.max() <= 20
    assert scale.max() <= 1 + 1e-6 and scale.min() > math.sqrt(0.5 * 3 / 4) - 1e-6
    assert (np.abs(matrices[:, :, 2]) <= 1 - scale + 0.2 + 1e-6).all()
    changes = np.array([MNIST.photometric(Draw(0, g).rng("photometric")) for g in range(2000)])
    brightness, contrast, gamma, _, _, sigma, solarized = changes.T
    assert (brightness == 1).all() and (sigma == 0).all() and (solarized == 0).all()
    assert 0.6 <= contrast.min() < 0.61 and 1.39 < contrast.max() <= 1.4
    assert 0.6 <= gamma.min() < 0.61 and 1.59 < gamma.max() <= 1.6


def test_the_asymmetric_recipe_has_its_probabilities():
    for view, (blur, solarize) in {"first": (1.0, 0.0), "second": (0.1, 0.2)}.items():
        changes = np.array([BYOL[view].photometric(Draw(0, g).rng("photometric")) for g in range(4000)])
        brightness, _, _, saturation, hue, sigma, solarized = changes.T
        assert abs((sigma > 0).mean() - blur) < 0.02
        assert sigma.max() <= 2
        assert abs(solarized.mean() - solarize) < 0.02
        assert abs((brightness != 1).mean() - 0.8) < 0.02
        assert abs((saturation == 0).mean() - 0.2) < 0.02
        assert np.abs(hue).max() <= 0.1


def test_a_device_crop_that_changes_nothing_is_the_image():
    still = Augmentation(area=(1, 1), aspect=(1, 1), flip=0, jitter=0, grey=0)
    pixels = picture(16, 16)
    view = TwoCrops(image_size=16, crop_on="device", first=still, second=still.model_copy(update={"flip": 1.0}))
    batch = batch_of(view, [sample_of(pixels)])
    plain = batch_of(PlainImage(image_size=16), [sample_of(pixels)])
    torch.testing.assert_close(batch["view0"], plain["image"], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["view1"], plain["image"].flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MaskedImage(image_size=30, patch_size=4), "patch_size=4 does not divide image_size=30"),
        (lambda: TwoCrops(image_size=16, first=Augmentation(rotation=5)), "crop_on: device"),
        (lambda: PlainImage(image_size=16, channels=1, mean=(0.5, 0.5), std=(1.0,)), "1 channels want as many"),
        (lambda: PlainImage(image_size=16, shorter_side=8), "holds no square"),
        (lambda: Crop(area=(0.5, 0.2)), "area must rise"),
        (lambda: Augmentation(gamma=(0.0, 1.0)), "gamma must be positive"),
    ],
)
def test_what_cannot_be_is_refused_in_words(build, words):
    with pytest.raises(ValidationError, match=words):
        build()


def test_a_damaged_image_is_a_sample_error():
    whole = sample_of(picture())
    with pytest.raises(SampleError):
        PlainImage(image_size=16).sample(Sample("k", {"png": whole.fields["png"][:60]}), Draw(0, 0))
    with pytest.raises(SampleError, match="no image"):
        PlainImage(image_size=16).sample(Sample("k", {"txt": b"words"}), Draw(0, 0))


def test_one_mean_stands_for_all_channels():
    view = PlainImage(image_size=8, channels=3, mean=(0.2,), std=(0.3,))
    assert view.mean == (0.2, 0.2, 0.2)
    assert view.std == (0.3, 0.3, 0.3)
    with pytest.raises(ValueError, match="3 channels want as many means"):
        PlainImage(image_size=8, channels=3, mean=(0.2, 0.1))
