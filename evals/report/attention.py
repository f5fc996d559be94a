"""Where a network looked while it wrote, as inline SVG: a row a token written, a column a token read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

CELL = 17
"""Side of a cell in the picture's own units, about one CSS pixel each."""
LETTER = 6.5
"""Width of a letter, about."""
SLOPE = 60
"""Degrees at which the tokens read stand above their columns."""
SHADES = 16
"""Of a cell, from none to that of the highest weight."""
MOST_TOKENS = 64
"""Of a side; a larger matrix is not drawn."""


def attention(found: Any, alt: str) -> Markup | None:
    """One SVG element; None where `found` is no alignment of an eval's details.

    Args:
        found: "source" and "target", tokens as text, and "weights", a row a token of the target.
        alt: what is to be seen, for those who do not see it.
    """
    try:
        source, target = [str(word) for word in found["source"]], [str(word) for word in found["target"]]
        weights = np.array(found["weights"], np.float64)
    except (TypeError, KeyError, ValueError):
        return None
    if weights.shape != (len(target), len(source)) or not 0 < max(weights.shape, default=0) <= MOST_TOKENS:
        return None
    if weights.size == 0 or not (np.isfinite(weights).all() and (weights >= 0).all()):
        return None
    left, letters = 6 + LETTER * max(map(len, target)), LETTER * max(map(len, source))
    top = 10 + letters * math.sin(math.radians(SLOPE))
    width = left + CELL * len(source) + letters * math.cos(math.radians(SLOPE))
    height = top + CELL * len(target)
    return Markup(
        '<svg class="plot" style="max-width:{width:.0f}px" role="img" aria-label="{alt}" '
        'viewBox="0 0 {width:.0f} {height:.0f}">{cells}{columns}{rows}</svg>'
    ).format(
        width=width,
        height=height,
        alt=alt,
        cells=_cells(weights, left, top),
        columns=Markup("").join(
            _column(word, left + CELL * (place + 0.6), top - 4) for place, word in enumerate(source)
        ),
        rows=Markup("").join(_row(word, left - 5, top + CELL * (place + 0.5)) for place, word in enumerate(target)),
    )


def _cells(weights: np.ndarray, left: float, top: float) -> Markup:
    """One path a shade, all squares of that shade in it."""
    shades = np.rint(weights / max(weights.max(), 1e-9) * SHADES).astype(int)  # (T, S)
    paths = []
    for shade in np.unique(shades[shades > 0]):
        squares = "".join(
            f"M{left + CELL * column:.0f} {top + CELL * row:.0f}h{CELL - 1}v{CELL - 1}h-{CELL - 1}z"
            for row, column in np.argwhere(shades == shade)
        )
        paths.append(Markup('<path class="bar c0" opacity="{:.2f}" d="{}"/>').format(shade / SHADES, squares))
    return Markup("").join(paths)


def _column(word: str, x: float, y: float) -> Markup:
    return Markup(
        '<text class="word" x="{x:.0f}" y="{y:.0f}" transform="rotate(-{slope} {x:.0f} {y:.0f})">{word}</text>'
    ).format(x=x, y=y, slope=SLOPE, word=word)


def _row(word: str, x: float, y: float) -> Markup:
    return Markup('<text class="word" x="{:.0f}" y="{:.0f}" dy=".35em" text-anchor="end">{}</text>').format(x, y, word)
