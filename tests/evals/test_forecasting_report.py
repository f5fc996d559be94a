"""Forecasts in the page: every model beside the published one, strips and a moving picture inside the file."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from evals.protocol import Result, _write_animations, _write_pictures
from evals.report.page import page
from evals.report.pictures import read_animation
from evals.report.record import RunRecord
from pretrain.run.directory import RunDirectory
from tests.evals.report_fixture import write_run

METRICS = {
    "segmenter.iou_gt": 0.512, "copy.short.iou_gt": 0.4931, "copy.short.psnr": 20.64, "copy.short.ssim": 0.653,
    "s2s.short.iou_gt": 0.587, "s2s.mid.iou_mo_gt": 0.3214, "s2s_finetuned.mid.iou_seg": 0.4567,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    root = write_run(tmp_path)
    path = RunDirectory(root).evals / "step-00000600" / "segmentation_forecasting-0123456789abcdef.json"
    frames = np.zeros((4, 20, 60, 3), np.uint8)
    frames[np.arange(4), :, 10 * np.arange(4)] = 255
    result = Result(
        name="segmentation_forecasting", protocol="segmentation_forecasting/1", run="mae_mnist", step=600,
        metrics=METRICS, controls={"raw": {"s2s.short.iou_gt": 0.411}, "random_init": {}},
        pictures=_write_pictures({"strip0": frames[0]}, path),
        animations=_write_animations({"forecast": frames}, path),
        config={}, data={"test": {"name": "driving-val"}}, checkpoint="0" * 32, code="0", seconds=1, created=0,
    )  # fmt: skip
    path.write_text(json.dumps(result.model_dump()))
    return root


def rows(html):
    table = html.split('aria-label="Segmentation forecasts"')[1].split("</table>")[0]
    cells = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    return [[name, *re.findall(r"<td[^>]*>(.*?)</td>", rest)] for name, rest in cells]


def test_numbers_stand_beside_controls_and_published_ones(run):
    found = rows(page([RunRecord.read(run)]))
    dash = "–"
    assert found == [
        ["copy last input", "20.6", "0.65", "49.3", dash, dash, dash, dash, dash, "49.4", "54.6", "43.4"],
        ["S2S", dash, dash, "58.7", dash, dash, dash, "41.1", dash, "58.3", "64.9", "53.8"],
        ["S2S", dash, dash, dash, dash, "32.1", dash, dash, dash, "45.3", "47.2", "36.4"],
        [
            "S2S, fine-tuned through its forecasts",
            dash,
            dash,
            dash,
            "45.7",
            dash,
            dash,
            dash,
            dash,
            "46.7",
            "49.7",
            "39.3",
        ],
    ]


def test_the_probe_table_leaves_forecasts_to_their_own(run):
    html = page([RunRecord.read(run)])
    probes = html.split('aria-label="Probe table"')[1].split("</table>")[0]
    assert "forecasting" not in probes
    assert "Cityscapes, published" in html


def test_the_animation_moves_inside_the_page(run):
    html = page([RunRecord.read(run)])
    data = re.search(r'data:image/webp;base64,([^"]+)"', html)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data.group(1)))) as animation:
        assert animation.n_frames == 4
    assert "driving-val" in html


def test_what_is_no_animation_and_what_lies_elsewhere_is_left_out(run, tmp_path):
    secret = tmp_path / "secret.webp"
    secret.write_bytes(b"RIFF no picture")
    assert read_animation(secret, "") is None
    assert read_animation(tmp_path / "gone.webp", "") is None
    (path,) = RunDirectory(run).evals.rglob("segmentation_forecasting-*.json")
    tree = json.loads(path.read_text())
    tree["animations"] = {"forecast": "../../../secret.webp"}
    path.write_text(json.dumps(tree))
    (judgement,) = (one for one in RunRecord.read(run).judgements if one.eval_name == "segmentation_forecasting")
    assert judgement.animations == {}


def test_a_page_with_forecasts_alone_does_not_say_that_nothing_was_judged(run):
    for path in RunDirectory(run).evals.rglob("*.json"):
        if not path.name.startswith("segmentation"):
            path.unlink()
    html = page([RunRecord.read(run)])
    assert "No eval has been run yet" not in html
    assert len(rows(html)) == 4


def test_results_on_two_sets_are_both_shown(run):
    (path,) = RunDirectory(run).evals.rglob("segmentation_forecasting-*.json")
    tree = json.loads(path.read_text())
    tree["data"] = {"test": {"name": "camvid"}}
    path.with_name("segmentation_forecasting-fedcba9876543210.json").write_text(json.dumps(tree))
    html = page([RunRecord.read(run)])
    assert html.count('aria-label="Segmentation forecasts"') == 2
    assert "Forecasts on camvid" in html and "Forecasts on driving-val" in html
