"""What label maps hold, as a `classes.json` beside them says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data_pipelines.base import Strict, UserError
from data_pipelines.pack.cityscapes_labels import IGNORE, MOVING


class Classes(Strict):
    """What a `classes.json` says."""

    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] = ()
    ignore: int | None = None
    """Number of the class that neither trains nor counts."""
    cityscapes_train_id: tuple[int, ...] = ()

    @property
    def kept(self) -> list[int]:
        """Numbers of the classes that count, in order; their places here are the packed numbers."""
        return [number for number in range(len(self.classes)) if number != self.ignore]

    def numbers(self, pixels: np.ndarray) -> np.ndarray:
        """Packed class numbers of a label map (H, W) uint8.

        Raises:
            ValueError: it holds numbers of no class; they are listed.
        """
        table = np.full(256, -1, np.int16)
        table[IGNORE] = IGNORE
        if self.ignore is not None:
            table[self.ignore] = IGNORE
        table[self.kept] = np.arange(len(self.kept))
        found = table[pixels]
        if (found < 0).any():
            raise ValueError(f"class numbers {', '.join(map(str, np.unique(pixels[found < 0])))}")
        return found.astype(np.uint8)

    def facts(self) -> dict[str, tuple[object, ...]]:
        """What a set's `Facts` say of its classes."""
        ids = self.cityscapes_train_id
        return {
            "colours": tuple(self.colours[number] for number in self.kept) if self.colours else (),
            "moving_classes": tuple(place for place, number in enumerate(self.kept) if ids and ids[number] in MOVING),
        }


def read_classes(path: Path) -> Classes:
    """Read a `classes.json`.

    Raises:
        UserError: it is none.
    """
    try:
        classes = Classes.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UserError(f"data pack: {path}: {where}: {first['msg']}") from None
    for name in ("colours", "cityscapes_train_id"):
        values = getattr(classes, name)
        if values and len(values) != len(classes.classes):
            raise UserError(f"data pack: {path}: {len(values)} {name} for {len(classes.classes)} classes")
    return classes
