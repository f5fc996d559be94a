"""Images that look alike: found as counting every pair finds them, and kept out of packed sets."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.near import MAX_BITS, NearIndex, compare, hash_of, like_earlier, like_others
from data_pipelines.pack import pack
from data_pipelines.pack.writer import no_progress


def picture(seed, size=(96, 64)):
    """Soft random shapes."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def random_hashes(seed, count, bits):
    """(count,) uint64, half of them near another one."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, count, dtype=np.uint64)
    for place in range(count // 2, count):
        changed = rng.choice(64, rng.integers(0, 2 * bits + 1), replace=False)
        values[place] = values[rng.integers(count // 2)] ^ np.uint64(sum(1 << int(bit) for bit in changed))
    return values


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 120), st.integers(0, MAX_BITS))
def test_pairs_are_those_that_counting_finds(seed, count, bits):
    values = random_hashes(seed, count, bits)
    queries, others = values[::2], values[1::2]
    rows, places = np.nonzero(np.bitwise_count(queries[:, None] ^ others[None]) <= bits)
    found = NearIndex(others).pairs(queries, bits)
    assert sorted(zip(*found, strict=True)) == sorted(zip(rows, places, strict=True))
    alike = like_others(queries, others, bits)
    distances = np.bitwise_count(queries[:, None] ^ others[None])
    assert alike.images.tolist() == np.flatnonzero(distances.min(axis=1) <= bits).tolist()
    assert alike.bits.tolist() == distances.min(axis=1)[alike.images].tolist()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 120), st.integers(0, MAX_BITS))
def test_without_those_that_look_like_an_earlier_one_no_two_are_alike(seed, count, bits):
    values = random_hashes(seed, count, bits)
    alike = like_earlier(values, bits)
    rest = np.setdiff1d(np.arange(count), alike.images)
    assert not set(alike.others) - set(rest)
    assert (alike.others < alike.images).all() and (alike.bits <= bits).all()
    left = np.bitwise_count(values[rest][:, None] ^ values[rest][None])
    assert (left[~np.eye(len(rest), dtype=bool)] > bits).all()


def test_many_equal_images_cost_no_more_than_one():
    values = np.zeros(200_000, np.uint64)
    alike = like_earlier(values, MAX_BITS)
    assert len(alike.images) == len(values) - 1 and not alike.others.any()


def test_a_copy_in_another_size_quality_or_colour_is_near_and_another_image_is_not():
    for seed in range(20):
        image = picture(seed)
        value = hash_of({"png": encoded(image)})
        copies = [
            encoded(image, "JPEG", quality=30),
            encoded(image.resize((48, 32), Image.Resampling.LANCZOS), "JPEG", quality=80),
            encoded(image.convert("L"), "WEBP"),
        ]
        assert max((value ^ hash_of({"jpg": copy})).bit_count() for copy in copies) <= 6
        assert (value ^ hash_of({"png": encoded(picture(seed + 100))})).bit_count() > 12
    assert hash_of({"txt": b"no image"}) is None and hash_of({"png": b"damaged"}) is None


@pytest.fixture
def sets(tmp_path):
    """An eval set of 12 images, and a folder of 40 with copies of three of them."""
    for name, seeds in (("eval", range(12)), ("in", range(100, 137))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed}.png").write_bytes(encoded(picture(seed)))
    for seed in (0, 5, 11):
        (tmp_path / "in" / f"copy{seed}.jpg").write_bytes(encoded(picture(seed, (48, 32)), "JPEG", quality=60))
    pack("imagefolder", str(tmp_path / "eval"), tmp_path / "packed", {"val_fraction": 0})
    return str(tmp_path / "in"), str(tmp_path / "packed" / "train")


@pytest.mark.parametrize("workers", [1, 2])
def test_images_of_an_eval_are_kept_out_and_named(sets, tmp_path, workers):
    source, judged = sets
    config = {"val_fraction": 0, "exclude_near": [judged], "samples_per_shard": 10, "workers": workers}
    (train,) = pack("imagefolder", source, tmp_path / "out", config)
    keys = {train.key(shard, n) for shard, size in enumerate(train.shard_sizes) for n in range(int(size))}
    assert keys == {str(seed) for seed in range(100, 137)}
    (note,) = train.manifest.notes
    assert note.startswith(f"3 samples that look like one of {judged} were left out: ")
    assert all(f"copy{seed} ({seed})" in note for seed in (0, 5, 11))


def test_what_looks_alike_is_reported_within_and_between_sets(sets, tmp_path):
    source, judged = sets
    (tmp_path / "in" / "again.jpg").write_bytes(encoded(picture(120), "JPEG", quality=50))
    (train,) = pack("imagefolder", source, tmp_path / "out", {"val_fraction": 0})
    report = compare(train.path, [judged], 6, no_progress)
    assert report.lines[0].startswith(f"{train.path}: 41 images")
    assert report.lines[1].startswith("1 look like an earlier one: ") and "again" in report.lines[1]
    assert report.lines[2].startswith(f"3 look like one of {judged}: ") and "copy5 ~ 5 (" in report.lines[2]
    assert {"copy0", "copy5", "copy11"} < set(report.keys)
    assert set(report.keys) - {"copy0", "copy5", "copy11"} in ({"again"}, {"120"})
    with pytest.raises(UserError, match="0 to 11 of 64 bits"):
        compare(train.path, [judged], 12, no_progress)
