"""The one shape in which samples travel: `Sample` from a shard, `Batch` to an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sample:
    """One keyed record of a shard, still as bytes.

    Attributes:
        key: the sample's name, unique in its dataset.
        fields: bytes by lower-case extension, e.g. {"jpg": ..., "cls": b"3"}.
        digest: of its bytes, as the shard's index has it (`data_pipelines.index.payload_digest`).
    """

    key: str
    fields: Mapping[str, bytes]
    dataset: str = ""
    shard: str = ""
    digest: int = 0


@dataclass(frozen=True)
class Batch:
    """The micro batch of one rank.

    Attributes:
        fields: tensors by name, first axis B.
        keys: B sample keys.
        positions: (B,) int64, the slot number g of each row.
        weight: (B,) float32; 0 marks the padding of a finite stream.
        key_hash: (B,) int64; equal hashes are the same sample. Coupled losses mask such pairs.
        ledger: 128-bit sum of the rows' slot hashes (`data_pipelines.ledger`).
        replaced: rows that hold a substitute because their own sample was unreadable.
        first: slot of the first row, known without asking the device.
    """

    fields: Mapping[str, torch.Tensor]
    keys: tuple[str, ...]
    positions: torch.Tensor
    weight: torch.Tensor
    key_hash: torch.Tensor
    ledger: int = 0
    replaced: int = field(default=0)
    first: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.fields[name]

    def with_fields(self, **fields: torch.Tensor) -> Batch:
        """A copy in which `fields` are added or replaced."""
        return replace(self, fields={**self.fields, **fields})

    def to(self, device: torch.device | str) -> Batch:
        """A copy on `device`; pinned tensors travel asynchronously."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            fields={name: move(tensor) for name, tensor in self.fields.items()},
            positions=move(self.positions),
            weight=move(self.weight),
            key_hash=move(self.key_hash),
        )
