"""What a check found, and how it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

LISTED = 10
"""Samples, shards or classes that are named one by one."""
BARS = 24
"""Characters of the longest bar of the histogram."""
SHOWN_CLASSES = 20

Kind = Literal["fixed", "damage", "warning", "advice"]


@dataclass(frozen=True)
class Finding:
    """One thing worth saying; only "damage" makes the command fail."""

    kind: Kind
    text: str


@dataclass
class Report:
    """What was found.

    Attributes:
        samples: those that are whole.
        bytes: of the shards.
        fields: samples that have a field, by its name.
        shard_bytes: of each shard that is there.
        images: whose headers were read; `decoded` of them to the last pixel.
        image_sizes: (height, width) and how often.
        tokens: of text, without padding.
        labels: samples by class number.
        facts: further lines, each a name and what is to say.
        read_bytes_per_s: shards as they came, from a disk, a network or the page cache.
        decoded_per_s: whole images, in this one process.
    """

    path: str
    samples: int = 0
    bytes: int = 0
    shards: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    missing_shards: int = 0
    shard_bytes: list[int] = field(default_factory=list)
    images: int = 0
    decoded: int = 0
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    tokens: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    classes: tuple[str, ...] | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)
    read_bytes_per_s: float | None = None
    decoded_per_s: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether anything cannot be read as it was packed."""
        return any(finding.kind == "damage" for finding in self.findings)

    def add(self, kind: Kind, text: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind, text))

    def names(self, file: str) -> bool:
        """Whether a finding is of this shard already."""
        return any(finding.text.startswith((f"{file}: ", f"{file}, ")) for finding in self.findings)

    @staticmethod
    def listed(names: Sequence[str]) -> str:
        """The first names in quotes, and how many more there are."""
        more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        return ", ".join(map(repr, names[:LISTED])) + more

    def lines(self) -> list[str]:
        """The report, findings and verdict last."""
        lines = [f"{name:<12} {text}" if name else f"  {text}" for name, text in self._facts()]
        gravest_first = sorted(self.findings, key=lambda finding: get_args(Kind).index(finding.kind))
        lines += [f"{finding.kind:<12} {finding.text}" for finding in gravest_first]
        counts = Counter(finding.kind for finding in self.findings)
        verdict = f"DAMAGED, {_counted(counts['damage'], 'finding')}" if self.damaged else "whole"
        warnings = f", {_counted(counts['warning'], 'warning')}" if counts["warning"] else ""
        return [*lines, f"{'verdict':<12} {verdict}{warnings}"]

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield (
            "set",
            f"{self.path}: {self.samples:,} samples in {_counted(self.shards, 'shard')}, {self.bytes / 1e6:,.1f} MB",
        )
        if self.fields:
            yield "fields", self._fields()
        if self.shard_bytes:
            smallest, largest = (round(size(self.shard_bytes) / 1e6, 1) for size in (min, max))
            yield (
                "shards",
                f"{smallest:,.1f} MB each" if smallest == largest else f"{smallest:,.1f} to {largest:,.1f} MB",
            )
        if self.images:
            yield "images", self._images()
        if self.tokens:
            yield "tokens", f"{self.tokens:,}, without padding"
        if self.labels:
            yield "labels", self._balance()
            yield from (("", bar) for bar in self._histogram())
        if self.read_bytes_per_s:
            yield "speed", self._speed()
        yield from self.facts

    def _fields(self) -> str:
        in_all = [name for name, count in self.fields.items() if count == self.samples]
        some = [f"{name} in {count:,}" for name, count in self.fields.most_common() if count != self.samples]
        shown = [f"{', '.join(in_all[:LISTED])}{', ...' if len(in_all) > LISTED else ''} in all"] if in_all else []
        return "; ".join([*shown, *some[:LISTED]]) + ("; ..." if len(some) > LISTED else "")

    def _images(self) -> str:
        (height, width), count = self.image_sizes.most_common(1)[0]
        if count == self.images:
            size = f"{height} x {width} all"
        else:
            rows, columns = zip(*self.image_sizes, strict=True)
            size = f"{min(rows)} to {max(rows)} high, {min(columns)} to {max(columns)} wide"
        how = "all decoded" if self.decoded == self.images else f"{self.decoded:,} decoded (--all decodes every one)"
        return f"{self.images:,}, {size}; {how}"

    def _balance(self) -> str:
        counts = self.labels.values()
        least, most = min(counts), max(counts)
        each = f"{most:,} each" if least == most else f"{least:,} to {most:,} each ({most / least:,.1f}x)"
        return f"{_counted(len(self.labels), 'class')}, {each}"

    def _histogram(self) -> Iterator[str]:
        """A bar a class in the order of class numbers; of many classes, those that are most and least frequent."""
        shown = sorted(self.labels)
        if len(shown) > SHOWN_CLASSES:
            ranked = [label for label, _ in self.labels.most_common()]
            shown = [*ranked[: SHOWN_CLASSES // 2], *ranked[-SHOWN_CLASSES // 2 :]]
        names = [self._class_name(label) for label in shown]
        name_width = min(max(map(len, names)), 24)
        most, digits = max(self.labels.values()), len(f"{max(self.labels.values()):,}")
        for place, (label, name) in enumerate(zip(shown, names, strict=True)):
            if len(self.labels) > SHOWN_CLASSES and place == SHOWN_CLASSES // 2:
                yield f"{'...':<{name_width}}  {len(self.labels) - SHOWN_CLASSES:,} more classes"
            count = self.labels[label]
            bar = "█" * max(1, round(count / most * BARS))
            yield f"{name[:name_width]:<{name_width}}  {count:>{digits},} {bar}"

    def _class_name(self, label: int) -> str:
        names = self.classes or ()
        return names[label] if label < len(names) else str(label)

    def _speed(self) -> str:
        words = f"read here at {(self.read_bytes_per_s or 0) / 1e6:,.0f} MB/s"
        if self.decoded_per_s:
            words += f"; images decoded at {self.decoded_per_s:,.0f}/s by one process"
        return words


def _counted(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
