"""`thalweg data ...`: pack, index, check, show, plan."""

from __future__ import annotations

import argparse
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from data_pipelines.base import UserError, apply_overrides
from data_pipelines.pack import SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_pipelines.order import Order
    from data_pipelines.shards import Dataset
    from data_pipelines.views import View
    from pretrain.config import Recipe

PLAIN_LINE_EVERY_S = 10.0
_OVERRIDE = re.compile(r"^[A-Za-z_][A-Za-z0-9_.]*=")


def add_parser(subparsers: Any) -> None:
    """Add `data` and its commands; each sets `run`, a function of the parsed arguments that gives the exit code."""
    parser = subparsers.add_parser("data", help="pack, index, check, show and plan data")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    pack = _add(commands, "pack", "write shards, indexes and a manifest from a source", run_pack)
    pack.usage = "thalweg data pack SOURCE [IN] OUT [key=value ...] [--val-fraction SHARE]"
    pack.add_argument("source", metavar="SOURCE", help=", ".join(SOURCES))
    pack.add_argument("rest", nargs="+", metavar="[IN] OUT key=value", help="where from, where to, settings")
    pack.add_argument("--val-fraction", metavar="SHARE", help="share held out as the split val; same as val_fraction=")

    index = _add(commands, "index", "index the tars of a folder in place, and write its manifest", run_index)
    index.add_argument("path", help="a tar, or a folder of tars")

    check = _add(commands, "check", "read a set through and say whether it is whole", run_check)
    check.add_argument("path", help="a packed folder, or a folder, glob or file of tars")
    check.add_argument("--fix", action="store_true", help="rebuild indexes and manifest from the tars")
    check.add_argument("--all", action="store_true", help="decode every image, not a sample of them")

    show = _add(commands, "show", "print first samples, or draw a contact sheet", run_show)
    show.add_argument("path", help="a packed folder, or a folder, glob or file of tars")
    show.add_argument("--out", metavar="SHEET.png", help="contact sheet of the first images")
    show.add_argument("--count", type=int, default=16, help="samples to show (16)")
    show.add_argument("--recipe", metavar="RECIPE", help="show text as this recipe's objective sees it")

    plan = _add(
        commands, "plan", "steps, ranks, reads and shuffling of a recipe's data, before anything runs", run_plan
    )
    plan.add_argument("recipe", metavar="RECIPE", help="a recipe's name or YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    plan.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks (1)")
    plan.add_argument("--simulate", action="store_true", help="of a set that does not exist: --samples in --shards")
    plan.add_argument("--samples", type=_whole, metavar="N", help="with --simulate: how many, 1e10 for instance")
    plan.add_argument("--shards", type=_whole, metavar="N", help="with --simulate: tars they lie in")
    plan.add_argument("--sample-bytes", type=float, metavar="N", help="mean size of a sample, where no data is here")
    pace = plan.add_mutually_exclusive_group()
    pace.add_argument("--step-seconds", type=float, metavar="S", help="time of a step: reads are told by second too")
    pace.add_argument("--samples-per-s", type=float, metavar="N", help="the same, as samples/s of all ranks")


