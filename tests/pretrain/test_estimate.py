"""Estimates against DeepSpeed's own, against the papers' formulas, and against engines as they are."""

from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import load_recipe
from pretrain.estimate import (
    MOMENTS,
    STAGES,
    Workload,
    activations,
    checkpoint_bytes,
    exchanged,
    memory,
)
from pretrain.objective import DataFacts
from pretrain.objectives import build

sizes = st.integers(10**6, 10**12)
ranks = st.sampled_from([1, 2, 8, 64, 1024])


def work(trained: int, largest_layer: int = 0, frozen: int = 0, averaged: int = 0) -> Workload:
    return Workload(trained, frozen, averaged, largest_layer, flops_per_sample=6.0 * trained, width=None)


@given(sizes, ranks)
def test_stage_2_needs_what_deepspeed_says(trained: int, world_size: int) -> None:
    _cpu, gpu = estimate_zero2_model_states_mem_needs(trained, world_size, 1, cpu_offload=False)
    assert memory(work(trained), 2, "bf16", world_size).total == pytest.approx(gpu, abs=2)


@given(sizes, ranks, st.floats(0.001, 0.5))
def test_stage_3_needs_what_deepspeed_says(trained: int, world_size: int, share: float) -> None:
    largest = int(share * trained)
    _cpu, gpu, _layer = estimate_zero3_model_states_mem_needs(
        trained, largest, world_size, 1, cpu_offload=False, cpu_offload_params=False
    )
    assert memory(work(trained, largest), 3, "bf16", world_size).total == pytest.approx(gpu, abs=2)


@given(sizes, ranks, st.sampled_from(["fp32", "bf16"]), st.sampled_from(sorted(MOMENTS)))
def test_a_higher_stage_never_needs_more(trained: int, world_size: int, precision: str, optimizer: str) -> None:
    totals = [memory(work(trained), stage, precision, world_size, optimizer).total for stage in STAGES[1:]]
    assert totals == sorted(totals, reverse=True)


def test_targets_cost_a_working_copy_and_a_share_of_an_fp32_one() -> None:
    alone, with_target = work(1000), work(1000, frozen=800, averaged=800)
    more = [memory(with_target, s, "bf16", 4).total - memory(alone, s, "bf16", 4).total for s in STAGES]
    assert more == [800 * (4 + 4), 800 * (2 + 1), 800 * (2 + 1), 800 * (0.5 + 1)]


def test_exchange_follows_the_zero_paper() -> None:
    """Stages 0 to 2 send two model sizes, stage 3 three (section 7); one rank sends nothing."""
    model = 2 * 10**9  # bytes in bf16
    sent = [exchanged(work(10**9), stage, "bf16", 10**6, accumulation=1) for stage in STAGES]
    assert sent == pytest.approx([2 * 2 * model, 2 * model, 2 * model, 3 * model], rel=1e-5)
    assert exchanged(work(10**9), 3, "bf16", 10**6, accumulation=4) == pytest.approx(12 * model, rel=1e-5)
    assert exchanged(work(10**9), 3, "bf16", 1, accumulation=1) == 0


def test_checkpoints_hold_twelve_bytes_a_parameter_and_four_an_average() -> None:
    assert checkpoint_bytes(work(100)) == 1200
    assert checkpoint_bytes(work(100, frozen=50, averaged=50)) == 1400
    assert checkpoint_bytes(work(100), "lars") == 800


def test_activations_are_those_of_korthikanti() -> None:
    """GPT-3: 34 s b h bytes a layer with attention matrices left out; FLOPs of the matmuls alone."""
    layers, width, tokens = 96, 12288, 2048
    gpt = Workload(0, 0, 0, 0, flops_per_sample=3 * 24 * width**2 * layers * tokens, width=width)
    assert activations(gpt, micro_batch=2) == pytest.approx(34 * tokens * 2 * width * layers)
    assert activations(gpt, 2, recomputed=True) == pytest.approx(2 * tokens * 2 * width * layers)
    assert activations(work(100), 2) is None


@pytest.mark.parametrize("name", ["moco_v3_vitb16", "simclr_resnet50"])
def test_a_workload_is_read_off_an_objective_without_memory(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        objective = build(recipe.objective, DataFacts(channels=3), recipe.seed)
    found = Workload.of(objective)
    assert found.trained == sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert found.trained + found.frozen == sum(p.numel() for p in objective.parameters())
    assert 0 < found.largest_layer < found.trained
    assert (found.averaged > 0) == (name == "moco_v3_vitb16") == (found.width == 768)
