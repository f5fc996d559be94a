import gzip
import io
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import pytest

from data_pipelines.base import DataError, SampleError, UserError
from data_pipelines.foreign import MAX_INFLATION
from data_pipelines.indexer import write_index
from data_pipelines.manifest import Facts, Manifest, Shard, read_manifest
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset
from data_pipelines.storage import glob, local_path, names_in, open_reader, read_bytes

COUNT = 40
GOLDEN = "18191ffae19c5eacd43dd8f23e25fc3b"
"""Digest of a small manifest, written down before `Facts` grew."""


def fields_of(number):
    return {"jpg": f"pixels of {number}".encode() * 40, "cls": str(number % 3).encode()}


@pytest.fixture
def packed(tmp_path):
    """A set of 4 shards of 10 samples, in tmp_path/set/train."""
    samples = [(f"k{number}", fields_of(number)) for number in range(COUNT)]
    split = Split("train", samples, COUNT, 0, lambda: (Facts(channels=3, labels_field="cls"), ("a note",)))
    [dataset] = write_sets(tmp_path / "set", [split], PackConfig(samples_per_shard=10), name="toy", source="test")
    return dataset


def all_samples(dataset):
    return [dataset.read(s, m) for s, size in enumerate(dataset.shard_sizes) for m in range(int(size))]


def damage(path, offset, flip=0xFF):
    data = bytearray(path.read_bytes())
    data[offset] ^= flip
    path.write_bytes(data)


def shard_path(dataset, number):
    return Path(dataset.place(number)[0])


def test_packed_set_gives_back_every_sample(packed):
    assert packed.name == "toy-train"
    assert packed.shard_sizes.tolist() == [10] * 4
    assert packed.fields == ("cls", "jpg")
    assert packed.facts()["labels_field"] == "cls"
    samples = all_samples(Dataset.open(packed.path))
    assert [sample.key for sample in samples] == [f"k{number}" for number in range(COUNT)]
    assert [dict(sample.fields) for sample in samples] == [fields_of(number) for number in range(COUNT)]
    assert packed.key(2, 3) == "k23"


def test_flipped_byte_costs_that_sample_alone(packed):
    offset, size = packed.index(1).span(4)
    for place in (offset, offset + size - 1):
        damage(shard_path(packed, 1), place)
        dataset = Dataset.open(packed.path)
        with pytest.raises(SampleError, match=r"bytes differ .*'k14'.*train-000001.tar"):
            dataset.read(1, 4)
        assert dataset.read(1, 3).key == "k13"
        assert dataset.read(1, 5).key == "k15"
        damage(shard_path(packed, 1), place)


def test_flipped_header_byte_costs_nothing_in_a_packed_set(packed):
    offset, _ = packed.index(0).span(0)
    damage(shard_path(packed, 0), offset - 512)
    assert len(all_samples(Dataset.open(packed.path))) == COUNT


def test_truncated_shard_serves_what_precedes_the_cut(packed):
    offset, _ = packed.index(3).span(6)
    os.truncate(shard_path(packed, 3), offset + 5)
    dataset = Dataset.open(packed.path)
    assert [dataset.read(3, member).key for member in range(6)] == [f"k{30 + member}" for member in range(6)]
    for member in range(6, 10):
        with pytest.raises(SampleError, match="truncated at byte"):
            dataset.read(3, member)


def test_truncated_shards_are_named_before_anything_is_read(packed, monkeypatch):
    assert packed.truncated() == []
    whole = shard_path(packed, 3).stat().st_size
    os.truncate(shard_path(packed, 3), packed.index(3).span(6)[0] + 5)
    os.truncate(shard_path(packed, 1), whole - 1)  # of the end mark
    missing = whole - shard_path(packed, 3).stat().st_size
    first, second = Dataset.open(packed.path).truncated()
    assert f"shard train-000001.tar is truncated, 1 of {whole} bytes are missing, and with them 0 of its 10" in first
    assert f"train-000003.tar is truncated, {missing} of {whole} bytes are missing, and with them 4 of its 10" in second
    monkeypatch.setattr("data_pipelines.shards.LOOKED_AT", 3)
    assert Dataset.open(packed.path).truncated() == []


