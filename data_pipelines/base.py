"""What every room shares: the error tree, strict configs, overrides, digests, atomic files.

ThalwegError           exit code 1
    UserError          recipe, path or flag at fault; exit code 2
    SavedAndStopped    saved, wants to be started again; exit code 85
    DataError          the data cannot carry the run any further
        SampleError    one sample cannot be read or decoded; quarantined, never fatal by itself
    CheckpointError    damaged
        OtherModelError    whole, but of another model than the recipe's; exit code 2
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ThalwegError(Exception):
    """Root of all errors that are answered with one line instead of a traceback."""

    exit_code = 1


class UserError(ThalwegError):
    """The user's mistake: says what is wrong, where, and what to do."""

    exit_code = 2


class SavedAndStopped(ThalwegError):  # noqa: N818 - the name of an outcome, not of an error
    """A signal asked to stop; the state is on disk and the run wants to be started again."""

    exit_code = 85


class DataError(ThalwegError):
    """The data cannot carry the run any further."""


class SampleError(DataError):
    """One sample is unreadable; `reason` goes into the quarantine file."""

    def __init__(self, reason: str, *, key: str = "", shard: str = "") -> None:
        super().__init__(f"{reason} (key {key!r}, shard {shard!r})")
        self.reason, self.key, self.shard = reason, key, shard

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_sample_error, (self.reason, self.key, self.shard)


def _rebuild_sample_error(reason: str, key: str, shard: str) -> SampleError:
    return SampleError(reason, key=key, shard=shard)


class CheckpointError(ThalwegError):
    """A checkpoint is damaged."""


class OtherModelError(CheckpointError):
    """A whole checkpoint belongs to another model: the user's mistake, no start will mend it."""

    exit_code = 2


class Strict(BaseModel):
    """Base of every config: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Config = TypeVar("Config", bound=BaseModel)

_BASE_60 = re.compile(r"[-+]?\d+(:\d+)+")
"""YAML 1.1 reads 1:30 as ninety; here it is START:STOP."""


def parse(model: type[Config], tree: Mapping[str, Any], where: str) -> Config:
    """Build `model` from plain data.

    Args:
        where: shown in front of every complaint, e.g. "recipe mae_debug, optim".

    Raises:
        UserError: one line that names the first wrong key or value, and the nearest known key.
    """
    try:
        return model.model_validate(dict(tree))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _fields_at(model, first["loc"][:-1])
            raise UserError(f"{where}: unknown key {path!r}{did_you_mean(str(first['loc'][-1]), known)}") from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise UserError(f"{where}: {path or 'value'}: {message}{got}") from None


def _fields_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the submodel that `path` leads to."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return list(current.model_fields)
        current = models[0]
    return list(current.model_fields)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of `known`, else the list of what there is."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `tree` with `a.b=value` applied; values are read as YAML.

    Raises:
        UserError: an override has no "=", or walks through a value that is no mapping.
    """
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise UserError(f"override {override!r} is not of the form key=value")
        *parents, last = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override {override!r}: {parent!r} holds a value, not a group of keys")
        try:
            node[last] = text if _BASE_60.fullmatch(text) else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not YAML ({' '.join(str(error).split())})") from None
    return result


def canonical_json(value: Any) -> bytes:
    """The one spelling of a value that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(value: Any) -> str:
    """32 hex digits that name a JSON-like value."""
    return hashlib.blake2b(canonical_json(value), digest_size=16).hexdigest()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a name must never stand over unwritten bytes
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
