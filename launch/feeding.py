"""What a model asks of its data, what this machine gives, and whether GPUs will starve: `data bench`, `data check`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from data_pipelines import bench
from data_pipelines.base import DataError, UserError, did_you_mean
from data_pipelines.batch import Batch
from data_pipelines.check import Reading
from data_pipelines.loader import Loader
from data_pipelines.order import default_lanes
from data_pipelines.shards import Dataset
from pretrain.config import Recipe, load_recipe
from pretrain.estimate import GPUS, Hardware
from pretrain.objective import DataFacts, Objective
from pretrain.objectives import build
from pretrain.run.directory import RunDirectory
from pretrain.sources import data_facts, open_sources

TIMED_S = 3.0
LOGGED = 20
"""Last log lines of a run whose median is its rate."""
UNKNOWN = "not known: no GPU is here; name one (--gpu h100), or say what it takes (--gpu-samples-per-s N)"


@dataclass(frozen=True)
class Demand:
    """Samples that one GPU takes a second when it never waits, and how that is known."""

    samples_per_s: float
    source: str


@dataclass(frozen=True)
class Consumer:
    """What will eat the data: a recipe's model on some GPU, or a run that has shown what it eats."""

    recipe: Recipe
    run: RunDirectory | None = None
    gpu: str | None = None
    given: float | None = None

    @classmethod
    def of(cls, name: str, overrides: Sequence[str], gpu: str | None, given: float | None) -> Self:
        """By the name or file of a recipe, or the folder of a run; its validation data need not be here.

        Raises:
            UserError: no such recipe, or a GPU that is not known.
        """
        if gpu is not None and gpu.lower() not in GPUS:
            raise UserError(f"--gpu {gpu}: not known{did_you_mean(gpu, list(GPUS))}; or --gpu-samples-per-s N")
        run = RunDirectory.open(name) if (Path(name) / "run.json").is_file() else None
        recipe = load_recipe(str(run.root / "config.yaml") if run else name, [*overrides, "data.validation=null"])
        return cls(recipe, run, gpu.lower() if gpu else None, given)

    def demand(self, objective: Objective) -> Demand | None:
        """As told, as the run has shown, or by the model's FLOPs; None without a GPU to reckon with."""
        if self.given is not None:
            return Demand(self.given, "as told")
        if self.run is not None and self.gpu is None:
            return _shown_by(self.run)
        gpu = self.gpu or _gpu_here()
        if gpu is None:
            return None
        precision, mfu, flops = self.recipe.engine.precision, Hardware().mfu, objective.flops_per_sample()
        peak = GPUS[gpu][precision]
        source = f"{flops / 1e9:,.3g} GFLOPs each, {mfu:.0%} of {peak:g} TFLOP/s, {gpu.upper()} in {precision}"
        return Demand(peak * 1e12 * mfu / flops, source)

    def reading(self) -> Reading:
        """The order in which its run would read a set that it has for itself."""
        recipe = self.recipe
        lanes = recipe.data.num_lanes or default_lanes(recipe.train.global_batch)
        return Reading(recipe.train.global_batch, lanes, recipe.data.window, recipe.data.shuffle, recipe.seed)

    def objective(self, facts: DataFacts) -> Objective:
        """Without memory for its weights."""
        with torch.device("meta"):
            return build(self.recipe.objective, facts, self.recipe.seed)


