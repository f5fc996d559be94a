"""Rebuilds what can be rebuilt safely: indexes from tars, a manifest from indexes."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.base import DataError, UserError, write_atomically
from data_pipelines.check.report import Report
from data_pipelines.index import SUFFIX, read_index
from data_pipelines.indexer import index_tar
from data_pipelines.indexing import index_in_place
from data_pipelines.pack.writer import Progress, no_progress
from data_pipelines.shards import read_manifest
from data_pipelines.storage import local_path


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


def _index_matches(tar: str, digest: str) -> bool:
    try:
        return read_index(tar + SUFFIX).header.shard_digest == digest
    except (OSError, DataError):
        return False
