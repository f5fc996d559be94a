"""Tars that others wrote: indexed on first use, unpacked where gzipped, kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.base import DataError, SampleError, UserError, write_atomically
from data_pipelines.batch import Sample
from data_pipelines.decode import decode_label, image_bytes, image_facts, image_field
from data_pipelines.index import SUFFIX, Index, read_index
from data_pipelines.indexer import index_tar
from data_pipelines.manifest import MANIFEST, Facts, Manifest, shard_of
from data_pipelines.storage import (
    DEFAULTS,
    Storage,
    cache_folder,
    exists,
    fingerprint,
    glob,
    join,
    local_path,
    locked,
    modified_before,
    names_in,
    open_reader,
    read_bytes,
)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_INFLATION = 200
"""A gzipped tar may grow by this factor ..."""
FREE_INFLATION = 2**30
"""... and in any case to this many bytes."""
MAX_UNINDEXED = 1000
"""Tars that are indexed on first use; more of them are a job of their own."""
SNIFFED_SAMPLES = 32
READ_BYTES = 1 << 20
_GLOB = re.compile(r"[*?\[]")

Place = tuple[str, str]
"""(tar, index) addresses of a shard."""


def open_foreign(path: str, storage: Storage = DEFAULTS) -> tuple[Manifest, list[Place]]:
    """Index the tars at `path` that are not indexed yet.

    Args:
        path: a tar, a glob of tars, or a folder that holds some.

    Returns:
        A manifest in memory, and the places of its shards.

    Raises:
        UserError: there is no tar or no sample in any, or there are more without an index than are indexed on the fly.
        DataError: one is a decompression bomb.
    """
    tars = find_tars(path, storage)
    beside = [_index_beside(tar, storage) for tar in tars]
    unindexed = sum(index is None for index in beside)
    if unindexed > MAX_UNINDEXED:
        raise UserError(
            f"dataset {path}: {unindexed} of {len(tars)} tars have no index; make them once, in jobs of a cluster: "
            f"thalweg data index {path} --cluster NAME"
        )
    places, indexes = zip(
        *(
            _prepare(tar, storage) if index is None else ((tar, tar + SUFFIX), index)
            for tar, index in zip(tars, beside, strict=True)
        ),
        strict=True,
    )
    shards = [shard_of(tar, index) for tar, index in zip(tars, indexes, strict=True)]
    if not any(shard.samples for shard in shards):
        damage = next((f": {index.header.damage[0]}" for index in indexes if index.header.damage), "")
        raise UserError(f"dataset {path}: no samples in {len(tars)} tars{damage}; fetch or pack them again")
    manifest = Manifest.make(
        name=_name(path),
        source=path,
        fields=sorted({field for index in indexes for field in index.header.fields}),
        facts=sniff(places, indexes),
        classes=classes_beside(tars[0]),
        shards=shards,
    )
    return manifest, list(places)


def find_tars(path: str, storage: Storage = DEFAULTS) -> list[str]:
    """Sorted addresses of the tars behind a path, folder or glob.

    Raises:
        UserError: there are none.
    """
    if _GLOB.search(path) and not exists(path, storage):
        found = [match for match in glob(path, storage) if match.endswith(TAR_SUFFIXES)]
    elif path.endswith(TAR_SUFFIXES) and exists(path, storage):
        found = [path]
    else:
        found = [join(path, name) for name in names_in(path, storage) if name.endswith(TAR_SUFFIXES)]
    if not found:
        raise UserError(f"dataset {path}: {_why_nothing(path, storage)}")
    return found


def sniff(places: Sequence[Place], indexes: Sequence[Index]) -> Facts:
    """Facts as the first readable samples of the first shard that has any show them."""
    samples = list(_first_samples(places, indexes))
    sizes, channels = set(), set()
    labelled = bool(samples)
    for sample in samples:
        try:
            labelled = decode_label(sample) is not None and labelled
            if image_field(sample.fields) is not None:
                height, width, colours = image_facts(image_bytes(sample))
                sizes.add((height, width))
                channels.add(colours)
        except SampleError:
            continue
    return Facts(
        channels=max(channels, default=None),
        image_size=sizes.pop() if len(sizes) == 1 else None,
        labels_field="cls" if labelled else None,
    )


def _first_samples(places: Sequence[Place], indexes: Sequence[Index]) -> Iterator[Sample]:
    shard = next((number for number, index in enumerate(indexes) if index.num_samples), None)
    if shard is None:
        return
    index, reader = indexes[shard], open_reader(places[shard][0])
    for number in range(min(SNIFFED_SAMPLES, index.num_samples)):
        yield Sample(index.key(number), index.fields_of(number, reader.pread(*index.span(number))))


def _why_nothing(path: str, storage: Storage) -> str:
    if _GLOB.search(path):
        return "no .tar or .tar.gz matches"
    if not exists(path, storage):
        return "no such file or folder"
    sets = [join(path, name) for name in names_in(path, storage) if exists(join(join(path, name), MANIFEST), storage)]
    if sets:
        return f"a folder of sets; name one of them: {', '.join(sets)}"
    return "holds neither a manifest.json nor a .tar; pack it first: thalweg data pack"


def _name(path: str) -> str:
    """A name from the path, e.g. "cifar10-train" from "data/cifar10/train-*.tar"."""
    *folders, last = path.split("/")
    if not _GLOB.search(last) and not last.endswith(TAR_SUFFIXES):
        return last or "tars"
    stem = re.split(r"[*?\[]|\.tar|\.tgz", last)[0].rstrip("-_.0123456789")
    return "-".join(part for part in (folders[-1] if folders else "", stem) if part) or "tars"


def classes_beside(tar: str) -> tuple[str, ...] | None:
    """Lines of a classes.txt in the tar's folder."""
    beside = tar.rsplit("/", 1)[0] if "/" in tar else "."
    try:
        return tuple(read_bytes(join(beside, "classes.txt")).decode().split("\n")[:-1]) or None
    except (OSError, UnicodeDecodeError):
        return None


