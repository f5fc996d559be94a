"""Evals: one file each, run as a job of its own on an export, answered by a file beside the run.

An eval is a module with

    PROTOCOL = "name/1"         changes whenever its numbers may no longer be compared with older ones
    class Config(EvalConfig)    what may be chosen
    def run(encoder, data, config) -> Scores

One that takes many ranks has, instead of `run`,

    def run_on_ranks(encoder, data, config, place) -> Scores

which every rank of the job calls, for the same scores; the first of them writes the result. See `evals.workplace`.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import Field

from data_pipelines.base import Strict, UserError, apply_overrides, did_you_mean, digest_of, parse, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from data_pipelines.shards import Dataset
    from evals.subject import Subject
    from evals.workplace import Workplace
    from pretrain.export import LoadedEncoder

EVALS = {
    "finetune": "evals.finetune",
    "knn": "evals.knn",
    "linear_probe": "evals.linear_probe",
    "segmentation_forecasting": "evals.segmentation_forecasting",
    "linear_probe_mae": "evals.linear_probe_mae",
    "linear_probe_mocov3": "evals.linear_probe_mocov3",
    "translation": "evals.translation",
}
GROUP = "thalweg.evals"
"""Entry-point group under which third parties register modules of theirs."""

FRAMES_PER_SECOND = 2
"""Of animations: slow enough to compare what stands side by side."""


class DataPaths(Strict):
    """Packed sets, or globs of tars."""

    train: str | None = None
    """What probes learn from; the run's own training set when unset."""
    test: str | None = None
    """What they are judged by; the run's validation set when unset."""


class EvalConfig(Strict):
    """What every eval can be told."""

    data: DataPaths = DataPaths()

    def settings(self) -> dict[str, Any]:
        """All but the data's addresses: what numbers depend on, besides the data's content."""
        return self.model_dump(mode="json", exclude={"data"})


@dataclass(frozen=True)
class EvalData:
    """The opened data of an eval."""

    train: Dataset
    test: Dataset

    def digests(self) -> dict[str, str]:
        """Content by role."""
        return {"train": self.train.digest, "test": self.test.digest}

    def facts(self) -> dict[str, dict[str, Any]]:
        """What a result says of its data, by role."""
        roles = {"train": self.train, "test": self.test}
        return {
            role: {"name": data.name, "path": data.path, "digest": data.digest, "samples": data.num_samples}
            for role, data in roles.items()
        }


@dataclass(frozen=True)
class Scores:
    """What an eval found.

    Attributes:
        metrics: by flat name, e.g. "top1@10"; shares in [0, 1] unless the name says otherwise.
        controls: the same names for "raw" and "random_init".
        pictures: (H, W, 3) uint8 by name.
        animations: (T, H, W, 3) uint8 by name, shown at `FRAMES_PER_SECOND`.
        details: plain data that a reader wants beside the numbers, as JSON can hold it.
    """

    metrics: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]]
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    animations: Mapping[str, np.ndarray] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Result(Strict):
    """The file of one eval of one checkpoint; everything a number needs beside it."""

    name: str
    protocol: str
    run: str | None
    step: int | None
    metrics: dict[str, float]
    """See `Scores`."""
    controls: dict[str, dict[str, float]]
    """See `Scores`."""
    pictures: dict[str, str]
    """File names in `pictures/` beside this file."""
    animations: dict[str, str] = Field(default_factory=dict)
    """Likewise, animated WebP."""
    details: dict[str, Any] = Field(default_factory=dict)
    """See `Scores`."""
    config: dict[str, Any]
    data: dict[str, dict[str, Any]]
    """Name, path, digest and samples of "train" and "test"."""
    checkpoint: str
    """Digest of the checkpoint's manifest, or of the weights where only an export was given."""
    code: str
    """Version of thalweg."""
    seconds: float
    created: float
    """Unix time."""


class Eval(Protocol):
    """What a module must hold to be an eval: one of the two functions, see above."""

    PROTOCOL: str
    Config: type[EvalConfig]

    def run(self, encoder: LoadedEncoder, data: EvalData, config: Any) -> Scores:
        """Judge in this process."""
        ...

    def run_on_ranks(self, encoder: LoadedEncoder, data: EvalData, config: Any, place: Workplace) -> Scores:
        """Judge on every rank of the job."""
        ...


def takes_many_ranks(module: Eval) -> bool:
    """Whether every rank of a job is to call the eval."""
    return hasattr(module, "run_on_ranks")


def eval_names() -> list[str]:
    """All that can be asked for, sorted; nothing is imported."""
    return sorted({*EVALS, *(point.name for point in entry_points(group=GROUP))})


def eval_module(name: str) -> Eval:
    """Import the eval that `name` stands for.

    Raises:
        UserError: no such eval (nearest named).
    """
    if name in EVALS:
        module: Any = import_module(EVALS[name])
        return cast(Eval, module)
    for point in entry_points(group=GROUP, name=name):
        loaded: Eval = point.load()
        return loaded
    raise UserError(f"eval {name!r} does not exist{did_you_mean(name, eval_names())}")


