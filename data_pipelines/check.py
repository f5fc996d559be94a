"""Reads a dataset through and says in words whether it is whole; rebuilds what can be rebuilt safely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from data_pipelines.base import DataError, SampleError, UserError, write_atomically
from data_pipelines.batch import Sample
from data_pipelines.decode import decode_image, decode_label, image_bytes, image_field
from data_pipelines.foreign import find_tars, sniff
from data_pipelines.index import SUFFIX, Index, payload_digest, read_index
from data_pipelines.indexer import index_tar, write_index
from data_pipelines.shards import MANIFEST, Dataset, Manifest, read_manifest, shard_of
from data_pipelines.storage import Reader, exists, join, local_path, open_reader
from data_pipelines.texts import tokens_of

DECODED_SAMPLES = 1000
"""Images decoded unless all are asked for, spread evenly over the set."""
SORTED_AGREEMENT = 0.3
"""Agreement of neighbours' classes beyond chance, 0 = shuffled, 1 = sorted, from which shards count as sorted."""
MIN_NEIGHBOURS = 100
LENGTH_CORRELATION = 0.5
LISTED = 10
READ_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]
Kind = Literal["damage", "warning", "fixed"]


def _silent(stage: str, done: int, total: int) -> None:
    """The default progress."""


@dataclass(frozen=True)
class Finding:
    """One thing worth saying; only "damage" makes the command fail."""

    kind: Kind
    text: str


@dataclass
class Report:
    """What was found; `labels` counts samples by class number, `tokens` those of text, without padding."""

    path: str
    samples: int = 0
    bytes: int = 0
    shards: int = 0
    decoded: int = 0
    tokens: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    classes: tuple[str, ...] | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        """Whether anything cannot be read as it was packed."""
        return any(finding.kind == "damage" for finding in self.findings)

    def add(self, kind: Kind, text: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(kind, text))

    def lines(self) -> list[str]:
        """The report, verdict last."""
        lines = [f"{self.path}: {self.samples} samples, {self.shards} shards, {self.bytes / 1e6:.1f} MB"]
        if self.decoded:
            lines.append(f"images decoded: {self.decoded}")
        if self.tokens:
            lines.append(f"tokens: {self.tokens}")
        if self.labels:
            lines.append(f"labels: {self._histogram()}")
        lines += [f"{finding.kind}: {finding.text}" for finding in self.findings]
        counts = Counter(finding.kind for finding in self.findings)
        verdict = f"DAMAGED, {counts['damage']} findings" if self.damaged else "whole"
        return [*lines, f"verdict: {verdict}" + (f", {counts['warning']} warnings" if counts["warning"] else "")]

    def _histogram(self) -> str:
        names = dict(enumerate(self.classes or ()))
        shown = [f"{names.get(label, label)} {count}" for label, count in sorted(self.labels.items())[: 2 * LISTED]]
        more = len(self.labels) - len(shown)
        return ", ".join(shown) + (f", and {more} more classes" if more > 0 else "")


