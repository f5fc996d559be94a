import errno
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.decode import decode_image, image_bytes
from data_pipelines.indexer import split_name
from data_pipelines.pack import pack, shard
from data_pipelines.pack.imagefolder import key_of
from data_pipelines.shards import Dataset

NAMES = ["plain", "two words", 'quote\'d "so"', "Ünïcode 雪", "dots.in.name", "new\nline", "100%", "-rf", "long" * 45]


def image(seed, size=(12, 8)):
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of 40 images with every kind of name, and what is no image."""
    for label, name in enumerate(["Ünder score", "b'quoted\""]):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(40):
            stem = f"{NAMES[number % len(NAMES)]}{number}"
            (tmp_path / "in" / name / f"{stem}.PNG").write_bytes(image(1000 * label + number))
        (tmp_path / "in" / name / "notes.txt").write_text("no image")
    return tmp_path / "in"


def samples_of(dataset):
    return [dataset.read(s, m) for s, size in enumerate(dataset.shard_sizes) for m in range(int(size))]


def test_every_image_is_packed_once_with_its_bytes_and_class(folder, tmp_path):
    train, val = pack("imagefolder", str(folder), tmp_path / "out", {"val_fraction": 0.2})
    samples = samples_of(train) + samples_of(val)
    assert (train.classes, val.num_samples > 0) == (("b'quoted\"", "Ünder score"), True)
    on_disk = sorted(path.read_bytes() for path in folder.rglob("*.PNG"))
    assert sorted(sample.fields["png"] for sample in samples) == on_disk
    for sample in samples:
        label = int(sample.fields["cls"])
        assert (folder / train.classes[label]).is_dir()
        assert sample.fields["png"] in {p.read_bytes() for p in (folder / train.classes[label]).iterdir()}
    assert len({sample.key for sample in samples}) == 80
    facts = train.facts()
    assert (facts["image_size"], facts["channels"], facts["labels_field"]) == ((8, 12), 3, "cls")


def test_webdataset_reads_our_shards_unchanged(folder, tmp_path):
    [train] = pack("imagefolder", str(folder), tmp_path / "out", {"val_fraction": 0})
    shards = [train.place(shard)[0] for shard in range(len(train.shard_sizes))]
    read = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    ours = samples_of(train)
    assert [sample["__key__"] for sample in read] == [sample.key for sample in ours]
    assert [{"png": s["png"], "cls": s["cls"]} for s in read] == [dict(sample.fields) for sample in ours]


def test_equal_input_makes_equal_bytes_and_another_seed_another_order(folder, tmp_path):
    outs = [tmp_path / name for name in ("one", "two", "three")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        pack("imagefolder", str(folder), out, {"seed": seed, "samples_per_shard": 16})
    files = [{path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in outs]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_classes_are_mixed_over_all_shards(folder, tmp_path):
    [train] = pack("imagefolder", str(folder), tmp_path / "out", {"val_fraction": 0, "samples_per_shard": 20})
    for number in range(4):
        labels = [int(train.read(number, member).fields["cls"]) for member in range(20)]
        assert 3 <= sum(labels) <= 17


def test_a_new_image_moves_no_other_across_the_split(folder, tmp_path):
    before = pack("imagefolder", str(folder), tmp_path / "one", {"val_fraction": 0.3})
    (folder / "b'quoted\"" / "late.png").write_bytes(image(7))
    after = pack("imagefolder", str(folder), tmp_path / "two", {"val_fraction": 0.3})
    for old, new in zip(before, after, strict=True):
        assert {s.key for s in samples_of(old)} <= {s.key for s in samples_of(new)}


def test_train_and_val_folders_are_the_splits(folder, tmp_path):
    root = tmp_path / "imagenet"
    shutil.copytree(folder, root / "train")
    (root / "val" / "b'quoted\"").mkdir(parents=True)
    (root / "val" / "b'quoted\"" / "x.png").write_bytes(image(1))
    train, val = pack("imagefolder", str(root), tmp_path / "out")
    assert (train.num_samples, val.num_samples) == (80, 1)
    assert train.classes == val.classes == ("b'quoted\"", "Ünder score")


def test_flat_folder_has_no_labels(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.png").write_bytes(image(number, (10 + number, 9)))
    [train] = pack("imagefolder", str(tmp_path / "in"), tmp_path / "out", {"val_fraction": 0})
    assert train.fields == ("png",)
    assert train.classes is None
    assert train.facts()["image_size"] is None


def test_files_of_one_stem_keep_apart(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg", "a.PNG.png"):
        (tmp_path / "in" / name).write_bytes(image(len(name)))
    [train] = pack("imagefolder", str(tmp_path / "in"), tmp_path / "out", {"val_fraction": 0})
    assert sorted(sample.key for sample in samples_of(train)) == ["a%2EPNG", "a%2Ejpg", "a%2Epng"]


def test_damaged_files_are_left_out_and_named(folder, tmp_path):
    (folder / "b'quoted\"" / "broken.jpg").write_bytes(b"<html>404</html>")
    train, val = pack("imagefolder", str(folder), tmp_path / "out")
    assert train.num_samples + val.num_samples == 80
    assert any(
        "1 files that are no readable images" in n and "broken.jpg" in n
        for n in train.manifest.notes + val.manifest.notes
    )


def test_large_images_are_shrunk_only_on_request(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "large.png").write_bytes(image(1, (200, 100)))
    (tmp_path / "in" / "small.png").write_bytes(image(2, (20, 10)))
    [train] = pack("imagefolder", str(tmp_path / "in"), tmp_path / "out", {"val_fraction": 0, "max_side": 50})
    sizes = {sample.key: decode_image(image_bytes(sample)).shape for sample in samples_of(train)}
    assert sizes == {"large": (25, 50, 3), "small": (10, 20, 3)}
    assert {sample.key: set(sample.fields) for sample in samples_of(train)} == {"large": {"jpg"}, "small": {"png"}}


def test_shards_have_the_size_aimed_at_where_images_shrink(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(24):
        (tmp_path / "in" / f"{number}.png").write_bytes(image(number, (200, 100)))
    config = {"val_fraction": 0, "max_side": 100, "shard_bytes": 24_000}
    [train] = pack("imagefolder", str(tmp_path / "in"), tmp_path / "out", config)
    sizes = [shard.bytes for shard in train.manifest.shards]
    assert len(sizes) > 2 and all(18_000 < size < 32_000 for size in sizes[:-1])


def test_link_to_a_parent_folder_ends(folder, tmp_path):
    (folder / "loop").symlink_to(folder)
    [train] = pack("imagefolder", str(folder), tmp_path / "out", {"val_fraction": 0})
    assert train.num_samples == 80


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=40))
def test_any_name_becomes_a_key_that_splits_back(name):
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return
    key = key_of(name)
    if not key.endswith("/"):
        assert split_name(f"{key}.png") == (key, "png")
    assert key.isprintable() or not any(ord(c) < 32 for c in key)


def test_one_line_for_each_mistake(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    out = tmp_path / "out"
    cases = [
        (("imagefolder", None, out, {}), "want a folder of images"),
        (("imagefolder", str(tmp_path / "none"), out, {}), "is no folder"),
        (("imagefolder", str(tmp_path / "empty"), out, {}), "no images"),
        (("imagefolder", str(folder), tmp_path / "full", {}), "exists and is not empty"),
        (("imagefolder", str(folder), out, {"val_fracton": 0.1}), "did you mean 'val_fraction'"),
        (("imagefolder", str(folder), out, {"val_fraction": 1.5}), "val_fraction: Input should be less than 1"),
        (("imagefoldr", str(folder), out, {}), "did you mean 'imagefolder'"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError, match=words) as error:
            pack(*arguments)
        assert "\n" not in str(error.value)
    assert (tmp_path / "full" / "x").read_text() == "mine"
    assert not out.exists()


def test_full_disk_is_told_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard, "write_index", full)
    with pytest.raises(UserError, match="no space left"):
        pack("imagefolder", str(folder), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_unfinished_set_never_bears_its_name(folder, tmp_path):
    def stop(stage, done, total):
        assert not (tmp_path / "out").exists()
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack("imagefolder", str(folder), tmp_path / "out", {"samples_per_shard": 5}, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "in"]


def test_members_carry_neither_time_nor_owner(folder, tmp_path):
    pack("imagefolder", str(folder), tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
    assert Dataset.open(str(tmp_path / "out" / "train")).num_samples
