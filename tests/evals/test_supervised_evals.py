"""Linear probes of the papers and fine-tuning: numbers, controls, restarts and ranks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.base import UserError
from data_pipelines.pack.arrays import write_image_arrays
from data_pipelines.pack.writer import PackConfig, no_progress
from data_pipelines.shards import Dataset
from data_pipelines.views.image import PlainImage
from evals.protocol import run_eval
from evals.supervised import exam_view
from tests.evals.judged_runs import MAE, SIDE, SIMCLR, make_run, pack_blobs, trained, write_checkpoint

COURSE = ["epochs=8", "global_batch=32"]
PROBE = ["linear_probe_mae", *COURSE, "warmup_epochs=1", "base_lr=3"]
LONGER = [*PROBE, "epochs=16"]


@pytest.fixture(scope="module")
def shades(tmp_path_factory) -> list[str]:
    """Pictures whose class is how bright they are, wherever a crop falls."""
    rng = np.random.default_rng(0)

    def rows(count):
        for number in range(count):
            image = rng.normal(60 + 40 * (number % 3), 30, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)
            yield f"shade{count}-{number:04d}", image, number % 3

    config = PackConfig(samples_per_shard=50)
    sets = {"train": list(rows(192)), "val": list(rows(60))}
    out = tmp_path_factory.mktemp("shades") / "set"
    packed = write_image_arrays(
        out, sets, config, name="shades", source="generated", classes=("a", "b", "c"), progress=no_progress
    )
    return [dataset.path for dataset in packed]


def run_of(folder, data, objective=MAE):
    run = make_run(folder, objective, train=data[0], validation=data[1])
    write_checkpoint(run, trained(run))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, shades):
    return run_of(tmp_path_factory.mktemp("runs") / "run", shades)


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    """The longer probe, from its first step to its last; controls are remembered from here on."""
    with pytest.MonkeyPatch.context() as patch:  # this comes before a test's own environment
        patch.setenv("THALWEG_CACHE", str(tmp_path_factory.getbasetemp() / "thalweg-cache"))
        return judged(run, LONGER)


def judged(run, words):
    name, *overrides = words
    return run_eval(name, run.root, overrides)


def command(run, words, *flags):
    name, *overrides = words
    return [sys.executable, "-m", "launch.cli", "eval", name, str(run.root), *overrides, *flags]


def copy_of(run, folder):
    """The same checkpoint, not judged yet."""
    for part in ("checkpoints", "run.json", "config.yaml"):
        source = run.root / part
        folder.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    return type(run)(folder)


@pytest.mark.slow
def test_the_probe_of_mae_learns_and_so_do_its_controls(unbroken, run):
    assert unbroken.protocol == "linear_probe_mae/1"
    assert set(unbroken.metrics) == {"top1", "cls.top1", "pooled.top1"}
    assert unbroken.metrics["top1"] in (unbroken.metrics["cls.top1"], unbroken.metrics["pooled.top1"])
    assert set(unbroken.controls) == {"raw", "random_init"}
    assert unbroken.controls["raw"]["top1"] > 0.7
    assert unbroken.metrics["top1"] > 0.7
    assert not list(run.evals.rglob("checkpoints/step-*"))  # only the scores and the curves are kept
    assert list(run.evals.rglob("pretrained/metrics.jsonl"))


@pytest.mark.slow
def test_a_killed_probe_goes_on_and_finds_the_same_number(unbroken, run, tmp_path):
    again = copy_of(run, tmp_path / "again")
    process = subprocess.Popen(command(again, LONGER), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (saved := list(again.evals.rglob("pretrained/checkpoints/step-*/MANIFEST.json"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(again.evals.rglob("*/pretrained.json")), "killed too late to show anything"
    result = judged(again, LONGER)
    assert result.metrics == unbroken.metrics
    events = next(again.evals.rglob("pretrained/events.jsonl")).read_text()
    assert "resumed at step 50" in events and saved


@pytest.mark.slow
def test_two_ranks_find_what_one_found(unbroken, run, tmp_path):
    again = copy_of(run, tmp_path / "again")
    done = subprocess.run(command(again, LONGER, "--ranks", "2"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(command(again, PROBE, "--ranks", "3"), capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("no multiple of world_size=3")) == (2, 1)  # said once
    assert done.stdout.count("linear_probe_mae/1") == 1  # one rank speaks
    result = judged(again, LONGER)  # read, not made
    assert result.metrics == pytest.approx(unbroken.metrics, abs=1 / 60)
    assert "on 2 rank(s)" in next(again.evals.rglob("pretrained/events.jsonl")).read_text()


@pytest.mark.slow
def test_a_signal_saves_and_asks_to_be_started_again(run, tmp_path, unbroken):
    again = copy_of(run, tmp_path / "again")
    process = subprocess.Popen(command(again, LONGER), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(again.evals.rglob("pretrained/attempts/1.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 85, said
    assert "start again to go on" in said


@pytest.mark.slow
def test_moco_v3_tries_learning_rates_at_once_and_one_is_chosen(tmp_path, shades):
    run = run_of(tmp_path / "run", shades, SIMCLR)
    result = judged(run, ["linear_probe_mocov3", *COURSE, "base_lrs=[1,1e-6]"])
    assert set(result.metrics) == {"top1", "pooled.top1@lr1", "pooled.top1@lr1e-06"}
    assert result.metrics["top1"] == result.metrics["pooled.top1@lr1"] > result.metrics["pooled.top1@lr1e-06"]
    assert result.controls["raw"].keys() == result.metrics.keys()


@pytest.mark.slow
def test_fine_tuning_moves_the_encoder_and_is_compared_with_training_from_scratch(run):
    result = judged(run, ["finetune", "epochs=6", "global_batch=32", "warmup_epochs=1", "base_lr=0.03"])
    assert set(result.metrics) == {"top1"}
    assert result.metrics["top1"] > 0.5
    assert {name: set(scores) for name, scores in result.controls.items()} == {"raw": {"top1"}, "random_init": {"top1"}}


def test_wrong_settings_and_data_are_answered_in_one_line(run, tmp_path, shades):
    with pytest.raises(UserError, match=r"warmup_epochs=10 fill epochs=8"):
        judged(run, ["linear_probe_mae", *COURSE])
    with pytest.raises(UserError, match="unknown key 'epoch'; did you mean 'epochs'"):
        judged(run, ["finetune", "epoch=3"])
    bare = [dataset.path for dataset in pack_blobs(tmp_path / "bare", labelled=False)]
    with pytest.raises(UserError, match="has no labels"):
        judged(run, [*PROBE, f"data.train={bare[0]}", f"data.test={bare[1]}"])
    for name in ("train", "val"):  # tars of others: no manifest that names classes
        shutil.copytree(f"{Path(shades[0]).parent}/{name}", tmp_path / name)
        (tmp_path / name / "manifest.json").unlink()
    foreign = [f"data.train={tmp_path}/train", f"data.test={tmp_path}/val"]
    with pytest.raises(UserError, match="does not say how many classes it has; set classes=NUMBER"):
        judged(run, [*PROBE, *foreign])
    assert "RANK" not in os.environ  # the ranks of an eval leave nothing behind


def test_images_of_the_networks_own_size_are_judged_whole(shades):
    view = PlainImage(image_size=SIDE, channels=1)
    assert exam_view(view, Dataset.open(shades[1])) == view
    assert exam_view(PlainImage(image_size=14, channels=1), Dataset.open(shades[1])).shorter_side == 16
