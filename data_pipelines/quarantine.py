"""Unreadable samples: what stood in for each, on disk before it is used, and how many are too many.

Rule 8 of docs/order.md.

`quarantine/rank-R.jsonl` has one line for each bad sample met. All ranks' lines are input to every replay: a slot once
replaced takes the same substitute again, at any world size, whether or not its own sample can be read by then.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipelines.opt_out import OPTED_OUT

FREE = 10
"""Replaced samples that are never too many."""
WORST = 10
"""Shards named when the budget is spent."""

Place = tuple[int, int, int]
"""(dataset, shard, member)."""


@dataclass(frozen=True)
class Line:
    """One bad sample met at a slot.

    Attributes:
        g: the slot.
        key: of the bad sample.
        shard: that holds it.
        reason: why it is bad.
        served: (dataset, shard, member) of what stood in at the slot in the end.
        attempt: of the run that met it; the latest one says what stands at a slot.
    """

    g: int
    key: str
    shard: str
    reason: str
    served: Place
    attempt: int

    @property
    def is_bad(self) -> bool:
        """Whether the sample is at fault; one that is opted out is not, and counts against no budget."""
        return self.reason != OPTED_OUT


def read_lines(folder: Path) -> list[Line]:
    """Lines of all ranks, by attempt, oldest first; a line that a crash has torn is left out."""
    lines = [line for path in sorted(folder.glob("rank-*.jsonl")) for line in _read_file(path)]
    return sorted(lines, key=lambda line: line.attempt)


def _read_file(path: Path) -> Iterable[Line]:
    for text in path.read_text(encoding="utf-8").split("\n"):
        try:
            tree = json.loads(text)
            dataset, shard, member = tree.pop("served")
            yield Line(served=(dataset, shard, member), **tree)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue


def num_bad(lines: Iterable[Line]) -> int:
    """Slots at which a sample was unreadable."""
    return len({line.g for line in lines if line.is_bad})


def replaced(folder: Path) -> dict[int, Place]:
    """What stood in, by slot: input of `data_pipelines.ledger.expected` and of every replay."""
    return {line.g: line.served for line in read_lines(folder)}


class Quarantine:
    """The quarantine of one rank.

    Attributes:
        known: the latest line of each slot that was ever replaced, on any rank.

    Args:
        folder: of the run; None keeps nothing.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._folder, self._rank = folder, rank
        lines = read_lines(folder) if folder else []
        self.known = {line.g: line for line in lines}
        self._on_disk = set(lines)

    def add(self, lines: Iterable[Line]) -> None:
        """Put a micro batch's bad samples on disk; to be called before the batch is used."""
        new = [line for line in lines if line not in self._on_disk]
        if new and self._folder:
            self._append(self._folder, new)

    def _append(self, folder: Path, lines: list[Line]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{self._rank}.jsonl"
        text = "".join(f"{json.dumps(asdict(line))}\n" for line in lines)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}" if _is_torn(path) else text)
            file.flush()
            os.fsync(file.fileno())  # the weights of the next checkpoint depend on what is written here
        self._on_disk.update(lines)


def is_too_much(num_replaced: int, num_samples: int, max_share: float) -> bool:
    """Whether more of `num_samples` were replaced than their share allows, beyond the first ten."""
    return num_replaced > max(FREE, max_share * num_samples)


def complaint(num_replaced: int, num_samples: int, max_share: float, lines: Iterable[Line]) -> str:
    """What `is_too_much`, in words that name the worst shards of `lines`."""
    bad = {(line.shard, line.key) for line in lines if line.is_bad}
    worst_shards = Counter(shard for shard, _ in sorted(bad)).most_common(WORST)
    worst = ", ".join(f"{shard} ({count})" for shard, count in worst_shards)
    return (
        f"{num_replaced} of {num_samples} samples were unreadable, more than the allowed share of {max_share:g}; "
        f"worst shards: {worst}. See `thalweg data check` and data.max_quarantined"
    )


def _is_torn(path: Path) -> bool:
    """The file's last line was cut short by a crash."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
