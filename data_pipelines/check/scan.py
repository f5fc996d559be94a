"""One pass over the shards of a set: every byte read once, every sample held against its digest."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

import xxhash

from data_pipelines.base import DataError, SampleError
from data_pipelines.batch import Sample
from data_pipelines.check.census import Census
from data_pipelines.check.report import LISTED, Report
from data_pipelines.decode import IMAGE_FIELDS, decode_image, decode_label, image_facts
from data_pipelines.index import Index, payload_digest, read_index
from data_pipelines.indexer import index_tar
from data_pipelines.shards import Dataset
from data_pipelines.storage import Reader, open_reader
from data_pipelines.texts import tokens_of

READ_BYTES = 1 << 20
TEXT_FIELDS = ("txt", "json")
CUT_OFF = "cut off where the shard ends"
CHANGED = "bytes differ from their digest"


class Scan:
    """Reads shard after shard; what it finds goes to the report, what it counts to the census.

    Args:
        every: of so many images one is decoded.
    """

    def __init__(self, dataset: Dataset, report: Report, census: Census, every: int) -> None:
        self._dataset, self._report, self._census, self._every = dataset, report, census, every
        self._indexes: dict[int, Index] = {}
        self._read_s = self._decode_s = 0.0

    def shard(self, number: int) -> None:
        """Read one shard whole."""
        expected = self._dataset.manifest.shards[number]
        tar, _ = self._dataset.place(number)
        try:
            reader = open_reader(tar)
        except OSError as error:
            self._report.missing_shards += 1
            self._report.add("damage", f"{expected.file}: {error.strerror or error}{self._lost_with(number)}")
            return
        self._report.bytes += reader.size
        self._report.shard_bytes.append(reader.size)
        if reader.size != expected.bytes:
            self._report.add("damage", f"{expected.file}: {_size_differs(reader.size, expected.bytes)}")
        index = self._index(number)
        for note in index.header.damage[:LISTED]:
            self._report.add("damage", f"{expected.file}: {note}")
        digest = self._samples(number, index, reader)
        if digest != expected.digest and reader.size >= expected.bytes:
            self._between_samples(expected.file, tar, index)

    def conclude(self) -> None:
        """Findings that need all shards, and the pace."""
        report = self._report
        counted = self._dataset.manifest.facts.tokens
        if counted not in (None, report.tokens) and report.samples == self._dataset.num_samples:
            report.add("damage", f"the set holds {report.tokens:,} tokens, its manifest says {counted:,}")
        if self._read_s:
            report.read_bytes_per_s = report.bytes / self._read_s
        if self._decode_s:
            report.decoded_per_s = report.decoded / self._decode_s

    def key(self, shard: int, member: int) -> str:
        """Name of a sample, whether or not its shard's sidecar serves."""
        return (self._indexes.get(shard) or self._dataset.index(shard)).key(member)

    def _lost_with(self, number: int) -> str:
        """The samples of a shard that is gone, in words."""
        try:
            index = self._dataset.index(number)
        except DataError:
            return f"; {self._dataset.manifest.shards[number].samples:,} samples are lost with it"
        keys = [index.key(member) for member in range(index.num_samples)]
        return f"; {len(keys):,} samples are lost with it: {self._report.listed(keys)}"

    def _index(self, number: int) -> Index:
        """The shard's index, made in memory where the sidecar does not serve."""
        expected = self._dataset.manifest.shards[number]
        tar, sidecar = self._dataset.place(number)
        try:
            index = read_index(sidecar)
            if (index.header.shard_digest, index.num_samples) == (expected.digest, expected.samples):
                return index
            what = "of another shard than the manifest's"
        except FileNotFoundError:
            what = "missing"
        except (OSError, DataError):
            what = "damaged"
        index = self._indexes[number] = index_tar(tar)
        whole = index.header.shard_digest == expected.digest
        way_out = "--fix rebuilds it" if whole else "the tar differs from the manifest too: pack the set again"
        self._report.add("damage", f"{expected.file}: its index is {what}; {way_out}")
        return index

    def _samples(self, number: int, index: Index, reader: Reader) -> str:
        """Judge all samples of a shard; returns the digest of its bytes."""
        file = self._dataset.manifest.shards[number].file
        faults: defaultdict[str, list[str]] = defaultdict(list)
        through = _ReadThrough(reader)
        for member in range(index.num_samples):
            offset, size = index.span(member)
            span = through.span(offset, size)
            sample = Sample(index.key(member), index.fields_of(member, span), shard=file)
            if len(span) < size:
                fault: str | None = CUT_OFF
            elif payload_digest(sample.fields.items()) != int(index.digests[member]):
                fault = CHANGED
            else:
                fault = self._judge(sample, number, member)
            if fault is not None:
                faults[fault].append(sample.key)
        for fault, keys in faults.items():
            self._report.add("damage", f"{file}, {self._report.listed(keys)}: {fault}")
        digest = through.rest()
        self._read_s += through.seconds
        return digest

    def _judge(self, sample: Sample, shard: int, member: int) -> str | None:
        """Count a sample whose bytes are those that were packed; says what is wrong with them all the same."""
        report, label, fault = self._report, None, None
        try:
            label = decode_label(sample)
            if label is not None and report.classes is not None and label >= len(report.classes):
                raise SampleError(f"class {label}, but there are {len(report.classes)}")
            for name, data in sample.fields.items():
                kind = name.rsplit(".", 1)[-1]
                if kind in IMAGE_FIELDS:
                    self._image(data)
                elif kind in TEXT_FIELDS:
                    _want_utf8(name, data)
            report.tokens += sum(map(len, tokens_of(sample, self._dataset.manifest.facts).values()))
            report.labels.update([] if label is None else [label])
        except SampleError as error:
            label, fault = None, error.reason
        report.samples += 1
        report.fields.update(sample.fields.keys())
        self._census.add(sample, label, shard, member)
        return fault

    def _image(self, data: bytes) -> None:
        """Read the header; of some the pixels too."""
        if not data:
            raise SampleError("image of 0 bytes")
        height, width, _ = image_facts(data)
        self._report.image_sizes[height, width] += 1
        if self._report.images % self._every == 0:
            begun = time.perf_counter()
            decode_image(data)
            self._decode_s += time.perf_counter() - begun
            self._report.decoded += 1
        self._report.images += 1

    def _between_samples(self, file: str, tar: str, index: Index) -> None:
        """A shard is not the manifest's: which samples would be lost to a reader without our index?"""
        anew = index_tar(tar)
        there = {anew.key(member) for member in range(anew.num_samples)}
        lost = [key for key in map(index.key, range(index.num_samples)) if key not in there]
        if lost:
            words = (
                f"a tar header is damaged ({'; '.join(anew.header.damage[:2])}); only our index still finds the sample"
            )
            self._report.add("damage", f"{file}, {self._report.listed(lost)}: {words}")
        elif not self._report.names(file):
            self._report.add("damage", f"{file}: differs from its manifest between its samples, which are whole")


