"""ImageNet in miniature, laid out as it is handed out."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data_pipelines.base import UserError
from data_pipelines.pack import imagenet, pack
from data_pipelines.pack.imagenet import DEVKIT, TRAIN_TAR, VAL_TAR

SYNSETS = ("n01440764", "n01443537", "n02105855")
TRAIN_EACH, VAL = 4, 6
TRUTH = [3, 1, 2, 2, 3, 1]
"""Devkit numbers of the validation images."""
DEVKIT_NUMBERS = {3: "n01440764", 1: "n01443537", 2: "n02105855"}


def jpeg(seed: int, side: int = 10) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


TRAIN_IMAGES = {
    synset: {f"{synset}_{number}.JPEG": jpeg(100 * place + number) for number in range(TRAIN_EACH)}
    for place, synset in enumerate(SYNSETS)
}
VAL_IMAGES = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(1000 + number) for number in range(1, VAL + 1)}
VAL_SYNSETS = dict(zip(VAL_IMAGES, (DEVKIT_NUMBERS[number] for number in TRUTH), strict=True))


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def devkit() -> bytes:
    meta = io.BytesIO()
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(number, synset, "a thing", 0) for number, synset in DEVKIT_NUMBERS.items()]
    savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    root = "ILSVRC2012_devkit_t12/data/"
    truth = "\n".join(map(str, TRUTH)).encode()
    files = {root + "meta.mat": meta.getvalue(), root + "ILSVRC2012_validation_ground_truth.txt": truth}
    return tar_of(files, "w:gz")


@pytest.fixture
def tars(tmp_path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    nested = {f"{synset}.tar": tar_of(images) for synset, images in TRAIN_IMAGES.items()}
    (folder / TRAIN_TAR).write_bytes(tar_of(nested))
    (folder / VAL_TAR).write_bytes(tar_of(VAL_IMAGES))
    (folder / DEVKIT).write_bytes(devkit())
    return folder


@pytest.fixture
def folders(tmp_path) -> Path:
    root = tmp_path / "folders"
    val = {synset: {n: VAL_IMAGES[n] for n, s in VAL_SYNSETS.items() if s == synset} for synset in SYNSETS}
    for split, images in {"train": TRAIN_IMAGES, "val": val}.items():
        for synset, files in images.items():
            (root / split / synset).mkdir(parents=True)
            for name, content in files.items():
                (root / split / synset / name).write_bytes(content)
    return root


def contents(dataset):
    """Image bytes and class name by key."""
    samples = [dataset.read(s, m) for s, size in enumerate(dataset.shard_sizes) for m in range(int(size))]
    return {sample.key: (sample.fields["jpg"], dataset.classes[int(sample.fields["cls"])]) for sample in samples}


def test_every_image_of_the_official_tars_gets_its_bytes_and_its_synset(tars, tmp_path):
    train, val = pack("imagenet", str(tars), tmp_path / "out", {"classes": 3})
    assert train.classes == val.classes == SYNSETS
    assert contents(train) == {
        f"{synset}/{name[:-5]}": (data, synset)
        for synset, images in TRAIN_IMAGES.items()
        for name, data in images.items()
    }
    assert contents(val) == {f"{VAL_SYNSETS[n]}/{n[:-5]}": (data, VAL_SYNSETS[n]) for n, data in VAL_IMAGES.items()}
    assert train.facts()["labels_field"] == "cls"


def test_folders_and_tars_make_the_same_sets(tars, folders, tmp_path):
    by_tar = pack("imagenet", str(tars), tmp_path / "a", {"classes": 3})
    by_folder = pack("imagenet", str(folders), tmp_path / "b", {"classes": 3})
    assert [dataset.digest for dataset in by_tar] == [dataset.digest for dataset in by_folder]


@pytest.mark.parametrize(
    ("name", "heading", "line"),
    [
        ("val.txt", "", lambda name, synset: f"{name} {SYNSETS.index(synset)}"),
        ("val.txt", "", lambda name, synset: f"{name} {synset}"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\n", lambda name, s: f"{name[:-5]},{s} 1 2 3 4 {s} 5 6 7 8 "),
    ],
)  # fmt: skip
def test_every_way_to_write_the_classes_of_val_is_read(tars, tmp_path, name, heading, line):
    expected = contents(pack("imagenet", str(tars), tmp_path / "a", {"classes": 3})[1])
    (tars / DEVKIT).unlink()
    (tars / name).write_text(heading + "".join(line(*pair) + "\n" for pair in VAL_SYNSETS.items()))
    assert contents(pack("imagenet", str(tars), tmp_path / "b", {"classes": 3})[1]) == expected


def test_a_flat_folder_of_validation_images_takes_its_classes_from_the_devkit(folders, tars, tmp_path):
    for path in (folders / "val").rglob("*.JPEG"):
        path.rename(folders / "val" / path.name)
    for synset in SYNSETS:
        (folders / "val" / synset).rmdir()
    (folders / DEVKIT).write_bytes((tars / DEVKIT).read_bytes())
    _, val = pack("imagenet", str(folders), tmp_path / "out", {"classes": 3})
    assert {key: synset for key, (_, synset) in contents(val).items()} == {
        f"{synset}/{name[:-5]}": synset for name, synset in VAL_SYNSETS.items()
    }


def test_large_images_are_shrunk_on_request(tars, tmp_path):
    train, _ = pack("imagenet", str(tars), tmp_path / "out", {"classes": 3, "max_side": 6})
    assert train.facts()["image_size"] == (5, 6)


def test_a_set_of_all_classes_but_another_size_says_so(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "CLASSES", 3)
    monkeypatch.setattr(imagenet, "OFFICIAL", {"train": 13, "val": VAL})
    train, val = pack("imagenet", str(tars), tmp_path / "out", {"classes": 3})
    assert train.manifest.notes == ("12 images were there, the official set has 13",)
    assert val.manifest.notes == ()


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: None, "3 synsets in the training images of .*, want 1000.* classes=3"),
        (lambda f: cut(f / TRAIN_TAR, 20_000), "img_train.tar: byte .*fetch it again"),
        (lambda f: (f / VAL_TAR).unlink(), "no images in ILSVRC2012_img_val.tar or val/"),
        (lambda f: (f / TRAIN_TAR).unlink(), "no ILSVRC2012_img_train.tar or train/"),
        (lambda f: (f / DEVKIT).unlink(), "classes of the validation images are unknown"),
        (lambda f: (f / DEVKIT).write_bytes(b"<html>"), "is no ILSVRC2012 devkit"),
        (lambda f: (f / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 0\n"), "name no class of .*_00000002"),
        (lambda f: (f / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\n"), "line 1: class 3 is none of"),
        (lambda f: (f / "val.txt").write_text("".join(f"{n} 0\n" for n in VAL_IMAGES)), "no validation image of n0144"),
        (lambda f: (f / TRAIN_TAR).write_bytes(tar_of({"cats.tar": b""})), "holds 'cats.tar'"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_named_in_one_line(tars, tmp_path, damage, words):
    damage(tars)
    config = {} if words.startswith("3 syn") else {"classes": 3}
    with pytest.raises(UserError, match=words) as caught:
        pack("imagenet", str(tars), tmp_path / "out", config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
