"""Bytes of a field to arrays: images of every usual kind, labels. By content, never by name."""

from __future__ import annotations

import io
from functools import lru_cache
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.base import SampleError
from data_pipelines.batch import Sample

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
MAX_PIXELS = 2**26
"""Larger images are refused before decoding: 201 MB as RGB."""
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")  # none that starts another program, as EPS does
_ORIENTATION = 0x0112
_NPY = b"\x93NUMPY\x01\x00"
"""How array files of format 1.0 begin."""
_EXIF_WITHIN = 1 << 16

for _plugin in ("Tiff", "WebP"):
    import_module(f"PIL.{_plugin}ImagePlugin")  # Pillow would search all its plugins for these at first use


def image_field(fields: Any) -> str | None:
    """The first of `fields` that holds an image, e.g. "jpg"; None where there is none."""
    return next((name for name in fields if name.rsplit(".", 1)[-1] in IMAGE_FIELDS), None)


def image_bytes(sample: Sample) -> bytes:
    """The encoded image of a sample.

    Raises:
        SampleError: it has no image field.
    """
    name = image_field(sample.fields)
    if name is None:
        raise SampleError(f"no image among fields {sorted(sample.fields)}", key=sample.key, shard=sample.shard)
    return sample.fields[name]


def decode_image(data: bytes, channels: int = 3, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image upright.

    Grey, palette, CMYK and 16-bit images are converted with their values scaled; alpha is dropped as
    torchvision and webdataset do, so that published numbers stay comparable; of an animation the
    first frame is taken; EXIF orientation is applied.

    Args:
        channels: 1 (luma) or 3 (RGB).
        max_pixels: of larger images only the header is read. Pillow refuses those beyond 2**27 in any case.

    Returns:
        (H, W, channels) uint8.

    Raises:
        SampleError: damaged, no image, or too large.
        ValueError: other channels.
    """
    if channels not in {1, 3}:
        raise ValueError(f"channels={channels}: want 1 or 3")
    jpeg = _jpeg_of(data, max_pixels)
    pixels = _decode_jpeg(data, channels) if jpeg else None
    if jpeg and pixels is not None:
        return _turn_upright(pixels, jpeg.orientation)
    with _open(data, max_pixels) as image:
        try:
            image.load()
            pixels = _to_array(image, channels)
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception as error:  # Pillow's decoders raise whatever hostile bytes lead them to
            raise SampleError(f"image damaged: {_words(error)}") from None
    return _turn_upright(pixels, orientation)


class EncodedImage:
    """An image whose size is known and whose pixels are still encoded: a crop is drawn first, then decoded for.

    Pixels are those of `decode_image` but for the colours of a JPEG, which are doubled instead of interpolated: half a
    level of 255 on average, for a tenth less time.

    Attributes:
        height: once upright.
        width: likewise.
    """

    def __init__(self, data: bytes, channels: int = 3) -> None:
        """Read the header; raises what `decode_image` raises."""
        self._data, self._channels = data, channels
        content: _Jpeg | np.ndarray = _jpeg_of(data, MAX_PIXELS) or decode_image(data, channels)
        self._content = content
        self.height, self.width = content.upright_size if isinstance(content, _Jpeg) else content.shape[:2]

    def pixels(self, shrink: int = 1) -> tuple[np.ndarray, int]:
        """Decode.

        Args:
            shrink: 1, 2, 4 or 8; how much smaller the picture may come. The inverse transform of a JPEG then costs
                less than the full one.

        Returns:
            (H, W, channels) uint8, and how much smaller it came: by `shrink`, sides rounded up, or not at all.

        Raises:
            SampleError: damaged.
        """
        if not isinstance(self._content, _Jpeg):
            return self._content, 1
        height, width = self._content.size
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink), "min_factor": shrink}
        pixels = _decode_jpeg(self._data, self._channels, fastupsample=True, **least)
        if pixels is None:
            return decode_image(self._data, self._channels), 1
        return _turn_upright(pixels, self._content.orientation), shrink


def shrink_factor(most: float) -> int:
    """The largest factor up to `most` by which a JPEG decodes smaller at less cost: 1, 2, 4 or 8."""
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(most, 1))


def image_facts(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int, int]:
    """(height, width, channels 1 or 3) of an image once decoded upright, from its header.

    Raises:
        SampleError: damaged, no image, or too large.
    """
    if jpeg := _jpeg_of(data, max_pixels):
        return *jpeg.upright_size, jpeg.channels
    with _open(data, max_pixels) as image:
        try:
            # Pillow gives a TIFF's size as it will be once turned.
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
        except Exception as error:
            raise SampleError(f"image damaged: {_words(error)}") from None
        width, height = reversed(image.size) if turned else image.size
        return height, width, 1 if image.mode in {"1", "L", "LA", "La"} or image.mode[0] in "IF" else 3


def decode_label(sample: Sample) -> int | None:
    """The class number in the field `cls`; None where there is no such field.

    Raises:
        SampleError: the field holds no whole number >= 0.
    """
    text = sample.fields.get("cls")
    if text is None:
        return None
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise SampleError(f"field cls holds {text[:40]!r}, no class number", key=sample.key, shard=sample.shard)
    return label


def decode_array(data: bytes) -> np.ndarray:
    """The array in a field of NumPy's own format, read-only; nothing is unpickled, and no size is believed.

    Raises:
        SampleError: damaged, of objects, or of another size than its header says.
    """
    try:
        shape, is_fortran, dtype, start = _array_header(data)
        count = prod(shape)
        if dtype.hasobject or count * dtype.itemsize != len(data) - start or min(shape, default=0) < 0:
            raise ValueError(f"{len(data) - start} bytes for {dtype} {shape}")
        return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")
    except Exception as error:  # NumPy's parser raises whatever hostile bytes lead it to
        raise SampleError(f"array damaged: {_words(error)}") from None


def _parse_array_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran's order, type, and the array's first byte."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return *read(stream), stream.tell()


_known_array_header = lru_cache(maxsize=256)(_parse_array_header)


def _array_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Of an array file; the fields of a set share their headers, and parsing one costs more than its array."""
    if data[:8] != _NPY:
        return _parse_array_header(data)
    return _known_array_header(data[: 10 + int.from_bytes(data[8:10], "little")])


class _Jpeg(NamedTuple):
    """What the header of a JPEG says: stored (height, width), EXIF orientation 1..8, and channels 1 or 3."""

    size: tuple[int, int]
    orientation: int
    channels: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) as it is to be seen."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def _jpeg_of(data: bytes, max_pixels: int) -> _Jpeg | None:
    """The header of a JPEG that simplejpeg decodes; None where Pillow has to judge, as of CMYK and all that is odd."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if height * width > max_pixels or colours not in {"YCbCr", "Gray", "RGB"}:
        return None
    channels = 1 if colours == "Gray" else 3
    if b"Exif\0" not in data[:_EXIF_WITHIN]:
        return _Jpeg((height, width), 1, channels)
    with _open(data, max_pixels) as image:
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:  # hostile bytes lead Pillow's parser anywhere
            return None
    return _Jpeg((height, width), orientation if orientation in range(1, 9) else 1, channels)


def _decode_jpeg(data: bytes, channels: int, **options: Any) -> np.ndarray | None:
    """(H, W, channels) at twice Pillow's speed; None where Pillow has to judge what can be saved."""
    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", **options)
    except ValueError:
        return None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header; the pixels stay encoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise SampleError(f"image too large: {_words(error)}") from None
    except Exception as error:
        raise SampleError(f"no image: {_words(error)}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise SampleError(f"image of {width} x {height} pixels, more than {max_pixels} in all")
    return image


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 with values scaled to 0..255."""
    if image.mode[0] == "I":  # 16-bit grey; Pillow's own conversion clips instead of scaling
        wide = np.asarray(image).astype(np.int64)
        grey = (np.clip(wide, 0, 65535) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], channels, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation 1..8; other values are taken as 1."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _words(error: Exception) -> str:
    """An exception in one line, without object addresses."""
    text = " ".join(str(error).split("<", 1)[0].split())
    return f"{type(error).__name__} {text}".strip()
