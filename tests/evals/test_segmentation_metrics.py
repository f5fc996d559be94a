"""IoU, PSNR and SSIM against the programs that others use."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.base import DataError
from evals.segmentation_forecasting.metrics import IGNORE, PSNR_OF_EQUALS, Confusion, psnr, ssim


def confusion_of(*pairs, classes=4):
    confusion = Confusion(classes)
    for truth, predicted in pairs:
        confusion.add(np.array(truth, np.uint8), np.array(predicted, np.uint8))
    return confusion


def test_iou_by_hand():
    ious = confusion_of(([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])).ious()
    assert ious[:2].tolist() == [2 / 3, 2 / 3]
    assert np.isnan(ious[2:]).all()


def test_ignored_pixels_count_nowhere():
    with_ignored = confusion_of(([0, 1, IGNORE, IGNORE], [0, 1, 0, 2]))
    assert with_ignored.mean_iou() == 1.0
    assert np.isnan(with_ignored.ious()[2])


def test_a_prediction_of_no_class_misses_the_true_one_and_blames_no_other():
    ious = confusion_of(([0, 0, 1], [0, IGNORE, 1])).ious()
    assert ious[:2].tolist() == [0.5, 1.0]


def test_a_class_that_is_only_predicted_counts_as_zero():
    assert confusion_of(([0, 0], [0, 3])).mean_iou() == pytest.approx((0.5 + 0.0) / 2)


def test_moving_classes_are_a_mean_of_their_own():
    confusion = confusion_of(([0, 0, 1, 2], [0, 0, 2, 2]))
    assert confusion.mean_iou([1, 2]) == pytest.approx(0.25)
    assert np.isnan(confusion.mean_iou([3]))


def test_frames_add_up_before_they_are_divided():
    one, other = ([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 1, 1, 1], [0, 0, 0, 1])
    apart = [confusion_of(pair).mean_iou() for pair in (one, other)]
    both = confusion_of(one, other)
    np.testing.assert_array_equal(both.pixels, confusion_of(one).pixels + confusion_of(other).pixels)
    assert both.mean_iou() != pytest.approx(np.mean(apart))


@pytest.mark.parametrize(("truth", "predicted"), [([0, 9], [0, 0]), ([0, 0], [0, 7])])
def test_wrong_class_numbers_are_refused(truth, predicted):
    with pytest.raises(DataError, match=r"hold [79], want 0\.\.3, or 255"):
        confusion_of((truth, predicted))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_iou_is_the_sets_own_definition(seed, classes):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, classes, (2, 40))
    expected = []
    for number in range(classes):
        union = ((truth == number) | (predicted == number)).sum()
        expected.append(((truth == number) & (predicted == number)).sum() / union if union else np.nan)
    np.testing.assert_allclose(confusion_of((truth, predicted), classes=classes).ious(), expected)


def test_iou_agrees_with_cityscapes_own_evaluation(tmp_path):
    pytest.importorskip("cityscapesscripts", reason="parity with Cityscapes' own evaluation wants cityscapesscripts")
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as theirs
    from cityscapesscripts.helpers.labels import labels, trainId2label

    rng = np.random.default_rng(0)
    confusion = Confusion(19)
    files = {"truth": [], "predicted": []}
    for frame in range(3):
        # class 7 in neither map, class 4 only predicted; void in the truth, and once in the prediction
        truth = rng.choice([0, 1, 2, 8, 10, 11, 13, 18, IGNORE], (8, 16))
        predicted = np.where(rng.random((8, 16)) < 0.6, truth, rng.choice([0, 2, 4, 13, 11], (8, 16)))
        predicted[truth == IGNORE] = 1
        predicted[0, 0], truth[0, 0] = IGNORE, 0
        confusion.add(truth, predicted)
        for name, numbers in (("truth", truth), ("predicted", predicted)):
            ids = np.vectorize(lambda number: 0 if number == IGNORE else trainId2label[number].id)(numbers)
            path = tmp_path / f"{name}{frame}.png"
            Image.fromarray(ids.astype(np.uint8)).save(path)
            files[name].append(str(path))
    theirs.args.evalInstLevelScore, theirs.args.quiet, theirs.args.JSONOutput = False, True, False
    theirs.args.evalPixelAccuracy = False
    result = theirs.evaluateImgLists(files["predicted"], files["truth"], theirs.args)
    assert confusion.mean_iou() == pytest.approx(result["averageScoreClasses"], abs=1e-12)
    by_name = {label.name: label.trainId for label in labels if 0 <= label.trainId < 19}
    for name, number in by_name.items():
        np.testing.assert_allclose(confusion.ious()[number], result["classScores"][name], err_msg=name)


def test_psnr_and_ssim_agree_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="parity of PSNR and SSIM wants scikit-image")
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (24, 40, 3)).astype(np.uint8)
    for noise in (3, 60):
        predicted = np.clip(truth + rng.normal(0, noise, truth.shape), 0, 255).astype(np.uint8)
        assert psnr(truth, predicted) == pytest.approx(
            metrics.peak_signal_noise_ratio(truth, predicted, data_range=255)
        )
        theirs = metrics.structural_similarity(
            truth, predicted, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert ssim(truth, predicted) == pytest.approx(theirs, abs=1e-9)


def test_equal_frames_score_finite():
    frame = np.full((16, 16, 3), 7, np.uint8)
    assert psnr(frame, frame) == PSNR_OF_EQUALS
    assert ssim(frame, frame) == pytest.approx(1.0)


def test_copying_the_last_labels_of_camvid_scores_as_published(shared_data):
    with tarfile.open(shared_data / "camvid" / "camvid-15hz.tar") as tar:
        names = sorted(name for name in tar.getnames() if "/labels/" in name)
        maps = [np.asarray(Image.open(io.BytesIO(tar.extractfile(name).read()))) for name in names]
    maps = [np.where(each == 11, IGNORE, each) for each in maps]  # CamVid's "unlabelled"
    moving = [8, 9, 10]  # car, pedestrian, bicyclist
    for distance, mean, of_moving in ((3, 57.3, 34.2), (9, 43.6, 12.2)):
        confusion = Confusion(11)
        for copied, truth in zip(maps[:-distance], maps[distance:], strict=True):
            confusion.add(truth, copied)
        assert 100 * confusion.mean_iou() == pytest.approx(mean, abs=0.05)
        assert 100 * confusion.mean_iou(moving) == pytest.approx(of_moving, abs=0.05)
