"""Warping the last input along its optical flow: what can be had of the future without learning."""

from __future__ import annotations

import cv2
import numpy as np


def backward_flow(before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Where each pixel of `last` comes from in `before`, by dense inverse search.

    Args:
        before: (H, W, C) uint8, C 1 or 3 (RGB).
        last: the later frame, of the same shape.

    Returns:
        (H, W, 2) float32: steps to the right and down, in pixels; last(p) is about before(p + flow(p)).

    Source: Kroeger 2016, arXiv:1603.03590, as OpenCV has it.
    """
    cv2.setNumThreads(1)  # its stripes, and with them the flow, depend on the number of threads
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(0)  # down to single pixels: working frames are small
    flow: np.ndarray = method.calc(_grey(last), _grey(before), None)
    return flow


def warp(maps: np.ndarray, flow: np.ndarray, steps: float) -> np.ndarray:
    """Move `maps` on along their own flow for `steps` times its distance.

    Motion is taken to be constant: forecast(p) = maps(p + steps * flow(p)), read bilinearly, beyond the border the
    nearest pixel.

    Args:
        maps: (H, W, K) of the last input: a frame, or softmax maps.
        flow: (H, W, 2), see `backward_flow`.
        steps: frames ahead, over the frames between the two that the flow was measured on.

    Returns:
        (H, W, K), of the dtype of `maps`.
    """
    height, width = flow.shape[:2]
    down, right = np.mgrid[:height, :width].astype(np.float32)
    columns, rows = right + np.float32(steps) * flow[..., 0], down + np.float32(steps) * flow[..., 1]
    moved = [
        cv2.remap(plane, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for plane in np.moveaxis(maps, -1, 0)
    ]  # plane by plane: OpenCV takes at most four channels at once
    return np.stack(moved, axis=-1)


def _grey(frame: np.ndarray) -> np.ndarray:
    if frame.shape[2] == 1:
        return np.ascontiguousarray(frame[..., 0])
    grey: np.ndarray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey
