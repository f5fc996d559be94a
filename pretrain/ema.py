"""EMA targets: slow copies of a trained network, averaged in fp32.

bf16 weights do not move by the thousandth of a difference that one step adds; so each rank
averages the fp32 masters that it holds, and the twin's working copy is refreshed from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pretrain.objective import Target

if TYPE_CHECKING:
    from pretrain.engine.zero import Partition


class Averages:
    """The EMA targets of an objective.

    Attributes:
        by_twin: fp32 average of each target parameter, 1-D, laid out like its source's master.
        source_of: the trained parameter behind each target parameter.
    """

    def __init__(self, module: nn.Module, targets: Sequence[Target], partition: Partition) -> None:
        self._partition = partition
        self._targets = targets
        self.source_of: dict[str, str] = {}
        self._twins: list[list[str]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        for target in targets:
            pairs = twins(module, target)
            pairs = {twin: source for twin, source in pairs.items() if source in partition.cuts}
            self._twins.append(list(pairs))
            self.source_of |= pairs
            self._buffers += _buffer_pairs(module, target)
        self.by_twin = {twin: partition.average_of(twin, source) for twin, source in self.source_of.items()}

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Move each target towards its source: t <- m t + (1 - m) s; its buffers are copied.

        Args:
            progress: share of the training that is done, in [0, 1].
        """
        for target, names in zip(self._targets, self._twins, strict=True):
            averages = [self.by_twin[twin] for twin in names]
            masters = [self._partition.weight(self.source_of[twin]) for twin in names]
            if averages:
                torch._foreach_lerp_(averages, masters, 1 - target.momentum(progress))
        for twin_buffer, source_buffer in self._buffers:
            twin_buffer.copy_(source_buffer)
        self.publish()

    def publish(self) -> None:
        """Bring the averages into the targets' working weights on all ranks."""
        if self.by_twin:
            self._partition.publish_averages(self.by_twin, self.source_of)


def twins(module: nn.Module, target: Target) -> dict[str, str]:
    """Names of the target's parameters, each with its source's name.

    Raises:
        ValueError: the two networks do not have the same parameters, or the target is not frozen.
    """
    sources = dict(module.get_submodule(target.source).named_parameters())
    pairs = {}
    for name, twin in module.get_submodule(target.target).named_parameters():
        if name not in sources or sources[name].shape != twin.shape:
            raise ValueError(f"EMA target {target.target}: {name!r} has no twin of its shape in {target.source}")
        if twin.requires_grad:
            raise ValueError(f"EMA target {target.target}: {name!r} is trained; freeze the target")
        pairs[f"{target.target}.{name}"] = f"{target.source}.{name}"
    return pairs


def _buffer_pairs(module: nn.Module, target: Target) -> list[tuple[Tensor, Tensor]]:
    sources = dict(module.get_submodule(target.source).named_buffers())
    return [(twin, sources[name]) for name, twin in module.get_submodule(target.target).named_buffers()]
