"""Rendered drives: the same bytes everywhere, in Cityscapes' layout, by a camera that sees what stands where."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.pack import pack
from data_pipelines.pack.cityscapes_labels import ID, to_train_ids
from data_pipelines.pack.driving.keyed import Keyed
from data_pipelines.pack.driving.raster import OVERSAMPLED, Camera, Frame, Texture
from data_pipelines.pack.driving.render import render

GOLDEN = "cb4090ebca413025941e8091b4c11b29"
"""Of two frames of two sequences; renew it by hand, and say that rendered sets are others now."""


def pictures(sequence, frames=30, height=32):
    return list(render(Keyed("test", sequence), frames, 17.0, height, 2 * height))


def test_pixels_are_the_same_on_every_machine():
    hasher = hashlib.blake2b(digest_size=16)
    for sequence in (0, 1):
        for picture in pictures(sequence, frames=2):
            for part in picture:
                hasher.update(np.ascontiguousarray(part).astype("<u2").tobytes())
    assert hasher.hexdigest() == GOLDEN


def test_a_sequence_moves_and_another_one_is_another():
    first, other = pictures(0, frames=8), pictures(1, frames=1)
    assert (first[0].image != first[-1].image).mean() > 0.3
    assert (first[0].image != other[0].image).mean() > 0.5
    assert first[0].image.dtype == np.uint8 and first[0].image.shape == (32, 64, 3)


@pytest.mark.slow
def test_all_classes_are_met_and_only_known_ones():
    met = set()
    for sequence in range(14):
        met |= set(np.unique(to_train_ids(pictures(sequence, frames=1, height=64)[0].labels)))
    assert met <= set(range(19)) and len(met) >= 18


def test_instances_tell_things_apart():
    labels, instances = pictures(2, frames=1, height=64)[0][1:]
    things = labels >= ID["person"]
    assert (instances[things] // 1000 == labels[things]).all() and (instances[~things] == labels[~things]).all()
    assert len(np.unique(instances[things])) > len(np.unique(labels[things]))


@pytest.mark.slow
def test_sequences_are_written_as_cityscapes_and_packed(tmp_path):
    layout = tmp_path / "layout"
    config = {"sequences": 2, "val_fraction": 0.5, "height": 32, "layout": str(layout)}
    train, val = pack("synthetic_driving", None, tmp_path / "out", config)
    frames = sorted((layout / "leftImg8bit_sequence/val/westfield").iterdir())
    assert [path.name for path in frames] == [f"westfield_000000_{n:06d}_leftImg8bit.png" for n in range(30)]
    labels = sorted(path.name for path in (layout / "gtFine/train/eastfield").iterdir())
    assert labels == [f"eastfield_000000_000019_gtFine_{kind}Ids.png" for kind in ("instance", "label")]
    facts = val.manifest.facts
    assert (facts.frames, facts.label_frames, facts.image_size) == (30, (19,), (32, 64))
    sample = train.read(0, 0)
    assert sample.key == "eastfield_000000_000000"
    packed = np.asarray(Image.open(io.BytesIO(sample.fields["19.labels.png"])))
    written = np.asarray(Image.open(layout / "gtFine/train/eastfield/eastfield_000000_000019_gtFine_labelIds.png"))
    assert (packed == to_train_ids(written)).all() and len(np.unique(packed)) > 4
    again, _ = pack("synthetic_driving", None, tmp_path / "again", {**config, "layout": None, "label_every": 15})
    assert again.manifest.facts.label_frames == (0, 15)
    assert again.read(0, 0).fields["07.jpg"] == sample.fields["07.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "layout", "out"]


def test_what_it_cannot_do_is_said(tmp_path):
    with pytest.raises(UserError, match="renders its own data; leave out 'somewhere'"):
        pack("synthetic_driving", "somewhere", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=r"layout=.*full exists and is not empty"):
        pack("synthetic_driving", None, tmp_path / "out", {"layout": str(tmp_path / "full")})


# The camera: 40 x 80 pixels, focal length 40, 2 m up, looking along z; 1 m is 4 pixels at a distance of 10 m.

UPPER, LOWER = (200, 0, 0, 255), (0, 0, 200, 255)


def frame_of(*rectangles):
    """Rectangles across the view as (left, right, low, high, ahead, picture), all in metres."""
    frame = Frame(40, 80, Camera(np.zeros(2), np.array([0.0, 1.0]), height=2.0, horizon=20.0, focal=40.0))
    rows = np.array([row[:5] for row in rectangles], float)
    corners = frame.to_camera(np.stack([rows[:, 4], rows[:, 0], rows[:, 3]], axis=1))
    across = frame.turned(np.stack([0 * rows[:, 0], rows[:, 1] - rows[:, 0], 0 * rows[:, 0]], axis=1))
    down = frame.turned(np.stack([0 * rows[:, 0], 0 * rows[:, 0], rows[:, 2] - rows[:, 3]], axis=1))
    frame.owner[:] = -1
    frame.draw(corners, across, down, [Texture(row[5]) for row in rectangles])
    return frame


def solid(upper=UPPER, lower=LOWER):
    picture = np.empty((2, 2, 4), np.uint8)
    picture[0], picture[1] = upper, lower
    return picture


def covered(frame, number):
    rows, columns = np.nonzero(frame.owner[::OVERSAMPLED, ::OVERSAMPLED] == number)
    return (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1, len(rows))


def test_a_rectangle_covers_the_pixels_that_geometry_says():
    frame = frame_of((-1, 2, 0, 3, 10, solid()))  # columns 40 - 4 .. 40 + 8; rows 20 + 4 * (2 - 3) .. 20 + 4 * 2
    assert covered(frame, 0) == (16, 28, 36, 48, 12 * 12)
    depth = 1 / frame.inverse_depth[frame.owner == 0]
    np.testing.assert_allclose(depth, 10, rtol=1e-5)
    colours = frame.colours[::OVERSAMPLED, ::OVERSAMPLED][16:28, 40] & 255
    assert colours.tolist() == [200] * 6 + [0] * 6  # upper half red


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_nearer_hides_what_is_farther(order):
    rectangles = [(-2, 2, 0, 4, 20, solid()), (-0.5, 0.5, 1, 3, 5, solid())]
    frame = frame_of(*rectangles[::order])
    near, far = (1, 0) if order == 1 else (0, 1)
    assert covered(frame, near) == (12, 28, 36, 44, 16 * 8)
    assert (frame.owner == far).sum() == 0  # 8 x 8 pixels, all behind the nearer one


def test_holes_let_through_and_what_is_behind_the_camera_is_not_seen():
    window = solid(upper=(0, 0, 0, 0))
    frame = frame_of((-1, 1, 1, 3, 5, window), (-4, 4, 0, 8, 20, solid()), (-4, 4, 0, 8, -5, solid()))
    owners = frame.owner[::OVERSAMPLED, ::OVERSAMPLED]
    assert owners[16, 40] == 1 and owners[24, 40] == 0 and 2 not in owners


def test_a_wall_beside_the_camera_is_cut_at_its_eye():
    frame = Frame(40, 80, Camera(np.zeros(2), np.array([0.0, 1.0]), height=2.0, horizon=20.0, focal=40.0))
    frame.owner[:] = -1
    corner, across, down = np.array([[-10.0, 4.0, 4.0]]), np.array([[40.0, 0, 0]]), np.array([[0, 0, -4.0]])
    frame.draw(frame.to_camera(corner), frame.turned(across), frame.turned(down), [Texture(solid())])
    top, bottom, left, right, _ = covered(frame, 0)
    assert (left, right) == (46, 80)  # 4 m right and 30 m ahead: from 40 + 40 * 4 / 30 = 45.3 on
    assert (top, bottom) == (1, 40)
