"""The loader against webdataset, litdata, Mosaic streaming and datasets: same bytes, same crops, turn about.

    python3 -m venv .peers && .peers/bin/pip install -r benchmarks/peers.txt
    python benchmarks/loader.py [--photos TAR] [--pairs 5] [--only images small tokens512 tokens2048 resume]

Each loader runs in a process of its own (`loader_contestants`), blocks of batches take turns (A B A B ...), and what
counts is the median of the pairs' ratios. Without `--photos` JPEGs of noise over gradients are made, 500 x 375 and
about 50 KB. About eight minutes on two cores. Without an environment of peers ours runs alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PEERS = ("webdataset", "litdata", "mosaic")
SHARDS, VOCABULARY = 8, 50_000
SETS = {"images": 960, "small": 20_480, "tokens512": 20_480, "tokens2048": 8_192}
"""Samples by kind."""
AIMS = {
    ("images", 1, "webdataset"): 4.0, ("images", 1, "litdata"): 3.0, ("images", 1, "mosaic"): 3.0,
    ("small", 0, None): 60_000, ("tokens512", 0, None): 20e6, ("tokens2048", 0, None): 20e6,
}  # fmt: skip
FAR = 10**9
"""Slot from which a resume is timed."""


def made_jpegs(count: int) -> Iterator[bytes]:
    """Noise over gradients."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[0:375, 0:500] / 500
    for _ in range(count):
        slopes = rng.uniform(-200, 200, (2, 3))
        smooth = 128 + (down - 0.4)[..., None] * slopes[0] + (across - 0.5)[..., None] * slopes[1]
        pixels = np.clip(smooth + rng.normal(0, 13, (375, 500, 1)), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=80)
        yield file.getvalue()


def jpegs(photos: Path | None) -> list[bytes]:
    """Images to read, again and again."""
    if photos is None:
        return list(made_jpegs(120))
    with tarfile.open(photos) as tar:
        return [tar.extractfile(member).read() for member in tar if member.isfile()]  # type: ignore[union-attr]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def samples_of(kind: str, photos: Path | None) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """(bytes as peers store them, fields as tars hold them) of every sample."""
    rng = np.random.default_rng(0)
    images = jpegs(photos) if kind == "images" else []
    for number in range(SETS[kind]):
        if kind == "images":
            data = images[number % len(images)]
            yield data, {"jpg": data}
        elif kind == "small":
            data = rng.bytes(int(rng.integers(1024, 4097)))
            yield data, {"bin": data}
        else:
            row = rng.integers(1, VOCABULARY, int(kind.removeprefix("tokens"))).astype(np.uint16)
            segments = np.cumsum(rng.random(len(row)) < 1 / 200).astype(np.uint16)  # documents of 200 tokens
            yield row.tobytes(), {"bin": row.tobytes(), "tokens.npy": npy(row), "segments.npy": npy(segments)}


def write_set(kind: str, photos: Path | None, folder: Path, peers: Path | None) -> None:
    """The samples of a kind in every loader's format; ours and webdataset's are the same tars."""
    (folder / "tars").mkdir(parents=True)
    with (folder / "stored").open("wb") as stored, (folder / "sizes").open("w") as sizes:
        tars = [tarfile.TarFile(folder / "tars" / f"{shard:03d}.tar", "w") for shard in range(SHARDS)]
        for number, (data, fields) in enumerate(samples_of(kind, photos)):
            stored.write(data)
            print(len(data), file=sizes)
            for name, content in fields.items():
                entry = tarfile.TarInfo(f"{number:07d}.{name}")
                entry.size = len(content)
                tars[number * SHARDS // SETS[kind]].addfile(entry, io.BytesIO(content))
        for tar in tars:
            tar.close()
    if peers:
        subprocess.run([peers, HERE / "loader_formats.py", kind, folder], check=True, stdout=sys.stderr)


class Contestant:
    """A loader at work in a process of its own."""

    def __init__(self, python: Path, name: str, kind: str, workers: int, folder: Path) -> None:
        self.name = name
        command = [str(python), str(HERE / "loader_contestants.py"), name, kind, str(workers), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        self._log = (folder / f"{name}-{workers}.log").open("w+")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, text=True, env=environment)
        self._answer()

    def rate(self, seconds: float) -> float:
        """Samples a second, over so many seconds."""
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self.name} ended:\n{self._log.read()[-2000:]}")
        return line

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()


@dataclass
class Bench:
    """What is timed, and what was found."""

    folder: Path
    peers: Path | None
    photos: Path | None
    pairs: int
    seconds: float
    found: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, kind: str, workers: int, names: Sequence[str], unit: str, scale: int = 1) -> None:
        """All of them in turn; figures are `unit` a second, `scale` a sample."""
        folder = self.folder / kind
        if not folder.exists():
            write_set(kind, self.photos, folder, self.peers)
        contestants = []
        for name in ["thalweg", *names]:
            python = Path(sys.executable) if name.startswith("thalweg") else self.peers
            if python:
                contestants.append(Contestant(python, name, kind, workers, folder))
        for contestant in contestants:
            contestant.rate(self.seconds / 2)
        rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
        for _ in range(self.pairs):
            for contestant in contestants:
                rates[contestant.name].append(scale * contestant.rate(self.seconds))
        for contestant in contestants:
            contestant.close()
        for name, theirs in rates.items():
            ratios = sorted(ours / other for ours, other in zip(rates["thalweg"], theirs, strict=True))
            self.say(
                kind=kind,
                workers=workers,
                loader=name,
                rate=statistics.median(theirs),
                unit=f"{unit}/s",
                aim=AIMS.get((kind, workers, None if name == "thalweg" else name)),
                ours_over_it=statistics.median(ratios),
                range=[ratios[0], ratios[-1]],
            )

    def second_worker(self) -> None:
        """What the second worker brings, by medians of the two runs."""
        by_workers = {
            line["workers"]: line["rate"]
            for line in self.found
            if line["kind"] == "images" and line["loader"] == "thalweg"
        }
        if {1, 2} <= by_workers.keys():
            self.say(
                kind="images, 2 workers / 1", workers=2, loader="thalweg", rate=by_workers[2] / by_workers[1], aim=1.8
            )

    def resume(self) -> None:
        """The first batch after a resume at `FAR` against one at 0: order of a simulated set, then a real loader."""
        from data_pipelines.order import Order, Stream, micro_positions

        sizes = np.full(10**6, 10**4)
        rank = {"global_batch": 4096, "accumulation": 1, "micro": 0, "rank": 0, "world_size": 64}

        def first_batch(start: int) -> None:
            order = Order(0, [Stream("simulated", sizes, 4096)], 4096)
            order.slots(micro_positions(start // 4096 * 4096, *rank.values()))

        self.turn_about("first batch of 10^10", first_batch)

    def turn_about(self, kind: str, first_batch: Callable[[int], None]) -> None:
        """Seconds at 0 and at `FAR`."""
        taken: dict[int, list[float]] = {0: [], FAR: []}
        for number in range(self.pairs + 1):
            for start, seconds in taken.items():
                began = time.perf_counter()
                first_batch(start)
                if number:  # the first pair warms up
                    seconds.append(time.perf_counter() - began)
        ratios = sorted(far / near for near, far in zip(taken[0], taken[FAR], strict=True))
        self.say(
            kind=kind,
            workers=0,
            loader="at 10^9 / at 0",
            rate=statistics.median(ratios),
            aim=1.1,
            range=[ratios[0], ratios[-1]],
            seconds_at_0=statistics.median(taken[0]),
        )

    def say(self, **line: Any) -> None:
        """One line of the table, at once."""
        self.found.append(line)
        low, high = line.get("range", (1.0, 1.0))
        ratio = f"{line['ours_over_it']:7.2f} ({low:.2f} to {high:.2f})" if "ours_over_it" in line else ""
        figure = f"{line['rate']:14,.2f} {line.get('unit', ''):10}"
        aim = f"aim {line['aim']:,g}" if line.get("aim") else ""
        print(f"{line['kind']:24} {line['workers']:>7} {line['loader']:16} {figure} {ratio:24} {aim}", flush=True)


def versions(peers: Path | None) -> dict[str, Any]:
    """Of both environments."""
    from pretrain.session import environment

    if peers is None:
        return {"ours": environment(), "peers": None}
    listed = subprocess.run(
        [peers, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    pinned = [line.split("==")[0] for line in (HERE / "peers.txt").read_text().splitlines() if "==" in line]
    theirs = {line["name"]: line["version"] for line in json.loads(listed.stdout) if line["name"] in pinned}
    return {"ours": environment(), "peers": theirs}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="TAR", help="JPEGs to read instead of made ones")
    parser.add_argument(
        "--peers", type=Path, default=HERE.parent / ".peers", metavar="FOLDER", help="their environment"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a block")
    parser.add_argument("--only", nargs="+", choices=[*SETS, "resume"], default=[*SETS, "resume"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loader.json")
    options = parser.parse_args()
    peers = options.peers / "bin" / "python"
    if not peers.exists():
        print(f"no environment of peers at {options.peers}: ours runs alone")
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        bench = Bench(Path(folder), peers if peers.exists() else None, options.photos, options.pairs, options.seconds)
        if "images" in options.only:
            for workers in (1, 2):
                ceilings = ["pillow_ceiling", "thalweg_ceiling"] if workers == 1 else []
                bench.compare("images", workers, [*PEERS, *ceilings], "images")
            bench.second_worker()
        if "small" in options.only:
            bench.compare("small", 0, PEERS, "samples")
        for kind in (kind for kind in options.only if kind.startswith("tokens")):
            bench.compare(kind, 0, [*PEERS, "datasets"], "tokens", int(kind.removeprefix("tokens")))
        if "resume" in options.only:
            bench.resume()
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    about = {
        "versions": versions(bench.peers),
        "machine": machine,
        "photos": options.photos is not None,
        "pairs": options.pairs,
    }
    limit = "thalweg_ceiling: decoding and cropping alone on one thread, bytes in memory"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "limit": limit, "results": bench.found}, indent=1) + "\n")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
