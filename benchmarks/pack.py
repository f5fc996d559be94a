"""`data pack imagefolder` against webdataset's ShardWriter: the same files into tars, as they are and shrunk.

    python benchmarks/pack.py [--images 2000] [--pairs 5] [--out benchmarks/results/pack.json]

ShardWriter writes tars alone, in one process; ours also hash, index, count and commit, and are on disk when they are
done. Both shrink by the same function. Sides take turns (A B A B ...); what counts is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from data_pipelines.pack import pack
from data_pipelines.pack.imagefolder import Config, fitted, image_files

SIDE, SHRUNK_SIDE, CLASSES = 400, 256, 10
SHARD_BYTES = 16 * 2**20


def make_images(folder: Path, count: int) -> None:
    """JPEGs of soft noise, about 45 KB each, in class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
        path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=92)


def by_webdataset(folder: Path, out: Path, max_side: int | None) -> None:
    """As its own examples do it: shuffled file names, a dictionary a sample."""
    out.mkdir()
    config = Config(max_side=max_side)
    paths = [folder / path for path in image_files(folder)]
    random.Random(0).shuffle(paths)
    with webdataset.ShardWriter(f"{out}/%06d.tar", maxsize=SHARD_BYTES, maxcount=10**9, verbose=0) as writer:
        for path in paths:
            name, data = "jpg", path.read_bytes()
            if max_side is not None:
                name, data, _ = fitted(data, name, config)
            writer.write({"__key__": path.stem, name: data, "cls": path.parent.name[5:].encode()})


def by_pack(folder: Path, out: Path, max_side: int | None) -> None:
    """What the command does."""
    config = {"val_fraction": 0, "max_side": max_side, "shard_bytes": SHARD_BYTES}
    pack("imagefolder", str(folder), out, config)


def main() -> int:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pack.json"))
    options = parser.parse_args()
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0)), "images": options.images}
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "images", Path(scratch) / "out"
        make_images(folder, options.images)
        for name, max_side in (("as they are", None), (f"shrunk to {SHRUNK_SIDE}", SHRUNK_SIDE)):
            rates: dict[str, list[float]] = {"webdataset": [], "thalweg": []}
            for _ in range(options.pairs):
                for side, write in (("webdataset", by_webdataset), ("thalweg", by_pack)):
                    began = time.perf_counter()
                    write(folder, out, max_side)
                    os.sync()  # ShardWriter leaves its bytes in memory
                    rates[side].append(options.images / (time.perf_counter() - began))
                    shutil.rmtree(out)
            ratio = statistics.median(ours / theirs for theirs, ours in zip(*rates.values(), strict=True))
            figures[name] = {"ratio": ratio, "images_per_s": {side: statistics.median(r) for side, r in rates.items()}}
            print(f"{name}: {ratio:.2f} x webdataset; {figures[name]}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