def _add(commands: Any, name: str, words: str, handler: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    parser.set_defaults(run=handler)
    return parser


def run_pack(arguments: argparse.Namespace) -> int:
    """`thalweg data pack SOURCE [IN] OUT [key=value ...]`."""
    from pathlib import Path

    from data_pipelines.pack import pack

    overrides = [word for word in arguments.rest if _OVERRIDE.match(word)]
    paths = [word for word in arguments.rest if not _OVERRIDE.match(word)]
    if arguments.val_fraction is not None:
        overrides.append(f"val_fraction={arguments.val_fraction}")
    if not 1 <= len(paths) <= 2:
        raise UserError(f"data pack: want [IN] OUT, got {len(paths)} paths: {' '.join(map(repr, paths))}")
    source, out = (paths[0] if len(paths) == 2 else None), Path(paths[-1])
    with Progress() as progress:
        sets = pack(arguments.source, source, out, apply_overrides({}, overrides), progress)
    for dataset in sets:
        print(_line(dataset))
        for note in dataset.manifest.notes:
            print(f"  note: {note}")
    return 0


def run_index(arguments: argparse.Namespace) -> int:
    """`thalweg data index PATH`."""
    from data_pipelines.check import index_in_place

    with Progress() as progress:
        for line in index_in_place(arguments.path, progress):
            print(line)
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    """`thalweg data check PATH [--fix] [--all]`; exit code 1 when damage is found."""
    from data_pipelines.check import check

    with Progress() as progress:
        report = check(arguments.path, fix=arguments.fix, decode_all=arguments.all, progress=progress)
    print("\n".join(report.lines()))
    return 1 if report.damaged else 0


def run_show(arguments: argparse.Namespace) -> int:
    """`thalweg data show PATH [--out SHEET.png]`."""
    from pathlib import Path

    from data_pipelines.shards import Dataset
    from data_pipelines.show import contact_sheet, describe

    dataset = Dataset.open(arguments.path)
    print(_line(dataset))
    for line in describe(dataset, arguments.count, _view(arguments.recipe, dataset) if arguments.recipe else None):
        print(f"  {line}")
    if arguments.out:
        contact_sheet(dataset, arguments.count, Path(arguments.out))
        print(f"contact sheet: {arguments.out}")
    return 0


def run_plan(arguments: argparse.Namespace) -> int:
    """`thalweg data plan RECIPE [key=value] --world-size W [--simulate]`; torch is not imported."""
    from fractions import Fraction

    from data_pipelines.plan import plan
    from pretrain.config import load_recipe
    from pretrain.sources import total_steps

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    batch, step_s = recipe.train.global_batch, arguments.step_seconds
    if arguments.samples_per_s:
        step_s = batch / arguments.samples_per_s
    order, sample_bytes = _made_up(recipe, arguments) if arguments.simulate else _of_data(recipe)
    num_samples = sum(stream.num_samples for stream in order.streams)
    figures = plan(
        order,
        global_batch=batch,
        accumulation=recipe.train.accumulation,
        world_size=arguments.world_size,
        epochs=Fraction(total_steps(recipe, num_samples) * batch, num_samples),
        sample_bytes=arguments.sample_bytes or sample_bytes,
        step_s=step_s,
    )
    print("\n".join(figures.lines()))
    return 0


def _made_up(recipe: Recipe, arguments: argparse.Namespace) -> tuple[Order, None]:
    """The order in which the recipe would read so many samples."""
    from data_pipelines.order import Order, default_lanes
    from data_pipelines.plan import synthetic_stream

    if not arguments.samples or not arguments.shards:
        raise UserError("data plan --simulate: say --samples N and --shards N (ImageNet-1k: 1281167 in 1282)")
    lanes = recipe.data.num_lanes or default_lanes(recipe.train.global_batch)
    stream = synthetic_stream("simulated", arguments.samples, arguments.shards, lanes)
    return Order(recipe.seed, [stream], lanes, window=recipe.data.window, shuffle=recipe.data.shuffle), None


def _of_data(recipe: Recipe) -> tuple[Order, float]:
    """The order of the recipe's own data, and the mean bytes of a sample."""
    from pretrain.sources import open_sources

    sources = open_sources(recipe)
    num_bytes = sum(shard.bytes for dataset in sources.datasets for shard in dataset.manifest.shards)
    return sources.order(recipe), num_bytes / sources.num_samples


def _whole(text: str) -> int:
    """A whole number, 1e10 too."""
    number = float(text)
    if not number.is_integer() or number < 1:
        raise ValueError(text)
    return int(number)


def _view(recipe: str, dataset: Dataset) -> View:
    """What the recipe's objective wants of a sample; its network takes no memory."""
    import torch

    from pretrain.config import load_recipe
    from pretrain.objectives import build
    from pretrain.sources import data_facts

    with torch.device("meta"):
        return build(load_recipe(recipe).objective, data_facts(dataset), seed=0).view


def _line(dataset: Dataset) -> str:
    facts = dataset.facts()
    size = facts["image_size"]
    words = [f"{dataset.num_samples} samples in {len(dataset.shard_sizes)} shards"]
    if facts["frames"]:
        labelled = ", ".join(map(str, facts["label_frames"])) if len(facts["label_frames"]) < facts["frames"] else "all"
        words.append(f"clips of {facts['frames']} frames, labelled: {labelled or 'none'}")
    else:
        words.append(f"fields {', '.join(dataset.fields)}")
    if facts["channels"]:
        words.append(f"images {f'{size[0]} x {size[1]}' if size else 'of several sizes'}, {facts['channels']} channels")
    if facts["row_tokens"]:
        words.append(f"rows of {facts['row_tokens']} tokens, vocabulary {facts['vocabulary_size']}")
    if facts["tokens"]:
        words.append(f"{facts['tokens']} tokens")
    if facts["languages"] or facts["language"]:
        words.append(", ".join(facts["languages"] or [facts["language"]]))
    if dataset.classes:
        words.append(f"{len(dataset.classes)} classes")
    return f"{dataset.path}: {'; '.join(words)}; digest {dataset.digest}"


class Progress:
    """A bar with the time left on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `data_pipelines.pack.writer.Progress`."""
        if stage != self._stage:
            self._stage, self._started = stage, time.monotonic()
            self._task = self._bar.add_task(stage, total=total) if self._bar is not None else None
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = time.monotonic()
            left_s = (self._last_line - self._started) / max(done, 1) * (total - done)
            print(f"{stage}: {done} of {total}, about {left_s:.0f} s left", file=sys.stderr, flush=True)
