"""Random crops as they are decoded for speed, held to Pillow's decoder and its antialiased bicubic resampling."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.decode import EncodedImage
from data_pipelines.views.image import LEAST_OVERSIZE, Box, Crop, Window, decode_windows, stretch

SIZE = 96
MOST = 2.0
"""Mean absolute difference, of 255, that training on published recipes does not notice."""
KINDS = {
    "enlarged": Crop(area=(0.01, 0.04)),
    "about as large": Crop(area=(0.05, 0.08)),
    "usual": Crop(area=(0.2, 1.0)),
    "nearly whole": Crop(area=(0.95, 1.0)),
    "narrow": Crop(area=(0.1, 0.3), aspect=(0.3, 0.4)),
}


def jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def made(height=375, width=500, seed=0):
    """As photos are: detail of every size, the finest the weakest, and colours that change slowly."""
    rng = np.random.default_rng(seed)

    def noise(level, channels):
        coarse = rng.integers(0, 256, (max(height >> level, 1), max(width >> level, 1), 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(fine)[..., :channels] * 2.0**level

    total = sum(noise(level, 1) for level in range(5)) + 0.5 * noise(5, 3)
    return np.clip(128 + 60 * (total - total.mean()) / total.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made_images():
    return [jpeg(made(seed=seed)) for seed in range(4)] + [jpeg(made(500, 375, 4), subsampling=0)]


@pytest.fixture(scope="module")
def photos(shared_data):
    with tarfile.open(shared_data / "photos" / "photos-120.tar") as tar:
        return [tar.extractfile(member).read() for member in tar if member.isfile()][:40]


def by_pillow(data, window, size):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=window.box)
    return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.flip else crop).astype(int)


def differences(images, crop, size=SIZE):
    rng = np.random.default_rng(0)
    found = []
    for data in images:
        image = EncodedImage(data)
        window = crop.draw(image.height, image.width, size, rng)
        [ours] = decode_windows(image, [window], size)
        assert ours.shape == (size, size, 3) and ours.dtype == np.uint8
        found.append(np.abs(ours - by_pillow(data, window, size)).mean())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["made_images", "photos"])
def test_crops_are_those_of_pillow(source, kind, request):
    found = differences(request.getfixturevalue(source), KINDS[kind])
    assert np.mean(found) < MOST / 2 and max(found) < MOST


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("source", ["made_images", "photos"])
def test_crops_of_large_photos_are_those_of_pillow_though_decoded_smaller(source, factor, request):
    size = int(0.9 * 375 / factor / LEAST_OVERSIZE)  # as much smaller as is allowed
    found = differences(request.getfixturevalue(source), Crop(area=(0.95, 1.0)), size)
    assert np.mean(found) < MOST / 2 and max(found) < MOST


def test_a_large_photo_is_decoded_no_larger_than_its_crops_need():
    image = EncodedImage(jpeg(made(640, 800)))
    for size, boxes, factor in (
        (160, [(0, 0, 800, 640)], 2),
        (80, [(0, 0, 800, 640)], 4),
        (161, [(0, 0, 800, 640)], 1),
        (80, [(0, 0, 800, 640), (100, 100, 260, 260)], 1),
    ):
        windows = [Window.around(Box(*box), False, 640, 800, size) for box in boxes]
        pixels, shrunk = image.pixels(min(window.shrink for window in windows))
        assert shrunk == factor and pixels.shape == (640 // factor, 800 // factor, 3)


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.integers(0, 99))
def test_a_window_lies_in_the_picture_that_is_decoded_for_it(height, width, size, seed):
    box = Crop().box(height, width, np.random.default_rng(seed))
    window = Window.around(box, False, height, width, size)
    left, top, right, bottom = window.box
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert not any(edge % window.shrink for edge in window.box)
    assert max(abs(ours - drawn) for ours, drawn in zip(window.box, box, strict=True)) < max(window.shrink, 1)
    assert window.shrink == 1 or min(right - left, bottom - top) / window.shrink > 1.9 * size - 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_of_a_turned_photo_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = made(96, 128)
    image = EncodedImage(jpeg(stored, exif=exif))
    assert (image.height, image.width) == ((128, 96) if orientation >= 5 else (96, 128))
    assert image.pixels()[0].shape == (image.height, image.width, 3)
    turn = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
        8: "ROTATE_90",
    }  # fmt: skip
    upright = Image.open(io.BytesIO(jpeg(stored)))
    upright = upright.transpose(Image.Transpose[turn[orientation]]) if orientation > 1 else upright
    assert np.abs(image.pixels()[0].astype(int) - np.asarray(upright)).mean() < 4


@pytest.mark.parametrize("shape", [(40, 60, 3), (16, 16, 3), (7, 30, 1)])
def test_stretching_is_pillows_resampling(shape):
    pixels = made(40, 60)[: shape[0], : shape[1], : shape[2]]
    picture = Image.fromarray(pixels[..., 0] if shape[2] == 1 else np.ascontiguousarray(pixels))
    wanted = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)).reshape(16, 16, -1).astype(int)
    assert np.abs(stretch(pixels, 16, 16) - wanted).max() <= 2
    assert np.array_equal(stretch(pixels, 16, 16, flip=True), stretch(pixels, 16, 16)[:, ::-1])
