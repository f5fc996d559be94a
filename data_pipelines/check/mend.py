"""Rebuilds what can be rebuilt safely: indexes from tars, a manifest from indexes."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.base import DataError, UserError, write_atomically
from data_pipelines.check.report import LISTED, Report
from data_pipelines.foreign import find_tars, sniff
from data_pipelines.index import SUFFIX, Index, read_index
from data_pipelines.indexer import index_tar, write_index
from data_pipelines.manifest import MANIFEST, Manifest, read_manifest, shard_of
from data_pipelines.pack.writer import Progress, no_progress
from data_pipelines.storage import local_path


def index_in_place(path: str, progress: Progress = no_progress) -> list[str]:
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


def mend(path: str, report: Report, progress: Progress = no_progress) -> None:
    """Make indexes anew that are gone, damaged or of another shard, where the tar is still the manifest's.

    Raises:
        UserError: `path` is no local folder.
    """
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


def _index_matches(tar: str, digest: str) -> bool:
    try:
        return read_index(tar + SUFFIX).header.shard_digest == digest
    except (OSError, DataError):
        return False