def test_missing_shards_are_listed_at_open_and_quarantined_later(packed):
    held = Dataset.open(packed.path)
    for number in (1, 3):
        shard_path(packed, number).unlink()
    with pytest.raises(UserError, match=r"2 of 4 shards are missing: train-000001.tar, train-000003.tar"):
        Dataset.open(packed.path)
    with pytest.raises(SampleError, match="No such file"):
        held.read(1, 0)
    assert held.read(2, 0).key == "k20"


def test_shard_that_was_replaced_under_the_run_is_refused(packed):
    shard = shard_path(packed, 0)
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(DataError, match="was replaced"):
        Dataset.open(packed.path).read(0, 0)
    write_index(shard)
    with pytest.raises(DataError, match="another shard than the manifest's"):
        Dataset.open(packed.path).read(0, 0)


def test_index_that_is_gone_or_damaged_is_made_again_from_a_whole_shard(packed):
    sidecar = shard_path(packed, 0).with_suffix(".tar.index")
    whole = Dataset.open(packed.path).payload_digest(0, 3)
    damage(sidecar, 400)
    assert Dataset.open(packed.path).payload_digest(0, 3) == whole
    sidecar.unlink()
    assert Dataset.open(packed.path).payload_digest(0, 3) == whole
    offset, _ = packed.index(0).span(0)
    damage(shard_path(packed, 0), offset)
    with pytest.raises(DataError, match="gone or damaged, and the tar is not the manifest's either"):
        Dataset.open(packed.path).read(0, 3)


