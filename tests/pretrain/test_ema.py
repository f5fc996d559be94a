"""EMA targets; that they equal the plain formula at every ZeRO stage stands in test_engine_parity."""

from __future__ import annotations

import pytest
import torch

from pretrain.config import EngineConfig, Optim, Train
from pretrain.ema import twins
from pretrain.engine import Engine
from pretrain.objective import Target
from tests.pretrain.toys import AutoEncoder, make_batch

TRAIN = Train(global_batch=8)


def averages_of(engine):
    return {piece.name: piece.tensor.clone() for piece in engine.slices() if piece.kind == "ema"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_working_copy_follows_the_fp32_average(lonely_world, stage, precision):
    objective = AutoEncoder(ema=True)
    engine = Engine(objective, EngineConfig(zero_stage=stage, precision=precision), Optim(), TRAIN, lonely_world)
    before = averages_of(engine)
    for _ in range(3):
        engine.accumulate([make_batch(range(8))])
        engine.apply(1e-2, 0.0)
    working = dict(objective.target_net.named_parameters(prefix="target_net"))
    for name, average in averages_of(engine).items():
        assert not torch.equal(average, before[name]), name
        seen = working[name].detach().view(-1) if stage < 3 else working[name].ds_tensor.view(-1)[: len(average)]
        assert torch.equal(seen, average.to(seen.dtype)), name


def test_an_average_moves_by_less_than_bf16_can_hold(lonely_world):
    objective = AutoEncoder(ema=True)
    objective.targets = (Target("encoder_net", "target_net", lambda progress: 0.99999),)
    engine = Engine(objective, EngineConfig(zero_stage=2, precision="bf16"), Optim(), TRAIN, lonely_world)
    before, working = averages_of(engine), objective.target_net.embed.weight.detach().clone()
    for _ in range(3):
        engine.accumulate([make_batch(range(8))])
        engine.apply(1e-3, 0.0)
    assert torch.equal(objective.target_net.embed.weight.detach(), working), "the step is to be too small for bf16"
    assert not torch.equal(averages_of(engine)["target_net.embed.weight"], before["target_net.embed.weight"])


def test_a_target_has_no_optimizer_state_and_takes_its_sources_buffers(lonely_world):
    objective = AutoEncoder(ema=True)
    engine = Engine(objective, EngineConfig(zero_stage=0), Optim(), TRAIN, lonely_world)
    engine.accumulate([make_batch(range(8))])
    engine.apply(1e-2, 0.0)
    kinds = {piece.kind for piece in engine.slices() if piece.name.startswith("target_net.")}
    assert kinds == {"ema", "buffer"}
    assert objective.target_net.seen == objective.encoder_net.seen == 1


def test_a_network_that_is_no_twin_is_refused():
    objective = AutoEncoder(ema=True)
    with pytest.raises(ValueError, match="'weight' has no twin"):
        twins(objective, Target("encoder_net", "decoder", lambda progress: 0.9))
    with pytest.raises(ValueError, match="freeze the target"):
        twins(objective, Target("encoder_net", "encoder_net", lambda progress: 0.9))
