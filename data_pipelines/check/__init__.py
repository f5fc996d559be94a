"""The doctor: reads a set through and says in words whether it is whole, and how well it will feed a run."""

from __future__ import annotations

import warnings

from PIL import Image

from data_pipelines.check.census import Census
from data_pipelines.check.mend import index_in_place, mend
from data_pipelines.check.order import Reading, judge_order, usual_reading
from data_pipelines.check.report import Finding, Report
from data_pipelines.check.scan import Scan
from data_pipelines.manifest import MANIFEST, Manifest, read_manifest
from data_pipelines.pack.writer import Progress, no_progress
from data_pipelines.shards import Dataset
from data_pipelines.storage import exists, join, names_in

__all__ = ["Finding", "Reading", "Report", "check", "index_in_place"]

DECODED_SAMPLES = 1000
"""Images decoded unless all are asked for, spread evenly over the set."""


def check(
    path: str,
    *,
    fix: bool = False,
    decode_all: bool = False,
    reading: Reading | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Read a set through: every sample against its digest, images decoded, keys, fields and labels counted.

    Args:
        path: a packed folder; or tars of any origin, which have no digests to keep to but their index's.
        fix: first rebuild missing and damaged indexes and a missing manifest. A tar that differs from its manifest
            is left as it is: a new index would only hide the damage.
        decode_all: decode every image instead of about `DECODED_SAMPLES`; headers are always read.
        reading: how a run will read it; as most would when unset.

    Raises:
        UserError: there is nothing to check at `path`.
    """
    path = path.rstrip("/") or path
    report = Report(path)
    if fix:
        mend(path, report, progress)
    is_packed = exists(join(path, MANIFEST))
    dataset = _packed(path) if is_packed else Dataset.open(path)
    report.shards, report.classes = len(dataset.shard_sizes), dataset.classes
    if is_packed:
        _check_manifest(dataset, report)
    every = 1 if decode_all else max(1, dataset.num_samples // DECODED_SAMPLES)
    census = Census()
    scan = Scan(dataset, report, census, every)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are for the report to tell
        for shard in range(report.shards):
            scan.shard(shard)
            progress("check", shard + 1, report.shards)
    scan.conclude()
    census.judge(dataset, report, scan.key)
    judge_order(dataset, census, reading or usual_reading(dataset), report)
    return report


def _packed(path: str) -> Dataset:
    """As `Dataset.open`, but missing shards are for the report to tell."""
    manifest = read_manifest(path)
    return Dataset(path, manifest, manifest.name)


def _check_manifest(dataset: Dataset, report: Report) -> None:
    """Whether the manifest says what its digest stands for, and names all that lies in its folder."""
    manifest = dataset.manifest
    parts = {name: getattr(manifest, name) for name in ("name", "fields", "facts", "shards", "classes")}
    if Manifest.make(**parts).digest != manifest.digest:
        report.add("damage", f"{MANIFEST} was edited by hand: its digest is of another content; pack the set again")
    named = {shard.file for shard in manifest.shards}
    strange = [name for name in names_in(dataset.path) if name.endswith(".tar") and name not in named]
    if strange:
        report.add("warning", f"tars that the manifest does not name, and no run reads: {report.listed(strange)}")
