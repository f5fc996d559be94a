"""A folder of one's own, and other people's tars, through a packaged recipe by overrides alone."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForMaskedLM

from data_pipelines.shards import Dataset
from pretrain.run.directory import RunDirectory
from tests.river import finish, losses, newest_result, rank_processes, start, steps_done, thalweg, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("own_data")]

SHORT = ["train.steps=4", "train.global_batch=16", "checkpoint.every=4", "data.workers=0"]


@pytest.fixture
def photos(tmp_path):
    """Class folders of coloured pictures with names as people give them."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["Äpfel & Birnen", 'it\'s "quoted"']):
        folder = tmp_path / "my photos" / name
        folder.mkdir(parents=True)
        for number in range(24):
            picture = rng.integers(0, 90, (32, 40, 3)) + np.array([120 * label, 60, 0])
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"bild {number}.jpg")
    return tmp_path / "my photos"


def test_own_folder_is_packed_checked_pretrained_judged_and_reported(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thalweg("data", "pack", "imagefolder", str(photos), "packed set", "val_fraction=0.25")
    assert "whole" in thalweg("data", "check", "packed set/train")
    data = ["data.path=packed set/train", "data.validation=packed set/val"]
    thalweg("pretrain", "mae_debug", "name=my run", "objective.image_size=28", *data, *SHORT)
    run = RunDirectory(tmp_path / "runs" / "my run")
    assert run.finished()
    thalweg("eval", "knn", str(run.root))
    result = newest_result(run, "knn")
    assert set(result["controls"]) == {"raw", "random_init"}
    thalweg("report", str(run.root), "--out", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Äpfel &amp; Birnen" in page


def write_essays(path):
    """Documents of a few sentences, from a small vocabulary."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ri", "va", "ste", "wa", "flo") for b in ("ver", "lley", "am", "ter", "od", "w")]
    sentences = (" ".join(rng.choice(words, 8)) + "." for _ in range(2400))
    path.write_text("\n\n".join(" ".join(text) for text in zip(*[sentences] * 4, strict=True)))


def test_own_text_is_packed_pretrained_through_a_kill_reported_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_essays(tmp_path / "essays.txt")
    thalweg("data", "pack", "text", "essays.txt", "essays", "vocabulary_size=200", "row_tokens=32", "val_fraction=0.1")
    data = ["data.path=essays/train", "data.validation=essays/val", "data.workers=0"]
    recipe = ["masked_lm_debug", "name=essays run", *data, "checkpoint.every=5", "monitor.log_every=1"]
    run = RunDirectory(tmp_path / "runs" / "essays run")
    process = start("pretrain", *recipe, "--ranks", "2")
    until(lambda: steps_done(run) >= 7, process)
    os.kill(rank_processes(run)[1], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert run.finished()
    assert len(run.attempts()) == 2
    assert sorted(losses(run)) == list(range(1, 21))
    assert losses(run)[20] < losses(run)[1]
    packed = Dataset.open("essays/train").manifest.facts
    assert run.info()["facts"]["tokenizer_digest"] == packed.tokenizer_digest
    samples, last = 20 * run.recipe().train.global_batch, run.metrics()[-1]
    assert last["tokens"] == pytest.approx(samples * packed.tokens / run.info()["samples"])
    assert last["tokens_per_s"] > last["samples_per_s"]
    assert "are exactly what the order says" in thalweg("runs", "verify", str(run.root))
    thalweg("report", str(run.root))
    assert "masked_lm" in (run.root / "report.html").read_text()
    thalweg("export", str(run.root), "exported")
    opened, loading = AutoModelForMaskedLM.from_pretrained("exported", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert opened.config.vocab_size == run.info()["facts"]["vocabulary_size"]


def test_tars_without_an_index_run_through_the_same_recipe(shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [f"data.path={shared_data}/cifar10/train-*.tar", f"data.validation={shared_data}/cifar10/test-000000.tar"]
    thalweg("pretrain", "info_nce_debug", "name=cifar", *data, *SHORT, "--ranks", "2")
    run = RunDirectory(tmp_path / "runs" / "cifar")
    assert run.finished()
    assert run.info()["samples"] == 2400
    assert run.info()["facts"]["channels"] == 3
