"""The user's mistakes: one readable line with the way out, exit code 2, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from launch.cli import main
from tests.evals.judged_runs import MAE, SIMCLR, make_run, trained, write_checkpoint
from tests.river import write_recipe


@pytest.fixture
def recipe(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_recipe(tmp_path, "r", digits))


def refused(capfd, *arguments: str) -> str:
    """What a command that must be refused says."""
    capfd.readouterr()
    assert main(arguments) == 2
    said = capfd.readouterr().err.strip()
    assert said.startswith("thalweg: ")
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.global_bach=8", "did you mean 'global_batch'"),
        ("train.global_batch=eight", "got 'eight'"),
        ("train.global_batch=15", "15"),
        ("train.accumulation=5", "accumulation"),
        ("train.epochs=1", "exactly one of train.steps and train.epochs"),
        pytest.param("data.path=nowhere", "nowhere", marks=pytest.mark.slow),
        ("data.validation=nowhere", "nowhere"),
        ("name=../outside", "one folder name"),
        pytest.param("optim.name=lars", "LARS", marks=pytest.mark.slow),
    ],
)
def test_recipe_mistakes(recipe, tmp_path, capfd, override, words):
    assert words.lower() in refused(capfd, "pretrain", recipe, override, "--ranks", "2").lower()
    assert not (tmp_path / "runs").exists(), "nothing is made for a run that cannot start"


def test_batch_that_does_not_divide_names_the_nearest_legal_values(recipe, capfd):
    said = refused(capfd, "pretrain", recipe, "--ranks", "3")
    assert "3" in said
    assert "2" in said and "4" in said


@pytest.mark.slow
def test_unknown_objective_key_names_the_nearest(recipe, capfd):
    assert "did you mean 'mask_ratio'" in refused(capfd, "pretrain", recipe, "objective.mask_ration=0.5")


def test_an_objectives_mistakes_are_told_before_those_of_its_data(recipe, capfd):
    said = refused(capfd, "pretrain", recipe, "objective.mask_ration=0.5", "data.path=nowhere")
    assert "did you mean 'mask_ratio'" in said


def test_missing_shards_are_listed(recipe, digits, tmp_path, capfd):
    copy = tmp_path / "copy"
    shutil.copytree(digits / "train", copy)
    missing = sorted(copy.glob("*.tar"))[1]
    missing.unlink()
    assert missing.name in refused(capfd, "pretrain", recipe, f"data.path={copy}")


def test_tars_without_a_whole_sample_are_refused(recipe, tmp_path, capfd):
    (tmp_path / "junk.tar").write_bytes(b"no tar at all")
    assert "no samples in 1 tars" in refused(capfd, "pretrain", recipe, f"data.path={tmp_path}/junk.tar")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damaged", ["manifest.json", "train-000000.tar.index"])
def test_a_damaged_set_is_named_or_mended(recipe, digits, tmp_path, capfd, damaged):
    """A manifest cannot be guessed; an index can be made anew from its tar."""
    copy = tmp_path / "copy"
    shutil.copytree(digits / "train", copy)
    (copy / damaged).write_bytes(b"{")
    if damaged == "manifest.json":
        assert "manifest.json" in refused(capfd, "data", "check", str(copy))
    else:
        assert main(["data", "check", str(copy), "--fix"]) == 0
        assert main(["data", "check", str(copy)]) == 0


def test_a_checkpoint_of_another_model_is_refused_by_its_first_difference(tmp_path, capfd):
    run = make_run(tmp_path / "a run", SIMCLR)
    foreign = make_run(tmp_path / "other", MAE)
    write_checkpoint(foreign, trained(foreign))
    shutil.copytree(foreign.checkpoints, run.checkpoints)
    said = refused(capfd, "export", str(run.root), str(tmp_path / "out"))
    assert "is of another model: the recipe beside it wants " in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "full disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder]).returncode:
        pytest.skip("a disk of its own size needs root, and the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_no_space_is_told_and_leaves_nothing_half(full_disk, recipe, digits, tmp_path, capfd):
    (full_disk / "filler").write_bytes(bytes(250 << 10))
    assert "needs about" in refused(capfd, "data", "pack", "mnist", str(full_disk / "digits"))
    said = refused(capfd, "launch", recipe, f"runs={full_disk / 'runs'}", "--cluster", "local")
    assert "No space left" in said and "make room" in said
    (full_disk / "filler").unlink()
    run = make_run(tmp_path / "a run", SIMCLR)
    write_checkpoint(run, trained(run))
    (full_disk / "filler").write_bytes(bytes(250 << 10))
    said = refused(capfd, "export", str(run.root), str(full_disk / "export"))
    assert "No space left" in said
    assert [path.name for path in full_disk.iterdir() if path.name.startswith("export")] == []


def test_empty_folder_is_refused(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capfd, "data", "pack", "imagefolder", str(tmp_path / "empty"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["runs", "show"], ["runs", "verify"], ["eval", "knn"], ["report"]])
def test_no_run_there(tmp_path, capfd, command):
    refused(capfd, *command, str(tmp_path))


def test_unknown_eval_and_cluster_name_the_nearest(recipe, capfd):
    assert "did you mean 'knn'" in refused(capfd, "eval", "kn", "runs/r")
    assert "did you mean 'slurm'" in refused(capfd, "launch", recipe, "--cluster", "slrum")


HEAVY = ("torch", "transformers", "deepspeed", "numpy", "datasets", "submitit", "sklearn", "PIL")
ASK = f"""
import sys
from launch.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["recipes"]])
def test_help_and_lists_import_nothing_heavy(arguments):
    answer = subprocess.run([sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=True)
    assert answer.stderr.strip() == "[]"
    assert len(answer.stdout.splitlines()) > 1
