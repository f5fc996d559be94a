"""Runs in miniature for evals: packed pictures, and checkpoints in the real format without the minutes of training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from data_pipelines.pack.arrays import write_image_arrays
from data_pipelines.pack.writer import PackConfig, no_progress
from data_pipelines.shards import Dataset
from pretrain.checkpoint.manifest import (
    NAME,
    STATE,
    Counters,
    FileLine,
    Manifest,
    TensorLine,
    slice_key,
    tensors_name,
)
from pretrain.checkpoint.tensors import write_tensors
from pretrain.config import Recipe
from pretrain.engine.layout import Cut
from pretrain.objective import DataFacts, Objective
from pretrain.objectives import build
from pretrain.run.directory import RunDirectory
from tests.networks import RESNET

SIDE = 16
FACTS = DataFacts(channels=1, image_size=(SIDE, SIDE))
TEXT_FACTS = DataFacts(vocabulary_size=50, row_tokens=12, special_tokens={"mask": 1, "pad": 0, "cls": 2, "sep": 3})
VIT = {
    "architecture": "vit", "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
MAE = {
    "name": "mae", "encoder": VIT,
    "decoder": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
}  # fmt: skip
SIMCLR = {"name": "info_nce", "encoder": RESNET, "crop_on": "device"}
MOCO = {"name": "info_nce", "encoder": VIT, "crop_on": "device", "target_momentum": 0.9}
BERT = {
    "name": "masked_lm",
    "encoder": {
        "architecture": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}  # fmt: skip


def pack_blobs(out: Path, train: int = 120, test: int = 60, classes: int = 3, labelled: bool = True) -> list[Dataset]:
    """Training and validation set of noisy pictures whose class is where their bright blob lies."""
    rng = np.random.default_rng(train)
    rows = {"train": list(_blobs(train, classes, rng)), "val": list(_blobs(test, classes, rng))}
    sets = write_image_arrays(
        out,
        rows,
        PackConfig(samples_per_shard=50),
        name="blobs",
        source="generated",
        classes=tuple("abc"[:classes]),
        progress=no_progress,
    )
    if not labelled:
        for dataset in sets:
            path = Path(dataset.path) / "manifest.json"
            tree = json.loads(path.read_text())
            tree["facts"]["labels_field"] = None
            path.write_text(json.dumps(tree))
    return sets


def _blobs(count: int, classes: int, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray, int]]:
    for number in range(count):
        label = number % classes
        image = rng.integers(0, 120, (SIDE, SIDE))
        image[4:9, 4 * label : 4 * label + 4] += 100
        yield f"blob{number:04d}", image.astype(np.uint8), label


def make_run(
    root: Path,
    objective: Mapping[str, Any],
    *,
    train: str = "",
    validation: str | None = None,
    facts: DataFacts = FACTS,
) -> RunDirectory:
    """A run that was set up; `write_checkpoint` trains it."""
    recipe = Recipe.model_validate(
        {
            "name": root.name,
            "objective": dict(objective),
            "data": {"path": train or None, "validation": validation},
            "train": {"global_batch": 8, "steps": 4},
        }
    )
    run = RunDirectory(root)
    run.create(recipe, {"facts": asdict(facts), "data": {}, "steps": 4})
    return run


def trained(run: RunDirectory, facts: DataFacts = FACTS, seed: int = 1) -> Objective:
    """The run's objective after steps that moved everything that can move."""
    objective = build(run.recipe().objective, facts, run.recipe().seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for buffer in objective.buffers():
            if buffer.is_floating_point():
                buffer += 0.05 * torch.rand(buffer.shape, generator=generator)  # more would kill every ReLU
    return objective.eval()


def write_checkpoint(
    run: RunDirectory,
    objective: Objective,
    step: int = 4,
    world_size: int = 2,
    averages: Mapping[str, Tensor] | None = None,
) -> Path:
    """What `world_size` ranks would save.

    Args:
        averages: fp32 EMA of the target's parameters by name; the objective's own values are left out then.
    """
    state = {(name, "w"): parameter.detach() for name, parameter in objective.named_parameters()}
    targets = tuple(f"{target.target}." for target in objective.targets)
    if averages is not None:
        state = {key: tensor for key, tensor in state.items() if not key[0].startswith(targets)}
        state |= {(name, "ema"): tensor for name, tensor in averages.items()}
    persistent = objective.state_dict()
    state |= {(name, "buffer"): buffer for name, buffer in objective.named_buffers() if name in persistent}
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / STATE).write_text("{}")
    files = {STATE: FileLine(size=2, digest=xxhash.xxh3_128_hexdigest(b"{}"))}
    for rank in range(world_size):
        size, digest = write_tensors(
            folder / tensors_name(rank),
            list(_slices(state, rank, world_size)),
            {"step": str(step), "rank": str(rank)},
        )
        files[tensors_name(rank)] = FileLine(size=size, digest=digest)
    tensors = {
        name: TensorLine(
            shape=tuple(tensor.shape), kinds=(kind,), offset=0, piece=_cut(tensor, kind, world_size).piece,
            dtype=str(tensor.dtype).removeprefix("torch."),
        )
        for (name, kind), tensor in state.items()
    }  # fmt: skip
    manifest = Manifest(
        step=step,
        attempt=1,
        world_size=world_size,
        engine=Counters(updates=step, steps=step),
        tensors=tensors,
        files=files,
    )
    (folder / NAME).write_text(manifest.to_json())
    return folder


def _slices(state: Mapping[tuple[str, str], Tensor], rank: int, world_size: int) -> Iterator[tuple[str, Tensor]]:
    for (name, kind), tensor in state.items():
        start, stop = _cut(tensor, kind, world_size).held_by(rank)
        if start < stop:
            yield slice_key(name, kind, start), tensor.reshape(-1)[start:stop]


def _cut(tensor: Tensor, kind: str, world_size: int) -> Cut:
    shape = tuple(tensor.shape)
    return Cut.whole(shape) if kind == "buffer" else Cut.even(shape, world_size)
