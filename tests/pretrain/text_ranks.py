"""Text objectives, whose embeddings are tied, on real ranks: what `test_text_ranks` compares with a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.batch import Batch
from pretrain.objective import Objective
from pretrain.objectives import build
from tests.pretrain.engine_ranks import LR, STAGES, main
from tests.pretrain.texts import FACTS, SPECIAL, TINY, batch_of, document, packed

STEPS, ROWS = 6, 8
TREES = {
    name: {"name": objective, "network": {"architecture": name, **TINY[name], **still}}
    for name, objective, still in (
        ("bart", "denoising_seq2seq", {"dropout": 0.0}),
        ("t5", "denoising_seq2seq", {"dropout_rate": 0.0}),
        ("opt", "causal_lm", {"dropout": 0.0, "word_embed_proj_dim": 8}),
    )
}
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{f"bart-zero-{stage}": ("bart", stage, {}) for stage in STAGES},
    "t5-zero-3": ("t5", 3, {}),
    "opt-zero-3": ("opt", 3, {"checkpoint_activations": True}),  # as the largest recipes
    "t5-bf16": ("t5", 3, {"precision": "bf16"}),
    "opt-bf16": ("opt", 1, {"precision": "bf16"}),
}
"""Network, ZeRO stage and further settings of the engine by the name of a run."""


def objective_of(name: str) -> Objective:
    return build(TREES[name], FACTS, seed=0)


def batch_at(name: str, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """This rank's rows of a step, each two documents of lengths that vary."""
    slots = range(step * ROWS + rank, (step + 1) * ROWS, world_size)
    rows = [[document(3 + slot % 5, 2 * slot), document(4 + slot % 3, 2 * slot + 1)] for slot in slots]
    if name == "opt":
        return batch_of(**packed(rows, 16))
    given = [[torch.cat([torch.tensor([SPECIAL["cls"]]), part[:-1]]) for part in row] for row in rows]
    labels = packed(rows, 16)
    sources = [[part.flip(0) for part in row] for row in rows]
    fields = {**packed(sources, 16, "source_"), **packed(given, 16, "target_")}
    return batch_of(**fields, labels=labels["tokens"].masked_fill(labels["attention"] == 0, -100))


class AsIs:
    """A view whose batches are ready."""

    def batch(self, batch: Batch) -> Batch:
        return batch


def engine_of(world: Any, name: str, stage: int, **settings: Any) -> Any:
    from pretrain.config import EngineConfig, Optim, Train
    from pretrain.engine import Engine

    objective = objective_of(name)
    objective.view = AsIs()  # type: ignore[assignment]
    config = EngineConfig.model_validate({"zero_stage": stage, **settings})
    return Engine(objective, config, Optim(weight_decay=0.1, clip_norm=0.5), Train(global_batch=ROWS), world)


def curve_of(world: Any, engine: Any, name: str) -> list[tuple[float, float]]:
    """Mean loss and gradient norm of each step."""
    curve = []
    for step in range(STEPS):
        stats = engine.accumulate([batch_at(name, step, world.rank, world.world_size)])
        loss, rows, squared = world.sum(np.array([stats.loss_sum, stats.rows, stats.squared_grad_norm]))
        engine.apply(LR, step / STEPS)
        curve.append((loss / rows, squared**0.5))
    return curve


def save(engine: Any, folder: Path, step: int) -> None:
    from pretrain import checkpoint

    checkpoint.save(folder, engine, engine.world, {"progress": {"step": step}}, attempt=1)


def train(world: Any, folder: Path) -> None:
    """All runs; rank 0 notes their curves."""
    for run, (name, stage, settings) in RUNS.items():
        engine = engine_of(world, name, stage, **settings)
        curve = curve_of(world, engine, name)
        save(engine, folder / run, STEPS)
        if world.rank == 0:
            (folder / run / "curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main({"train": train})
