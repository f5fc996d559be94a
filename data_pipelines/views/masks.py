"""Which tokens are hidden: pure functions of a shape, a ratio and a generator. True = hidden from the encoder."""

from __future__ import annotations

import math

import numpy as np


def hidden_count(num_tokens: int, ratio: float) -> int:
    """Tokens hidden at `ratio`; the same for every sample, so that visible tokens stack.

    >>> hidden_count(196, 0.75)
    147
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"a mask ratio lies in [0, 1], got {ratio}")
    return round(num_tokens * ratio)


def random_mask(num_tokens: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Hide tokens independently of their place.

    Returns:
        (num_tokens,) bool with exactly `hidden_count` True.

    Source: He 2021, arXiv:2111.06377, section 3.
    """
    mask = np.zeros(num_tokens, dtype=bool)
    mask[rng.permutation(num_tokens)[: hidden_count(num_tokens, ratio)]] = True
    return mask


def rectangle(
    grid: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
    inside: tuple[int, int] | None = None,
) -> tuple[slice, slice]:
    """Draw a block of a token grid.

    Args:
        grid: rows and columns.
        area: least and largest share of the grid that the block covers, before rounding.
        aspect: least and largest height / width; drawn uniformly in its logarithm.
        inside: a token (row, column) the block must cover; anywhere when None.

    Returns:
        The block's rows and columns, each at least one, within the grid.

    Source: Assran 2023, arXiv:2301.08243, section 3 (with inside=None).
    """
    tokens = rng.uniform(*area) * grid[0] * grid[1]
    height_per_width = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    sides = math.sqrt(tokens * height_per_width), math.sqrt(tokens / height_per_width)
    rows, columns = (
        _segment(length, side, rng, None if inside is None else inside[axis])
        for axis, (length, side) in enumerate(zip(grid, sides, strict=True))
    )
    return rows, columns


def _segment(length: int, side: float, rng: np.random.Generator, inside: int | None) -> slice:
    """A stretch of about `side` tokens of an axis, covering `inside`."""
    size = min(max(round(side), 1), length)
    first, last = (0, length - size) if inside is None else (max(0, inside - size + 1), min(inside, length - size))
    start = int(rng.integers(first, last + 1))
    return slice(start, start + size)


def block_mask(
    grid: tuple[int, int],
    ratio: float,
    rng: np.random.Generator,
    *,
    min_block_tokens: int = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """Hide blocks until exactly `hidden_count` tokens are hidden; the last block is cut to fit, row by row.

    Args:
        grid: rows and columns of tokens.
        min_block_tokens: smallest block, as long as so many are still to be hidden.
        aspect: least and largest height / width of a block.

    Returns:
        (rows, columns) bool.

    Source: Bao 2021, arXiv:2106.08254, algorithm 1; every block covers a visible token here, so the count is exact.
    """
    mask = np.zeros(grid, dtype=bool)
    num_tokens = mask.size
    missing = hidden_count(num_tokens, ratio)
    while missing > 0:
        visible = np.argwhere(~mask)
        row, column = visible[rng.integers(len(visible))]
        area = min(min_block_tokens, missing) / num_tokens, missing / num_tokens
        rows, columns = rectangle(grid, area, aspect, rng, inside=(int(row), int(column)))
        block = np.zeros_like(mask)
        block[rows, columns] = True
        new = np.flatnonzero(block & ~mask)[:missing]
        mask.flat[new] = True
        missing -= len(new)
    return mask


def tube_mask(num_frames: int, grid: tuple[int, int], ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Hide the same places in every frame, so that motion does not give them away.

    Returns:
        (num_frames, rows, columns) bool with exactly `hidden_count` of rows * columns True in each frame.

    Source: Tong 2022, arXiv:2203.12602, section 3.3.
    """
    frame = random_mask(grid[0] * grid[1], ratio, rng).reshape(grid)
    return np.broadcast_to(frame, (num_frames, *grid)).copy()
