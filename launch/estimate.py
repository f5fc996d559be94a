"""`thalweg launch --dry-run --estimate`: what a run will take, before anything is submitted or even packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipelines.base import UserError
from launch.cluster import ClusterConfig
from pretrain.config import Recipe
from pretrain.estimate import STAGES, Hardware, Workload, activations, checkpoint_bytes, exchanged, memory
from pretrain.objective import DataFacts

GIB, GB, DAY = 2.0**30, 1e9, 86400
SPECIAL = ("pad", "unk", "cls", "sep", "mask", *(f"sentinel:{number}" for number in range(100)))
"""Tokens that an objective may ask for; their ids do not change its size."""


@dataclass(frozen=True)
class Data:
    """What is known of a run's data.

    Attributes:
        samples: None where it is not known and not needed.
        sample_bytes: mean payload; None where no data is here.
        assumed: how the facts were come by, where no data is here.
    """

    facts: DataFacts
    samples: int | None
    sample_bytes: float | None = None
    assumed: str | None = None


def estimate(
    recipe: Recipe, cluster: ClusterConfig, samples: int | None = None, samples_per_s: float | None = None
) -> list[str]:
    """The figures, one fact a line.

    Args:
        samples: how many the data will have, where it is not here.
        samples_per_s: as measured, of all ranks; by FLOPs and the cluster's MFU when unset.

    Raises:
        UserError: the recipe does not build, or counts epochs of data that is not here.
    """
    import torch

    from pretrain.objectives import build

    data = find_data(recipe, samples)
    with torch.device("meta"):
        work = Workload.of(build(recipe.objective, data.facts, recipe.seed))
    return list(lines(recipe, cluster, data, work, samples_per_s))


def find_data(recipe: Recipe, samples: int | None) -> Data:
    """The packed set's own figures, or those that its objective would most likely meet."""
    from pretrain.sources import open_sources

    try:
        sources = open_sources(recipe)
    except UserError:
        facts, assumed = _likely_facts(recipe.objective)
        return Data(facts, samples, assumed=assumed)
    num_bytes = sum(shard.bytes for dataset in sources.datasets for shard in dataset.manifest.shards)
    return Data(sources.facts(), sources.num_samples, num_bytes / sources.num_samples)


def _likely_facts(objective: dict[str, Any]) -> tuple[DataFacts, str]:
    """Colour pictures; or the vocabulary and the rows that the architecture was published with."""
    import transformers

    from pretrain.networks.architectures import CAUSAL, SEQ2SEQ, TEXT

    tree = objective.get("network") or objective.get("encoder") or {}
    known = {**TEXT, **SEQ2SEQ, **CAUSAL}
    architecture = tree.get("architecture")
    if architecture not in known:
        return DataFacts(channels=3), "colour pictures"
    config = getattr(transformers, known[architecture][0])()
    rows = getattr(config, "max_position_embeddings", None) or 512
    special = {name: number for number, name in enumerate(SPECIAL)}
    facts = DataFacts(vocabulary_size=config.vocab_size, row_tokens=rows, special_tokens=special)
    return facts, f"a vocabulary of {config.vocab_size:,}, rows of {rows:,} tokens"


def total_steps(recipe: Recipe, samples: int | None) -> int:
    """Steps of the run.

    Raises:
        UserError: it counts epochs, and nobody says of how many samples.
    """
    from pretrain import sources

    if recipe.train.steps is None and samples is None:
        raise UserError(
            f"recipe {recipe.name} counts epochs and its data is not here; "
            "say --samples N (ImageNet-1k has 1,281,167), or data.path=FOLDER"
        )
    return sources.total_steps(recipe, samples or 0)


