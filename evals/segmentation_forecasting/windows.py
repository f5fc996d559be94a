"""Which frames are read and which are foretold: pure arithmetic on frame numbers, from 0.

Of a Cityscapes snippet, whose frame 19 is labelled, the short term reads 7, 10, 13, 16 and foretells 19; the mid term
reads 1, 4, 7, 10 and foretells 13, 16, 19. Source: Luc 2017, arXiv:1703.07684, section 4.1 (they count from 1).
"""

from __future__ import annotations

from collections.abc import Sequence

SPACING = 3
"""Frames from one input to the next, and from the last input to the first forecast."""

INPUTS = 4
"""Frames that a forecast reads."""

AHEAD = {"short": 1, "mid": 3}
"""Spacings from the last input to the frame that is judged, by term."""

HISTORY = SPACING * (INPUTS - 1 + max(AHEAD.values()))
"""Frames between the first one read and the one judged, in the mid term."""


def window(target: int) -> list[int]:
    """All frames that the forecasts of `target` are made of and compared with, the target last."""
    return list(range(target - HISTORY, target + 1, SPACING))


def inputs(term: str) -> slice:
    """Which entries of a `window` are read in that term."""
    last = -1 - AHEAD[term]
    return slice(last - INPUTS + 1, last + 1)


def targets(label_frames: Sequence[int]) -> list[int]:
    """Labelled frames with history enough to be foretold in both terms."""
    return [frame for frame in sorted(label_frames) if frame >= HISTORY]


def training_frames(frames: int, label_frames: Sequence[int]) -> list[int]:
    """Frames of a training clip that stand a whole number of spacings from a target."""
    phases = {target % SPACING for target in targets(label_frames)}
    return [frame for frame in range(frames) if frame % SPACING in phases]


def training_windows(frames: Sequence[int], length: int) -> list[list[int]]:
    """Places in `frames` of every run of `length` frames one spacing apart."""
    place = {frame: index for index, frame in enumerate(frames)}
    runs = ([first + SPACING * step for step in range(length)] for first in frames)
    return [[place[frame] for frame in run] for run in runs if all(frame in place for frame in run)]