def check(path: str, *, fix: bool = False, decode_all: bool = False, progress: Progress = _silent) -> Report:
    """Read a set through: every sample against its digest, images decoded, keys and labels counted.

    Args:
        path: a packed folder; or tars of any origin, which have no digests to keep to but their index's.
        fix: first rebuild missing and damaged indexes and a missing manifest. A tar that differs from its manifest
            is left as it is: a new index would only hide the damage.
        decode_all: decode every image instead of about `DECODED_SAMPLES`.

    Raises:
        UserError: there is nothing to check at `path`.
    """
    path = path.rstrip("/") or path
    report = Report(path)
    if fix:
        _fix(path, report, progress)
    dataset = _open(path)
    report.shards, report.classes = len(dataset.shard_sizes), dataset.classes
    scan = _Scan(dataset, report, every=1 if decode_all else max(1, dataset.num_samples // DECODED_SAMPLES))
    for shard in range(report.shards):
        scan.shard(shard)
        progress("check", shard + 1, report.shards)
    scan.conclude()
    return report


def index_in_place(path: str, progress: Progress = _silent) -> list[str]:
    """Put an index beside each tar, and a manifest into their folder when `path` is one.

    Returns:
        One line a tar.

    Raises:
        UserError: no tars there, or gzipped or remote ones, which cannot be indexed in place.
    """
    local = local_path(path)
    tars = find_tars(path)
    if local is None or any(not tar.endswith(".tar") for tar in tars):
        raise UserError(f"data index {path}: want local, plain .tar files; unpack gzipped ones (gunzip) first")
    indexes = []
    for number, tar in enumerate(tars):
        indexes.append(write_index(Path(tar)))
        progress("index", number + 1, len(tars))
    if Path(local).is_dir():
        _write_manifest(Path(local), tars, indexes)
    return [_index_line(tar, index) for tar, index in zip(tars, indexes, strict=True)]


def _index_line(tar: str, index: Index) -> str:
    damage = f"; damage: {'; '.join(index.header.damage[:LISTED])}" if index.header.damage else ""
    return f"{tar}: {index.num_samples} samples{damage}"


def _write_manifest(folder: Path, tars: list[str], indexes: list[Index]) -> None:
    """Commit the tars of a folder; what an older manifest says of their origin is kept."""
    try:
        old: Manifest | None = read_manifest(str(folder))
    except (OSError, UserError):
        old = None
    places = [(tar, tar + SUFFIX) for tar in tars]
    manifest = Manifest.make(
        name=old.name if old else folder.resolve().name,
        source=old.source if old else str(folder),
        licence=old.licence if old else "",
        fields=sorted({name for index in indexes for name in index.header.fields}),
        facts=old.facts if old else sniff(places, indexes),
        classes=old.classes if old else None,
        shards=[shard_of(tar, index) for tar, index in zip(tars, indexes, strict=True)],
    )
    write_atomically(folder / MANIFEST, manifest.to_bytes())


def _fix(path: str, report: Report, progress: Progress) -> None:
    local = local_path(path)
    if local is None or not Path(local).is_dir():
        raise UserError(f"data check --fix {path}: want a local folder of shards")
    try:
        manifest = read_manifest(path)
    except (OSError, UserError):
        index_in_place(path, progress)
        report.add("fixed", "indexes and manifest were made anew from the tars")
        return
    for shard in manifest.shards:
        tar = Path(local) / shard.file
        if not tar.exists() or _index_matches(str(tar), shard.digest):
            continue
        index = index_tar(str(tar))
        if index.header.shard_digest == shard.digest:
            write_atomically(tar.with_name(tar.name + SUFFIX), index.to_bytes())
            report.add("fixed", f"index of {shard.file} was made anew")


def _index_matches(tar: str, digest: str) -> bool:
    try:
        return read_index(tar + SUFFIX).header.shard_digest == digest
    except (OSError, DataError):
        return False


def _open(path: str) -> Dataset:
    """As `Dataset.open`, but missing shards are for the report to tell."""
    if exists(join(path, MANIFEST)):
        manifest = read_manifest(path)
        return Dataset(path, manifest, manifest.name)
    return Dataset.open(path)


class _Scan:
    """One pass over all shards of a set."""

    def __init__(self, dataset: Dataset, report: Report, every: int) -> None:
        self._dataset, self._report, self._every = dataset, report, every
        self._key_hashes: list[np.ndarray] = []
        self._equal_neighbours = self._neighbours = 0
        self._length_correlations: list[float] = []

    def shard(self, shard: int) -> None:
        """Read one shard whole."""
        expected = self._dataset.manifest.shards[shard]
        tar, sidecar = self._dataset.place(shard)
        try:
            reader = open_reader(tar)
        except OSError as error:
            self._report.add("damage", f"shard {expected.file}: {error.strerror or error}")
            return
        self._report.bytes += reader.size
        if reader.size != expected.bytes:
            self._report.add("damage", f"shard {expected.file} has {reader.size} bytes, want {expected.bytes}")
        index = self._index(tar, sidecar, shard)
        for note in index.header.damage[:LISTED]:
            self._report.add("damage", f"shard {expected.file}: {note}")
        damaged = self._samples(index, reader, expected.file)
        if not damaged and _digest(reader) != expected.digest:
            words = "differs from its manifest; its samples are whole, the bytes between them are not"
            self._report.add("damage", f"shard {expected.file} {words}")

    def conclude(self) -> None:
        """Findings about the set as a whole."""
        counted = self._dataset.manifest.facts.tokens
        if counted not in (None, self._report.tokens) and not self._report.damaged:
            self._report.add("damage", f"the set holds {self._report.tokens} tokens, its manifest says {counted}")
        hashes = np.sort(np.concatenate(self._key_hashes)) if self._key_hashes else np.zeros(0, np.uint64)
        repeated = int((hashes[1:] == hashes[:-1]).sum())
        if repeated:
            self._report.add("warning", f"{repeated} keys occur more than once")
        labels = np.array(list(self._report.labels.values()), np.float64)
        if len(labels) > 1 and self._neighbours >= MIN_NEIGHBOURS:
            chance = float((labels**2).sum() / labels.sum() ** 2)
            share = self._equal_neighbours / self._neighbours
            if (share - chance) / (1 - chance) > SORTED_AGREEMENT:
                self._report.add(
                    "warning",
                    f"shards are sorted by class: {share:.0%} of neighbours are of one class, {chance:.0%} by chance; "
                    "pack them shuffled, or read them with data.shuffle=full",
                )
        if self._length_correlations and np.mean(self._length_correlations) > LENGTH_CORRELATION:
            self._report.add("warning", "shards are sorted by length: neighbours are of like size")

    def _index(self, tar: str, sidecar: str, shard: int) -> Index:
        """The shard's index, made in memory where the sidecar does not serve."""
        expected = self._dataset.manifest.shards[shard]
        try:
            index = read_index(sidecar)
        except (OSError, DataError):
            self._report.add("damage", f"index of {expected.file} is gone or damaged; --fix rebuilds it")
            return index_tar(tar)
        if (index.header.shard_digest, index.num_samples) != (expected.digest, expected.samples):
            self._report.add("damage", f"index of {expected.file} is of another shard than the manifest's")
        return index

    def _samples(self, index: Index, reader: Reader, file: str) -> int:
        """Read all samples of a shard; returns how many are damaged."""
        labels, sizes, bad = [], [], []
        for number in range(index.num_samples):
            sample = _read(index, reader, number, file)
            if sample is None:
                bad.append(index.key(number))
                continue
            sizes.append(sum(map(len, sample.fields.values())))
            try:
                label = decode_label(sample)
                if self._report.samples % self._every == 0 and image_field(sample.fields) is not None:
                    decode_image(image_bytes(sample))
                    self._report.decoded += 1
                self._report.tokens += sum(map(len, tokens_of(sample, self._dataset.manifest.facts).values()))
            except SampleError as error:
                self._report.add("damage", f"shard {file}, sample {sample.key!r}: {error.reason}")
            else:
                labels += [] if label is None else [label]
            self._report.samples += 1
        if bad:
            shown = ", ".join(map(repr, bad[:LISTED])) + (", ..." if len(bad) > LISTED else "")
            self._report.add("damage", f"shard {file}: {len(bad)} samples differ from their digest: {shown}")
        self._note_neighbours(labels, sizes)
        self._key_hashes.append(_key_hashes(index))
        return len(bad)

    def _note_neighbours(self, labels: list[int], sizes: list[int]) -> None:
        self._report.labels.update(labels)
        classes, lengths = np.array(labels), np.array(sizes, np.float64)
        self._equal_neighbours += int((classes[1:] == classes[:-1]).sum())
        self._neighbours += max(len(labels) - 1, 0)
        if len(lengths) > MIN_NEIGHBOURS and lengths[1:].std() > 0 and lengths[:-1].std() > 0:
            self._length_correlations.append(float(np.corrcoef(lengths[1:], lengths[:-1])[0, 1]))


def _read(index: Index, reader: Reader, number: int, file: str) -> Sample | None:
    """A sample, None when its bytes are not those of its digest."""
    offset, size = index.span(number)
    span = reader.pread(offset, size)
    fields = index.fields_of(number, span)
    whole = len(span) == size and payload_digest(fields.items()) == int(index.digests[number])
    return Sample(index.key(number), fields, shard=file) if whole else None


def _key_hashes(index: Index) -> np.ndarray:
    keys = (index.key(number).encode() for number in range(index.num_samples))
    return np.array([xxhash.xxh3_64_intdigest(key) for key in keys], np.uint64)


def _digest(reader: Reader) -> str:
    digest = xxhash.xxh3_128()
    for offset in range(0, reader.size, READ_BYTES):
        digest.update(reader.pread(offset, READ_BYTES))
    return digest.hexdigest()
