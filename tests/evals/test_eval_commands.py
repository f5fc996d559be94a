"""The commands as a user types them."""

from __future__ import annotations

import re

import pytest

from evals.protocol import Result, eval_names
from launch.cli import main
from launch.eval_commands import print_result
from tests.evals.judged_runs import SIMCLR, make_run, pack_blobs, trained, write_checkpoint


@pytest.fixture
def run(tmp_path):
    train, test = pack_blobs(tmp_path / "set")
    run = make_run(tmp_path / "run", SIMCLR, train=train.path, validation=test.path)
    write_checkpoint(run, trained(run))
    return run


def test_eval_prints_every_number_beside_its_controls(run, capsys):
    assert main(["eval", "knn", str(run.root), "k=[1,10]"]) == 0
    out = capsys.readouterr().out
    assert "knn/1" in out
    assert "run, step 4" in out
    (row,) = (line for line in out.splitlines() if " top1@k10 " in line)
    assert len(re.findall(r"\d+\.\d%", row)) == 3


def test_numbers_that_are_no_shares_are_printed_as_they_are(capsys):
    metrics = {"copy.short.iou_gt": 0.494, "copy.short.psnr": 20.64}
    result = Result(
        name="forecasting", protocol="forecasting/1", run=None, step=None, metrics=metrics, controls={"raw": metrics},
        pictures={}, config={}, data={}, checkpoint="", code="", seconds=1, created=0,
    )  # fmt: skip
    print_result(result)
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "copy" in line}
    assert rows["copy.short.iou_gt"].count(" 49.4%") == 2
    assert rows["copy.short.psnr"].count(" 20.64 ") == 2


def test_export_says_how_to_open_what_it_made(run, tmp_path, capsys):
    assert main(["export", str(run.root), str(tmp_path / "out")]) == 0
    assert f'AutoModel.from_pretrained("{tmp_path / "out"}")' in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_evals_lists_one_line_each(capsys):
    assert main(["evals"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[:2] for line in lines]
    assert [name for name, _ in listed] == eval_names()
    assert ["knn", "knn/1"] in listed
    assert all(protocol.rpartition("/")[0] == name for name, protocol in listed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval"], "wants EVAL CHECKPOINT, or --watch RUN"),
        (["eval", "knn", "runs/nowhere"], "checkpoint runs/nowhere does not exist"),
        (["eval", "knn", "--watch", "runs/nowhere"], "leave out 'knn'"),
        (["eval", "--watch", "runs/nowhere"], "no run here"),
        (["eval", "knn", "runs/x", "--force", "--cluster", "local"], "--force judges here and now"),
        (["export", "runs/nowhere", "out"], "checkpoint runs/nowhere does not exist"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(arguments, words, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
