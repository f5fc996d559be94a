"""The user's mistakes: one readable line with the way out, exit code 2, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from launch.cli import main
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
        ("data.path=nowhere", "nowhere"),
        ("data.validation=nowhere", "nowhere"),
        ("name=../outside", "one folder name"),
        ("optim.name=lars", "LARS"),
    ],
)
def test_recipe_mistakes(recipe, tmp_path, capfd, override, words):
    assert words.lower() in refused(capfd, "pretrain", recipe, override, "--ranks", "2").lower()
    assert not (tmp_path / "runs").exists(), "nothing is made for a run that cannot start"


def test_batch_that_does_not_divide_names_the_nearest_legal_values(recipe, capfd):
    said = refused(capfd, "pretrain", recipe, "--ranks", "3")
    assert "3" in said
    assert "2" in said and "4" in said


def test_unknown_objective_key_names_the_nearest(recipe, capfd):
    assert "did you mean 'mask_ratio'" in refused(capfd, "pretrain", recipe, "objective.mask_ration=0.5")


def test_missing_shards_are_listed(recipe, digits, tmp_path, capfd):
    copy = tmp_path / "copy"
    shutil.copytree(digits / "train", copy)
    missing = sorted(copy.glob("*.tar"))[1]
    missing.unlink()
    assert missing.name in refused(capfd, "pretrain", recipe, f"data.path={copy}")


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
