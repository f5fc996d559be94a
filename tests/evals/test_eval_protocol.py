"""From a checkpoint to a result file: once, whole, with its controls, or one line that says what to do."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.shards import Dataset
from evals import protocol
from evals.protocol import EvalConfig, Result, Scores, eval_module, eval_names, order_eval, run_eval
from pretrain.export import export
from tests.evals.judged_runs import MAE, SIMCLR, make_run, pack_blobs, trained, write_checkpoint


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return [dataset.path for dataset in pack_blobs(tmp_path_factory.mktemp("blobs") / "set")]


@pytest.fixture
def run(tmp_path, blobs):
    run = make_run(tmp_path / "run", SIMCLR, train=blobs[0], validation=blobs[1])
    for step in (2, 4):
        write_checkpoint(run, trained(run, seed=step), step=step)
    return run


def files(run):
    return sorted(path.relative_to(run.evals).as_posix() for path in run.evals.rglob("*.json"))


def test_every_metric_has_its_controls_beside_it(run):
    result = run_eval("knn", run.root)
    assert {"top1@k1", "top1@k10", "top1@k20", "weighted@k10"} <= result.metrics.keys()
    for control in ("raw", "random_init"):
        assert {name for name in result.metrics if "." not in name} <= result.controls[control].keys()
    assert result.controls["raw"]["top1@k10"] > 0.9
    assert all(0 <= value <= 1 for scores in (result.metrics, *result.controls.values()) for value in scores.values())


def test_the_file_says_all_a_number_depends_on(run, blobs):
    result = run_eval("knn", run.checkpoints / "step-00000002", ["k=[3]"])
    (path,) = (run.evals / "step-00000002").glob("knn-*.json")
    assert Result.model_validate_json(path.read_bytes()) == result
    assert (result.name, result.protocol, result.run, result.step) == ("knn", "knn/1", "run", 2)
    assert result.config["k"] == [3]
    assert result.data["train"]["digest"] == Dataset.open(blobs[0]).digest
    assert result.data["test"]["samples"] == 60
    assert len(result.checkpoint) == 32
    assert result.seconds > 0


def test_the_export_is_made_on_the_way(run):
    run_eval("knn", run.root)
    assert [path.name for path in run.exports.iterdir()] == ["step-00000004"]


def test_a_result_is_read_and_not_made_again_unless_forced(run):
    first = run_eval("knn", run.root)
    assert run_eval("knn", run.root) == first
    assert run_eval("knn", run.root, force=True).created > first.created
    assert len(files(run)) == 1


def test_other_settings_and_data_have_files_of_their_own(run, tmp_path):
    other = pack_blobs(tmp_path / "other", train=60, test=30)
    run_eval("knn", run.root)
    run_eval("knn", run.root, ["k=[5]"])
    run_eval("knn", run.root, [f"data.test={other[1].path}"])
    assert len(files(run)) == 3


def test_one_setting_has_one_file_name_at_every_checkpoint(run):
    for step in (2, 4):
        run_eval("knn", run.checkpoints / f"step-{step:08d}")
    assert len({name.split("/")[1] for name in files(run)}) == 1
    assert len(files(run)) == 2


def test_a_moved_set_is_the_same_set(run, blobs, tmp_path):
    (tmp_path / "moved").symlink_to(blobs[1])
    assert order_eval("knn", run.root).path == order_eval("knn", run.root, [f"data.test={tmp_path / 'moved'}"]).path


def test_a_result_of_another_checkpoint_of_that_step_does_not_count(run):
    order = order_eval("knn", run.root)
    run_eval("knn", run.root)
    text = json.loads(order.path.read_text())
    order.path.write_text(json.dumps({**text, "checkpoint": "0" * 32}))
    assert order.known() is None
    order.path.write_text("{ half a fi")
    assert order.known() is None


def test_an_export_is_judged_without_its_run(run, tmp_path, blobs):
    of_run = run_eval("knn", run.root)
    alone = export(run.root, tmp_path / "alone")
    data = [f"data.train={blobs[0]}", f"data.test={blobs[1]}"]
    result = run_eval("knn", alone, data)
    assert result.metrics == of_run.metrics
    assert result.run is None
    assert len(list((alone / "evals").glob("knn-*.json"))) == 1
    with pytest.raises(UserError, match=r"belongs to no run.*data\.train"):
        run_eval("knn", alone)


def test_an_export_inside_a_run_goes_to_its_results(run):
    of_checkpoint = run_eval("knn", run.root)
    assert run_eval("knn", run.exports / "step-00000004") == of_checkpoint


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("linear_prob", [], "eval 'linear_prob' does not exist; did you mean 'linear_probe'"),
        ("knn", ["kk=[1]"], "unknown key 'kk'; did you mean 'k'"),
        ("knn", ["k=[]"], "eval knn: k"),
        ("knn", ["k=[0]"], "eval knn: k"),
        ("linear_probe", ["budgets=[0]"], "eval linear_probe: budgets"),
        ("knn", ["data.test=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_word_gets_one_line(run, name, overrides, words):
    with pytest.raises(UserError) as error:
        run_eval(name, run.root, overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_without_validation_asks_for_a_test_set(tmp_path, blobs):
    run = make_run(tmp_path / "run", MAE, train=blobs[0])
    write_checkpoint(run, trained(run))
    with pytest.raises(UserError, match=r"set data\.test=FOLDER"):
        run_eval("knn", run.root)


def test_training_and_test_set_must_differ(run, blobs):
    with pytest.raises(UserError, match="same set"):
        run_eval("knn", run.root, [f"data.test={blobs[0]}"])


def test_data_without_labels_is_refused_before_features_are_made(tmp_path):
    train, test = pack_blobs(tmp_path / "set", labelled=False)
    run = make_run(tmp_path / "run", SIMCLR, train=train.path, validation=test.path)
    write_checkpoint(run, trained(run))
    with pytest.raises(UserError, match=r"has no labels.*data\.train"):
        run_eval("knn", run.root)
    assert not files(run)


def test_one_class_only_is_refused(tmp_path):
    train, test = pack_blobs(tmp_path / "set", classes=1)
    run = make_run(tmp_path / "run", SIMCLR, train=train.path, validation=test.path)
    write_checkpoint(run, trained(run))
    for name in ("knn", "linear_probe"):
        with pytest.raises(UserError, match="are of class 0"):
            run_eval(name, run.root)


def test_an_eval_of_a_third_party_needs_no_change_here(run, monkeypatch):
    module = types.ModuleType("theirs")
    module.PROTOCOL, module.Config = "theirs/1", EvalConfig
    red = np.full((4, 6, 3), (255, 0, 0), dtype=np.uint8)
    motion = np.stack([red, 0 * red, red])
    module.run = lambda encoder, data, config: Scores({"width": 1.5}, {}, {"red": red}, {"blink": motion})
    monkeypatch.setitem(sys.modules, "theirs", module)
    monkeypatch.setitem(protocol.EVALS, "theirs", "theirs")
    result = run_eval("theirs", run.root)
    (path,) = (run.evals / "step-00000004").glob("theirs-*.json")
    picture = Image.open(path.parent / "pictures" / result.pictures["red"])
    assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (255, 0, 0))
    animation = Image.open(path.parent / "pictures" / result.animations["blink"])
    assert (animation.format, animation.size, animation.n_frames) == ("WEBP", (6, 4), 3)
    assert "theirs" in eval_names()


def test_every_named_eval_opens():
    for name in eval_names():
        assert eval_module(name).PROTOCOL.startswith(f"{name}/")