def lines(
    recipe: Recipe, cluster: ClusterConfig, data: Data, work: Workload, samples_per_s: float | None
) -> Iterator[str]:
    """What `estimate` prints."""
    train, gpu, ranks = recipe.train, cluster.hardware, cluster.world_size
    steps = total_steps(recipe, data.samples)
    rate = samples_per_s or ranks * gpu.peak_tflops * 1e12 * gpu.mfu / work.flops_per_sample
    pace = "as given" if samples_per_s else f"at {gpu.mfu:.0%} of {gpu.peak_tflops:g} TFLOP/s a GPU"
    seconds = train.global_batch / rate
    if data.assumed:
        yield f"assumed      no data here: {data.assumed}; data.path=FOLDER takes a packed set's"
    if not cluster.gpus_per_node:
        yield "assumed      this cluster has no GPUs; reckoned as if each rank had one as `hardware` describes"
    yield f"parameters   {work.trained:,} trained, {work.frozen:,} others; {work.flops_per_sample:.3g} FLOPs a sample"
    yield f"ranks        {ranks:,} on {cluster.nodes:,} node(s)"
    yield f"steps        {steps:,} of {train.global_batch:,} samples"
    yield f"time         {steps * seconds / DAY:,.2f} days: {seconds:.3g} s a step, {rate:,.0f} samples/s {pace}"
    sent = exchanged(work, recipe.engine.zero_stage, recipe.engine.precision, ranks, train.accumulation)
    sending = sent / gpu.link_gb_per_s / GB
    if sending > seconds:
        days = steps * sending / DAY
        yield f"warning      the links need {sending:.3g} s a step, more than computing: {days:,.2f} days"
    yield from _memory_lines(recipe, ranks, work, gpu)
    size = checkpoint_bytes(work, recipe.optim.name)
    yield (
        f"checkpoint   {size / GB:,.1f} GB, {size / cluster.nodes / gpu.store_gb_per_s / GB:,.1f} s "
        f"over {cluster.nodes:,} node(s) at {gpu.store_gb_per_s:g} GB/s each"
    )
    yield f"store        {_reads(recipe, data, rate)}"


def _memory_lines(recipe: Recipe, ranks: int, work: Workload, gpu: Hardware) -> Iterator[str]:
    precision, train = recipe.engine.precision, recipe.train
    micro_batch = max(1, train.global_batch // (ranks * train.accumulation))
    recomputed = recipe.engine.checkpoint_activations
    kept = activations(work, micro_batch, recomputed=recomputed)
    words = "not estimated (no transformer)" if kept is None else f"about {kept / GIB:,.1f} GiB more on a GPU"
    how = ", most of them computed again" if recomputed else ""
    yield f"activations  {words}, micro batches of {micro_batch:,}{how}"
    yield f"a GPU of {gpu.memory_gib:g} GiB, {precision}, GiB by ZeRO stage:"
    yield "  stage   weights  gradients  optimizer  averages     total   sent a step"
    for stage in STAGES:
        held = memory(work, stage, precision, ranks, recipe.optim.name)
        sent = exchanged(work, stage, precision, ranks, train.accumulation)
        parts = (held.weights, held.gradients, held.state, held.averages, held.total)
        cells = "".join(f"{part / GIB:{width},.2f}" for part, width in zip(parts, (10, 11, 11, 10, 10), strict=True))
        chosen = "  <- the recipe's" if stage == recipe.engine.zero_stage else ""
        full = "" if held.total + (kept or 0) < gpu.memory_gib * GIB else "  does not fit"
        yield (
            f"  {stage:<5}{cells}   {sent / GB:,.2f} GB, {sent / gpu.link_gb_per_s / GB:,.2f} s "
            f"at {gpu.link_gb_per_s:g} GB/s{full}{chosen}"
        )


def _reads(recipe: Recipe, data: Data, rate: float) -> str:
    """One request reads a window at best, a sample at worst."""
    fewest = rate if recipe.data.shuffle == "full" else rate / recipe.data.window
    requests = f"{fewest:,.1f} to {rate:,.0f} requests/s"
    if data.sample_bytes is None:
        return f"{requests}; bytes are not known before the data is packed"
    return f"{requests}, {rate * data.sample_bytes / 1e6:,.1f} MB/s"
