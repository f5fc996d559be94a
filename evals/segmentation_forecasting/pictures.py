"""What was foretold, to look at: a strip a clip, and a small animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evals.segmentation_forecasting.forecaster import MODELS, Forecaster
from evals.segmentation_forecasting.judging import Forecast, class_map, forecasts, foretell
from evals.segmentation_forecasting.metrics import IGNORE
from evals.segmentation_forecasting.segmenter import Segmenter
from evals.segmentation_forecasting.training import Material
from evals.segmentation_forecasting.windows import AHEAD, SPACING, inputs, window

STRIPS = 3
STRIP_TILE, ANIMATION_TILE = 128, 320
"""Pixels that a frame's width is magnified to, by whole numbers."""
GAP = 4
HEADING = 16
RIGHT, WRONG, UNJUDGED = (236, 236, 232), (200, 40, 30), (120, 120, 120)
INK, PAPER = (30, 30, 30), (253, 252, 250)


def pictures(
    material: Material, segmenter: Segmenter, forecasters: Mapping[str, Forecaster]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Strips (H, W, 3) of clips spread over the test set, and an animation (T, H, W, 3) of the first of them."""
    clips, strips = material.clips, dict[str, np.ndarray]()
    target = clips.targets[len(clips.targets) // 2]
    chosen = sorted({round(place * (len(clips) - 1)) for place in np.linspace(0, 1, STRIPS)})
    for number, clip in enumerate(chosen):
        found = forecasts(material, segmenter, forecasters, clip, target)
        rows = [_row(material, clip, target, term, found, _shown(forecasters, found, term)) for term in AHEAD]
        width = max(row.shape[1] for row in rows)
        padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=PAPER[0]) for row in rows]
        strips[f"strip{number}"] = np.concatenate(padded)
    shown = _shown(forecasters, found, "mid")
    if shown not in forecasters:
        return strips, {}
    return strips, {"forecast": _animation(material, segmenter, forecasters, shown, chosen[0], target)}


def _shown(forecasters: Mapping[str, Forecaster], found: Mapping[str, Forecast], term: str) -> str:
    """The model whose map is shown: the first that foretells one in that term; the warp where none does."""
    able = (name for name in forecasters if f"{name}.{term}" in found and "s" in MODELS[name].writes)
    return next(able, "warp")


def _row(
    material: Material, clip: int, target: int, term: str, found: Mapping[str, Forecast], shown: str
) -> np.ndarray:
    """Inputs, ground truth, copy, warp, forecast and its errors, side by side."""
    clips = material.clips
    frame, truth = clips.images[clip, clips.places([target])[0]], clips.label(clip, target)
    numbers = window(target)[inputs(term)]
    tiles = [(f"frame {number + 1}", _rgb(clips.images[clip, clips.places([number])[0]])) for number in numbers]
    tiles.append((f"frame {target + 1}: truth", overlay(frame, truth, material)))
    for who in dict.fromkeys(("copy", "warp", shown)):
        tiles.append((who, overlay(frame, _labels(found[f"{who}.{term}"]), material)))
    tiles.append((f"errors of {shown}", errors(truth, _labels(found[f"{shown}.{term}"]))))
    return beside(tiles, STRIP_TILE)


def _animation(
    material: Material, segmenter: Segmenter, forecasters: Mapping[str, Forecaster], shown: str, clip: int, target: int
) -> np.ndarray:
    """(T, H, W, 3), the mid term as time goes by: what the segmenter sees, the last input held, and the forecast."""
    clips, numbers = material.clips, window(target)
    last = numbers[inputs("mid")][-1]
    stages = foretell(shown, forecasters[shown], material, segmenter, clip, target, "mid")
    held = class_map(material.maps[clip, clips.places([last])[0]])
    frames = []
    for number in numbers:
        place = clips.places([number])[0]
        frame, seen = clips.images[clip, place], class_map(material.maps[clip, place])
        ahead = (number - last) // SPACING
        copied, foretold = (held, _labels(stages[ahead - 1])) if ahead > 0 else (seen, seen)
        when = f"{number - last} ahead" if ahead > 0 else "seen"
        named = (("segmenter", seen), ("copy", copied), (shown, foretold))
        tiles = [(f"{who}, {when}", overlay(frame, labels, material)) for who, labels in named]
        frames.append(beside(tiles, ANIMATION_TILE))
    return np.stack(frames)


def overlay(frame: np.ndarray, labels: np.ndarray, material: Material) -> np.ndarray:
    """Class colours over a darkened frame: (H, W, 3) uint8; pixels of no class show the frame alone."""
    colours = np.array(material.clips.facts.colours or _grey_colours(len(material.clips.classes)), np.float32)
    known = labels != IGNORE
    mixed = _rgb(frame).astype(np.float32)
    mixed[known] = 0.35 * mixed[known] + 0.65 * colours[labels[known]]
    return mixed.astype(np.uint8)


def errors(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: pale where right, red where wrong, grey where the truth is unknown."""
    picture = np.where((truth == labels)[..., None], RIGHT, WRONG).astype(np.uint8)
    picture[truth == IGNORE] = UNJUDGED
    return picture


def beside(tiles: Sequence[tuple[str, np.ndarray]], tile_width: int) -> np.ndarray:
    """Pictures of one size in a row, each under its name."""
    height, width = tiles[0][1].shape[:2]
    zoom = max(1, round(tile_width / width))
    height, width = zoom * height, zoom * width
    row = Image.new("RGB", (len(tiles) * (width + GAP) - GAP, HEADING + height + GAP), PAPER)
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(12)
    for place, (name, pixels) in enumerate(tiles):
        left = place * (width + GAP)
        pen.text((left, 0), name, INK, font)
        row.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, HEADING))
    return np.asarray(row)


def _labels(forecast: Forecast) -> np.ndarray:
    assert forecast.labels is not None
    return forecast.labels


def _rgb(frame: np.ndarray) -> np.ndarray:
    return np.array(frame if frame.shape[2] == 3 else frame.repeat(3, axis=2))


def _grey_colours(count: int) -> list[tuple[int, int, int]]:
    return [(round(255 * number / count),) * 3 for number in range(count)]