def _shown_by(run: RunDirectory) -> Demand:
    """What a rank of the run took while it did not wait.

    Raises:
        UserError: it has logged no step.
    """
    lines = [line for line in run.metrics() if "samples_per_s" in line][-LOGGED:]
    if not lines:
        raise UserError(f"run {run.root}: it has logged no step yet; name its recipe instead")
    ranks = {number: attempt.get("world_size") or 1 for number, attempt in run.attempts().items()}
    busy = [max(1 - line.get("data_wait", 0.0), 0.01) for line in lines]
    rates = sorted(
        line["samples_per_s"] / share / ranks[line["attempt"]] for line, share in zip(lines, busy, strict=True)
    )
    return Demand(rates[len(rates) // 2], f"as a rank of {run.root} took while it did not wait")


def _gpu_here() -> str | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0).lower()
    return next((gpu for gpu in sorted(GPUS, key=len, reverse=True) if gpu in name), None)


def cores_per_gpu() -> int:
    """Of this machine; all its cores where it has no GPU."""
    return max(1, bench.cores() // max(1, torch.cuda.device_count()))


def feeding_lines(path: str, consumer: Consumer) -> list[tuple[str, str]]:
    """Lines of `data check --recipe`: what is asked, what one worker gives here, and the verdict."""
    dataset, recipe = Dataset.open(path), consumer.recipe
    objective = consumer.objective(data_facts(dataset))
    asked = consumer.demand(objective)
    try:
        parts = bench.time_parts(
            [dataset], consumer.reading().order(dataset), objective.view, seed=recipe.seed, seconds=TIMED_S
        )
    except DataError as error:
        return [("feeding", f"could not be timed: {error}")]
    lines = [
        ("asked", f"by {recipe.name}, {_asked(asked)}"),
        ("given", f"{parts.samples_per_s:,.0f} samples/s by one worker here: {parts.words()}"),
    ]
    return lines if asked is None else [*lines, ("feeding", verdict(asked, parts, cores_per_gpu()))]


def _asked(asked: Demand | None) -> str:
    return UNKNOWN if asked is None else f"{asked.samples_per_s:,.0f} samples/s a GPU ({asked.source})"


def verdict(asked: Demand, parts: bench.Parts, cores: int) -> str:
    """Whether a GPU will starve on a machine with so many cores for each."""
    needed = bench.workers_needed(asked.samples_per_s, parts.samples_per_s)
    megabytes = asked.samples_per_s * parts.sample_bytes / 1e6
    takes = f"it takes data.workers={needed} and {megabytes:,.{0 if megabytes >= 10 else 1}f} MB/s a GPU"
    here = f"{cores:,} core{'s' * (cores > 1)} a GPU here"
    if needed <= cores:
        return f"your GPUs will not starve: {takes}; {here}"
    share = min(1.0, cores * parts.samples_per_s / asked.samples_per_s)
    return f"your GPUs WILL STARVE: {takes}; {here} feed{'s' * (cores == 1)} {share:.0%} of what is asked"


def bench_lines(consumer: Consumer, seconds: float) -> Iterator[str]:
    """Lines of `data bench`, each as soon as it is known.

    Args:
        seconds: to time each number of workers.
    """
    recipe, sources = consumer.recipe, open_sources(consumer.recipe)
    objective = consumer.objective(sources.facts())
    asked, order = consumer.demand(objective), sources.order(recipe)
    counts, batch, tokens = bench.worker_counts(cores_per_gpu()), recipe.train.global_batch, sources.tokens_per_sample
    stride = sources.num_samples // (len(counts) + 1) // batch * batch
    yield _line("data", f"{', '.join(dataset.path for dataset in sources.datasets)}: {sources.num_samples:,} samples")
    yield _line("asked", f"by {recipe.name}, {_asked(asked)}")
    parts = bench.time_parts(
        sources.datasets, order, objective.view, seed=recipe.seed, seconds=seconds, start=len(counts) * stride
    )
    size = f"{parts.sample_bytes / 1e3:,.1f} kB"
    yield _line("one worker", f"{1e6 / parts.samples_per_s:,.0f} us a sample of {size}: {parts.words()}")
    yield f"workers   samples/s{'      tokens/s' if tokens else ''}   of one{'   data wait' if asked else ''}"

    def batches(workers: int, start: int) -> Generator[Batch, None, None]:
        loader = Loader(
            sources.datasets, order, objective.view, seed=recipe.seed, global_batch=batch,
            accumulation=bench.micro_batches(batch), rank=0, world_size=1, start=start, workers=workers,
            prefetch=recipe.data.prefetch, quarantine=None,
        )  # fmt: skip
        try:
            yield from loader
        finally:
            loader.close()

    paces = []
    for pace in bench.sweep(batches, counts, seconds=seconds, stride=stride):
        paces.append(pace)
        yield _row(pace, paces, tokens, asked)
    yield _line("choose", _choice(bench.choose(paces, asked.samples_per_s if asked else None), asked))


def _row(pace: bench.Pace, paces: Sequence[bench.Pace], tokens: float | None, asked: Demand | None) -> str:
    one = next((other.samples_per_s for other in paces if other.workers == 1), None)
    in_tokens = f" {pace.samples_per_s * tokens:13,.0f}" if tokens else ""
    of_one = f"{pace.samples_per_s / one:.2f}x" if one else ""
    waits = f" {pace.data_wait(asked.samples_per_s):11.0%}" if asked else ""
    return f"{pace.workers:7} {pace.samples_per_s:11,.0f}{in_tokens} {of_one:>8}{waits}"


def _choice(pace: bench.Pace, asked: Demand | None) -> str:
    chosen = f"data.workers={pace.workers}"
    if asked is None:
        return f"{chosen}: {pace.samples_per_s:,.0f} samples/s, about as many as this machine gives with more"
    given = f"{chosen}: {pace.samples_per_s:,.0f} samples/s of {asked.samples_per_s:,.0f} asked"
    wait = pace.data_wait(asked.samples_per_s)
    if not wait:
        return f"{given}; a GPU will not starve"
    needed = bench.workers_needed(asked.samples_per_s, pace.samples_per_s / pace.workers)
    return f"{given}; a GPU WILL STARVE, waiting {wait:.0%} of its time: about {needed:,} workers like these feed it"


def _line(name: str, text: str) -> str:
    return f"{name:<12} {text}"
