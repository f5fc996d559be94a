"""Images that look alike, within a packed set and between sets, told by 64-bit perceptual hashes.

Source: pHash, Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", 3.2.1, of a 32 x 32
image as the package `imagehash` takes it; pairs by multi-index hashing, Norouzi 2012, arXiv:1307.2982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

from data_pipelines.base import SampleError, UserError
from data_pipelines.decode import EncodedImage, image_field, shrink_factor
from data_pipelines.shards import Dataset
from data_pipelines.storage import once

VERSION = 1
"""Of the hash; another one is cached apart."""
NEAR_BITS = 6
"""Of 64 that the hashes of two like images may differ in."""
SIDE, KEPT = 32, 8
DECODED_SIDE = 4 * SIDE
"""Pixels from which a picture is decoded no larger."""
BANDS, BAND_BITS = 4, 16
MAX_BITS = 2 * BANDS + BANDS - 1
"""Beyond, most images are alike."""
PAIRS_AT_ONCE = 2**20
EXAMPLES = 5
_COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(KEPT), np.arange(SIDE) + 0.5))
"""(8, 32), the first rows of a discrete cosine transform."""

Progress = Callable[[str, int, int], None]


def perceptual_hash(pixels: np.ndarray) -> int:
    """Which of an image's lowest 8 x 8 frequencies lie above their median.

    Equal for an image and its copy in another size or quality, up to a few bits; crops, turns and mirror images are
    other images.

    Args:
        pixels: (H, W) or (H, W, 1) uint8, luma.
    """
    picture = Image.fromarray(pixels.reshape(pixels.shape[:2]))
    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    lowest = _COSINES @ small @ _COSINES.T  # (8, 8)
    return int.from_bytes(np.packbits(lowest > np.median(lowest)).tobytes(), "big")


def hash_of(fields: Mapping[str, bytes]) -> int | None:
    """The hash of a sample's first image; None where it has none that can be read."""
    name = image_field(fields)
    if name is None:
        return None
    try:
        image = EncodedImage(fields[name], channels=1)
        pixels, _ = image.pixels(shrink_factor(min(image.height, image.width) / DECODED_SIDE))
    except SampleError:
        return None
    return perceptual_hash(pixels)


@dataclass(frozen=True)
class Hashes:
    """The hashed images of a set.

    Attributes:
        values: (N,) uint64, one an image.
        samples: (N,) int64, their samples' numbers in file order.
    """

    dataset: Dataset
    values: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, path: str, progress: Progress) -> Hashes:
        """Hash a packed set, or look its hashes up where that was done before.

        Raises:
            UserError: there is no set, or no image in it.
        """
        dataset = Dataset.open(path)
        content = once(f"near {VERSION} {dataset.digest}", lambda: _hash_all(dataset, progress).tobytes())
        values, samples = np.frombuffer(content, np.uint64).reshape(2, -1)
        if not len(values):
            raise UserError(f"{path}: no images in it that could look alike")
        return cls(dataset, values, samples.view(np.int64))

    def key(self, image: int) -> str:
        """Name of the sample that holds an image."""
        ends = np.cumsum(self.dataset.shard_sizes)
        sample = int(self.samples[image])
        shard = int(np.searchsorted(ends, sample, side="right"))
        return self.dataset.key(shard, sample - int(ends[shard - 1] if shard else 0))


def _hash_all(dataset: Dataset, progress: Progress) -> np.ndarray:
    """(2, N) uint64: hashes, and the numbers of their samples."""

    def hash_one(place: tuple[int, int]) -> int | None:
        try:
            return hash_of(dataset.read(*place).fields)
        except SampleError:
            return None

    found: list[tuple[int, int]] = []
    done = 0
    with ThreadPoolExecutor() as pool:  # decoding gives up the interpreter's lock
        for shard, size in enumerate(dataset.shard_sizes.tolist()):
            for value in pool.map(hash_one, ((shard, member) for member in range(size))):
                if value is not None:
                    found.append((value, done))
                done += 1
            progress(f"hash {dataset.name}", done, dataset.num_samples)
    return np.array(found, np.uint64).reshape(-1, 2).T


