"""Batch norm over the coupling group, in one process; `test_gather` compares world sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from pretrain.collectives.norms import GroupBatchNorm, couple_batch_norms


def small_resnet() -> ResNetModel:
    return ResNetModel(
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    )


def test_every_batch_norm_is_replaced_and_nothing_else_changes() -> None:
    plain = small_resnet()
    coupled = couple_batch_norms(copy.deepcopy(plain))
    kinds = [type(module) for module in coupled.modules() if "BatchNorm" in type(module).__name__]
    assert set(kinds) == {GroupBatchNorm}
    assert len(kinds) == sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert coupled.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 1, 16, 16)
    assert torch.equal(coupled(images).pooler_output, plain(images).pooler_output)
    assert torch.equal(coupled.eval()(images).pooler_output, plain.eval()(images).pooler_output)


def test_settings_and_statistics_survive() -> None:
    norm = nn.BatchNorm1d(3, eps=1e-3, momentum=0.3, affine=False).eval()
    norm(torch.randn(8, 3))
    coupled = couple_batch_norms(norm)
    assert isinstance(coupled, GroupBatchNorm)
    assert (coupled.eps, coupled.momentum, coupled.affine, coupled.training) == (1e-3, 0.3, False, False)
    assert coupled.running_mean is norm.running_mean


def test_a_lone_batch_norm_is_replaced_too() -> None:
    assert isinstance(couple_batch_norms(nn.BatchNorm2d(2)), GroupBatchNorm)


def test_a_vector_is_no_batch() -> None:
    with pytest.raises(ValueError, match=r"want \(B, C, \.\.\.\), got \[3\]"):
        GroupBatchNorm(3)(torch.randn(3))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_alone_it_is_torchs_batch_norm_to_the_last_figure(momentum: float | None, affine: bool) -> None:
    plain = nn.BatchNorm1d(3, momentum=momentum, affine=affine)
    coupled = couple_batch_norms(copy.deepcopy(plain))
    for _ in range(3):
        rows = torch.randn(8, 3)
        assert torch.equal(coupled(rows), plain(rows))
    for name, buffer in plain.named_buffers():
        assert torch.equal(coupled.get_buffer(name), buffer), name
    assert torch.equal(coupled.eval()(rows), plain.eval()(rows))


def test_bf16_weights_go_with_fp32_statistics() -> None:
    """What ZeRO makes of a batch norm in bf16."""
    norm = couple_batch_norms(nn.BatchNorm1d(3))
    norm.weight.data, norm.bias.data = norm.weight.data.bfloat16(), norm.bias.data.bfloat16()
    rows = torch.randn(8, 3).bfloat16()
    assert norm(rows).dtype == torch.bfloat16
    assert norm.eval()(rows).dtype == torch.bfloat16
    assert norm.running_mean is not None and norm.running_mean.dtype == torch.float32
