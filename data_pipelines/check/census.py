"""What is counted sample by sample, and what the counts say of the set as a whole."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from data_pipelines.batch import Sample
from data_pipelines.check.report import LISTED, Report
from data_pipelines.decode import image_field
from data_pipelines.shards import Dataset

USUAL_SHARE = 0.95
"""A field that so many samples have is missed in the others."""
SORTED_AGREEMENT = 0.3
"""Agreement of neighbours' classes beyond chance, 0 = shuffled, 1 = sorted, from which shards count as sorted."""
MIN_NEIGHBOURS = 100
"""Pairs of neighbours, over all shards, below which nothing is concluded from them."""
MIN_DEVIATIONS = 5
"""Standard deviations from chance at which a single shard counts as sorted."""
LENGTH_CORRELATION = 0.5
NO_LABEL = -1


@dataclass
class Shape:
    """Samples that have the same fields, and the first of them as (shard, member)."""

    count: int = 0
    first: list[tuple[int, int]] = field(default_factory=list)


class Census:
    """One entry for every whole sample, in the order of the files."""

    def __init__(self) -> None:
        self._shapes: dict[frozenset[str], Shape] = {}
        self._columns = [array("q") for _ in range(5)]

    def add(self, sample: Sample, label: int | None, shard: int, member: int) -> None:
        """Count a sample."""
        shape = self._shapes.setdefault(frozenset(sample.fields), Shape())
        shape.count += 1
        if len(shape.first) < LISTED:
            shape.first.append((shard, member))
        size = sum(map(len, sample.fields.values()))
        key = xxhash.xxh3_64_intdigest(sample.key.encode()) >> 1  # the column is of signed numbers
        for column, value in zip(
            self._columns, (shard, member, NO_LABEL if label is None else label, size, key), strict=True
        ):
            column.append(value)

    @property
    def shards(self) -> np.ndarray:
        """(n,) int64, shard of each sample."""
        return self._column(0)

    @property
    def members(self) -> np.ndarray:
        """(n,) int64, its number in the shard."""
        return self._column(1)

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, `NO_LABEL` where there is none."""
        return self._column(2)

    @property
    def sizes(self) -> np.ndarray:
        """(n,) int64, bytes of its fields."""
        return self._column(3)

    @property
    def key_hashes(self) -> np.ndarray:
        """(n,) int64."""
        return self._column(4)

    def _column(self, number: int) -> np.ndarray:
        return np.frombuffer(self._columns[number], np.int64)

    def judge(self, dataset: Dataset, report: Report, key_of: Callable[[int, int], str]) -> None:
        """Say what is wrong with the set as a whole: fields missing, keys twice, classes absent, shards sorted.

        Args:
            key_of: key of a (shard, member).
        """
        files = [shard.file for shard in dataset.manifest.shards]
        self._missing_fields(dataset, files, report, key_of)
        self._repeated_keys(files, report, key_of)
        if report.labels and report.classes:
            absent = [name for number, name in enumerate(report.classes) if not report.labels[number]]
            if absent:
                report.add("warning", f"classes without a sample: {report.listed(absent)}")
        self._sorted_by_class(files, report)
        self._sorted_by_length(report)

    def _missing_fields(
        self, dataset: Dataset, files: Sequence[str], report: Report, key_of: Callable[[int, int], str]
    ) -> None:
        total, facts = len(self.shards), dataset.manifest.facts
        for name in sorted(name for name, count in report.fields.items() if USUAL_SHARE * total <= count < total):
            lacking = [shape for fields, shape in self._shapes.items() if name not in fields]
            number = sum(shape.count for shape in lacking)
            places = sorted(place for shape in lacking for place in shape.first)[:LISTED]
            named = ", ".join(f"{key_of(*place)!r} in {files[place[0]]}" for place in places)
            needed = name == facts.labels_field or (facts.channels and not facts.frames and image_field([name]))
            more = f" and {number - len(places):,} more" if number > len(places) else ""
            report.add(
                "damage" if needed else "warning",
                f"field {name!r} is missing in {number:,} of {total:,}: {named}{more}",
            )

    def _repeated_keys(self, files: Sequence[str], report: Report, key_of: Callable[[int, int], str]) -> None:
        hashes = self.key_hashes
        ranked = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[ranked[1:]] == hashes[ranked[:-1]])
        again = again[np.argsort(ranked[again])]  # in the order of the files
        if not len(again):
            return
        named = []
        for place in again[:LISTED]:
            first, second = ((int(self.shards[n]), int(self.members[n])) for n in ranked[place : place + 2])
            named.append(f"{key_of(*second)!r} in {files[first[0]]} and {files[second[0]]}")
        more = f" and {len(again) - LISTED:,} more" if len(again) > LISTED else ""
        verb = "occurs" if len(again) == 1 else "occur"
        report.add(
            "warning", f"{len(again):,} key{'s' * (len(again) > 1)} {verb} more than once: {', '.join(named)}{more}"
        )

    def _sorted_by_class(self, files: Sequence[str], report: Report) -> None:
        counts = np.array(list(report.labels.values()), np.float64)
        chance = float((counts**2).sum() / counts.sum() ** 2) if len(counts) > 1 else 1.0
        if chance == 1:
            return
        by_shard = {files[shard]: _agreement(labels) for shard, labels in self._by_shard(self.labels)}
        neighbours = sum(pairs for _, pairs in by_shard.values())
        share = sum(equal for equal, _ in by_shard.values()) / max(neighbours, 1)
        is_sorted = [file for file, (equal, pairs) in by_shard.items() if pairs and _is_sorted(equal, pairs, chance)]
        if neighbours >= MIN_NEIGHBOURS and is_sorted:
            which = "all shards" if len(is_sorted) == len(by_shard) > 1 else report.listed(is_sorted)
            report.add(
                "warning",
                f"sorted by class: {which}: {share:.0%} of neighbours in the set are of one class, {chance:.0%} by "
                "chance; pack it shuffled, or read it with data.shuffle=full",
            )

    def _sorted_by_length(self, report: Report) -> None:
        found = []
        for _, sizes in self._by_shard(self.sizes.astype(np.float64)):
            if len(sizes) > MIN_NEIGHBOURS and sizes[1:].std() > 0 and sizes[:-1].std() > 0:
                found.append(float(np.corrcoef(sizes[1:], sizes[:-1])[0, 1]))
        if found and np.mean(found) > LENGTH_CORRELATION:
            report.add("warning", "shards are sorted by length: neighbours are of like size")

    def _by_shard(self, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each shard's number and its values in the order of the file."""
        borders = np.flatnonzero(np.diff(self.shards)) + 1
        for shard, part in zip(np.split(self.shards, borders), np.split(values, borders), strict=True):
            if len(shard):
                yield int(shard[0]), part


def _agreement(labels: np.ndarray) -> tuple[int, int]:
    """Neighbours of one class, and all pairs of neighbours."""
    labels = labels[labels != NO_LABEL]
    return int((labels[1:] == labels[:-1]).sum()), max(len(labels) - 1, 0)


def _is_sorted(equal: int, pairs: int, chance: float) -> bool:
    beyond = equal / pairs - chance
    return beyond / (1 - chance) > SORTED_AGREEMENT and beyond > MIN_DEVIATIONS * np.sqrt(chance * (1 - chance) / pairs)
