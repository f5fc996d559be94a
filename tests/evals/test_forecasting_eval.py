"""Segmentation forecasting from a checkpoint to its numbers, and what it refuses."""

from __future__ import annotations

import pytest
from PIL import Image

from data_pipelines.base import UserError
from evals.protocol import run_eval
from pretrain.objective import DataFacts
from tests.evals.driving_clips import pack_clips
from tests.evals.judged_runs import MAE, SIMCLR, make_run, pack_blobs, trained, write_checkpoint

FACTS = DataFacts(channels=3, image_size=(16, 16))
QUICK = ["segmenter.steps=20", "segmenter.width=8", "forecaster.steps=4", "forecaster.width=4", "forecaster.patch=16"]


def street_run(folder, objective, clips):
    run = make_run(folder, objective, train=clips[0].path, validation=clips[1].path, facts=FACTS)
    write_checkpoint(run, trained(run, FACTS))
    return run


@pytest.mark.slow
def test_every_model_is_judged_beside_references_and_controls(tmp_path):
    run = street_run(tmp_path / "run", MAE, pack_clips(tmp_path / "set", train=3, test=2))
    models = "[x2x,s2s,s2s_adv,xs2x,xs2s,xs2xs,s2s_finetuned,s2s_batch,xs2s_batch,xs2xs_batch]"
    result = run_eval("segmentation_forecasting", run.root, [f"models={models}", *QUICK])
    both = {"copy", "warp", "x2x", "s2s", "s2s_adv", "xs2xs"}
    short, mid = both | {"xs2x", "xs2s"}, both | {"s2s_finetuned", "s2s_batch", "xs2s_batch", "xs2xs_batch"}
    for term, expected in (("short", short), ("mid", mid)):
        measured = {name.split(".")[0] for name in result.metrics if f".{term}." in name}
        assert measured == expected
        with_frames = {name.split(".")[0] for name in result.metrics if name.endswith(f"{term}.psnr")}
        assert with_frames == {name for name in expected if not name.startswith(("s2s", "xs2s_", "xs2s"))}
    for name in expected:
        assert {f"{name}.mid.{measure}" for measure in ("iou_gt", "iou_seg", "iou_mo_gt")} <= result.metrics.keys()
    assert {"segmenter.iou_gt", "segmenter.iou_mo_gt"} <= result.metrics.keys()
    for control in ("raw", "random_init"):
        assert result.controls[control].keys() == result.metrics.keys()
        assert result.controls[control] != result.metrics
    assert all(0 <= value <= 1 for name, value in result.metrics.items() if "psnr" not in name and "ssim" not in name)
    folder = next(run.evals.rglob("pictures"))
    assert {"strip0", "strip1"} == result.pictures.keys()
    with Image.open(folder / result.animations["forecast"]) as animation:
        assert animation.n_frames == 7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    return street_run(folder / "run", SIMCLR, pack_clips(folder / "set", train=2, test=1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label_frames": ()}, "has no labelled frames"),
        ({"label_frames": (12,)}, "too few frames; no labelled frame (12) has 18 frames before it"),
        ({"wrong_label": 7}, "holds 7, want classes 0..3, or 255"),
        ({"size": (31, 64)}, "frames of 31 x 64 pixels"),
    ],
)
def test_clips_that_cannot_be_foretold_are_refused_in_one_line(run, tmp_path, changes, words):
    train, test = pack_clips(tmp_path / "set", train=2, test=1, **changes)
    with pytest.raises(UserError) as error:
        run_eval("segmentation_forecasting", run.root, [f"data.train={train.path}", f"data.test={test.path}"])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_sets_of_single_images_and_of_other_sizes_are_refused(run, tmp_path):
    train, test = pack_blobs(tmp_path / "blobs")
    with pytest.raises(UserError, match="holds no clips"):
        run_eval("segmentation_forecasting", run.root, [f"data.train={train.path}", f"data.test={test.path}"])
    other = pack_clips(tmp_path / "other", train=1, test=1, size=(32, 48))
    with pytest.raises(UserError, match=r"differ in image_size \(32, 64 and 32, 48\)"):
        run_eval("segmentation_forecasting", run.root, [f"data.test={other[1].path}"])


def test_a_model_that_goes_on_from_another_wants_it_first(run):
    with pytest.raises(UserError, match="s2s_finetuned goes on from s2s"):
        run_eval("segmentation_forecasting", run.root, ["models=[s2s_finetuned]"])


def test_references_alone_learn_from_no_maps(run, tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path))
    result = run_eval("segmentation_forecasting", run.root, ["models=[]", *QUICK])
    assert {name.split(".")[0] for name in result.metrics} == {"segmenter", "copy", "warp"}
    assert len(list((tmp_path / "soft_maps").glob("*.npy"))) == 3  # of the test set, for the encoder and its controls
