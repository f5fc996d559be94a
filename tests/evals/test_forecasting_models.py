"""Windows, forecasters and heads: what they read, what they begin with, what they learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipelines.views.image import PlainImage
from evals.segmentation_forecasting.backbones import EncoderMap, PixelMap, squares
from evals.segmentation_forecasting.clips import test_clips as clips_to_judge
from evals.segmentation_forecasting.clips import training_clips
from evals.segmentation_forecasting.forecaster import MODELS, Forecaster, channels_of
from evals.segmentation_forecasting.judging import foretell, judge, references
from evals.segmentation_forecasting.segmenter import Segmenter, SegmenterConfig
from evals.segmentation_forecasting.training import ForecasterConfig, Material, lr_share, train
from evals.segmentation_forecasting.windows import inputs, targets, training_frames, training_windows, window
from pretrain.export import LoadedEncoder
from pretrain.networks.vision import vision_encoder
from tests.evals.driving_clips import SIZE, pack_clips
from tests.evals.judged_runs import RESNET, VIT


def test_windows_of_a_cityscapes_snippet_are_those_of_the_paper():
    from_one = [frame + 1 for frame in window(19)]
    assert from_one[inputs("short")] == [8, 11, 14, 17]
    assert from_one[inputs("mid")] == [2, 5, 8, 11]
    assert from_one[-3:] == [14, 17, 20]
    assert targets((17, 19, 3)) == [19]


def test_training_windows_keep_the_spacing_and_the_phase():
    frames = training_frames(30, (19,))
    assert frames == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]
    assert training_windows(frames, 5) == [[first + step for step in range(5)] for first in range(6)]
    every = training_frames(25, tuple(range(25)))
    assert all(np.diff([every[place] for place in run]).tolist() == [3] * 6 for run in training_windows(every, 7))
    assert len(training_windows(every, 7)) == 25 - 18


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """Clips whose soft maps are the true labels: training and test material."""
    labelled = tuple(range(20))
    sets = pack_clips(tmp_path_factory.mktemp("street") / "set", train=8, test=3, label_frames=labelled)
    clips = [training_clips(sets[0]), clips_to_judge(sets[1])]
    return [Material(each, true_maps(each)) for each in clips]


def true_maps(clips):
    labels = np.stack([clips.labels[:, clips.facts.label_frames.index(frame)] for frame in clips.frames], axis=1)
    return (255 * np.eye(len(clips.classes), dtype=np.uint8)[labels]).transpose(0, 1, 4, 2, 3)


def test_the_learning_rate_rises_before_it_falls():
    shares = [lr_share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[:10] == sorted(shares[:10]) and shares[10:] == sorted(shares[10:], reverse=True)
    assert max(shares) > 0.97 and shares[-1] < 0.001
    assert lr_share(0, 1) == 1


@pytest.mark.parametrize("name", MODELS)
def test_an_untrained_forecaster_copies_the_last_input(name):
    model = MODELS[name]
    forecaster = Forecaster(model, channels=3, classes=5, width=4)
    past = torch.rand(2, 4, channels_of(model.reads, 3, 5), 8, 12)
    guess, forecast = forecaster(past)
    assert forecast.shape == (2, model.at_once, channels_of(model.writes, 3, 5), 8, 12)
    assert guess.shape[-2:] == (4, 6)
    last = {"x": past[:, -1, :3], "s": past[:, -1, -5:], "xs": past[:, -1]}[model.writes]
    for ahead in range(model.at_once):
        torch.testing.assert_close(forecast[:, ahead], last)


def test_layers_are_those_of_the_paper():
    forecaster = Forecaster(MODELS["s2s"], channels=3, classes=19, width=128)
    shapes = [
        [(layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in scale[::2]]
        for scale in (forecaster.coarse, forecaster.fine)
    ]
    assert shapes == [
        [(76, 128, 3), (128, 256, 3), (256, 128, 3), (128, 19, 3)],
        [(95, 128, 5), (128, 256, 3), (256, 128, 3), (128, 19, 5)],
    ]


@pytest.mark.slow
def test_a_forecaster_learns_motion_that_a_copy_misses(street):
    learnt, judged = street
    forecaster = train("s2s", learnt, ForecasterConfig(width=8, steps=150, patch=32, lr=3e-3), {})
    scores = judge(judged, None, {"s2s": forecaster}, "test")
    assert scores["s2s.short.iou_gt"] > scores["copy.short.iou_gt"] + 0.03
    assert scores["s2s.short.iou_mo_gt"] > scores["copy.short.iou_mo_gt"] + 0.03


@pytest.mark.parametrize("name", ["s2s_adv", "xs2xs_batch"])
def test_equal_settings_train_equal_forecasters(street, name):
    config = ForecasterConfig(width=4, steps=3, patch=16)
    nets = [train(name, street[0], config, {}) for _ in range(2)]
    untrained = Forecaster(MODELS[name], 3, 4, width=4)
    for one, other, still in zip(*(net.parameters() for net in (*nets, untrained)), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, still)


def test_true_maps_score_as_labels_that_are_copied_and_the_segmenter_as_the_truth(street):
    scores = judge(street[1], None, {}, "test")
    for term in ("short", "mid"):
        for measure in ("iou_gt", "iou_mo_gt"):
            assert scores[f"copy.{term}.{measure}"] == scores[f"labels_copied.{term}.{measure}"] < 1
    assert scores["segmenter.iou_gt"] == scores["segmenter.iou_mo_gt"] == 1.0
    assert scores["copy.short.iou_gt"] > scores["copy.mid.iou_gt"]


def test_references_read_no_frame_after_the_last_input(street):
    judged = street[1]
    spoilt = Material(judged.clips, judged.maps.copy())
    last = judged.clips.places(window(19)[inputs("mid")])[-1]
    spoilt.maps[:, last + 1 :] = 0
    for who, forecast in references(judged, 0, 19, "mid").items():
        np.testing.assert_array_equal(forecast.labels, references(spoilt, 0, 19, "mid")[who].labels)


def test_a_model_goes_on_from_its_own_forecasts(street):
    judged = street[1]
    forecaster = Forecaster(MODELS["s2s"], 3, 4, width=4)
    with torch.no_grad():
        forecaster.fine[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.4]))  # class 3 gains a little at every round
    stages = foretell("s2s", forecaster, judged, None, 0, 19, "mid")
    shares = [float((stage.labels == 3).mean()) for stage in stages]
    assert shares[0] == shares[1] < shares[2] == 1.0


@pytest.mark.parametrize(
    ("frame", "side", "grid"), [((64, 128), 64, (1, 2)), ((360, 480), 32, (11, 15)), ((64, 128), 224, (1, 2))]
)
def test_frames_are_cut_into_squares_of_about_their_scale(frame, side, grid):
    assert squares(*frame, side) == grid


def encoder_of(tree, size=16):
    network = vision_encoder(tree, "here", image_size=size, channels=3).eval().requires_grad_(False)
    return LoadedEncoder(network, PlainImage(image_size=size, channels=3).model_dump(), folder=None)


@pytest.mark.parametrize("tree", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_encoder_s_map_of_a_frame_is_its_squares_maps_side_by_side(tree):
    encoder = encoder_of(tree)
    frame = torch.rand(1, 3, 32, 48)
    whole = EncoderMap(encoder)(frame)
    corner = EncoderMap(encoder)(frame[..., 16:, 32:])
    rows, columns = corner.shape[2:]
    assert whole.shape[2:] == (2 * rows, 3 * columns)
    torch.testing.assert_close(whole[..., -rows:, -columns:], corner)


def test_pixels_stand_at_the_places_of_the_encoder_s_map():
    encoder = encoder_of(VIT)
    found = PixelMap(encoder)(torch.rand(2, 3, *SIZE))
    assert found.shape == (2, 3 * 16, *EncoderMap(encoder)(torch.rand(1, 3, *SIZE)).shape[2:])


@pytest.mark.parametrize("train_encoder", [False, True])
def test_the_encoder_learns_only_where_it_is_told_to(train_encoder):
    encoder = encoder_of(VIT)
    config = SegmenterConfig(train_encoder=train_encoder, width=8)
    model = Segmenter(EncoderMap(encoder), config, classes=4, frame=(3, *SIZE))
    model(torch.rand(2, 3, *SIZE)).sum().backward()
    gradients = [parameter.grad for parameter in model.backbone.parameters()]
    assert any(gradient is not None for gradient in gradients) == train_encoder
    assert all(not parameter.requires_grad for parameter in encoder.module.parameters())  # the subject stays as it is