class NearIndex:
    """Finds hashes that are near given ones, in time that hardly grows with their number.

    Two hashes that differ in less than 4 (r + 1) bits differ in at most r bits of one of their four quarters. So
    quarters are looked up in tables, with up to r bits changed in every way, and what is found is counted out.
    """

    def __init__(self, values: np.ndarray) -> None:
        """Take (N,) uint64."""
        self._bands = []
        for band in range(BANDS):
            quarter = _quarter(values, band)
            starts = np.zeros(2**BAND_BITS + 1, np.int64)
            np.cumsum(np.bincount(quarter, minlength=2**BAND_BITS), out=starts[1:])
            order = np.argsort(quarter, kind="stable")
            self._bands.append((order, values[order], starts))

    def pairs(self, queries: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """(P,) int64 numbers of queries and (P,) of values that differ in at most `bits` <= 11 bits; each pair once."""
        found = [np.zeros((2, 0), np.int64)]
        for band, (order, values, starts) in enumerate(self._bands):
            quarter = _quarter(queries, band)
            for mask in _masks(bits // BANDS):
                first, stop = starts[quarter ^ mask], starts[(quarter ^ mask) + 1]
                for rows, places in _expanded(first, stop - first):
                    near = np.flatnonzero(np.bitwise_count(queries[rows] ^ values[places]) <= bits)
                    found.append(np.stack([rows[near], order[places[near]]]))
        query, value = np.unique(np.concatenate(found, axis=1), axis=1)
        return query, value


def _quarter(values: np.ndarray, band: int) -> np.ndarray:
    return ((values >> np.uint64(BAND_BITS * band)) & np.uint64(2**BAND_BITS - 1)).astype(np.int64)


def _masks(bits: int) -> Iterator[int]:
    """Every way to change up to `bits` bits of a quarter."""
    for count in range(bits + 1):
        for places in combinations(range(BAND_BITS), count):
            yield sum(1 << place for place in places)


def _expanded(first: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, first[row] + 0 ... counts[row] - 1) for every row, some millions at once."""
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    begin = 0
    while begin < len(rows):
        before = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")))
        part, sizes = rows[begin:stop], counts[rows[begin:stop]]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(part, sizes), np.repeat(first[part], sizes) + within
        begin = stop


@dataclass(frozen=True)
class Alike:
    """Images of a set that look like others.

    Attributes:
        images: (P,) int64, ascending, each once.
        others: (P,) int64, the image of the other set, or the earlier image, that each looks like.
        bits: (P,) in which their hashes differ.
    """

    images: np.ndarray
    others: np.ndarray
    bits: np.ndarray


def like_others(values: np.ndarray, others: np.ndarray, bits: int) -> Alike:
    """Images that look like one of another set; the nearest one stands for all."""
    unique, inverse = np.unique(values, return_inverse=True)
    query, value = NearIndex(others).pairs(unique, bits)
    distance = np.bitwise_count(unique[query] ^ others[value])
    order = np.lexsort((value, distance, query))
    query, first = np.unique(query[order], return_index=True)
    nearest = np.full(len(unique), -1, np.int64)
    nearest[query] = value[order][first]
    images = np.flatnonzero(nearest[inverse] >= 0)
    found = nearest[inverse[images]]
    return Alike(images, found, np.bitwise_count(values[images] ^ others[found]))


def like_earlier(values: np.ndarray, bits: int) -> Alike:
    """Images that look like an earlier one which does not itself: without them, no two are alike."""
    unique, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    query, value = NearIndex(unique).pairs(unique, bits)
    neighbours: dict[int, list[int]] = {}
    for one, other in zip(query.tolist(), value.tolist(), strict=True):
        if one != other:
            neighbours.setdefault(one, []).append(other)
    stands_for = np.arange(len(unique))
    kept: set[int] = set()
    for one in np.argsort(first).tolist():
        near = [other for other in neighbours.get(one, ()) if other in kept]
        if near:
            stands_for[one] = min(near, key=lambda other: (int(unique[one] ^ unique[other]).bit_count(), first[other]))
        else:
            kept.add(one)
    others = first[stands_for][inverse]
    images = np.flatnonzero(others != np.arange(len(values)))
    return Alike(images, others[images], np.bitwise_count(values[images] ^ values[others[images]]))


def near_any(paths: Sequence[str], bits: int, progress: Progress) -> Callable[[Mapping[str, bytes]], str | None]:
    """Says which image of some sets a sample looks like; None where it looks like none.

    Raises:
        UserError: one is no set of images.
    """
    sets = [Hashes.of(path, progress) for path in paths]
    values = np.concatenate([hashes.values for hashes in sets])
    ends = np.cumsum([len(hashes.values) for hashes in sets])

    def like(fields: Mapping[str, bytes]) -> str | None:
        value = hash_of(fields)
        if value is None:
            return None
        distances = np.bitwise_count(values ^ np.uint64(value))  # of one image, quicker than any table
        nearest = int(distances.argmin())
        if distances[nearest] > bits:
            return None
        number = int(np.searchsorted(ends, nearest, side="right"))
        return sets[number].key(nearest - int(ends[number - 1] if number else 0))

    return like


@dataclass(frozen=True)
class NearReport:
    """What looks alike.

    Attributes:
        name: of the set.
        lines: in words.
        keys: of the set's samples without which nothing looks alike any more.
    """

    name: str
    lines: tuple[str, ...]
    keys: tuple[str, ...]


def compare(path: str, others: Sequence[str], bits: int, progress: Progress) -> NearReport:
    """Look for images of a set that look like an earlier one of it, or like one of other sets.

    Raises:
        UserError: one is no set of images, or `bits` is more than can be asked for.
    """
    if not 0 <= bits <= MAX_BITS:
        raise UserError(f"images may differ in 0 to {MAX_BITS} of 64 bits to be alike, got {bits}")
    own = Hashes.of(path, progress)
    found = [(own, "an earlier one", like_earlier(own.values, bits))]
    for other in others:
        theirs = Hashes.of(other, progress)
        found.append((theirs, f"one of {other}", like_others(own.values, theirs.values, bits)))
    lines = [f"{path}: {len(own.values)} images; alike are hashes within {bits} of 64 bits"]
    lines += [f"{len(alike.images)} look like {whom}{_examples(own, theirs, alike)}" for theirs, whom, alike in found]
    images = np.unique(np.concatenate([alike.images for _, _, alike in found]))
    return NearReport(own.dataset.name, tuple(lines), tuple(own.key(int(image)) for image in images))


def _examples(own: Hashes, theirs: Hashes, alike: Alike) -> str:
    nearest = np.argsort(alike.bits, kind="stable")[:EXAMPLES]
    shown = [f"{own.key(int(alike.images[n]))} ~ {theirs.key(int(alike.others[n]))} ({alike.bits[n]})" for n in nearest]
    return f": {', '.join(shown)}{', ...' if len(alike.images) > EXAMPLES else ''}" if shown else ""
