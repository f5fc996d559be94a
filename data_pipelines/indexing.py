"""Indexes beside tars, wherever they lie, and the manifest that commits them; one part of the tars at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipelines.base import Strict, UserError
from data_pipelines.foreign import classes_beside, find_tars, sniff
from data_pipelines.index import SUFFIX, read_index
from data_pipelines.indexer import index_tar
from data_pipelines.manifest import MANIFEST, Manifest, Shard, read_manifest, shard_of
from data_pipelines.storage import DEFAULTS, Storage, fingerprint, join, local_path, write_bytes

AT_ONCE = 4
"""Tars read side by side: one would wait for its store, block by block."""
LISTED = 10

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """The default progress."""


class Indexed(Strict):
    """A tar whose index is in place."""

    shard: Shard
    fields: tuple[str, ...]
    fingerprint: str
    """Of the tar as it was read."""
    damage: tuple[str, ...] = ()

    def line(self) -> str:
        """In words."""
        damage = f"; damage: {'; '.join(self.damage[:LISTED])}" if self.damage else ""
        return f"{self.shard.file}: {self.shard.samples} samples{damage}"


def plain_tars(path: str, storage: Storage = DEFAULTS) -> list[str]:
    """Sorted addresses of the tars that can be indexed in place.

    Raises:
        UserError: there are none, or gzipped ones among them.
    """
    tars = find_tars(path, storage)
    zipped = [tar for tar in tars if not tar.endswith(".tar")]
    if zipped:
        raise UserError(f"data index {path}: {zipped[0]} is gzipped and cannot be indexed in place; unpack it (gunzip)")
    return tars


def is_folder(path: str, tars: Sequence[str]) -> bool:
    """Whether the tars were found as those of a folder, which may have a manifest, and not by name or pattern."""
    return all(tar == join(path, tar.rsplit("/", 1)[-1]) for tar in tars)


def index_in_place(path: str, progress: Progress = _silent, storage: Storage = DEFAULTS) -> list[str]:
    """Put an index beside each tar, and a manifest into their folder when `path` is one.

    Returns:
        One line a tar.

    Raises:
        UserError: no tars there, gzipped ones among them, or a store that is only read.
    """
    path = path.rstrip("/") or path
    tars = plain_tars(path, storage)
    found = []
    for indexed in index_tars(tars, storage):
        found.append(indexed)
        progress("index", len(found), len(tars))
    if is_folder(path, tars):
        commit(path, found, storage)
    return [indexed.line() for indexed in found]


def index_tars(
    tars: Sequence[str], storage: Storage = DEFAULTS, known: Mapping[str, Indexed] | None = None
) -> Iterator[Indexed]:
    """Index tars in place, in their order.

    Args:
        known: by file name, what was indexed before and is left alone while its tar is the same.
    """

    def index(tar: str) -> Indexed:
        now, before = fingerprint(tar, storage), (known or {}).get(tar.rsplit("/", 1)[-1])
        if before is not None and before.fingerprint == now:
            return before
        made = index_tar(tar, storage)
        write_bytes(tar + SUFFIX, made.to_bytes(), storage)
        header = made.header
        return Indexed(shard=shard_of(tar, made), fields=header.fields, fingerprint=now, damage=header.damage)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(index, tars)


def commit(folder: str, tars: Sequence[Indexed], storage: Storage = DEFAULTS) -> None:
    """Write the manifest of a folder's tars; what an older one says of their origin is kept."""
    try:
        old: Manifest | None = read_manifest(folder, storage)
    except (OSError, UserError):
        old = None
    places = [join(folder, indexed.shard.file) for indexed in tars]
    first = next((place for place, indexed in zip(places, tars, strict=True) if indexed.shard.samples), None)
    if first is None:
        raise UserError(f"data index {folder}: no samples in {len(tars)} tars")
    manifest = Manifest.make(
        name=old.name if old else _name(folder),
        source=old.source if old else folder,
        licence=old.licence if old else "",
        fields=sorted({name for indexed in tars for name in indexed.fields}),
        facts=old.facts if old else sniff([(first, first + SUFFIX)], [read_index(first + SUFFIX, storage)]),
        classes=old.classes if old else classes_beside(places[0]),
        shards=[indexed.shard for indexed in tars],
    )
    write_bytes(join(folder, MANIFEST), manifest.to_bytes(), storage)


def _name(folder: str) -> str:
    local = local_path(folder)
    return Path(local).resolve().name if local is not None else folder.rsplit("/", 1)[-1]
