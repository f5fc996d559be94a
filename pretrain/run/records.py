"""Append-only line files of a run: one writer, any reader, at any moment."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class LineWriter:
    """Appends JSON objects, one a line; a line torn by a kill is closed off by the next writer."""

    def __init__(self, path: Path, **stamp: Any) -> None:
        """Args: stamp: fields put into every line, e.g. attempt=3."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stamp = stamp
        self._file = path.open("ab", buffering=0)
        if self._file.tell() and _last_byte(path) != b"\n":
            self._file.write(b"\n")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line with a single system call, so that readers never see half of two."""
        self._file.write(json.dumps({**self._stamp, **line}, ensure_ascii=False, allow_nan=True).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> LineWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn or half-written one is left out."""
    if not path.exists():
        return []
    lines = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def surviving(lines: Iterable[dict[str, Any]], began: Mapping[int, int]) -> list[dict[str, Any]]:
    """Lines that later attempts did not overwrite.

    Args:
        lines: with "attempt" and "step", the number of steps done when the line was written.
        began: by attempt, the steps that were done when it began.

    Returns:
        Lines of attempt n up to the step where a later attempt began, in file order.
    """
    limits: dict[int, int] = {}
    limit = sys.maxsize
    for attempt in sorted(began, reverse=True):
        limits[attempt] = limit
        limit = min(limit, began[attempt])
    return [line for line in lines if _step(line) <= limits.get(line.get("attempt", 0), sys.maxsize)]


def _step(line: Mapping[str, Any]) -> float:
    """The line's step; one that no number stands for was written by something else, and is left out."""
    step = line.get("step", 0)
    return step if isinstance(step, int | float) else float("inf")


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)
