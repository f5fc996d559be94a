"""Forecasts of a test set beside the references, and what each scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from data_pipelines.device import to_float
from evals.features import Progress, best_device
from evals.segmentation_forecasting.flow import backward_flow, warp
from evals.segmentation_forecasting.forecaster import MODELS, Forecaster
from evals.segmentation_forecasting.metrics import Confusion, psnr, ssim
from evals.segmentation_forecasting.segmenter import Segmenter
from evals.segmentation_forecasting.training import Material
from evals.segmentation_forecasting.windows import AHEAD, inputs, window


@dataclass(frozen=True)
class Forecast:
    """One view of a target: class map (H, W) uint8 and frame (H, W, C) uint8, where there are such."""

    labels: np.ndarray | None = None
    frame: np.ndarray | None = None


@dataclass
class Tally:
    """What one kind of forecast scored so far."""

    classes: int
    truth: Confusion = field(init=False)
    segmented: Confusion = field(init=False)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.truth, self.segmented = Confusion(self.classes), Confusion(self.classes)

    def add(self, forecast: Forecast, truth: np.ndarray, segmented: np.ndarray, frame: np.ndarray) -> None:
        """Compare with the ground truth, the segmenter's word on the true frame, and that frame."""
        if forecast.labels is not None:
            self.truth.add(truth, forecast.labels)
            self.segmented.add(segmented, forecast.labels)
        if forecast.frame is not None:
            self.psnr.append(psnr(frame, forecast.frame))
            self.ssim.append(ssim(frame, forecast.frame))

    def scores(self, moving: tuple[int, ...]) -> dict[str, float]:
        """By name; what was not measured is left out."""
        found = {"iou_gt": self.truth.mean_iou(), "iou_seg": self.segmented.mean_iou()}
        if moving:
            found |= {"iou_mo_gt": self.truth.mean_iou(moving), "iou_mo_seg": self.segmented.mean_iou(moving)}
        if self.psnr:
            found |= {"psnr": fmean(self.psnr), "ssim": fmean(self.ssim)}
        return {name: value for name, value in found.items() if np.isfinite(value)}


def judge(
    material: Material, segmenter: Segmenter, forecasters: Mapping[str, Forecaster], progress_name: str
) -> dict[str, float]:
    """Scores "WHO.TERM.MEASURE" over all targets of a test set.

    WHO is a model, "copy" or "warp"; "labels_copied", the true label map of the last input where it is known; or,
    without a term, the "segmenter" on the target itself. MEASURE is iou_gt, iou_seg, iou_mo_gt, iou_mo_seg (of moving
    classes), psnr (dB) or ssim.
    """
    clips = material.clips
    moving, tallies = clips.facts.moving_classes, dict[str, Tally]()
    progress = Progress(f"forecasts {progress_name}", len(clips) * len(clips.targets), "targets")
    for clip in range(len(clips)):
        for target in clips.targets:
            truth, place = clips.label(clip, target), clips.places([target])[0]
            segmented, frame = class_map(material.maps[clip, place]), np.asarray(clips.images[clip, place])
            found = {"segmenter": Forecast(segmented), **forecasts(material, segmenter, forecasters, clip, target)}
            for name, forecast in found.items():
                tally = tallies.setdefault(name, Tally(len(clips.classes)))
                tally.add(forecast, truth, segmented, frame)
            progress.add(1)
    scores = {f"{name}.{key}": value for name, tally in tallies.items() for key, value in tally.scores(moving).items()}
    return {name: value for name, value in scores.items() if not _is_idle(name)}


def _is_idle(name: str) -> bool:
    """The segmenter agrees with itself, and labels say nothing of it."""
    return name.startswith(("segmenter.", "labels_copied.")) and name.endswith("_seg")


def forecasts(
    material: Material, segmenter: Segmenter, forecasters: Mapping[str, Forecaster], clip: int, target: int
) -> dict[str, Forecast]:
    """All forecasts of one target by "WHO.TERM"."""
    found: dict[str, Forecast] = {}
    for term in AHEAD:
        found |= {f"{who}.{term}": one for who, one in references(material, clip, target, term).items()}
        for name, forecaster in forecasters.items():
            stages = foretell(name, forecaster, material, segmenter, clip, target, term)
            if stages:
                found[f"{name}.{term}"] = stages[-1]
    return found


def references(material: Material, clip: int, target: int, term: str) -> dict[str, Forecast]:
    """What is known without learning: "copy", "warp", and "labels_copied" where the last input is labelled."""
    clips, numbers = material.clips, window(target)[inputs(term)]
    before, last = clips.places(numbers[-2:])
    frame, soft = np.asarray(clips.images[clip, last]), np.asarray(material.maps[clip, last])
    flow = backward_flow(np.asarray(clips.images[clip, before]), frame)
    shares = np.ascontiguousarray(soft.transpose(1, 2, 0), np.float32)
    moved = warp(shares, flow, AHEAD[term]).argmax(axis=-1).astype(np.uint8)
    found = {"copy": Forecast(class_map(soft), frame), "warp": Forecast(moved, warp(frame, flow, AHEAD[term]))}
    if numbers[-1] in clips.facts.label_frames:
        found["labels_copied"] = Forecast(clips.label(clip, numbers[-1]))
    return found


def foretell(
    name: str, forecaster: Forecaster, material: Material, segmenter: Segmenter, clip: int, target: int, term: str
) -> list[Forecast]:
    """A model's forecasts of all frames up to the target, spaced as its inputs are; none if it has no such term.

    In the mid term models go on from their own forecasts, or foretell all frames at once ("batch"). Maps of models that
    foretell frames alone are the segmenter's of these.
    """
    model = MODELS[name]
    rounds = AHEAD[term] // model.at_once
    only_mid = model.at_once > 1 or model.finetunes is not None
    if (term == "short" and only_mid) or (rounds > 1 and not model.feeds_itself):
        return []
    past = material.cut(model.reads, clip, material.clips.places(window(target)[inputs(term)]))[None]
    stages: list[Forecast] = []
    with torch.no_grad():
        for _ in range(rounds):
            ahead = forecaster(past)[1]
            stages += [_drawn(model.writes, each, material, segmenter) for each in ahead[0]]
            past = torch.cat([past[:, 1:], ahead], dim=1) if model.feeds_itself else past
    return stages


def _drawn(what: str, channels: Tensor, material: Material, segmenter: Segmenter) -> Forecast:
    """(C', H, W) of frames in [-1, 1] and soft maps, in pictures."""
    colours = material.clips.images.shape[-1] if "x" in what else 0
    frame, soft = None, channels[colours:]
    if colours:
        pixels = ((channels[:colours] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
        frame = pixels.cpu().numpy()
        if "s" not in what:
            soft = segmenter.soft(to_float(pixels[None].to(best_device())))[0]
    return Forecast(soft.argmax(dim=0).byte().cpu().numpy(), frame)


def class_map(soft: np.ndarray) -> np.ndarray:
    """(K, H, W) to (H, W) uint8."""
    best: np.ndarray = np.asarray(soft).argmax(axis=0).astype(np.uint8)
    return best
