"""The run directory: a run is a folder that anyone can read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.base import UserError, digest_of, parse, write_atomically
from pretrain.config import Recipe, identity
from pretrain.run.attempt import attempts, began
from pretrain.run.records import read_lines, surviving

SCHEMA = 1


@dataclass(frozen=True)
class RunDirectory:
    """Names and readers of a run's files; writing is the business of its attempt."""

    root: Path

    @classmethod
    def of(cls, recipe: Recipe) -> RunDirectory:
        """Where `recipe` runs.

        Raises:
            UserError: the run's name would leave the folder of runs.
        """
        name = recipe.name
        if not name or name.startswith(".") or any(c in name for c in "/\\\0\n\r"):
            raise UserError(f"name={name!r}: a run's name is one folder name, without slashes, not starting with a dot")
        return cls(Path(recipe.runs) / name)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run, by its folder or any path inside it.

        Raises:
            UserError: there is no run.
        """
        given = Path(path)
        for folder in (given, *given.absolute().parents):
            if (folder / "run.json").is_file():
                return cls(folder)
        raise UserError(f"{path}: no run here (a run's folder holds run.json); `thalweg runs list` shows what there is")

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def attempts_folder(self) -> Path:
        """One file a start."""
        return self.root / "attempts"

    @property
    def checkpoints(self) -> Path:
        """Full states."""
        return self.root / "checkpoints"

    @property
    def exports(self) -> Path:
        """Encoders in transformers' format."""
        return self.root / "exports"

    @property
    def evals(self) -> Path:
        """Results by checkpoint."""
        return self.root / "evals"

    @property
    def sketches(self) -> Path:
        """Pictures the objective drew, by step."""
        return self.root / "sketches"

    def logs(self, attempt: int) -> Path:
        """Log files of one attempt."""
        return self.root / "logs" / f"attempt-{attempt}"

    @property
    def quarantine(self) -> Path:
        """Replaced samples, one file a rank."""
        return self.root / "quarantine"

    def exists(self) -> bool:
        """Whether the run was ever set up."""
        return (self.root / "run.json").is_file()

    def create(self, recipe: Recipe, info: Mapping[str, Any]) -> None:
        """Lay the folder down; run.json comes last and makes it a run.

        Raises:
            UserError: the disk refuses.
        """
        facts = {"schema": SCHEMA, "name": recipe.name, "created": time.time(), **info}
        facts["identity"] = identity(recipe)
        facts["identity_digest"] = digest_of(facts["identity"])
        try:
            self.update_config(recipe)
            write_atomically(self.root / "run.json", json.dumps(facts, indent=1, ensure_ascii=False))
        except OSError as error:
            raise UserError(
                f"run {self.root}: cannot be written ({error.strerror}); make room, or name another folder (runs=...)"
            ) from None

    def update_config(self, recipe: Recipe) -> None:
        """Write the recipe anew after a change of what may change on resume."""
        tree = recipe.model_dump(mode="json")
        write_atomically(self.root / "config.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))

    def info(self) -> dict[str, Any]:
        """run.json.

        Raises:
            UserError: the file is damaged or of another schema.
        """
        try:
            info: dict[str, Any] = json.loads((self.root / "run.json").read_text())
        except ValueError:
            raise UserError(f"run {self.root}: run.json is damaged") from None
        if info.get("schema") != SCHEMA:
            raise UserError(f"run {self.root}: run.json has schema {info.get('schema')!r}, this program reads {SCHEMA}")
        return info

    def recipe(self) -> Recipe:
        """The fully resolved recipe."""
        tree = yaml.safe_load((self.root / "config.yaml").read_text())
        return parse(Recipe, tree, f"{self.root}/config.yaml")

    def refuse_other(self, recipe: Recipe, data: Mapping[str, str]) -> None:
        """Raises UserError with the diff when `recipe` or its data are not this run's.

        Args:
            data: digests by dataset name; sets may join a run, none may be exchanged or leave it.
        """
        known: dict[str, str] = self.info()["data"]
        old = {**self.info()["identity"], "data_digests": known}
        new = {**identity(recipe), "data_digests": {name: data.get(name) for name in known}}
        changes = [
            f"{path}: {_short(a)} -> {_short(b)}" for path, a, b in _differences(old, json.loads(json.dumps(new)))
        ]
        if changes:
            raise UserError(
                f"run {self.root} exists and is another one: {'; '.join(changes[:6])}. Give this one a "
                f"name (name=...), or start `--new-run`; to begin from the old weights add init_from={self.root}"
            )

    def attempts(self) -> dict[int, dict[str, Any]]:
        """Records of all attempts, by number."""
        return attempts(self.attempts_folder)

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, without those that a later attempt overwrote."""
        return self._lines("metrics.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """Lines of events.jsonl, all of them: what happened, happened."""
        return read_lines(self.root / "events.jsonl")

    def ledger(self) -> list[dict[str, Any]]:
        """Lines of ledger.jsonl, without those that a later attempt overwrote."""
        return self._lines("ledger.jsonl")

    def finished(self) -> bool:
        """Whether the run reached its last step, and was not rolled back since."""
        last = self.checkpoints / f"step-{self.info()['steps']:08d}"
        return last.is_dir() and any(event.get("kind") == "end" for event in self.events())

    def awaiting_export(self) -> set[int]:
        """Steps whose checkpoints must stay: an export of them is being made, or an eval has yet to make it."""
        marks = (path for path in self.exports.glob(".step-*") if path.is_dir())
        return {int(mark.name.split("-")[1].split(".")[0]) for mark in marks}

    def status(self) -> str:
        """ "finished", "running", "stopped" or "young", without waiting for a heartbeat."""
        records = self.attempts()
        if self.finished():
            return "finished"
        if not records:
            return "young"
        return "stopped" if records[max(records)].get("status") == "ended" else "running"

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return surviving(read_lines(self.root / name), began(self.attempts_folder))


def run_directories(folder: Path) -> list[RunDirectory]:
    """The runs below `folder`, by name."""
    return [RunDirectory(path.parent) for path in sorted(folder.glob("*/run.json"))]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
