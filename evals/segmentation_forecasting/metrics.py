"""How well class maps and frames agree: IoU as Cityscapes counts it, PSNR, SSIM."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines.base import DataError

IGNORE = 255
"""Number of pixels that are of no class."""

PSNR_OF_EQUALS = 100.0
"""dB that two equal frames count as, so that a mean stays a number."""

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


class Confusion:
    """Pixels by true and predicted class, over any number of frames."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # the last column holds predictions of no class: they are no class's false positives, and miss the true one
        self.pixels = np.zeros((num_classes, num_classes + 1), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count a frame.

        Args:
            truth: integers of any shape; pixels of 255 count nowhere.
            predicted: of the same shape; 255 is a prediction of no class.

        Raises:
            DataError: a pixel is neither 255 nor below the number of classes.
            ValueError: the shapes differ.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth of {truth.shape} and prediction of {predicted.shape} are not of one frame")
        judged = truth != IGNORE
        rows = truth[judged].astype(np.int64)
        columns = np.where(predicted[judged] == IGNORE, self.num_classes, predicted[judged]).astype(np.int64)
        for numbers, highest in ((rows, self.num_classes - 1), (columns, self.num_classes)):
            if numbers.size and (numbers.max() > highest or numbers.min() < 0):
                raise DataError(f"class maps hold {numbers.max()}, want 0..{self.num_classes - 1}, or {IGNORE}")
        flat = np.bincount(rows * (self.num_classes + 1) + columns, minlength=self.pixels.size)
        self.pixels += flat.reshape(self.pixels.shape)

    def ious(self) -> np.ndarray:
        """(K,) intersection over union by class; nan where a class is neither there nor predicted."""
        hits = np.diag(self.pixels).astype(float)
        union = self.pixels.sum(axis=1) + self.pixels[:, :-1].sum(axis=0) - hits
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def mean_iou(self, classes: Sequence[int] | None = None) -> float:
        """Mean over the classes (all when None) that are there or predicted; nan where none is.

        Source: cityscapesScripts, evalPixelLevelSemanticLabeling.
        """
        ious = self.ious()
        ious = ious if classes is None else ious[list(classes)]
        return float(np.nanmean(ious)) if np.isfinite(ious).any() else float("nan")


def psnr(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of frames (H, W, C) with values in [0, 255]; at most 100."""
    error = float(np.square(truth.astype(float) - predicted.astype(float)).mean())
    return min(10 * float(np.log10(255**2 / error)), PSNR_OF_EQUALS) if error else PSNR_OF_EQUALS


def ssim(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Structural similarity of frames (H, W, C) with values in [0, 255]: mean over windows and channels, at most 1.

    Windows are Gaussians of 11 x 11 pixels and standard deviation 1.5 that lie wholly inside the frame.

    Raises:
        ValueError: a frame is smaller than a window.

    Source: Wang 2004, "Image quality assessment: from error visibility to structural similarity", equation 13.
    """
    if min(truth.shape[:2]) < _WINDOW:
        raise ValueError(
            f"want frames of at least {_WINDOW} x {_WINDOW} pixels, got {truth.shape[0]} x {truth.shape[1]}"
        )
    x, y = truth.astype(float), predicted.astype(float)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((light * structure).mean())


def _blurred(image: np.ndarray) -> np.ndarray:
    """(H, W, C) to (H - 10, W - 10, C), or without C where it is 1: the Gaussian window, wherever it fits."""
    weights, border = cv2.getGaussianKernel(_WINDOW, _SIGMA), _WINDOW // 2
    blurred: np.ndarray = cv2.sepFilter2D(image, cv2.CV_64F, weights, weights)
    return blurred[border:-border, border:-border]
