"""The engine against a plain torch loop, at ZeRO 0 to 3, on 1, 2 and 4 real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import CheckpointReader, committed, path_of
from tests.pretrain.engine_ranks import BAD_STEP, LR, STAGES, STEPS, launch, recipe
from tests.pretrain.toys import AutoEncoder, Coupled, micro_batches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LAYER_FACTORS = {"encoder_net.embed": 0.9**3, "encoder_net.layer.0": 0.9**2, "encoder_net.layer.1": 0.9}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What real ranks left: 1 and 2 train, then 1 and 4 go on from a checkpoint of the 2."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, scenario, count in [
        ("two", "train", 2),
        ("one", "train", 1),
        ("two", "elastic", 1),
        ("two", "elastic", 4),
    ]:
        (folder / name).mkdir(exist_ok=True)
        launch(scenario, count, folder / name)
    return folder


@pytest.fixture(scope="module")
def plain() -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """The same run as a loop that anyone would write, in one process; the bad step is left out."""
    objective, train, optim = AutoEncoder(ema=True), recipe(0)[2], recipe(0)[1]
    named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    groups = []
    for name, parameter in named.items():
        factor = next((f for start, f in LAYER_FACTORS.items() if name.startswith(start)), 1.0)
        decay = 0.0 if parameter.ndim == 1 else optim.weight_decay
        groups.append({"params": [parameter], "lr": LR * factor, "weight_decay": decay})
    adam = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)
    curve, updates = [], 0
    for number in range(STEPS):
        if number == BAD_STEP:
            curve.append((float("nan"), float("nan")))
            continue
        batches = micro_batches(number, train)
        rows = sum(batch.weight.sum() for batch in batches)
        loss = sum(objective(batch).loss for batch in batches) / rows
        loss.backward()
        for parameter in named.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norm = torch.nn.utils.clip_grad_norm_(named.values(), optim.clip_norm)
        adam.step()
        adam.zero_grad()
        updates += 1
        momentum = 0.9 + 0.1 * number / STEPS
        with torch.no_grad():
            pairs = zip(objective.target_net.parameters(), objective.encoder_net.parameters(), strict=True)
            for slow, fast in pairs:
                slow.copy_(momentum * slow + (1 - momentum) * fast)
            objective.target_net.seen.copy_(objective.encoder_net.seen)
        objective.after_step(updates)
        curve.append((loss.item(), norm.item()))
    return curve, {name: tensor.detach().clone() for name, tensor in objective.state_dict().items()}


def whole(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    kinds = {name: kind for kind in ("w", "ema", "buffer") for name in reader.names(kind)}
    return {name: reader.read(name, kind).view(reader.names(kind)[name]) for name, kind in kinds.items()}


def assert_close(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            state[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("world", ["one", "two"])
@pytest.mark.parametrize("stage", STAGES)
def test_loss_norm_weights_targets_and_buffers_equal_a_plain_loop(ranks, plain, world, stage):
    curve, state = plain
    folder = ranks / world / f"fp32-{stage}"
    torch.testing.assert_close(
        torch.tensor(json.loads((folder / "curve.json").read_text())),
        torch.tensor(curve),
        rtol=2e-5,
        atol=0,
        equal_nan=True,
    )
    assert_close(whole(CheckpointReader(path_of(folder, STEPS))), state, atol=2e-5)


def test_the_clip_bites_and_the_norm_is_known_before_it(plain):
    assert max(norm for _, norm in plain[0] if norm == norm) > 0.4


@pytest.mark.parametrize("world", ["one", "two"])
@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_fp32_and_keeps_fp32_masters(ranks, plain, world, stage):
    folder = ranks / world / f"bf16-{stage}"
    got, want = torch.tensor(json.loads((folder / "curve.json").read_text())), torch.tensor(plain[0])
    torch.testing.assert_close(got, want, rtol=0.03, atol=0, equal_nan=True)
    state = whole(CheckpointReader(path_of(folder, STEPS)))
    assert_close(state, plain[1], atol=0.05)
    weight = state["encoder_net.embed.weight"]
    assert not torch.equal(weight, weight.bfloat16().float()), "a master rounded to bf16"
    average = state["target_net.embed.weight"]
    assert not torch.equal(average, average.bfloat16().float()), "an EMA rounded to bf16"
    assert torch.equal(state["fixed"], plain[1]["fixed"]), "a frozen weight must keep its fp32 value"


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_2_ranks_at_zero_2_goes_on_anywhere(ranks, count, stage):
    uninterrupted = CheckpointReader(path_of(ranks / "two" / "fp32-2", STEPS))
    elsewhere = CheckpointReader(path_of(ranks / "two" / f"elastic-{count}-{stage}", STEPS))
    assert elsewhere.manifest.world_size == count
    assert_close(whole(elsewhere), whole(uninterrupted), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probes_see_the_same_network_on_every_stage_and_world(ranks, precision):
    looks = [
        json.loads((ranks / world / f"{precision}-{stage}" / "look.json").read_text())
        for world in ("one", "two")
        for stage in STAGES
    ]
    for look in looks[1:]:
        torch.testing.assert_close(
            look, looks[0], **({"rtol": 1e-4, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.05, "atol": 0.5})
        )


@pytest.mark.parametrize("stage", [0, 3])
def test_rows_coupled_over_ranks_give_the_gradient_of_one_process(ranks, stage):
    curves = [
        json.loads((ranks / name / f"coupled-{count}-{stage}.json").read_text())
        for name, count in [("one", 1), ("two", 2)]
    ]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-5, atol=0)
    objective, train = Coupled(), recipe(0)[2]
    loss = sum(objective(batch).loss for batch in micro_batches(0, train)) / sum(
        b.weight.sum() for b in micro_batches(0, train)
    )
    assert curves[0][0][0] == pytest.approx(loss.item(), rel=1e-5)


def test_every_checkpoint_on_the_way_is_whole(ranks):
    folders = [folder for folder in (ranks / "two").iterdir() if folder.is_dir()]
    for folder in folders:
        for step in committed(folder):
            CheckpointReader(path_of(folder, step)).verify()
    assert len(folders) >= 17
