"""Numbers of the evals beside their controls: a table with footnotes, and their way over the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.report.charts import Chart, Line
from evals.report.measures import A_SHARE, better, in_print, is_detail, natural, signed, spoken, written
from evals.report.record import Judgement, RunRecord, is_number
from evals.report.ticks import compact, grouped

CONTROLS = {"raw": "raw input", "random_init": "random init"}
"""Columns of the table, by the name of the control in a result file."""

Found = list[tuple[RunRecord, Judgement]]
"""Results that may be compared with each other, with their runs."""


@dataclass(frozen=True)
class Cell:
    """One number; `best` among all that may be compared with it."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One measure of one run's newest judged checkpoint.

    Attributes:
        span: rows that share the measure, counted at the first of them; 0 at the others.
    """

    measure: str
    span: int
    run: str
    step: str
    value: Cell
    controls: tuple[Cell, ...]
    gain: str


@dataclass(frozen=True)
class Group:
    """Rows of one eval, protocol and data; only these may be compared with each other.

    Attributes:
        letter: leads to the footnote `note`.
    """

    letter: str
    title: str
    note: str
    rows: tuple[Row, ...]


def groups(runs: Sequence[RunRecord]) -> list[Group]:
    """The probe table, eval by eval; of each run the newest checkpoint that was judged."""
    found: dict[tuple[str, str, str], dict[str, tuple[RunRecord, Judgement]]] = {}
    for run in runs:
        for one in sorted(run.judgements, key=lambda one: one.step):
            if all(is_detail(name) for name in one.metrics):
                continue  # has a table of its own
            found.setdefault(one.kind, {})[run.address] = (run, one)
    return [
        _group(chr(ord("a") + index % 26), list(newest.values()))
        for index, (_, newest) in enumerate(sorted(found.items()))
    ]


def _group(letter: str, found: Found) -> Group:
    names = sorted({name for _, one in found for name in one.metrics if not is_detail(name)}, key=natural)
    first = found[0][1]
    note = "; ".join(part for part in (first.protocol, _data_words(first.data), _settings(first.config)) if part)
    rows = tuple(row for name in names for row in _rows(name, found))
    return Group(letter, spoken(first.eval_name), note, rows)


def _rows(name: str, found: Found) -> list[Row]:
    comparable = [
        values[name] for _, one in found for values in (one.metrics, *one.controls.values()) if name in values
    ]
    best = better(name, comparable)

    def cell(values: Mapping[str, float]) -> Cell:
        return Cell(written(name, values), values[name] == best) if name in values else Cell("–")

    having = [(run, one) for run, one in found if name in one.metrics]
    return [
        Row(
            measure=spoken(name),
            span=0 if index else len(having),
            run=run.name,
            step=grouped(one.step),
            value=cell(one.metrics),
            controls=tuple(cell(one.controls.get(control, {})) for control in CONTROLS),
            gain=_gain(name, one),
        )
        for index, (run, one) in enumerate(having)
    ]


def _gain(name: str, one: Judgement) -> str:
    """Over the better control, in points where the measure is a share."""
    controls = [values[name] for values in one.controls.values() if name in values]
    if not controls:
        return "–"
    return signed(in_print(name, one.metrics[name]) - in_print(name, better(name, controls)))


def _data_words(data: Mapping[str, Any]) -> str:
    facts = [(role, data[role]) for role in ("train", "test") if isinstance(data.get(role), Mapping)]
    return ", ".join(f"{role}ed on {each.get('name')} ({_plain(each.get('samples'))} samples)" for role, each in facts)


def _settings(config: Mapping[str, Any]) -> str:
    told = []
    for key, value in config.items():
        if isinstance(value, list):
            shown = ", ".join(map(_plain, value if len(value) <= 4 else [value[0], "…", value[-1]]))
            told.append(f"{key.replace('_', ' ')} {shown}")
        elif not isinstance(value, Mapping):
            told.append(f"{key.replace('_', ' ')} {_plain(value)}")
    return ", ".join(told)


def _plain(value: Any) -> str:
    return compact(value) if is_number(value) else str(value)


def best_of(judgements: Sequence[Judgement]) -> str:
    """The best share at the newest judged checkpoint in words, with its controls; empty without one."""
    shares = [
        (one.metrics[name], name, one)
        for one in judgements
        for name in one.metrics
        if A_SHARE.search(name) and not is_detail(name) and any(name in values for values in one.controls.values())
    ]
    if not shares:
        return ""
    last = max(one.step for _, _, one in shares)
    value, name, one = max((share for share in shares if share[2].step == last), key=lambda share: share[0])
    margins = [
        _margin(in_print(name, value) - in_print(name, one.controls[control][name]), words)
        for control, words in CONTROLS.items()
        if name in one.controls.get(control, {})
    ]
    return (
        f"the best probe ({spoken(one.eval_name)}, {spoken(name)}) reads {written(name, one.metrics)} at step "
        f"{grouped(one.step)}, {' and '.join(margins)}"
    )


def _margin(points: float, control: str) -> str:
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'} {control}"


def progress(runs: Sequence[RunRecord], most: int = 6) -> list[Chart]:
    """One picture a measure of how it grew over the checkpoints, the controls as level lines."""
    charts = []
    for kind in sorted({one.kind for run in runs for one in run.judgements}):
        by_run = [[one for one in run.judgements if one.kind == kind] for run in runs]
        names = {name for found in by_run for one in found for name in one.metrics if _is_drawn(name)}
        charts += [_growth(name, runs, by_run) for name in sorted(names, key=natural)]
    return [chart for chart in charts if chart.lines][:most]


def _is_drawn(name: str) -> bool:
    """Weighted votes go with the plain ones; a second picture of each would say little more."""
    return bool(A_SHARE.search(name)) and not is_detail(name) and not name.startswith("weighted")


def _growth(name: str, runs: Sequence[RunRecord], by_run: Sequence[Sequence[Judgement]]) -> Chart:
    lines = []
    for index, (run, found) in enumerate(zip(runs, by_run, strict=True)):
        points = sorted((one.step, in_print(name, one.metrics[name])) for one in found if name in one.metrics)
        if len(points) > 1:
            lines.append(Line(run.name if len(runs) > 1 else "", np.array(points, dtype=float), index))
    newest = max((one for found in by_run for one in found), key=lambda one: one.step)
    levels = [
        (words, in_print(name, newest.controls[control][name]))
        for control, words in CONTROLS.items()
        if name in newest.controls.get(control, {})
    ]
    return Chart(
        spoken(newest.eval_name),
        lines,
        spoken(name),
        levels=levels if len(runs) == 1 else (),  # controls of several networks would be told apart by nothing
        steps=(0, max(run.step for run in runs)),
    )
