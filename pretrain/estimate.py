"""What a run will take, on paper: memory, exchange, checkpoints, time. Pure arithmetic; nothing is allocated.

P parameters on N ranks at ZeRO stage 0 to 3 (Rajbhandari 2020, arXiv:1910.02054), as our engine lays them out: at
stage 0 everything is fp32, above it weights and gradients have the run's precision, masters and moments are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from data_pipelines.base import Strict

if TYPE_CHECKING:
    from pretrain.objective import Objective

Precision = Literal["fp32", "bf16"]
STAGES = (0, 1, 2, 3)
FP32 = 4
BYTES = {"fp32": 4, "bf16": 2}
MOMENTS = {"adamw": 2, "lars": 1, "sgd": 1}
"""fp32 tensors that an optimizer keeps for each parameter."""

GPUS = {
    "a10": {"bf16": 125.0, "fp32": 31.2},
    "a100": {"bf16": 312.0, "fp32": 19.5},
    "l40s": {"bf16": 362.0, "fp32": 91.6},
    "h100": {"bf16": 989.0, "fp32": 67.0},
    "h200": {"bf16": 989.0, "fp32": 67.0},
    "b200": {"bf16": 2250.0, "fp32": 80.0},
    "mi300x": {"bf16": 1307.0, "fp32": 163.0},
}
"""Peak TFLOP/s of dense matmuls by precision, as in the makers' data sheets."""

LAYER_BYTES = 34
"""Activation bytes a token, layer and unit of width in 16 bits, attention matrices never stored (Korthikanti 2022,
arXiv:2205.05198, section 4.1)."""
INPUT_BYTES = 2
"""The same where a layer keeps its input alone and computes the rest again."""


class Hardware(Strict):
    """What a cluster's nodes can do; the defaults are of an H100 with 400 Gb/s each."""

    memory_gib: float = Field(80.0, gt=0)
    """Of one GPU."""
    peak_tflops: float = Field(989.0, gt=0)
    """Dense matmuls of one GPU in the run's precision."""
    mfu: float = Field(0.4, gt=0, le=1)
    """Share of the peak that training reaches, waiting included."""
    link_gb_per_s: float = Field(50.0, gt=0)
    """Between nodes, for each GPU."""
    store_gb_per_s: float = Field(2.0, gt=0)
    """What one node writes to the store of checkpoints."""


@dataclass(frozen=True)
class Workload:
    """An objective in figures.

    Attributes:
        trained: parameters that gradients reach.
        frozen: all others.
        averaged: those of the frozen that are EMA targets.
        largest_layer: parameters of the largest module, what ZeRO 3 gathers at a time.
        flops_per_sample: forward and backward.
        width: of the encoder where it is a transformer.
    """

    trained: int
    frozen: int
    averaged: int
    largest_layer: int
    flops_per_sample: float
    width: int | None = None

    @classmethod
    def of(cls, objective: Objective) -> Workload:
        """Figures of an objective; it may lie on the meta device."""
        parameters = list(objective.parameters())
        layers = (sum(p.numel() for p in module.parameters(recurse=False)) for module in objective.modules())
        targets = (objective.get_submodule(target.target) for target in objective.targets)
        width = getattr(getattr(objective.encoder().module, "config", None), "hidden_size", None)
        return cls(
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            frozen=sum(p.numel() for p in parameters if not p.requires_grad),
            averaged=sum(p.numel() for target in targets for p in target.parameters()),
            largest_layer=max(layers),
            flops_per_sample=objective.flops_per_sample(),
            width=width if isinstance(width, int) else None,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        weights: working copies, at stage 3 with the layer that is gathered.
        gradients: with their fp32 sums over micro steps.
        state: fp32 masters and the optimizer's moments.
        averages: fp32 EMA targets.
    """

    weights: float
    gradients: float
    state: float
    averages: float

    @property
    def total(self) -> float:
        """All of it; activations and the allocator's waste come on top."""
        return self.weights + self.gradients + self.state + self.averages


def memory(work: Workload, stage: int, precision: Precision, world_size: int, optimizer: str = "adamw") -> Memory:
    """What one rank holds between two steps.

    Raises:
        KeyError: an optimizer whose moments are not known here.
    """
    moments = FP32 * MOMENTS[optimizer]
    if stage == 0:
        return Memory(
            weights=FP32 * (work.trained + work.frozen),
            gradients=FP32 * work.trained,
            state=moments * work.trained,
            averages=FP32 * work.averaged,
        )
    size, shared = BYTES[precision], work.trained / world_size
    sums = 0 if precision == "fp32" else FP32  # lower precisions are summed in fp32, beside the gradient itself
    weights = size * (work.trained + work.frozen)
    gradients = {1: (size + sums) * work.trained, 2: (size + sums) * shared, 3: (sums or size) * shared}
    return Memory(
        weights=weights / world_size + 2 * size * work.largest_layer if stage == 3 else weights,
        gradients=gradients[stage],
        state=(FP32 + moments) * shared,
        averages=FP32 * work.averaged / world_size,
    )


def activations(work: Workload, micro_batch: int, *, recomputed: bool = False) -> float | None:
    """Bytes that one micro batch leaves for the backward pass, roughly; None where the encoder is no transformer.

    A layer of width D spends 24 D^2 FLOPs a token on its matmuls: the FLOPs tell tokens times layers.
    """
    if work.width is None:
        return None
    forward = work.flops_per_sample / 3 * micro_batch
    token_layers = forward / (24 * work.width**2)
    return token_layers * work.width * (INPUT_BYTES if recomputed else LAYER_BYTES)


def exchanged(work: Workload, stage: int, precision: Precision, world_size: int, accumulation: int) -> float:
    """Bytes that one rank sends in a step, by rings: an all-reduce moves everything twice, each half of it once."""
    size = FP32 if stage == 0 else BYTES[precision]
    rounds = {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}
    return rounds[stage] * size * work.trained * (world_size - 1) / world_size


def checkpoint_bytes(work: Workload, optimizer: str = "adamw") -> int:
    """Masters, moments, EMA targets and frozen weights, each once and in fp32."""
    return FP32 * (work.trained * (1 + MOMENTS[optimizer]) + work.frozen)
