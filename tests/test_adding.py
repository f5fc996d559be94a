"""docs/adding.md is executed as it stands: its files are written, its commands run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.river import finish, start

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("adding")]

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCE_LINE = "\nfrom data_pipelines.pack import SOURCES\n\nSOURCES['squares'] = 'squares'\n"
"""Stands for the line in the table: sources have no entry points, they are few and live in the repository."""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of every fenced block, in order."""
    return [(match[1], match[2]) for match in BLOCK.finditer((ROOT / "docs" / "adding.md").read_text())]


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """All files of the document, installed as a package of the user's own would be."""
    entry_points = []
    for _, text in blocks():
        first, _, body = text.partition("\n")
        if not first.startswith("# file: "):
            continue
        name = first.removeprefix("# file: ")
        if name == "entry_points":
            entry_points.append(re.sub(r'\[project\.entry-points\."(.+)"\]', r"[\1]", body).replace('"', ""))
        else:
            (tmp_path / name).write_text(body)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(entry_points))
    (tmp_path / "sitecustomize.py").write_text(SOURCE_LINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_examples_run_as_written(package):
    commands = [line for language, text in blocks() if language == "sh" for line in text.splitlines()]
    said = {}
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "thalweg"
        code, said[command] = finish(start(*arguments, PYTHONPATH=str(package)))
        assert code == 0, f"{command}\n{said[command]}"
    assert list(package.glob("runs/vicreg_digits/evals/step-00000004/nearest_mean-*.json"))
    assert "#SBATCH --account=my_project" in said[commands[-1]]


def test_example_objective_has_the_loss_of_its_formula(package, monkeypatch):
    """VICReg of two views that are the same and spread: only the covariance term is left."""
    import torch

    monkeypatch.syspath_prepend(str(package))
    from vicreg import VICReg

    from pretrain.objective import DataFacts

    encoder = {
        "architecture": "resnet", "embedding_size": 4, "hidden_sizes": [8], "depths": [1], "layer_type": "basic",
    }  # fmt: skip
    objective = VICReg(VICReg.Config(encoder=encoder), DataFacts(channels=1, image_size=(28, 28)))
    z = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0]])
    assert objective.spread(z).item() == pytest.approx(0.0)
    same = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    assert objective.spread(same).item() == pytest.approx(8.0**2 * 2 / 2)
    sys.modules.pop("vicreg")