@dataclass(frozen=True)
class Order:
    """An eval, a subject, data and settings: all that is known before anything is computed."""

    name: str
    module: Eval
    subject: Subject
    config: EvalConfig
    data: EvalData

    @property
    def path(self) -> Path:
        """Where the result stands; the same settings and data have the same name at every checkpoint."""
        digest = digest_of([self.module.PROTOCOL, self.config.settings(), self.data.digests()])
        return self.subject.results / f"{self.name}-{digest[:16]}.json"

    def known(self) -> Result | None:
        """The result, if this very checkpoint was judged before."""
        try:
            result = Result.model_validate_json(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return result if result.checkpoint == self.subject.digest else None


def order_eval(name: str, checkpoint: str | Path, overrides: Sequence[str] = ()) -> Order:
    """Resolve everything; touches only small files.

    Args:
        checkpoint: see `evals.subject.find_subject`.
        overrides: `key=value` of the eval's Config.

    Raises:
        UserError: no such eval, checkpoint, key or data.
    """
    from evals.subject import find_subject

    module, subject = eval_module(name), find_subject(checkpoint)
    config = parse(module.Config, apply_overrides({}, overrides), f"eval {name}")
    config = config.model_copy(update={"data": _complete(config.data, subject)})
    return Order(name, module, subject, config, _open(config.data))


def run_eval(name: str, checkpoint: str | Path, overrides: Sequence[str] = (), *, force: bool = False) -> Result:
    """Judge a checkpoint and write the result beside its run; a result that is there is only read.

    Args:
        checkpoint: see `evals.subject.find_subject`.
        overrides: `key=value` of the eval's Config.
        force: judge again.

    Raises:
        UserError: no such eval, checkpoint, key or data, or data without labels.
        CheckpointError: the checkpoint is damaged or of another model.
    """
    if takes_many_ranks(eval_module(name)):
        return _run_on_ranks(name, checkpoint, overrides, force)
    order = order_eval(name, checkpoint, overrides)
    known = order.known()
    if known is not None and not force:
        return known
    began = time.monotonic()
    return _write(order, order.module.run(order.subject.open(), order.data, order.config), began)


def _run_on_ranks(name: str, checkpoint: str | Path, overrides: Sequence[str], force: bool) -> Result:
    """`run_eval` on each rank of the job: what one of them alone may see or do, the first does."""
    from evals.subject import find_subject
    from evals.workplace import Workplace, ranks
    from pretrain.session import on_rank_0

    began = time.monotonic()
    with ranks() as (world, stop):
        newest = on_rank_0(world, lambda: find_subject(checkpoint).address)  # a run at work may save meanwhile
        order = order_eval(name, newest, overrides)
        known: Result | None = on_rank_0(world, order.known)
        if known is not None and not force:
            return known
        folder = order.path.with_name(f"{order.path.stem}-{order.subject.digest[:8]}")
        if force:
            on_rank_0(world, lambda: shutil.rmtree(folder, ignore_errors=True))
        on_rank_0(world, order.subject.make_export)
        place = Workplace(world, folder, stop)
        scores = order.module.run_on_ranks(order.subject.open(), order.data, order.config, place)
        return on_rank_0(world, lambda: _write(order, scores, began))


def _write(order: Order, scores: Scores, began: float) -> Result:
    result = Result(
        name=order.name,
        protocol=order.module.PROTOCOL,
        run=order.subject.run.name if order.subject.run else None,
        step=order.subject.step,
        metrics=dict(scores.metrics),
        controls={control: dict(metrics) for control, metrics in scores.controls.items()},
        pictures=_write_pictures(scores.pictures, order.path),
        animations=_write_animations(scores.animations, order.path),
        details=dict(scores.details),
        config=order.config.model_dump(mode="json"),
        data=order.data.facts(),
        checkpoint=order.subject.digest,
        code=version("thalweg"),
        seconds=round(time.monotonic() - began, 3),
        created=time.time(),
    )
    write_atomically(order.path, json.dumps(result.model_dump(), indent=1, ensure_ascii=False) + "\n")
    return result


def _complete(paths: DataPaths, subject: Subject) -> DataPaths:
    """Fill what was not named with the run's own data."""
    if paths.train and paths.test:
        return paths
    if subject.run is None:
        raise UserError(
            f"{subject.export} belongs to no run whose data could be used; set data.train=... data.test=..."
        )
    own = subject.run.recipe().data
    train = paths.train or (own.mixture()[0].path if len(own.mixture()) == 1 else None)
    test = paths.test or own.validation
    for role, path in {"train": train, "test": test}.items():
        if path is None:
            raise UserError(
                f"run {subject.run.name} does not say which set to {role} an eval on; set data.{role}=FOLDER"
            )
    return DataPaths(train=train, test=test)


def _open(paths: DataPaths) -> EvalData:
    from data_pipelines.shards import Dataset

    assert paths.train is not None and paths.test is not None
    data = EvalData(Dataset.open(paths.train), Dataset.open(paths.test))
    if data.train.digest == data.test.digest:
        raise UserError(
            f"data.train and data.test are the same set ({paths.train}, {paths.test}); a probe would only recall"
        )
    return data


def _write_pictures(pictures: Mapping[str, np.ndarray], result: Path) -> dict[str, str]:
    from PIL import Image

    names = {}
    for name, picture in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        names[name] = f"{result.stem}-{name}.png"
        write_atomically(result.parent / "pictures" / names[name], buffer.getvalue())
    return names


def _write_animations(animations: Mapping[str, np.ndarray], result: Path) -> dict[str, str]:
    from PIL import Image

    names = {}
    for name, frames in animations.items():
        first, *rest = (Image.fromarray(frame) for frame in frames)
        buffer = io.BytesIO()
        first.save(
            buffer, format="WEBP", save_all=True, append_images=rest, duration=1000 // FRAMES_PER_SECOND, loop=0,
            quality=80,
        )  # fmt: skip
        names[name] = f"{result.stem}-{name}.webp"
        write_atomically(result.parent / "pictures" / names[name], buffer.getvalue())
    return names