def _prepare(tar: str, storage: Storage) -> tuple[Place, Index]:
    """A foreign shard without a sidecar, and its index: both made now by the first process that asks for them."""
    where = tar if local_path(tar) is None else str(Path(tar).resolve())
    stem = hashlib.blake2b(f"{where} {fingerprint(tar, storage)}".encode(), digest_size=16).hexdigest()
    plain, cached = tar, cache_folder("foreign") / f"{stem}{SUFFIX}"
    with locked(cached.with_suffix(".lock")):
        if _is_zipped(tar):
            plain = str(cache_folder("foreign") / f"{stem}.tar")
            if not Path(plain).exists():
                _unpack(tar, Path(plain), storage)
        try:
            return (plain, str(cached)), read_index(str(cached))
        except (OSError, DataError):
            index = index_tar(plain, storage)
            write_atomically(cached, index.to_bytes())
            return (plain, str(cached)), index


def _is_zipped(tar: str) -> bool:
    return tar.endswith((".gz", ".tgz"))


def _index_beside(tar: str, storage: Storage) -> Index | None:
    """The sidecar of a plain tar, unless it is damaged, older than the tar or of another size."""
    if _is_zipped(tar):
        return None
    try:
        index = read_index(tar + SUFFIX, storage)
        fresh = index.header.shard_bytes == open_reader(tar).size and not modified_before(tar + SUFFIX, tar)
    except (OSError, DataError):
        return None
    return index if fresh else None


def _unpack(archive: str, plain: Path, storage: Storage) -> None:
    """Gunzip into the cache; what a truncated archive still yields is kept.

    Raises:
        DataError: it grows beyond all measure.
    """
    plain.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=plain.parent, prefix=".unpack-")
    try:
        with os.fdopen(handle, "wb") as file:
            for block in _gunzip(archive, storage):
                file.write(block)
        Path(partial).replace(plain)
    finally:
        Path(partial).unlink(missing_ok=True)


def _gunzip(archive: str, storage: Storage) -> Iterator[bytes]:
    """Blocks of a gzip file of one or more streams, up to its end or its first damage."""
    reader = open_reader(archive, storage)
    limit = max(FREE_INFLATION, reader.size * MAX_INFLATION)
    inflate, offset, produced = zlib.decompressobj(wbits=31), 0, 0
    pending = b""
    while True:
        if not pending:
            pending = reader.pread(offset, READ_BYTES)
            offset += len(pending)
        if not pending:
            return
        try:
            block = inflate.decompress(pending, READ_BYTES)
        except zlib.error:
            return
        produced += len(block)
        if produced > limit:
            raise DataError(f"{archive}: unpacks to more than {limit} bytes; unpack it by hand if it is what you want")
        yield block
        pending = inflate.unconsumed_tail
        if inflate.eof:
            pending = inflate.unused_data
            inflate = zlib.decompressobj(wbits=31)
