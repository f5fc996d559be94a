"""Loaders side by side: each runs in a process of its own, ours in our environment, peers in theirs.

    python benchmarks/loader_contestants.py NAME KIND WORKERS DATA

Reads a number of seconds from standard input, line by line, works for so long and answers with samples a second.
Batches that lay ready when the line came are taken first and do not count; before the answer, workers come to rest, so
that nothing runs while another loader is timed.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

SIZE, PREFETCH = 224, 1
"""Pixels of a crop's side, batches that a worker is ahead."""
BATCH = 64 if sys.argv[2:3] == ["images"] else 512
"""Samples a batch."""
SEEN_BYTES = 1024
"""Of a small sample, which has up to four times as many: batches want equal shapes."""
REST_S = 0.6


def pillow_crop() -> Callable[[bytes], Any]:
    """What peers' users write: Pillow's decoder, torchvision's random crop, antialiased bicubic, flip."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def as_tensor(data: bytes) -> Any:
    """Tokens of a row, as a network takes them."""
    import numpy as np
    import torch

    return torch.from_numpy(np.frombuffer(data, np.uint16).astype(np.int64))


def seen_of(kind: str) -> Callable[[bytes], Any]:
    """What a peer makes of a sample's bytes."""
    if kind == "images":
        return pillow_crop()
    return as_tensor if kind.startswith("tokens") else (lambda data: data)


def collate_of(kind: str) -> Any:
    """None stacks tensors; bytes stay a list."""
    return list if kind == "small" else None


def torch_batches(dataset: Any, workers: int, collate: Any, loader: Any = None) -> Iterator[Any]:
    """The batches of a data set, again and again."""
    from torch.utils.data import DataLoader

    batches = (loader or DataLoader)(
        dataset, batch_size=BATCH, num_workers=workers, drop_last=True, collate_fn=collate,
        prefetch_factor=PREFETCH if workers else None, persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from batches


def webdataset(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Tars, streamed."""
    import webdataset

    seen = seen_of(kind)
    shards = sorted(str(path) for path in data.glob("tars/*.tar"))
    field = "jpg" if kind == "images" else "bin"
    samples = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(200).to_tuple(field)
    return torch_batches(samples.map(lambda sample: seen(sample[0])), workers, collate_of(kind))


def litdata(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Chunks of its own format."""
    import litdata

    seen = seen_of(kind)

    class Samples(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return seen(super().__getitem__(index))

    samples = Samples(str(data / "litdata"), shuffle=True, drop_last=True)
    return torch_batches(samples, workers, collate_of(kind), litdata.StreamingDataLoader)


def mosaic(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Shards of its own format."""
    import streaming

    seen = seen_of(kind)

    class Samples(streaming.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            return seen(super().__getitem__(index)["data"])

    streaming.base.util.clean_stale_shared_memory()
    return torch_batches(Samples(local=str(data / "mds"), shuffle=True, batch_size=BATCH), workers, collate_of(kind))


def datasets(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Arrow, rows as tensors."""
    import datasets

    rows = datasets.load_from_disk(str(data / "arrow")).with_format("torch")
    for epoch in cycle(range(1_000_000)):
        yield from rows.shuffle(seed=epoch).iter(BATCH, drop_last_batch=True)


def pillow_ceiling(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Decoding and cropping alone, bytes in memory, one thread."""
    crop = pillow_crop()
    for image in cycle(images_in(data)):
        crop(image)
        yield 1


def images_in(data: Path) -> list[bytes]:
    """The images of a tar."""
    import tarfile

    with tarfile.open(sorted(data.glob("tars/*.tar"))[0]) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]


def thalweg_ceiling(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Our decoding and cropping alone."""
    from data_pipelines.batch import Sample
    from data_pipelines.views import Draw

    view = our_view("images")
    for number, image in cycle(enumerate(images_in(data))):
        view.sample(Sample("", {"jpg": image}), Draw(0, number))
        yield 1


def our_view(kind: str) -> Any:
    """The view of a kind of samples."""
    import numpy as np

    from data_pipelines.views.image import Crop, ImageView
    from data_pipelines.views.tokens import PlainTokens

    class Cropped(ImageView):
        def sample(self, sample: Any, draw: Any) -> Any:
            return {"image": Crop().decode(self.encoded(sample), SIZE, draw.rng("crop"))}

    class Bytes:
        def sample(self, sample: Any, draw: Any) -> Any:
            return {"data": np.frombuffer(sample.fields["bin"], np.uint8, SEEN_BYTES)}

    if kind == "images":
        return Cropped(image_size=SIZE)
    if kind == "small":
        return Bytes()
    return PlainTokens(row_tokens=int(kind.removeprefix("tokens")), vocabulary_size=50_000, special_tokens={"pad": 0})


def thalweg(kind: str, workers: int, data: Path) -> Iterator[Any]:
    """Ours: every sample checked against its digest, in an order that any restart finds again."""
    from data_pipelines.loader import Loader
    from data_pipelines.order import Order, Stream
    from data_pipelines.shards import Dataset

    dataset = Dataset.open(str(data / "tars"), name="bench")
    order = Order(0, [Stream("bench", dataset.shard_sizes, BATCH)], BATCH)
    return iter(
        Loader(
            [dataset], order, our_view(kind), seed=0, global_batch=BATCH, accumulation=1, rank=0, world_size=1, start=0,
            workers=workers, prefetch=PREFETCH, quarantine=None,
        )
    )  # fmt: skip


def main() -> None:
    """Answer until standard input ends."""
    name, kind, workers, data = sys.argv[1:]
    os.environ["THALWEG_CACHE"] = str(Path(data) / "cache")
    answers, sys.stdout = sys.stdout, sys.stderr  # some peers print
    import torch

    torch.set_num_threads(1)
    batches = globals()[name](kind, int(workers), Path(data))
    next(batches)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        for _ in range(int(workers) * PREFETCH + 1):
            next(batches)
        began, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - began) < float(line):
            next(batches)
            count += 1
        time.sleep(REST_S)
        print(count * (1 if name.endswith("ceiling") else BATCH) / seconds, file=answers, flush=True)
    os._exit(0)  # some peers wait for threads


if __name__ == "__main__":
    main()
