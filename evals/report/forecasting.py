"""Segmentation forecasts in the page: the table beside the published one, strips, and the animation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evals.report.judging import CONTROLS
from evals.report.pictures import Picture, Room, read_animation, read_sketch
from evals.report.record import Judgement, RunRecord
from evals.report.ticks import grouped

EVAL = "segmentation_forecasting"
TERMS = {"short": "3 frames ahead", "mid": "9 frames ahead"}
MEASURES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "iou_gt": "IoU GT",
    "iou_seg": "IoU SEG",
    "iou_mo_gt": "IoU-MO GT",
    "iou_mo_seg": "IoU-MO SEG",
}
PUBLISHED_MEASURES = ("iou_gt", "iou_seg", "iou_mo_gt")
CONTROL_MEASURE = "iou_gt"

NAMES = {
    "labels_copied": "copy of the true labels",
    "copy": "copy last input",
    "warp": "warp last input",
    "x2x": "X2X",
    "s2s": "S2S",
    "s2s_adv": "S2S-adv",
    "xs2x": "XS2X",
    "xs2s": "XS2S",
    "xs2xs": "XS2XS",
    "s2s_finetuned": "S2S, fine-tuned through its forecasts",
    "s2s_batch": "S2S, all at once",
    "xs2s_batch": "XS2S, all at once",
    "xs2xs_batch": "XS2XS, all at once",
}

PUBLISHED: Mapping[str, tuple[float, float, float]] = {
    "copy.short": (49.4, 54.6, 43.4),
    "warp.short": (50.4, 55.5, 44.9),
    "x2x.short": (23.0, 22.3, 12.8),
    "s2s.short": (58.3, 64.9, 53.8),
    "s2s_adv.short": (58.3, 65.0, 53.9),
    "xs2x.short": (22.4, 22.5, 10.8),
    "xs2s.short": (58.2, 64.6, 53.7),
    "xs2xs.short": (55.5, 61.1, 50.7),
    "copy.mid": (36.9, 39.2, 26.8),
    "warp.mid": (37.5, 39.5, 27.9),
    "s2s.mid": (45.3, 47.2, 36.4),
    "s2s_adv.mid": (45.1, 47.2, 37.3),
    "s2s_finetuned.mid": (46.7, 49.7, 39.3),
    "xs2xs.mid": (39.3, 40.8, 27.4),
    "s2s_batch.mid": (42.1, 44.2, 32.8),
    "xs2s_batch.mid": (42.3, 44.6, 33.1),
    "xs2xs_batch.mid": (41.2, 43.5, 31.4),
}
"""Of `PUBLISHED_MEASURES`, in percent, on Cityscapes. Source: Luc 2017, arXiv:1703.07684, tables 1 and 2."""


@dataclass(frozen=True)
class Row:
    """One kind of forecast.

    Attributes:
        here: by `MEASURES`.
        controls: IoU GT by `CONTROLS`.
        published: by `PUBLISHED_MEASURES`.
    """

    name: str
    here: tuple[str, ...]
    controls: tuple[str, ...]
    published: tuple[str, ...]


@dataclass(frozen=True)
class Forecasting:
    """What the page shows of one result.

    Attributes:
        terms: heading and rows of each term.
    """

    step: str
    data: str
    segmenter: str
    terms: tuple[tuple[str, tuple[Row, ...]], ...]
    strips: tuple[Picture, ...]
    animations: tuple[Picture, ...]


def forecastings_of(run: RunRecord, room_bytes: int) -> list[Forecasting]:
    """The newest result of each data and settings.

    Args:
        room_bytes: what their pictures may weigh.
    """
    newest: dict[tuple[str, str, str], Judgement] = {}
    for one in sorted(run.judgements, key=lambda one: one.step):
        if one.eval_name == EVAL:
            newest[one.kind] = one
    return [_shown(run, one, room_bytes // len(newest)) for one in newest.values()]


def _shown(run: RunRecord, newest: Judgement, room_bytes: int) -> Forecasting:
    room, strips, animations = Room(room_bytes), [], []
    for name, path in newest.animations.items():
        picture = read_animation(path, f"{name} of run {run.name} as time goes by")
        if room.takes(picture):
            animations.append(picture)
    for name, path in newest.pictures.items():
        picture = read_sketch(path, f"{name} of run {run.name}: inputs, truth, forecasts, errors")
        if room.takes(picture):
            strips.append(picture)
    return Forecasting(
        step=grouped(newest.step),
        data=str(_named(newest.data.get("test")).get("name", "")),
        segmenter=", ".join(_segmenter_words(newest)),
        terms=tuple((heading, _rows(newest, term)) for term, heading in TERMS.items()),
        strips=tuple(strips),
        animations=tuple(animations),
    )


def _rows(one: Judgement, term: str) -> tuple[Row, ...]:
    rows = []
    for who, name in NAMES.items():
        key = f"{who}.{term}"
        here = tuple(_printed(one.metrics, f"{key}.{measure}") for measure in MEASURES)
        if set(here) == {"–"}:
            continue
        controls = tuple(_printed(one.controls.get(each, {}), f"{key}.{CONTROL_MEASURE}") for each in CONTROLS)
        published = PUBLISHED.get(key)
        rows.append(Row(name, here, controls, tuple(f"{x:.1f}" for x in published) if published else ("–",) * 3))
    return tuple(rows)


def _segmenter_words(one: Judgement) -> list[str]:
    """IoU of the maps that forecasts are made of, beside the controls'."""
    name = "segmenter.iou_gt"
    words = [f"{_printed(one.metrics, name)} on this encoder"]
    words += [f"{_printed(one.controls.get(each, {}), name)} on {heading}" for each, heading in CONTROLS.items()]
    return words


def _printed(values: Mapping[str, float], name: str) -> str:
    """IoU in percent, PSNR in dB, SSIM as it is."""
    if name not in values:
        return "–"
    if name.endswith("ssim"):
        return f"{values[name]:.2f}"
    return f"{values[name]:.1f}" if name.endswith("psnr") else f"{100 * values[name]:.1f}"


def _named(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
