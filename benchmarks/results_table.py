"""The README's table of results: MAE and InfoNCE beside raw pixels and untrained networks, over seeds.

    python benchmarks/results_table.py --fashion FOLDER --cifar FOLDER [--out runs/table]

FASHION holds the four idx files of Fashion-MNIST, CIFAR tars `train-*` and `test-*` with images and `.cls` labels.
About three hours on two cores. Every run resumes and every score is remembered: start it again after a stop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_pipelines.base import write_atomically
from evals import knn, linear_probe
from evals.controls import judged, random_init, remembered
from evals.protocol import Order, order_eval, run_eval

EVALS = {"linear_probe": ["budgets=[]"], "knn": ["k=[20]"]}
METRICS = {"linear_probe": "top1@all", "knn": "top1@k20"}
HEADINGS = {"linear_probe": "linear probe", "knn": "20-NN"}
NETWORKS = {"mae_small": "ViT", "info_nce_small": "ResNet"}
NAMES = {"mae_small": "MAE", "info_nce_small": "InfoNCE"}

COLOURS = "jitter: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1, grey: 0.2"
CHANGES = {
    ("fashion", "mae_small"): [
        "objective.encoder.patch_size=4", "objective.mask_ratio=0.75", "objective.mean=[0.286]",
        "objective.std=[0.353]", "objective.crop={area: [0.5, 1.0], flip: 0.5}", "objective.norm_pixels=true",
        "train.global_batch=128", "train.steps=3000",
    ],
    ("fashion", "info_nce_small"): [
        "objective.first={area: [0.3, 1.0], flip: 0.5, jitter: 1.0, brightness: 0.4, contrast: 0.4, saturation: 0.0, "
        "hue: 0.0, gamma: [0.6, 1.6], grey: 0.0}",
        "train.steps=1000",
    ],
    ("cifar", "mae_small"): [
        "objective.encoder.patch_size=4", "objective.mask_ratio=0.75", "objective.mean=null", "objective.std=null",
        "objective.crop={area: [0.3, 1.0], flip: 0.5}", "objective.norm_pixels=true",
        "train.global_batch=128", "train.steps=3000",
    ],
    ("cifar", "info_nce_small"): [
        f"objective.first={{area: [0.2, 1.0], flip: 0.5, {COLOURS}}}", "train.steps=800",
    ],
}  # fmt: skip
"""What each set changes in a packaged recipe: sizes of patches and crops, colour, and nine minutes' worth of steps."""
QUIET = ["evals=[]", "probe=null", "validation.every=1000000", "checkpoint.every=250", "monitor.log_every=100"]


@dataclass
class Row:
    """One line of the table.

    Attributes:
        scores: by eval, one a seed; a single one where nothing is drawn.
    """

    name: str
    scores: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, score: float) -> None:
        """Of one more seed."""
        self.scores.setdefault(name, []).append(score)


@dataclass(frozen=True)
class Table:
    """The work for one data set.

    Attributes:
        data: overrides that name it in a recipe.
        steps: instead of the recipes' own.
    """

    out: Path
    name: str
    data: Sequence[str]
    seeds: int
    steps: int | None
    ranks: int

    def rows(self) -> Iterator[Row]:
        """Raw pixels, then each method and its untrained network."""
        raw = Row("raw pixels")
        for recipe, network in NETWORKS.items():
            trained, untrained = Row(NAMES[recipe]), Row(f"{network}, untrained")
            for seed in range(self.seeds):
                run = self.pretrain(recipe, seed)
                for name, overrides in EVALS.items():
                    result = run_eval(name, run, overrides)
                    trained.add(name, result.metrics[METRICS[name]])
                    raw.scores[name] = [result.controls["raw"][METRICS[name]]]
                    untrained.add(name, untrained_score(order_eval(name, run, overrides), seed))
            yield trained
            yield untrained
        yield raw

    def pretrain(self, recipe: str, seed: int) -> Path:
        """Train one cell to its end, or read that it is done."""
        name = f"{self.name}-{recipe}-{seed}"
        subprocess.run(self.command(recipe, seed), check=True)
        return self.out / name

    def command(self, recipe: str, seed: int) -> list[str]:
        """What trains one cell; the README names it."""
        steps = [] if self.steps is None else [f"train.steps={self.steps}"]
        own = [f"name={self.name}-{recipe}-{seed}", f"runs={self.out}", f"seed={seed}"]
        changes = [*CHANGES[self.name, recipe], *self.data, *QUIET, *own, *steps]
        return [sys.executable, "-m", "launch.cli", "pretrain", recipe, "--ranks", str(self.ranks), *changes]


def untrained_score(order: Order, seed: int) -> float:
    """What an eval says of the network of a run, drawn by `seed` and never trained."""
    module: Any = {"linear_probe": linear_probe, "knn": knn}[order.name]
    source = random_init(order.subject.open(), seed)
    content = ["results_table", module.PROTOCOL, order.config.settings(), order.data.digests(), source.digest]
    scores = remembered(
        content,
        lambda: judged(source, order.data, lambda train, test: module.judge(train, test, order.config)),
    )
    return scores[METRICS[order.name]]


def markdown(title: str, rows: Sequence[Row]) -> str:
    """A table of mean and spread over seeds; what loses to raw pixels says so."""
    raw = next(row for row in rows if row.name == "raw pixels")
    lines = [f"| {title} | {' | '.join(HEADINGS.values())} |", "|---|" + "---:|" * len(HEADINGS)]
    lines += [
        f"| {row.name} | {' | '.join(_cell(row.scores[name], raw.scores[name][0]) for name in EVALS)} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def _cell(scores: Sequence[float], raw: float) -> str:
    spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * fmean(scores):.1f}{spread}" + (" (below raw pixels)" if fmean(scores) < raw else "")


def fashion(source: str, out: Path) -> list[str]:
    """Packed once."""
    folder = out / "fashion"
    if not folder.exists():
        subprocess.run(
            [sys.executable, "-m", "launch.cli", "data", "pack", "fashion_mnist", source, str(folder)], check=True
        )
    return [f"data.path={folder}/train", f"data.validation={folder}/val"]


def cifar(source: str, out: Path) -> list[str]:
    """Read as it lies there."""
    return [f"data.path={source}/train-*", f"data.validation={source}/test-*"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", metavar="FOLDER", help="idx files of Fashion-MNIST")
    parser.add_argument("--cifar", metavar="FOLDER", help="tars of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("runs/table"), metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every training, instead of its own; a quick look")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args(arguments)
    sets = {
        "fashion": (fashion, options.fashion, "Fashion-MNIST"),
        "cifar": (cifar, options.cifar, "CIFAR-10, 12,000 images"),
    }
    text, record = "", {}
    for name, (prepare, source, title) in sets.items():
        if source is None:
            continue
        table = Table(options.out, name, prepare(source, options.out), options.seeds, options.steps, options.ranks)
        rows = list(table.rows())
        text += markdown(title, rows) + "\n"
        commands = {recipe: " ".join(["thalweg", *map(repr, table.command(recipe, 0)[3:])]) for recipe in NETWORKS}
        record[name] = {"scores": {row.name: row.scores for row in rows}, "commands": commands}
        write_atomically(options.out / "results.json", json.dumps(record, indent=1) + "\n")
        write_atomically(options.out / "results.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
