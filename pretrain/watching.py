"""What a run looks at besides its own loss: validation, an online probe, sketches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data_pipelines.base import UserError
from data_pipelines.batch import Batch
from data_pipelines.loader import finite_batches
from data_pipelines.shards import Dataset
from data_pipelines.views import View
from data_pipelines.views.image import PlainImage
from pretrain import probes
from pretrain.reading import in_step
from pretrain.session import Session

PICTURED = 8
"""Samples a rank that the sketches show."""
PROBE_ROWS = 64
"""Rows that a rank embeds at once for the probe."""


def validate(session: Session) -> dict[str, float]:
    """Mean loss over the validation set, every sample once, by the training view with fixed draws."""
    assert session.sources.validation is not None
    engine = session.engine
    total: dict[str, float] = {}
    view, most = engine.module.view, session.recipe.validation.max_samples
    for batch in _batches(session, session.sources.validation, view, _micro_rows(session), most):
        output, rows = engine.evaluate(batch)
        samples = float(batch.weight.sum())
        figures = {"loss": float(output.loss), "rows": rows, "samples": samples}
        figures |= {f"log {name}": float(value) * samples for name, value in output.logs.items()}
        total = {name: total.get(name, 0.0) + value for name, value in figures.items()}
    names = sorted(total)
    summed = dict(zip(names, session.world.sum(np.array([total[name] for name in names])), strict=True))
    means = {"validation_loss": float(summed["loss"] / summed["rows"])}
    for name in names:
        if name.startswith("log "):
            means[f"validation_{name.removeprefix('log ')}"] = float(summed[name] / summed["samples"])
    return means


def online_probe(session: Session) -> dict[str, float]:
    """k-NN and linear probe on a few thousand labelled samples; nothing where there are no labels."""
    assert session.recipe.probe is not None
    train = _features(session, session.sources.datasets[0], session.recipe.probe.train_samples)
    held_out = session.sources.validation
    test = _features(session, held_out, session.recipe.probe.test_samples) if held_out is not None else None
    if train is None or test is None:
        return {}
    try:
        return {"knn": probes.knn(*train, *test, k=10), "probe": probes.linear_probe(*train, *test).accuracy}
    except UserError as error:  # labels that cannot teach anything are no reason to end a run
        session.event("probe", f"no online probe: {error}")
        return {}


def sketches(session: Session) -> None:
    """Pictures by the objective, of the same samples each time, for the report."""
    assert session.sources.validation is not None
    engine, world = session.engine, session.world
    batch = next(
        _batches(session, session.sources.validation, engine.module.view, PICTURED, PICTURED * world.world_size)
    )
    pictures = engine.sketch(batch.to(world.device))
    if world.rank == 0:
        for name, picture in pictures.items():
            _write_png(session.run.sketches / f"step-{session.progress.step:08d}" / f"{name}.png", picture)


def _features(session: Session, dataset: Dataset, samples: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(N, D) features and (N,) labels on rank 0; every rank takes part in the forward passes."""
    preprocessor = session.engine.module.encoder().preprocessor
    if "image_size" not in preprocessor:
        return None
    view = PlainImage.model_validate({k: preprocessor[k] for k in PlainImage.model_fields if k in preprocessor})
    features, labels = [], []
    for batch in _batches(session, dataset, view, PROBE_ROWS, samples):
        keep = (batch.weight > 0) & (batch["label"] >= 0)
        features.append(session.engine.embed(view.batch(batch.to(session.world.device))).float().cpu()[keep])
        labels.append(batch["label"][keep])
    mine = (torch.cat(features).numpy(), torch.cat(labels).numpy())
    parts = session.world.gather_object(mine)
    if session.world.rank != 0:  # rank 0 judges alone
        return None
    x = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    y = torch.from_numpy(np.concatenate([part[1] for part in parts]))
    return (x, y) if len(y) else None


def _batches(session: Session, dataset: Dataset, view: View, batch_size: int, max_samples: int) -> Iterator[Batch]:
    """This rank's batches of a finite stream; raises ReadingError on every rank alike."""
    batches = finite_batches(
        dataset, view, seed=session.recipe.seed, batch_size=batch_size, rank=session.world.rank,
        world_size=session.world.world_size, workers=0, max_samples=max_samples,
    )  # fmt: skip
    return in_step(session.world, batches)


def _micro_rows(session: Session) -> int:
    train = session.recipe.train
    return train.global_batch // (train.accumulation * session.world.world_size)


def _write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    Image.fromarray(picture).save(partial, format="PNG")
    partial.replace(path)
