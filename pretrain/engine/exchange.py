"""One all-gather that brings every rank's parts of some tensors to all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed import World
from pretrain.engine.layout import Cut

# torch 2.13 gave it a new name, and warns at the old one on every call.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """Planned once, run after every step.

    Args:
        cuts: who holds which part of each tensor.
        copies: the whole tensors, 1-D, that every rank has; of one dtype.
    """

    def __init__(self, cuts: Sequence[Cut], copies: Sequence[Tensor], world: World) -> None:
        self._world = world
        self._lengths: list[list[int]] = []
        self._places: list[Tensor] = []
        for rank in range(world.world_size):
            held = [(copy, *cut.held_by(rank)) for cut, copy in zip(cuts, copies, strict=True)]
            self._places += [copy[start:stop] for copy, start, stop in held if start < stop]
            self._lengths.append([stop - start for _, start, stop in held if start < stop])
        self._longest = max(map(sum, self._lengths))

    @torch.no_grad()
    def run(self, parts: Sequence[Tensor]) -> None:
        """Spread `parts`, this rank's own of each tensor in the order of the plan; empty ones count."""
        if not self._places:
            return
        like = self._places[0]
        packed = like.new_zeros(self._longest)
        mine = [part.to(device=like.device, dtype=like.dtype) for part in parts if part.numel()]
        if mine:
            torch.cat(mine, out=packed[: sum(part.numel() for part in mine)])
        gathered = like.new_empty(self._longest * self._world.world_size)
        with self._world.watch_peers():
            _all_gather(gathered, packed, group=self._world.device_group)
        arrived: list[Tensor] = []
        for rank, lengths in enumerate(self._lengths):
            row = gathered[rank * self._longest :][: sum(lengths)]
            arrived += row.split(lengths) if lengths else ()
        torch._foreach_copy_(self._places, arrived)
