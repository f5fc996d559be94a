"""Controls do not depend on the run, and are as strong as they can honestly be."""

from __future__ import annotations

import pytest
import torch

from data_pipelines.views.image import PlainImage
from evals import controls
from evals.features import cache_folder, extract
from evals.protocol import run_eval
from tests.evals.judged_runs import MAE, SIDE, SIMCLR, make_run, pack_blobs, trained, write_checkpoint


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))


def judged(folder, name, objective, blobs, seed, run_seed=0):
    run = make_run(folder / name, {**objective}, train=blobs[0].path, validation=blobs[1].path)
    write_checkpoint(run, trained(run, seed=seed), step=seed)
    return run_eval("knn", run.root)


def cached():
    return {path.name: path.stat().st_mtime_ns for path in cache_folder("controls").glob("*.json")}


def test_controls_of_two_runs_are_the_same_and_made_once(tmp_path):
    blobs = pack_blobs(tmp_path / "set")
    first = judged(tmp_path, "first", SIMCLR, blobs, seed=1)
    before = cached()
    second = judged(tmp_path, "second", SIMCLR, blobs, seed=2)
    assert cached() == before
    assert first.controls == second.controls
    assert first.metrics != second.metrics


def test_another_network_has_another_random_init_and_the_same_raw_input(tmp_path):
    blobs = pack_blobs(tmp_path / "set")
    resnet = judged(tmp_path, "resnet", SIMCLR, blobs, seed=1)
    vit = judged(tmp_path, "vit", MAE, blobs, seed=1)
    assert len(cached()) == 3
    assert resnet.controls["raw"] == vit.controls["raw"]
    assert "cls.top1@k1" in vit.controls["random_init"]


def test_raw_input_is_the_pixels_in_the_unit_range_whatever_the_network_is_fed_with(tmp_path):
    blobs = pack_blobs(tmp_path / "set")
    views = [PlainImage(image_size=SIDE, channels=1, mean=(mean,), std=(0.2,)) for mean in (0.0, 0.7)]
    tables = [extract(controls.raw(view), blobs[1]).kinds["pixels"] for view in views]
    torch.testing.assert_close(tables[0], tables[1])
    assert 0 <= tables[0].min() < 0.05
    assert 0.6 < tables[0].max() <= 1 + 1e-6


def test_raw_input_of_large_images_is_averaged_down(tmp_path):
    blobs = pack_blobs(tmp_path / "set")
    table = extract(controls.raw(PlainImage(image_size=64, channels=1)), blobs[1])
    assert table.kinds["pixels"].shape[1] == controls.RAW_SIDE**2
