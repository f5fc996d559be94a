"""Learning rate, parameter groups and LARS, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.base import UserError
from pretrain.config import Optim
from pretrain.lars import LARS
from pretrain.optim import MOMENTS, build_optimizer, init_state, learning_rate, parameter_groups, peak_learning_rate
from tests.pretrain.toys import AutoEncoder

CPU = torch.device("cpu")


def test_base_lr_grows_with_the_global_batch_as_asked():
    assert peak_learning_rate(Optim(base_lr=1e-3, lr_scaling="linear"), 1024) == pytest.approx(4e-3)
    assert peak_learning_rate(Optim(base_lr=1e-3, lr_scaling="sqrt"), 1024) == pytest.approx(2e-3)
    assert peak_learning_rate(Optim(base_lr=1e-3, lr_scaling="none"), 1024) == pytest.approx(1e-3)


def test_warmup_is_linear_and_cosine_falls_to_the_final_share():
    optim = Optim(base_lr=1.0, lr_scaling="none", warmup=10, final_lr=0.1)
    assert [learning_rate(step, 100, optim, 256) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(55, 100, optim, 256) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert learning_rate(100, 100, optim, 256) == pytest.approx(0.1)


def test_a_warmup_below_one_is_a_share_of_all_steps():
    share, steps = (Optim(warmup=warmup) for warmup in (0.05, 5))
    assert [learning_rate(s, 100, share, 256) for s in range(100)] == [
        learning_rate(s, 100, steps, 256) for s in range(100)
    ]


def test_constant_stays_and_wsd_decays_over_its_last_share():
    constant = Optim(base_lr=1.0, lr_scaling="none", schedule="constant")
    assert {learning_rate(step, 50, constant, 256) for step in range(50)} == {1.0}
    wsd = Optim(base_lr=1.0, lr_scaling="none", schedule="wsd", cooldown=0.2)
    assert [learning_rate(step, 100, wsd, 256) for step in (0, 80, 90, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


@given(
    st.sampled_from(["cosine", "constant", "wsd"]),
    st.integers(1, 300),
    st.floats(0, 40),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_learning_rate_stays_between_its_end_and_its_peak(schedule, total, warmup, final_lr, cooldown):
    optim = Optim(
        base_lr=2.0, lr_scaling="none", schedule=schedule, warmup=warmup, final_lr=final_lr, cooldown=cooldown
    )
    rates = [learning_rate(step, total, optim, 256) for step in range(total)]
    assert all(0 <= rate <= 2.0 + 1e-9 for rate in rates)
    start = math.ceil(warmup if warmup >= 1 else warmup * total)
    assert all(a >= b - 1e-9 for a, b in zip(rates[start:], rates[start + 1 :], strict=False))


def test_norms_and_biases_are_not_decayed_and_frozen_weights_are_in_no_group():
    objective = AutoEncoder(ema=True)
    groups = parameter_groups(objective.named_parameters(), Optim(weight_decay=0.3))
    decay_of = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay_of["encoder_net.embed.weight"] == 0.3
    assert decay_of["encoder_net.embed.bias"] == decay_of["encoder_net.layer.0.1.weight"] == 0.0
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert decay_of.keys() == trained
    assert not any(name.startswith("target_net") for name in decay_of)


def test_layer_decay_slows_lower_layers_of_the_encoder_only():
    groups = parameter_groups(AutoEncoder().named_parameters(), Optim(layer_decay=0.5), "encoder_net.")
    scale_of = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale_of["encoder_net.embed.weight"] == 0.125
    assert scale_of["encoder_net.layer.0.0.weight"] == 0.25
    assert scale_of["encoder_net.layer.1.0.weight"] == 0.5
    assert scale_of["decoder.weight"] == scale_of["mask_token"] == 1.0


def test_state_made_beforehand_changes_no_step():
    optim = Optim(weight_decay=0.1)
    weights = [torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2)]
    adams = [build_optimizer([{"params": [w], "weight_decay": 0.1}], optim, 0, CPU) for w in weights]
    init_state(adams[1], "adamw", weights[1], updates=0)
    for step in range(5):
        for weight, adam in zip(weights, adams, strict=True):
            adam.param_groups[0]["lr"] = 0.1
            weight.grad = torch.full((2, 3), float(step) - 1)
            adam.step()
    assert torch.equal(*weights)
    assert set(adams[0].state[weights[0]]) == {*MOMENTS["adamw"], "step"}


def test_lars_is_refused_where_it_would_see_pieces():
    with pytest.raises(UserError, match=r"engine\.zero_stage=0"):
        build_optimizer([], Optim(name="lars"), 2, CPU)


def test_lars_follows_its_formula():
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(3))
    expected, slow = [weight.detach().clone(), bias.detach().clone()], [torch.zeros(3, 2), torch.zeros(3)]
    lars = LARS([{"params": [weight, bias], "weight_decay": 0.1}], lr=0.5, momentum=0.9, trust=0.02)
    for _ in range(4):
        weight.grad, bias.grad = torch.randn(3, 2), torch.randn(3)
        update = weight.grad + 0.1 * expected[0]
        update = update * 0.02 * expected[0].norm() / update.norm()
        slow = [0.9 * slow[0] + update, 0.9 * slow[1] + bias.grad]
        expected = [value - 0.5 * velocity for value, velocity in zip(expected, slow, strict=True)]
        lars.step()
    torch.testing.assert_close([weight.detach(), bias.detach()], expected)


def test_lars_moves_a_weight_that_is_zero():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.1).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.1))


def test_an_objectives_own_factor_multiplies_that_of_the_layer():
    objective = AutoEncoder()
    optim = Optim(layer_decay=0.5)
    plain, changed = (
        {name: group["lr_scale"] for group in groups for name in group["names"]}
        for groups in (
            parameter_groups(objective.named_parameters(), optim, "encoder_net."),
            parameter_groups(objective.named_parameters(), optim, "encoder_net.", {"encoder_net.embed": 3.0}),
        )
    )
    assert changed == {n: s * (3.0 if n.startswith("encoder_net.embed") else 1.0) for n, s in plain.items()}
    assert len(set(plain.values())) > 1


def test_sgd_from_the_state_of_a_checkpoint_is_the_plain_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optim = Optim(name="sgd", momentum=0.9)
    optimizer = build_optimizer(
        [{"params": [weight], "names": ["w"], "weight_decay": 0.1, "lr_scale": 1.0}], optim, 0, CPU
    )
    init_state(optimizer, "sgd", weight, updates=0)
    expected, momentum = weight.detach().clone(), torch.zeros(2)
    for gradient in (torch.tensor([0.5, 0.25]), torch.tensor([-1.0, 2.0])):
        optimizer.param_groups[0]["lr"] = 0.1
        weight.grad = gradient
        optimizer.step()
        momentum = 0.9 * momentum + gradient + 0.1 * expected
        expected = expected - 0.1 * momentum
        torch.testing.assert_close(weight.detach(), expected)
    assert {*MOMENTS["sgd"]} == set(optimizer.state[weight])
