"""The segmentation head: what it learns from, how often the encoder is asked, and which pixels weigh."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.segmentation_forecasting.clips import training_clips
from evals.segmentation_forecasting.metrics import IGNORE, Confusion
from evals.segmentation_forecasting.segmenter import Segmenter, SegmenterConfig, rarity, train
from tests.evals.driving_clips import SIZE, pack_clips


class Patches(nn.Module):
    """Pixels of 4 x 4 patches as features by place; counts the frames it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, frames: Tensor) -> Tensor:
        self.asked += len(frames)
        return F.pixel_unshuffle(frames, 4)


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    return training_clips(pack_clips(tmp_path_factory.mktemp("street") / "set", train=4, test=1)[0])


def trained(street, steps, head="upsampling"):
    torch.manual_seed(0)
    config = SegmenterConfig(steps=steps, batch=4, width=16, head=head)
    backbone = Patches()
    model = Segmenter(backbone, config, len(street.classes), (3, *SIZE))
    backbone.asked = 0
    train(model, street, config)
    return model.eval(), backbone.asked


@pytest.mark.parametrize("head", ["linear", "upsampling"])
def test_the_head_tells_the_classes_of_a_street(street, head):
    model, _ = trained(street, 40, head)
    confusion = Confusion(len(street.classes))
    for row in range(len(street)):
        frame = torch.from_numpy(street.images[row, street.places([19])[0]].copy())
        soft = model.soft(frame.permute(2, 0, 1)[None].float() / 255)[0]
        confusion.add(street.label(row, 19), soft.argmax(dim=0).byte().numpy())
    assert confusion.mean_iou() > 0.5


def test_a_frozen_encoder_reads_each_frame_once_and_that_changes_nothing(street, monkeypatch):
    model, asked = trained(street, 12)
    assert asked <= 2 * len(street)  # as it is, and mirrored
    monkeypatch.setattr(import_module(train.__module__), "FEATURE_BYTES", 0)
    again, asked = trained(street, 12)
    assert asked == 12 * 4
    for one, other in zip(model.head.parameters(), again.head.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rare_classes_weigh_more_and_absent_ones_nothing():
    labels = np.zeros((10, 10), np.uint8)
    labels[0, :3], labels[9] = 1, IGNORE
    common, rare, absent = rarity(labels, 3).tolist()
    assert common == pytest.approx(1 / np.log(1.02 + 87 / 90))
    assert rare == pytest.approx(1 / np.log(1.02 + 3 / 90))
    assert absent == 0
