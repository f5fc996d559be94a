"""`thalweg data ...`: pack, index, check, show, plan, bench."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.base import UserError
from launch import pack_commands
from launch.pack_commands import add_command, one_line
from launch.progress import Progress

if TYPE_CHECKING:
    from data_pipelines.order import Order
    from data_pipelines.shards import Dataset
    from data_pipelines.views import View
    from launch.feeding import Consumer
    from pretrain.config import Recipe


def add_parser(subparsers: Any) -> None:
    """Add `data` and its commands; each sets `run`, a function of the parsed arguments that gives the exit code."""
    parser = subparsers.add_parser("data", help="pack, index, check, show, plan and bench data")
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    pack_commands.add_parsers(commands)

    check = add_command(commands, "check", "read a set through and say whether it is whole", run_check)
    check.add_argument("path", help="a packed folder, or a folder, glob or file of tars")
    check.add_argument("--fix", action="store_true", help="rebuild indexes and manifest from the tars")
    check.add_argument("--all", action="store_true", help="decode every image, not a sample of them")
    check.add_argument("--recipe", metavar="RECIPE|RUN", help="whose order to judge, and whether GPUs will starve")
    _add_pace(check)

    bench = add_command(commands, "bench", "how fast a recipe's data comes here, by number of workers", run_bench)
    bench.add_argument("recipe", metavar="RECIPE|RUN", help="a recipe's name or YAML file, or a run's folder")
    bench.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    bench.add_argument("--seconds", type=float, default=5.0, metavar="S", help="to time each number of workers (5)")
    _add_pace(bench)

    show = add_command(commands, "show", "print first samples, or draw a contact sheet", run_show)
    show.add_argument("path", help="a packed folder, or a folder, glob or file of tars")
    show.add_argument("--out", metavar="SHEET.png", help="contact sheet of the first images or clips")
    show.add_argument("--pictures", action="store_true", help="the same in the terminal, in blocks of colour")
    show.add_argument("--count", type=int, default=16, help="samples to show (16)")
    show.add_argument(
        "--recipe", metavar="RECIPE", help="show images and text as this recipe's objective sees them too"
    )

    plan = add_command(
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


def _add_pace(command: argparse.ArgumentParser) -> None:
    pace = command.add_mutually_exclusive_group()
    pace.add_argument(
        "--gpu", metavar="NAME", help="h100 for instance; its peak and the model's FLOPs say what it asks"
    )
    pace.add_argument("--gpu-samples-per-s", type=float, metavar="N", help="what one GPU takes, as measured")


def run_check(arguments: argparse.Namespace) -> int:
    """`thalweg data check PATH [--fix] [--all] [--recipe RECIPE]`; exit code 1 when damage is found."""
    from data_pipelines.check import check

    consumer = _consumer(arguments, []) if arguments.recipe else None
    if consumer is None and (arguments.gpu or arguments.gpu_samples_per_s):
        raise UserError("data check: a GPU starves under a model; say which, --recipe RECIPE")
    reading = consumer.reading() if consumer else None
    with Progress() as progress:
        report = check(arguments.path, fix=arguments.fix, decode_all=arguments.all, reading=reading, progress=progress)
    if consumer and not report.missing_shards:
        from launch.feeding import feeding_lines

        report.facts += feeding_lines(arguments.path, consumer)
    print("\n".join(report.lines()))
    return 1 if report.damaged else 0


def run_bench(arguments: argparse.Namespace) -> int:
    """`thalweg data bench RECIPE [key=value]`."""
    from launch.feeding import bench_lines

    for line in bench_lines(_consumer(arguments, arguments.overrides), arguments.seconds):
        print(line, flush=True)
    return 0


def _consumer(arguments: argparse.Namespace, overrides: list[str]) -> Consumer:
    from launch.feeding import Consumer

    return Consumer.of(arguments.recipe, overrides, arguments.gpu, arguments.gpu_samples_per_s)


def run_show(arguments: argparse.Namespace) -> int:
    """`thalweg data show PATH [--recipe RECIPE] [--out SHEET.png]`."""
    from data_pipelines.contact_sheet import to_png, to_terminal
    from data_pipelines.shards import Dataset
    from data_pipelines.show import contact_sheet, describe

    dataset = Dataset.open(arguments.path)
    view = _view(arguments.recipe, dataset) if arguments.recipe else None
    print(one_line(dataset))
    for line in describe(dataset, arguments.count, view):
        print(f"  {line}")
    if arguments.out:
        Path(arguments.out).write_bytes(to_png(contact_sheet(dataset, arguments.count, view)))
        print(f"contact sheet: {arguments.out}")
    elif arguments.pictures:
        print("\n".join(to_terminal(contact_sheet(dataset, arguments.count, view))))
    return 0


def run_plan(arguments: argparse.Namespace) -> int:
    """`thalweg data plan RECIPE [key=value] --world-size W [--simulate]`; torch is not imported."""
    from fractions import Fraction

    from data_pipelines.plan import plan
    from pretrain.config import load_recipe
    from pretrain.sources import total_steps

    recipe = load_recipe(arguments.recipe, [*arguments.overrides, "data.validation=null"])
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
