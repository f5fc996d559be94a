"""What couples ranks gives the same loss and gradients at any world size, in real gloo processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.collectives.gather import gather, gather_constant, rank, world_size
from tests.conftest import ROOT
from tests.pretrain.coupled_ranks import all_cases

pytestmark = pytest.mark.timeout(600)  # six processes import transformers, on however few cores
CASES = ("gather", "norm", "simclr", "moco")


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return all_cases(0)


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder, ranks = tmp_path_factory.mktemp("ranks"), request.param
    arguments = [str(ranks), str(folder / "rendezvous"), str(folder / "found.safetensors")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pretrain.coupled_ranks", str(own), *arguments],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for own in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(said)
    return load_file(folder / "found.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_do_not_depend_on_the_world_size(
    case: str, alone: dict[str, Tensor], together: dict[str, Tensor]
) -> None:
    gradients = {name for name in alone if name.startswith(case) and "grad" in name}
    assert gradients and gradients == {name for name in together if name.startswith(case) and "grad" in name}
    size = max(alone[name].abs().max() for name in gradients)
    for name in gradients:
        assert (alone[name] - together[name]).abs().max() <= 1e-5 * size, name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_buffers_and_energies_do_not_depend_on_the_world_size(
    case: str, alone: dict[str, Tensor], together: dict[str, Tensor]
) -> None:
    names = {name for name in alone if name.startswith(case) and "grad" not in name}
    assert names
    wrong = [n for n in names if not torch.allclose(together[n].double(), alone[n].double(), rtol=1e-4, atol=1e-5)]
    assert wrong == []


def test_the_queue_of_the_script_was_really_filled(alone: dict[str, Tensor]) -> None:
    assert alone["moco.buffer.queue.written"] == 24
    assert (alone["moco.buffer.queue.keys"].norm(dim=1) - 1).abs().max() < 1e-5


def test_a_process_alone_is_a_world_of_one() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert gather(rows) is rows
    assert not gather_constant(rows).requires_grad
