"""All that the report knows of one run, read once; everything in it may have been written by a stranger."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from data_pipelines.base import UserError
from data_pipelines.quarantine import num_bad
from data_pipelines.quarantine import read_lines as read_quarantine
from pretrain.run.attempt import is_alive
from pretrain.run.directory import RunDirectory
from pretrain.run.records import read_lines

ALARMS = ("collapse", "divergence", "starvation")
"""Kinds of events by which the monitors ask for a look at the run."""


@dataclass(frozen=True)
class Judgement:
    """One result file of one eval.

    Attributes:
        eval_name: e.g. "linear_probe".
        step: of the checkpoint that was judged.
        protocol: versioned id; numbers of two protocols are not comparable.
        metrics: finite numbers by name.
        controls: the same metrics of each control, by its name.
        config: what was asked.
        data: name, path, digest and samples of "train" and "test".
        digest: of protocol, settings and data; names what may be compared.
        pictures: PNG files by name, perhaps gone.
        animations: WebP files by name, perhaps gone.
        details: plain data, of any shape.
    """

    eval_name: str
    step: int
    protocol: str
    metrics: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]]
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    digest: str
    pictures: Mapping[str, Path] = field(default_factory=dict)
    animations: Mapping[str, Path] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str, str]:
        """Equal for what may be compared."""
        return self.eval_name, self.protocol, self.digest


@dataclass(frozen=True)
class Sketch:
    """A picture the objective drew of what it does."""

    name: str
    step: int
    path: Path


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it at this moment.

    Attributes:
        info: run.json.
        config_text: config.yaml as it stands.
        metrics: lines that no later attempt overwrote, by step.
        attempts: records by number.
        judgements: by eval and step.
        sketches: by step and name.
        quarantined: slots whose sample was unreadable and replaced.
        reached: by attempt the last step it logged, done again by later ones or not.
        alive: whether a process works on the run.
    """

    directory: RunDirectory
    info: Mapping[str, Any]
    config_text: str
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    attempts: Mapping[int, Mapping[str, Any]]
    judgements: list[Judgement]
    sketches: list[Sketch]
    quarantined: int
    reached: Mapping[int, int]
    alive: bool
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """The run at, or around, `path`.

        Raises:
            UserError: there is no run, or its files are not what a run writes.
        """
        directory = RunDirectory.open(path)
        try:
            return cls._of(directory)
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise UserError(f"run {directory.root}: its files are not what a run writes ({error})") from None

    @classmethod
    def _of(cls, directory: RunDirectory) -> RunRecord:
        attempts = directory.attempts()
        config_text = _text(directory.root / "config.yaml")
        return cls(
            directory=directory,
            info=directory.info(),
            config_text=config_text,
            config=_tree(config_text),
            metrics=sorted(
                (line for line in directory.metrics() if _step(line) is not None), key=lambda line: line["step"]
            ),
            events=directory.events(),
            ledger=directory.ledger(),
            attempts=attempts,
            judgements=_judgements(directory.evals),
            sketches=_sketches(directory.sketches),
            quarantined=_quarantined(directory.quarantine),
            reached=_reached(directory),
            alive=bool(attempts) and is_alive(directory.attempts_folder, max(attempts)),
        )

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.info.get("name") or self.directory.name)

    @property
    def address(self) -> str:
        """The run's folder as commands name it, without the machine's own path."""
        root = self.directory.root.absolute()
        return f"{root.parent.name}/{root.name}"

    @property
    def objective(self) -> Mapping[str, Any]:
        """The recipe's objective."""
        return _mapping(self.config.get("objective"))

    @cached_property
    def step(self) -> int:
        """Steps done, as far as the logs tell."""
        return int(max((line["step"] for line in self.metrics), default=0))

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, where it is known."""
        planned = self.info.get("steps")
        return int(planned) if is_number(planned) else None

    @property
    def finished(self) -> bool:
        """Whether the last step was done."""
        return any(event.get("kind") == "end" for event in self.events)

    @cached_property
    def position(self) -> int:
        """Samples drawn so far, G of the newest ledger line, else steps times the global batch."""
        drawn = [line["position"] for line in self.ledger if is_number(line.get("position"))]
        batch = _mapping(self.config.get("train")).get("global_batch")
        return int(max(drawn)) if drawn else self.step * int(batch if is_number(batch) else 0)

    @cached_property
    def restarts(self) -> list[int]:
        """Steps at which a later attempt took over."""
        began = [record.get("began_at_step") for number, record in self.attempts.items() if number > min(self.attempts)]
        return [int(step) for step in began if is_number(step)]

    @cached_property
    def alarms(self) -> list[tuple[str, int, str]]:
        """(kind, step, words) of every alarm, in order."""
        return [
            (event["kind"], _step(event) or 0, str(event.get("words", "")))
            for event in self.events
            if event.get("kind") in ALARMS
        ]

    def curve(self, key: str) -> np.ndarray:
        """(N, 2) steps and values of one metric; values that are not finite stand as NaN."""
        points = [(line["step"], _value(line[key])) for line in self.metrics if _is_measured(line.get(key))]
        return np.array(points, dtype=float).reshape(-1, 2)

    def latest(self, key: str) -> float | None:
        """Newest finite value of one metric."""
        values = self.curve(key)[:, 1]
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from JSON is a finite number (True and False are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_measured(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(value: float) -> float:
    return float(value) if abs(value) < 1e30 else math.nan


def _step(line: Mapping[str, Any]) -> int | None:
    step = line.get("step")
    return int(step) if is_number(step) and 0 <= step < 1e15 else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _tree(text: str) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(text))
    except yaml.YAMLError:
        return {}


def _judgements(folder: Path) -> list[Judgement]:
    found = (_judgement(path) for path in sorted(folder.glob("step-*/*.json")))
    return sorted((one for one in found if one), key=lambda one: (one.eval_name, one.digest, one.step))


def _judgement(path: Path) -> Judgement | None:
    """A result file; None for a damaged one, or one of something else."""
    try:
        result = _mapping(json.loads(path.read_text()))
        step = int(path.parent.name.removeprefix("step-"))
    except (ValueError, OSError):
        return None
    name, _, digest = path.stem.rpartition("-")
    metrics = _numbers(result.get("metrics"))
    if not metrics:
        return None
    controls = {str(control): _numbers(values) for control, values in _mapping(result.get("controls")).items()}
    return Judgement(
        eval_name=str(result.get("name") or name or path.stem),
        step=step,
        protocol=str(result.get("protocol", "")),
        metrics=metrics,
        controls={control: values for control, values in controls.items() if values},
        config=_mapping(result.get("config")),
        data=_mapping(result.get("data")),
        digest=digest,
        pictures=_files(result.get("pictures"), path.parent / "pictures"),
        animations=_files(result.get("animations"), path.parent / "pictures"),
        details=_mapping(result.get("details")),
    )


def _files(names: Any, folder: Path) -> dict[str, Path]:
    """Files of `folder` by name; what leads out of it is no file of the result."""
    return {str(name): folder / file for name, file in _mapping(names).items() if file == Path(str(file)).name}


def _numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    """Finite numbers of nested mappings, their keys joined by spaces."""
    numbers: dict[str, float] = {}
    for key, value in _mapping(tree).items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            numbers |= _numbers(value, name)
        elif is_number(value):
            numbers[name] = float(value)
    return numbers


def _sketches(folder: Path) -> list[Sketch]:
    pictures = []
    for path in sorted(folder.glob("step-*/*.png")):
        digits = path.parent.name.removeprefix("step-")
        if digits.isdecimal():
            pictures.append(Sketch(path.stem, int(digits), path))
    return sorted(pictures, key=lambda sketch: (sketch.step, sketch.name))


def _reached(directory: RunDirectory) -> dict[int, int]:
    reached: dict[int, int] = {}
    for name in ("metrics.jsonl", "ledger.jsonl"):
        for line in read_lines(directory.root / name):
            attempt, step = line.get("attempt"), _step(line)
            if isinstance(attempt, int) and step is not None:
                reached[attempt] = max(step, reached.get(attempt, 0))
    return reached


def _quarantined(folder: Path) -> int:
    try:
        return num_bad(read_quarantine(folder))
    except ValueError:
        return 0
