"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28 x 28, ten balanced classes.

    thalweg data pack fashion_mnist [FOLDER] data/fashion_mnist

Source: Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747; github.com/zalandoresearch/fashion-mnist, MIT.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from data_pipelines.base import UserError, write_atomically
from data_pipelines.pack.arrays import Row, write_image_arrays
from data_pipelines.pack.writer import PackConfig, Progress, no_progress, shuffled
from data_pipelines.shards import Dataset
from data_pipelines.storage import cache_folder

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
"""sha256 by file name."""
MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
PATIENCE_S = 5.0


class Config(PackConfig):
    """Nothing of its own."""


def pack(source: str | None, out: Path, config: Config, progress: Progress = no_progress) -> list[Dataset]:
    """Write the 60,000 training and, as `val`, the 10,000 test pictures.

    Args:
        source: folder with the four idx files; the cache, else a download, when None.

    Raises:
        UserError: a file is missing or not the published one, or there is no network.
    """
    files = {name: _fetch(name, source, progress) for name in FILES}
    rows = {}
    for split, prefix in (("train", "train"), ("val", "t10k")):
        images = _read_idx(files[f"{prefix}-images-idx3-ubyte.gz"])
        labels = _read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"])
        keys = [f"{prefix}{number:05d}" for number in range(len(images))]
        order = shuffled(keys, config.seed)
        rows[split] = [(keys[row], images[row], int(labels[row])) for row in order]
    return _write(out, rows, config, progress)


def _write(out: Path, rows: dict[str, list[Row]], config: Config, progress: Progress) -> list[Dataset]:
    return write_image_arrays(
        out,
        rows,
        config,
        name="fashion_mnist",
        source="Fashion-MNIST, github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        classes=CLASSES,
        progress=progress,
    )


def _fetch(name: str, source: str | None, progress: Progress) -> bytes:
    """Content of one of `FILES`, wherever it is found first."""
    if source is not None:
        path = Path(source) / name
        if not path.is_file():
            raise UserError(f"data pack fashion_mnist: {path} is missing; want {', '.join(FILES)} in one folder")
        return _checked(path.read_bytes(), name, str(path))
    cached = cache_folder("fashion-mnist") / name
    if cached.is_file():
        return _checked(cached.read_bytes(), name, str(cached))
    data = _checked(_download(name, progress), name, "the download")
    write_atomically(cached, data)
    return data


def _checked(data: bytes, name: str, where: str) -> bytes:
    if hashlib.sha256(data).hexdigest() != FILES[name]:
        raise UserError(f"data pack fashion_mnist: {where} is not the published {name} (sha256 differs); remove it")
    return data


def _download(name: str, progress: Progress) -> bytes:
    """Ask the mirrors in turn, giving up when none has answered within `PATIENCE_S`."""
    response = _within(PATIENCE_S, lambda: _first_answer(name))
    if response is None:
        raise UserError(
            f"data pack fashion_mnist: no answer from the network within {PATIENCE_S:.0f} s; fetch {name} and its "
            f"three siblings by hand and name their folder: thalweg data pack fashion_mnist FOLDER OUT"
        )
    parts, size = [], 0
    try:
        with response:
            total = int(response.headers.get("Content-Length") or 0)
            while part := response.read(1 << 18):
                parts.append(part)
                size += len(part)
                progress(f"download {name}", size, max(total, size))
    except OSError as error:
        raise UserError(f"data pack fashion_mnist: the download of {name} broke off ({error}); try again") from None
    return b"".join(parts)


def _first_answer(name: str) -> HTTPResponse | None:
    for mirror in MIRRORS:
        try:
            response: HTTPResponse = urlopen(mirror + name, timeout=PATIENCE_S)
            return response
        except OSError:
            continue
    return None


def _within(seconds: float, ask: Callable[[], HTTPResponse | None]) -> HTTPResponse | None:
    """Result of `ask`, None when it takes longer: looking up a host name knows no time limit of its own."""
    answers: list[HTTPResponse | None] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _read_idx(data: bytes) -> np.ndarray:
    """The array of a gzipped idx file: big-endian dimensions, then uint8 values."""
    raw = gzip.decompress(data)
    dimensions = raw[3]
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