def test_manifest_cannot_lead_out_of_its_folder(packed, tmp_path):
    path = tmp_path / "set" / "train" / "manifest.json"
    tree = json.loads(path.read_text())
    tree["shards"][0]["file"] = "../train/train-000000.tar"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"manifest.json: shards.0.file"):
        Dataset.open(packed.path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: file: Invalid JSON"):
        Dataset.open(packed.path)


def test_digest_names_content_and_not_origin(packed):
    manifest = packed.manifest
    parts = {"fields": manifest.fields, "facts": manifest.facts, "shards": manifest.shards}
    assert Manifest.make(**parts, name="other", source="elsewhere").digest == manifest.digest
    assert Manifest.make(**parts, name="toy", classes=("a",)).digest != manifest.digest
    assert Manifest.make(**{**parts, "shards": manifest.shards[1:]}, name="toy").digest != manifest.digest
    assert read_manifest(packed.path) == manifest


def _keys_in_child(dataset, queue):
    queue.put([dataset.read(shard, 9).key for shard in range(4)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_open_dataset_travels_to_other_processes(packed, method):
    assert packed.read(0, 0).key == "k0"  # files are open when the process forks
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=_keys_in_child, args=(packed, queue)) for _ in range(2)]
    for child in children:
        child.start()
    answers = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert answers == [["k9", "k19", "k29", "k39"]] * 2
    assert packed.read(3, 1).key == "k31"


def test_pickle_carries_no_open_files(packed):
    packed.read(0, 0)
    copy = pickle.loads(pickle.dumps(packed))
    assert copy.read(3, 9).key == "k39"
    assert copy.digest == packed.digest


def make_tar(path, count, start=0):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for number in range(start, start + count):
            for name, data in fields_of(number).items():
                info = tarfile.TarInfo(f"s{number}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_foreign_tars_are_indexed_on_the_fly_and_left_alone(tmp_path):
    make_tar(tmp_path / "a.tar", 5)
    make_tar(tmp_path / "b.tar.gz", 7, start=5)
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    dataset = Dataset.open(str(tmp_path))
    assert dataset.shard_sizes.tolist() == [5, 7]
    assert dataset.classes == ("one", "two", "three")
    assert [sample.key for sample in all_samples(dataset)] == [f"s{number}" for number in range(12)]
    assert dict(dataset.read(1, 6).fields) == fields_of(11)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Dataset.open(str(tmp_path / "*.tar*")).digest == dataset.digest


def test_foreign_tar_that_was_changed_is_indexed_anew(tmp_path):
    make_tar(tmp_path / "a.tar", 5)
    first = Dataset.open(str(tmp_path / "a.tar"))
    write_index(tmp_path / "a.tar")
    make_tar(tmp_path / "a.tar", 6)
    second = Dataset.open(str(tmp_path / "a.tar"))
    assert (first.num_samples, second.num_samples) == (5, 6)
    assert first.digest != second.digest


def test_truncated_gzip_serves_what_it_still_holds(tmp_path):
    make_tar(tmp_path / "a.tar.gz", 200)
    os.truncate(tmp_path / "a.tar.gz", (tmp_path / "a.tar.gz").stat().st_size // 2)
    dataset = Dataset.open(str(tmp_path))
    assert 20 < dataset.num_samples < 200
    assert len(all_samples(dataset)) == dataset.num_samples


def test_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.foreign.FREE_INFLATION", 1 << 20)
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert MAX_INFLATION * (tmp_path / "a.tar.gz").stat().st_size < (64 << 20)
    with pytest.raises(DataError, match="unpacks to more than"):
        Dataset.open(str(tmp_path))


def test_opening_nothing_says_what_is_missing(tmp_path, packed):
    with pytest.raises(UserError, match="no such file or folder"):
        Dataset.open(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no .tar or .tar.gz matches"):
        Dataset.open(str(tmp_path / "*.tar"))
    with pytest.raises(UserError, match=r"a folder of sets; name one of them: .*set/train"):
        Dataset.open(str(tmp_path / "set"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="pack it first"):
        Dataset.open(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "address", ["pipe:cat x", "ftp://host/x", "simplecache::s3://b/x", "s3://a::file://b", "data://x"]
)
def test_addresses_outside_the_list_are_refused(address):
    with pytest.raises(UserError, match="want a path or one of"):
        local_path(address)
    with pytest.raises(UserError, match="want a path or one of"):
        Dataset.open(address)


def test_a_store_of_fsspec_serves_the_same_samples(packed, tmp_path, monkeypatch):
    store = fsspec.filesystem("memory")
    store.put(packed.path, f"/{tmp_path.name}/set", recursive=True)
    address = f"memory://{tmp_path.name}/set"
    remote = Dataset.open(address)
    assert remote.digest == packed.digest
    assert [sample.fields for sample in all_samples(remote)] == [sample.fields for sample in all_samples(packed)]
    assert "manifest.json" in names_in(address)
    assert len(glob(f"{address}/*.tar")) == 4
    assert open_reader(f"{address}/manifest.json").pread(0, 1) == read_bytes(f"{address}/manifest.json")[:1] == b"{"
    store.rm(f"/{tmp_path.name}/set/train-000000.tar")
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "another machine"))  # this one has just looked
    with pytest.raises(UserError, match="1 of 4 shards are missing"):
        Dataset.open(address)


def test_cifar_tars_with_and_without_gzip_are_one_set(shared_data):
    dataset = Dataset.open(str(shared_data / "cifar10" / "test-*.tar*"))
    assert dataset.shard_sizes.tolist() == [600, 1400]
    assert dataset.facts()["image_size"] == (32, 32)
    assert dataset.facts()["labels_field"] == "cls"
    assert len(dataset.classes) == 10
    assert dataset.read(1, 1399).key.startswith("cifar10/test/")


def manifest_of(**facts):
    shard = Shard(file="a.tar", samples=2, bytes=10, digest="00")
    return Manifest.make(
        fields=["cls", "jpg"], facts=Facts(channels=3, labels_field="cls", **facts), shards=[shard], name="x"
    )


def test_facts_that_came_later_rename_no_set_that_lacks_them():
    assert manifest_of().digest == GOLDEN


def test_facts_that_came_later_count_where_they_are_set():
    later = [
        {"tokens": 3}, {"language": "de"}, {"languages": ("de", "en")}, {"frames": 4}, {"frames_per_second": 17.0},
        {"label_frames": (3,)}, {"colours": ((0, 0, 0),)}, {"moving_classes": (1,)},
    ]  # fmt: skip
    assert len({manifest_of(**facts).digest for facts in [{}, *later]}) == len(later) + 1
    for facts in later:
        manifest = manifest_of(**facts)
        assert Manifest.model_validate_json(manifest.to_bytes()) == manifest


def test_more_tars_than_are_indexed_on_the_fly_are_sent_to_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.foreign.MAX_UNINDEXED", 2)
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", 2)
    with pytest.raises(UserError, match=rf"3 of 3 tars have no index; .* data index {tmp_path} --cluster NAME"):
        Dataset.open(str(tmp_path))
    write_index(tmp_path / "0.tar")
    assert Dataset.open(str(tmp_path)).num_samples == 6
