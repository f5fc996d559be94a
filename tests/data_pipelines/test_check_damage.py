"""One real set, damaged in every way we could think of: the check names each, with shard and key."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.check import check
from data_pipelines.manifest import Facts, read_manifest
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset

PER_SHARD = 40
CLASSES = ("cat", "dog", "owl")
SORTED_SHARD = 9


def picture(seed, size=(8, 8)):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def giant():
    """A picture of 100 million pixels in some kilobytes."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


def samples():
    """Ten shards of pictures; what a packer would not notice is wrong in the first two and the last."""
    labels = np.random.default_rng(0).integers(0, len(CLASSES), 10 * PER_SHARD)
    labels[SORTED_SHARD * PER_SHARD :].sort()
    rows = [(f"k{n:03d}", {"png": picture(n), "cls": str(label).encode()}) for n, label in enumerate(labels)]
    del rows[3][1]["cls"]
    rows[5][1]["png"] = b"<html>404 not found</html>"
    rows[6][1]["png"] = picture(6)[:-40]
    rows[7][1]["png"] = b""
    rows[8][1]["png"] = giant()
    rows[9][1]["cls"] = b"3"
    rows[10][1]["cls"] = b"dog"
    rows[PER_SHARD + 1] = ("k000", rows[PER_SHARD + 1][1])
    return rows


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The set, and what a disk, a network or a hand did to it after it was packed."""
    rows = samples()
    split = Split("train", rows, len(rows), 0, lambda: (Facts(channels=3, labels_field="cls"), ()), CLASSES)
    config = PackConfig(samples_per_shard=PER_SHARD)
    [dataset] = write_sets(tmp_path_factory.mktemp("damage") / "set", [split], config, name="toy", source="test")
    folder = Path(dataset.path)
    flip(tar(folder, 2), dataset.index(2).span(4)[0] + 20)
    flip(tar(folder, 3), dataset.index(3).span(7)[0] - 512 + 3)
    os.truncate(tar(folder, 4), dataset.index(4).span(30)[0] + 5)
    tar(folder, 5).unlink()
    sidecar(folder, 6).unlink()
    shutil.copy(sidecar(folder, 8), sidecar(folder, 7))
    flip(sidecar(folder, 8), 300)
    shutil.copy(tar(folder, 0), folder / "copy-of-train.tar")
    return folder


def tar(folder, shard):
    return folder / f"train-{shard:06d}.tar"


def sidecar(folder, shard):
    return folder / f"train-{shard:06d}.tar.index"


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture(scope="module")
def findings(damaged):
    return check(str(damaged)).findings


WAYS = {
    "flipped byte in a member": ("damage", r"train-000002\.tar, 'k084': bytes differ from their digest"),
    "flipped byte in a header": ("damage", r"train-000003\.tar, 'k127': a tar header is damaged \(byte \d+: header"),
    "truncated shard": ("damage", r"train-000004\.tar: truncated, [\d,]+ of [\d,]+ bytes are missing"),
    "samples behind the cut": ("damage", r"train-000004\.tar, 'k190', .*'k199': cut off"),
    "missing shard": ("damage", r"train-000005\.tar: No such file.*; 40 samples are lost with it: 'k200', 'k201'"),
    "missing index": ("damage", r"train-000006\.tar: its index is missing; --fix rebuilds it"),
    "index of another shard": ("damage", r"train-000007\.tar: its index is of another shard .*; --fix rebuilds it"),
    "damaged index": ("damage", r"train-000008\.tar: its index is damaged; --fix rebuilds it"),
    "missing member": ("damage", r"field 'cls' is missing in 1 of \d+: 'k003' in train-000000\.tar"),
    "key twice": ("warning", r"1 key occurs more than once: 'k000' in train-000000\.tar and train-000001\.tar"),
    "no image at all": ("damage", r"train-000000\.tar, 'k005': no image"),
    "image cut before it was packed": ("damage", r"train-000000\.tar, 'k006': image damaged: OSError"),
    "image of no bytes": ("damage", r"train-000000\.tar, 'k007': image of 0 bytes"),
    "giant image": ("damage", r"train-000000\.tar, 'k008': image of 10000 x 10000 pixels"),
    "label beyond the classes": ("damage", r"train-000000\.tar, 'k009': class 3, but there are 3"),
    "label that is no number": ("damage", r"train-000000\.tar, 'k010': field cls holds b'dog'"),
    "sorted shard": ("warning", r"sorted by class: 'train-000009\.tar':"),
    "tar that nobody reads": ("warning", r"does not name, and no run reads: 'copy-of-train\.tar'"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_damage_is_named_with_shard_and_key(findings, way):
    kind, words = WAYS[way]
    assert any(finding.kind == kind and re.search(words, finding.text) for finding in findings), "\n".join(
        f"{finding.kind}: {finding.text}" for finding in findings
    )


def test_nothing_else_is_called_damaged(findings):
    told = [finding.text for finding in findings if finding.kind in ("damage", "warning")]
    assert [text for text in told if not any(re.search(words, text) for _, words in WAYS.values())] == []


def test_fix_mends_the_indexes_and_leaves_the_rest(damaged, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(damaged, folder)
    before = read_manifest(str(folder))
    report = check(str(folder), fix=True)
    fixed = [finding.text for finding in report.findings if finding.kind == "fixed"]
    assert fixed == [f"index of train-{shard:06d}.tar was made anew" for shard in (6, 7, 8)]
    assert not any("its index" in finding.text for finding in report.findings)
    assert report.damaged
    assert read_manifest(str(folder)) == before
    assert Dataset(str(folder), before, "toy").read(7, 0).key == "k280"
