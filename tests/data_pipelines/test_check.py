import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.check import check, index_in_place
from data_pipelines.manifest import Facts, read_manifest
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset


def picture(seed):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def packed(folder, samples):
    split = Split(
        "train", samples, len(samples), 0, lambda: (Facts(channels=3, labels_field="cls"), ()), ("cat", "dog")
    )
    [dataset] = write_sets(folder, [split], PackConfig(samples_per_shard=50), name="toy", source="test", licence="none")
    return Path(dataset.path)


def mixed(count=200):
    labels = np.random.default_rng(0).integers(0, 2, count)
    return [(f"k{n}", {"png": picture(n), "cls": str(label).encode()}) for n, label in enumerate(labels)]


@pytest.fixture
def folder(tmp_path):
    """200 pictures of two classes in 4 shards."""
    return packed(tmp_path / "set", mixed())


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def told(report):
    return "\n".join(report.lines())


def test_whole_set_is_called_whole(folder):
    report = check(str(folder), decode_all=True)
    assert not report.findings
    assert report.decoded == report.samples == 200
    assert sum(report.labels.values()) == 200
    assert "labels       2 classes, " in told(report)
    assert report.lines()[-1].split() == ["verdict", "whole"]


def test_damaged_sample_is_named(folder):
    offset, _ = Dataset.open(str(folder)).index(2).span(7)
    flip(folder / "train-000002.tar", offset + 10)
    report = check(str(folder))
    assert report.damaged
    assert "damage       train-000002.tar, 'k107': bytes differ from their digest" in told(report)
    assert report.samples == 199
    assert report.lines()[-1].split(maxsplit=1) == ["verdict", "DAMAGED, 1 finding"]


def test_damage_between_samples_is_told(folder):
    end = Dataset.open(str(folder)).index(0)
    flip(folder / "train-000000.tar", sum(end.span(49)) + 1)  # padding: no tar reader would mind
    assert "train-000000.tar: differs from its manifest between its samples" in told(check(str(folder)))


def test_fix_rebuilds_indexes_but_blesses_no_damage(folder):
    (folder / "train-000000.tar.index").unlink()
    flip(folder / "train-000001.tar.index", 300)
    offset, _ = Dataset.open(str(folder)).index(2).span(0)
    flip(folder / "train-000002.tar", offset)
    (folder / "train-000002.tar.index").unlink()
    before = read_manifest(str(folder))
    assert "train-000000.tar: its index is missing; --fix rebuilds it" in told(check(str(folder)))
    report = check(str(folder), fix=True)
    fixed = [finding.text for finding in report.findings if finding.kind == "fixed"]
    assert fixed == ["index of train-000000.tar was made anew", "index of train-000001.tar was made anew"]
    assert report.damaged
    assert "train-000002.tar" in told(report)
    assert read_manifest(str(folder)) == before


def test_fix_makes_a_lost_manifest_again(folder):
    digest = read_manifest(str(folder)).shards
    (folder / "manifest.json").unlink()
    report = check(str(folder), fix=True)
    assert not report.damaged
    assert read_manifest(str(folder)).shards == digest
    assert not check(str(folder)).findings


def test_class_sorted_shards_are_warned_of(tmp_path):
    report = check(str(packed(tmp_path / "set", sorted(mixed(), key=lambda sample: sample[1]["cls"]))))
    assert not report.damaged
    assert "sorted by class: all shards: 99% of neighbours in the set are of one class, 51% by chance" in told(report)


def test_length_sorted_shards_are_warned_of(tmp_path):
    samples = [(f"k{number}", {"txt": b"x" * number}) for number in range(400)]
    split = Split("train", samples, 400, 0, lambda: (Facts(), ()))
    write_sets(tmp_path / "set", [split], PackConfig(samples_per_shard=400), name="toy", source="test")
    assert "sorted by length" in told(check(str(tmp_path / "set" / "train")))


def test_repeated_keys_and_undecodable_images_are_told(tmp_path):
    samples = [(f"k{n % 30}", {"png": picture(n) if n != 5 else b"no image", "cls": b"0"}) for n in range(60)]
    words = told(check(str(packed(tmp_path / "set", samples)), decode_all=True))
    assert "30 keys occur more than once: 'k0' in train-000000.tar and train-000000.tar" in words
    assert "train-000000.tar, 'k5': no image" in words


def test_text_in_another_encoding_is_told(tmp_path):
    samples = [("k0", {"txt": "Brücke".encode()}), ("k1", {"txt": "Brücke".encode("latin-1")})]
    split = Split("train", samples, 2, 0, lambda: (Facts(), ()))
    write_sets(tmp_path / "set", [split], PackConfig(), name="toy", source="test")
    assert "train-000000.tar, 'k1': field 'txt' is not UTF-8 at byte 2" in told(check(str(tmp_path / "set" / "train")))


def test_foreign_tars_become_a_set_in_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "plain", ignore=shutil.ignore_patterns("*.index", "manifest.json"))
    lines = index_in_place(str(tmp_path / "plain"))
    assert [line.split(": ")[1] for line in lines] == ["50 samples"] * 4
    dataset = Dataset.open(str(tmp_path / "plain"))
    assert dataset.manifest.facts.image_size == (8, 8)
    assert dataset.manifest.facts.labels_field == "cls"
    assert not check(str(tmp_path / "plain")).damaged


def test_indexing_a_packed_folder_keeps_what_its_manifest_says(folder):
    before = read_manifest(str(folder))
    index_in_place(str(folder))
    assert read_manifest(str(folder)) == before


def test_gzipped_tars_are_not_indexed_in_place(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(UserError, match="unpack gzipped ones"):
        index_in_place(str(tmp_path))


def test_cifar_is_whole(shared_data):
    report = check(str(shared_data / "cifar10" / "test-*.tar*"))
    assert not report.damaged
    assert sorted(report.labels.values()) == [200] * 10


def test_a_set_of_which_nothing_is_left_is_told(folder):
    for tar in folder.glob("*.tar"):
        tar.unlink()
    report = check(str(folder))
    assert [finding.text.split(":")[0] for finding in report.findings] == [f"train-{n:06d}.tar" for n in range(4)]
    assert report.samples == 0 and report.damaged and report.lines()[-1].endswith("DAMAGED, 4 findings")
