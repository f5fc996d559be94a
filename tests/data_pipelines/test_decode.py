import io
import json
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from data_pipelines.base import SampleError
from data_pipelines.batch import Sample
from data_pipelines.decode import decode_array, decode_image, decode_label, image_bytes, image_facts

RED = (220, 30, 20)


def card():
    """(48, 64, 3): grey ramp with a red block top-left, so that every wrong turn shows."""
    pixels = np.repeat(np.linspace(60, 200, 64).astype(np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    pixels[:12, :20] = RED
    return pixels


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def is_upright(pixels):
    block = pixels[2:10, 2:18].reshape(-1, 3).mean(0)
    return pixels.shape == (48, 64, 3) and np.abs(block - RED).max() < 25 and pixels[40, 60].std() < 12


def stored_as(orientation):
    """What a camera stores so that `orientation` brings `card()` upright."""
    transposed = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    flips = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", **transposed}
    image = Image.fromarray(card())
    return image.transpose(Image.Transpose[flips[orientation]]) if orientation in flips else image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored_as(orientation), format, exif=exif, **({"quality": 95} if format in {"JPEG", "WEBP"} else {}))
    assert is_upright(decode_image(data))
    assert image_facts(data) == (48, 64, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "YCbCr"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM"])
def test_every_colour_mode_becomes_rgb(mode, format):
    try:
        data = encoded(Image.fromarray(card()).convert(mode), format, **({"quality": 95} if format == "JPEG" else {}))
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{format} does not hold {mode}")
    assert is_upright(decode_image(data))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    wide = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    pixels = decode_image(encoded(Image.fromarray(wide), format), 1)
    assert np.abs(pixels[..., 0].astype(float) - wide / 257).max() <= 0.5
    assert decode_image(encoded(Image.fromarray(wide), format)).shape == (48, 64, 3)


def test_grey_stays_grey_and_widens_on_request():
    data = encoded(Image.fromarray(card()).convert("L"), "JPEG")
    grey = decode_image(data, 1)
    assert grey.shape == (48, 64, 1)
    assert (decode_image(data) == grey).all()
    assert image_facts(data) == (48, 64, 1)


def test_first_frame_of_an_animation_is_taken():
    frames = [Image.fromarray(card()), Image.new("RGB", (64, 48), "blue")]
    assert is_upright(decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))


def test_fast_jpeg_path_agrees_with_pillow():
    data = encoded(Image.fromarray(card()), "JPEG", quality=90)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_image(data).astype(int) - pillow).max() <= 2


def bomb():
    """A PNG whose header promises 30,000 x 30,000 pixels."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_bombs_are_refused_before_decoding():
    with pytest.raises(SampleError, match=r"too large|more than"):
        decode_image(bomb())
    with pytest.raises(SampleError, match="more than 100 in all"):
        decode_image(encoded(Image.fromarray(card()), "JPEG"), max_pixels=100)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_says_so(data):
    with pytest.raises(SampleError, match="no image"):
        decode_image(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]), st.data())
def test_damaged_bytes_decode_or_raise_sample_error(format, data):
    raw = bytearray(encoded(Image.fromarray(card()), format))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        pixels = decode_image(bytes(raw), max_pixels=2**20)
    except SampleError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def test_labels():
    assert decode_label(Sample("a", {"cls": b"7"})) == 7
    assert decode_label(Sample("a", {"cls": b" 12\n"})) == 12
    assert decode_label(Sample("a", {"jpg": b""})) is None
    for text in (b"frog", b"-1", b"", b"1.5", b"\xff"):
        with pytest.raises(SampleError, match="no class number"):
            decode_label(Sample("a", {"cls": text}))


def test_sample_without_image_says_what_it_has():
    with pytest.raises(SampleError, match="no image among fields"):
        image_bytes(Sample("k", {"txt": b""}))
    assert image_bytes(Sample("k", {"cls": b"1", "left.png": b"p"})) == b"p"


def test_odd_images_have_the_outcome_that_is_expected(shared_data):
    cases = json.loads((shared_data / "odd" / "odd-images.json").read_text())["images"]
    with tarfile.open(shared_data / "odd" / "odd-images.tar") as tar:
        files = {member.name.rsplit("/", 1)[-1]: tar.extractfile(member).read() for member in tar if member.isfile()}
    assert len(cases) == len(files) == 37
    for case in cases:
        data = files[case["name"]]
        if case["outcome"] == "damaged":
            with pytest.raises(SampleError):
                decode_image(data)
            continue
        width, height = case.get("size_after_exif", case["size"])
        pixels = decode_image(data)
        assert pixels.shape == (height, width, 3), case["name"]
        assert image_facts(data)[:2] == (height, width), case["name"]
        assert decode_image(data, 1).shape == (height, width, 1), case["name"]
        if (width, height) == (64, 48):
            assert pixels.std() > 20, case["name"]  # neither blank nor clipped to white
            red = pixels[3:9, 4:16].reshape(-1, 3).mean(0)
            grey = case["mode"] in {"L", "LA", "1", "I;16"}
            assert grey or (red[0] > red[1] + 60 and red[0] > red[2] + 60), case["name"]


@given(
    array=hnp.arrays(
        st.sampled_from([np.dtype(kind) for kind in ("u1", "<i4", ">i8", "<f4", "?")]), hnp.array_shapes(min_side=0)
    ),
    order=st.sampled_from("CF"),
)
def test_arrays_come_back_as_numpy_wrote_them(array, order):
    file = io.BytesIO()
    np.save(file, np.asarray(array, order=order))
    back = decode_array(file.getvalue())
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_arrays_decode_or_raise_sample_error(data):
    file = io.BytesIO()
    np.save(file, np.arange(20, dtype=np.uint16))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_array(bytes(content)).nbytes <= len(content)
    except SampleError as error:
        assert "array damaged" in error.reason


@pytest.mark.parametrize("make", [lambda f: np.savez(f, a=np.arange(3)), lambda f: np.save(f, np.array([{}]))])
def test_archives_and_objects_are_no_arrays(make):
    file = io.BytesIO()
    make(file)
    with pytest.raises(SampleError, match="array damaged"):
        decode_array(file.getvalue())
