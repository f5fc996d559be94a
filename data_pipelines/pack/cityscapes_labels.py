"""The label table of Cityscapes: ids in its files, train ids in packed sets, colours to draw them.

Source: Cordts 2016, arXiv:1604.01685; the published table of cityscapesScripts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORE = 255
"""Train id of what neither trains nor counts."""


class Label(NamedTuple):
    """One row of the table."""

    name: str
    id: int
    train_id: int
    colour: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, IGNORE, (0, 0, 0)),
    Label("ego vehicle", 1, IGNORE, (0, 0, 0)),
    Label("rectification border", 2, IGNORE, (0, 0, 0)),
    Label("out of roi", 3, IGNORE, (0, 0, 0)),
    Label("static", 4, IGNORE, (0, 0, 0)),
    Label("dynamic", 5, IGNORE, (111, 74, 0)),
    Label("ground", 6, IGNORE, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, IGNORE, (250, 170, 160)),
    Label("rail track", 10, IGNORE, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, IGNORE, (180, 165, 180)),
    Label("bridge", 15, IGNORE, (150, 100, 100)),
    Label("tunnel", 16, IGNORE, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, IGNORE, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, IGNORE, (0, 0, 90)),
    Label("trailer", 30, IGNORE, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
    Label("license plate", -1, IGNORE, (0, 0, 142)),
)
"""-1 never occurs in a file; the published table gives it train id -1, which counts as little as 255."""

TRAINED = tuple(sorted((label for label in LABELS if label.train_id != IGNORE), key=lambda label: label.train_id))
"""The 19 rows that train, by train id."""
CLASSES = tuple(label.name for label in TRAINED)
COLOURS = tuple(label.colour for label in TRAINED)
MOVING = tuple(range(11, 19))
"""Train ids of people and vehicles (Luc 2017, arXiv:1703.07684, section 4.1)."""

ID = {label.name: label.id for label in LABELS}


def to_train_ids(ids: np.ndarray) -> np.ndarray:
    """Train ids of a label map: (H, W) uint8 -> (H, W) uint8.

    Raises:
        ValueError: ids that no label has; they are listed.
    """
    table = np.full(256, -1, np.int16)
    for label in LABELS:
        if label.id >= 0:
            table[label.id] = label.train_id
    found = table[ids]
    if (found < 0).any():
        raise ValueError(f"label ids {', '.join(map(str, np.unique(ids[found < 0])))}")
    return found.astype(np.uint8)
