"""Buffers: the part of a module's state that is not trained, equal on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to a module's state; the others are made anew by its constructor."""
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def storable(buffer: Tensor) -> Tensor:
    """Halves as fp32, all else as it is."""
    return buffer.float() if buffer.dtype in (torch.bfloat16, torch.float16) else buffer


class Remembered:
    """Buffers as they were before a step's forward passes: one NaN in a running mean would stay for ever."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for buffer in buffers:
            live, kept = self._by_dtype.setdefault(buffer.dtype, ([], []))
            live.append(buffer)
            kept.append(buffer.clone())

    @torch.no_grad()
    def note(self) -> None:
        """Keep the values of this moment."""
        for live, kept in self._by_dtype.values():
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back."""
        for live, kept in self._by_dtype.values():
            torch._foreach_copy_(live, kept)
