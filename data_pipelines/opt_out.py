"""Samples that shall not be read, by their keys: passed over like unreadable ones (docs/order.md, rule 8).

The shards stay as they are. What stands in at a slot is a function of the order and this list, the same at any world
size; it is written to the quarantine, so that a replay knows it even where the list has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.base import UserError, digest_of
from data_pipelines.storage import DEFAULTS, Storage, read_bytes

OPTED_OUT = "opted out"
"""The reason in the quarantine."""


@dataclass(frozen=True)
class OptOut:
    """A list of keys.

    Attributes:
        digest: of the keys, whatever their order.
        everywhere: keys of samples that no set shall give.
        by_set: those of single sets, by the set's name.
    """

    digest: str
    everywhere: frozenset[str]
    by_set: Mapping[str, frozenset[str]]

    def __len__(self) -> int:
        return len(self.everywhere) + sum(map(len, self.by_set.values()))

    def of(self, name: str) -> frozenset[str]:
        """Keys that the set of this name shall not give."""
        return self.everywhere | self.by_set.get(name, frozenset())


def read_opt_out(address: str, storage: Storage = DEFAULTS) -> OptOut:
    """Read a list: one key a line, or the name of a set, a tab, and a key of it.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        lines = read_bytes(address, storage).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.opt_out={address}: {error}; want a file of keys, one a line") from None
    everywhere: set[str] = set()
    by_set: dict[str, set[str]] = {}
    for line in lines:
        name, tab, key = line.removesuffix("\r").partition("\t")
        if tab:
            by_set.setdefault(name, set()).add(key)
        elif name:
            everywhere.add(name)
    plain = {name: sorted(keys) for name, keys in sorted(by_set.items())}
    return OptOut(
        digest=digest_of([sorted(everywhere), plain]),
        everywhere=frozenset(everywhere),
        by_set={name: frozenset(keys) for name, keys in by_set.items()},
    )
