"""Text objectives, whose embeddings are the vocabulary's weights too: ZeRO 0 to 3 on two ranks against a plain loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import CheckpointReader, path_of
from pretrain.optim import is_decayed
from tests.pretrain.engine_ranks import LR, launch
from tests.pretrain.text_ranks import RUNS, STEPS, TREES, batch_at, objective_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Plain = tuple[list[tuple[float, float]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text-ranks")
    launch("train", 2, folder, module="tests.pretrain.text_ranks")
    return folder


@pytest.fixture(scope="module")
def plain() -> dict[str, Plain]:
    """The same runs as a loop that anyone would write, in one process."""
    return {name: plain_run(name) for name in TREES}


def plain_run(name: str) -> Plain:
    objective, curve = objective_of(name), []
    named = dict(objective.named_parameters())
    groups = [{"params": [p], "weight_decay": 0.1 if is_decayed(n, p) else 0.0} for n, p in named.items()]
    adam = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    for step in range(STEPS):
        batch = batch_at(name, step)
        loss = objective(batch).loss / objective.rows(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        adam.step()
        adam.zero_grad()
        curve.append((loss.item(), norm.item()))
    return curve, {n: p.detach() for n, p in named.items()}


def curve_at(folder: Path) -> torch.Tensor:
    return torch.tensor(json.loads((folder / "curve.json").read_text()))


@pytest.mark.parametrize("run", [run for run in RUNS if "zero" in run])
def test_loss_norm_and_weights_equal_a_plain_loop(ranks: Path, plain: dict[str, Plain], run: str) -> None:
    curve, weights = plain[RUNS[run][0]]
    torch.testing.assert_close(curve_at(ranks / run), torch.tensor(curve), rtol=2e-5, atol=0)
    reader = CheckpointReader(path_of(ranks / run, STEPS))
    assert reader.names("w").keys() == weights.keys()  # a tied weight once
    for parameter, expected in weights.items():
        found = reader.read(parameter, "w").view(expected.shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5, msg=lambda text, n=parameter: f"{n}: {text}")


@pytest.mark.parametrize("run", [run for run in RUNS if "bf16" in run])
def test_bf16_follows_fp32(ranks: Path, plain: dict[str, Plain], run: str) -> None:
    losses, expected = curve_at(ranks / run)[:, 0], torch.tensor(plain[RUNS[run][0]][0])[:, 0]
    torch.testing.assert_close(losses, expected, rtol=0.03, atol=0)