class _ReadThrough:
    """A shard from its first byte to its last, samples cut out on the way.

    Attributes:
        seconds: spent reading.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, self._position, self._digest = reader, 0, xxhash.xxh3_128()
        self.seconds = 0.0

    def span(self, offset: int, size: int) -> bytes:
        """The bytes of a range that begins where the last one ended or later; fewer where the file ends."""
        for _ in self._blocks(offset):
            pass
        return self._take(size)

    def rest(self) -> str:
        """Read to the end; the digest of all bytes."""
        for _ in self._blocks(self._reader.size):
            pass
        return self._digest.hexdigest()

    def _blocks(self, stop: int) -> Iterator[bytes]:
        while self._position < stop:
            block = self._take(min(READ_BYTES, stop - self._position))
            if not block:
                return
            yield block

    def _take(self, size: int) -> bytes:
        begun = time.perf_counter()
        try:
            block = self._reader.pread(self._position, size)
        except OSError:  # a bad sector: told as what it costs
            block = b""
        self.seconds += time.perf_counter() - begun
        self._position += len(block)
        self._digest.update(block)
        return block


def _want_utf8(name: str, data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise SampleError(f"field {name!r} is not UTF-8 at byte {error.start}") from None


def _size_differs(size: int, expected: int) -> str:
    if size < expected:
        return f"truncated, {expected - size:,} of {expected:,} bytes are missing"
    return f"{size:,} bytes, but {expected:,} in the manifest: it was replaced or written to"
