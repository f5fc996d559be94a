"""Two runs side by side: where their configs part, their last figures, their evals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pretrain.run.directory import RunDirectory

Row = tuple[str, str, str]
"""What, in the first run, in the second."""

LEFT_OUT = {"time", "attempt"}


def compare(first: RunDirectory, second: RunDirectory) -> dict[str, list[Row]]:
    """Rows by heading; of config and data only what differs."""
    return {
        "config": _differences(*(_config(run) for run in (first, second))),
        "data": _differences(*(run.info()["data"] for run in (first, second))),
        "last figures": _rows(*(_last(run) for run in (first, second))),
        "evals": _rows(*(_evals(run) for run in (first, second))),
    }


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    return [row for row in _rows(first, second) if row[1] != row[2]]


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    return [(name, _text(first.get(name)), _text(second.get(name))) for name in {**first, **second}]


def _config(run: RunDirectory) -> dict[str, Any]:
    return _flat(run.recipe().model_dump(mode="json", exclude={"name", "summary"}))


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return leaves


def _last(run: RunDirectory) -> dict[str, float]:
    """The newest value of every figure: validation and probes are measured more rarely than the loss."""
    return {name: value for line in run.metrics() for name, value in line.items() if name not in LEFT_OUT}


def _evals(run: RunDirectory) -> dict[str, float]:
    """Metrics of the newest result of each eval, by "NAME-DIGEST metric": equal digests asked the same question."""
    metrics = {}
    for path in sorted(run.evals.glob("step-*/*.json")):
        for name, value in json.loads(path.read_text())["metrics"].items():
            metrics[f"{path.stem} {name}"] = value
    return metrics


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
