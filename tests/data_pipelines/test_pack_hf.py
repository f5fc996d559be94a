"""Data sets of the `datasets` library, built here for real: in memory, on disk, in files."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import UserError
from data_pipelines.decode import decode_array
from data_pipelines.pack import pack
from data_pipelines.shards import Dataset

ROWS = 90


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 10 + number % 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def own_library_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")


@pytest.fixture
def rows():
    """Pictures in PNG and JPEG with a class, a caption, boxes and a name."""
    features = {
        "photo": datasets.Image(),
        "kind": datasets.ClassLabel(names=["cat", "dog"]),
        "Caption": datasets.Value("string"),
        "boxes": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        "id": datasets.Value("string"),
    }
    table = {
        "photo": [{"bytes": encoded(n, "JPEG" if n % 3 == 0 else "PNG"), "path": None} for n in range(ROWS)],
        "kind": [n % 2 for n in range(ROWS)],
        "Caption": [f"picture {n}, ünique" for n in range(ROWS)],
        "boxes": [[[float(n), 1.0]] * 2 for n in range(ROWS)],
        "id": [f"a/{n}.x" for n in range(ROWS)],
    }
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


def samples_of(dataset):
    places = [(shard, member) for shard, size in enumerate(dataset.shard_sizes) for member in range(int(size))]
    return {sample.key: dict(sample.fields) for sample in (dataset.read(*place) for place in places)}


def files_of(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_images_labels_and_texts_are_found_and_passed_through(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "saved"))
    (train,) = pack("hf", str(tmp_path / "saved"), tmp_path / "out")
    samples = samples_of(train)
    assert sorted(samples) == [f"train{n:09d}" for n in range(ROWS)]
    assert list(samples) != sorted(samples)
    for n in range(ROWS):
        field = "jpg" if n % 3 == 0 else "png"
        assert samples[f"train{n:09d}"] == {
            field: encoded(n, "JPEG" if n % 3 == 0 else "PNG"),
            "cls": str(n % 2).encode(),
            "caption.txt": f"picture {n}, ünique".encode(),
            "id.txt": f"a/{n}.x".encode(),
        }
    facts = train.manifest.facts
    assert (train.classes, facts.channels, facts.labels_field, facts.image_size) == (("cat", "dog"), 3, "cls", None)
    assert train.manifest.notes == ("columns that were not packed: boxes",)


def test_columns_and_names_are_chosen(rows, tmp_path):
    rows.to_parquet(str(tmp_path / "photos.parquet"))
    config = {"columns": {"npy": "boxes", "note.txt": "Caption", "meta.json": "boxes"}, "key": "id"}
    (train,) = pack("hf", str(tmp_path / "photos.parquet"), tmp_path / "out", config)
    sample = samples_of(train)["a/7%2Ex"]
    assert sorted(sample) == ["meta.json", "note.txt", "npy"]
    assert decode_array(sample["npy"]).tolist() == json.loads(sample["meta.json"]) == [[7.0, 1.0]] * 2
    assert train.classes is None and train.manifest.name == "photos-train"


def test_splits_of_a_saved_dictionary_are_the_sets(rows, tmp_path):
    datasets.DatasetDict({"train": rows.select(range(60)), "test": rows.select(range(60, ROWS))}).save_to_disk(
        str(tmp_path / "saved")
    )
    train, val = pack(
        "hf", str(tmp_path / "saved"), tmp_path / "out", {"validation": "test", "columns": {"txt": "Caption"}}
    )
    assert (train.num_samples, val.num_samples) == (60, 30)
    assert samples_of(val)["test000000003"] == {"txt": "picture 63, ünique".encode()}
    with pytest.raises(UserError, match="no_such"):
        pack("hf", str(tmp_path / "saved"), tmp_path / "none", {"split": "no_such"})


def test_a_streamed_set_holds_what_the_other_holds(rows, tmp_path):
    rows.to_parquet(str(tmp_path / "photos.parquet"))
    for name, streaming in (("stored", False), ("streamed", True)):
        config = {"streaming": streaming, "val_fraction": 0.2, "samples_per_shard": 20}
        pack("hf", str(tmp_path / "photos.parquet"), tmp_path / name, config)
    assert files_of(tmp_path / "stored") == files_of(tmp_path / "streamed")
    assert {path.name for path in tmp_path.iterdir()} == {"library", "photos.parquet", "stored", "streamed"}


def test_bytes_do_not_depend_on_workers_and_large_images_shrink(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "saved"))
    for workers in (1, 2):
        config = {"workers": workers, "samples_per_shard": 20, "max_side": 10}
        pack("hf", str(tmp_path / "saved"), tmp_path / str(workers), config)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    train = Dataset.open(str(tmp_path / "1" / "train"))
    assert set(samples_of(train)["train000000001"]) == {"jpg", "cls", "caption.txt", "id.txt"}
    assert set(samples_of(train)["train000000002"]) == {"png", "cls", "caption.txt", "id.txt"}


def test_a_folder_of_classes_is_read_by_the_library(tmp_path):
    for label in ("bird", "fish"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "in" / label / f"{number}.png").write_bytes(encoded(number))
    (train,) = pack("hf", str(tmp_path / "in"), tmp_path / "out")
    assert train.classes == ("bird", "fish")
    assert sorted(s["png"] for s in samples_of(train).values()) == sorted(encoded(n) for n in [0, 1, 2, 3] * 2)


def test_rows_that_cannot_be_packed_are_left_out_and_named(tmp_path):
    table = {"image": [encoded(0), b"<html>", None], "cls": [0, 1, 2], "more": [1, 2, 3]}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "saved"))
    config = {"columns": {"image": "image", "cls": "cls"}}
    (train,) = pack("hf", str(tmp_path / "saved"), tmp_path / "out", config)
    assert train.num_samples == 1
    unused, left_out = train.manifest.notes
    assert unused == "columns that were not packed: more"
    assert left_out.startswith("2 rows that cannot be packed were left out: ")
    assert "row 1, image (no image of a known kind)" in left_out and "row 2, image (no encoded image" in left_out


def test_one_line_for_each_mistake(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "film.mp4").write_bytes(b"no table")
    (tmp_path / "damaged.parquet").write_bytes(b"no table")
    cases = [
        (None, {}, "want a data set"),
        ("saved", {"columns": {"txt": "capton"}}, "no column 'capton' for txt among photo, kind, Caption, boxes, id"),
        ("saved", {"columns": {"wav": "boxes"}}, "field 'wav' is none of image, cls, txt, json, npy"),
        ("saved", {"key": "name"}, "no column 'name' for key"),
        ("saved", {"split": "test"}, "holds one split alone"),
        ("saved", {"columns": {"txt": "boxes"}}, "no readable sample"),
        ("saved", {"validation": "test", "val_fraction": 0.1}, "give validation or val_fraction"),
        ("film.mp4", {}, "no file that `datasets` reads"),
        ("damaged.parquet", {}, "damaged.parquet"),
        ("nobody/nothing", {}, "cannot be had"),
    ]
    for name, config, words in cases:
        source = None if name is None else name if "/" in name else str(tmp_path / name)
        with pytest.raises(UserError, match=words) as error:
            pack("hf", source, tmp_path / "out", config)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not Path(tmp_path / ".out.partial").exists()
