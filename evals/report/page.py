"""The report: one static page, no network, no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipelines.base import UserError, write_atomically
from evals.report import curves, judging, life, provenance
from evals.report.closeup import closeup_of
from evals.report.forecasting import MEASURES, PUBLISHED_MEASURES, forecastings_of
from evals.report.pictures import PAGE_BYTES, SketchFigure, sketch_figures
from evals.report.record import RunRecord
from evals.report.timeline import timeline
from evals.report.translating import PUBLISHED as PUBLISHED_TRANSLATIONS
from evals.report.translating import translating_of
from evals.report.verdict import verdict

HERE = Path(__file__).parent

SKETCHES = {
    "reconstructions": (
        "Masked reconstructions of validation samples: above, the originals; in the middle, what the encoder is given, "
        "hidden patches left grey; below, the hidden patches as the decoder paints them."
    ),
    "views": "Two views of each sample, above and below; the objective pulls the embeddings of each pair together.",
}
"""Captions of sketches by name; others are called by their name."""


def write_report(runs: Sequence[Path], out: Path | None) -> Path:
    """Write one page about one run, or about several runs side by side.

    Args:
        runs: folders of runs, or any path inside one.
        out: the page; None puts `report.html` into the first run's folder.

    Returns:
        The page's path.

    Raises:
        UserError: no run given, a path holds none, or the page cannot be written there.
    """
    if not runs:
        raise UserError("report: name at least one run's folder")
    records = [RunRecord.read(Path(path)) for path in dict.fromkeys(runs)]
    target = out or records[0].directory.root / "report.html"
    try:
        write_atomically(target, page(records))
    except OSError as error:
        raise UserError(
            f"report {target}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None
    return target


def page(runs: Sequence[RunRecord]) -> str:
    """The whole page as HTML."""
    style = (HERE / "style.css").read_text()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    groups = judging.groups(runs)
    facts = [provenance.facts(run) for run in runs]
    return environment.get_template("page.html.j2").render(
        style=_verbatim(style),
        style_hash=_source_hash(style),
        title=" · ".join(run.name for run in runs),
        summary=str(runs[0].config.get("summary") or "") if len(runs) == 1 else "",
        runs=[_run(run, PAGE_BYTES // len(runs)) for run in runs],
        facts=[(rows[0][0], [value for _, value in rows]) for rows in zip(*facts, strict=True)],
        progress_charts=curves.charts(runs, curves.PROGRESS),
        own_charts=curves.charts(runs, curves.own_curves(runs)),
        collapse_charts=curves.charts(runs, curves.COLLAPSE),
        restarts=any(run.restarts for run in runs),
        alarms=any(run.alarms for run in runs),
        groups=groups,
        controls=list(judging.CONTROLS.values()),
        judging_charts=judging.progress(runs),
        forecast_measures=list(MEASURES.values()),
        translation_published=PUBLISHED_TRANSLATIONS,
        forecast_published=[MEASURES[name] for name in PUBLISHED_MEASURES],
    )


def _run(run: RunRecord, room_bytes: int) -> Mapping[str, Any]:
    """What the template shows of each run by itself."""
    return {
        "name": run.name,
        "address": run.address,
        "verdict": verdict(run),
        "sketches": _by_name(sketch_figures(run, room_bytes)),
        "closeup": closeup_of(run),
        "forecastings": forecastings_of(run, room_bytes),
        "translating": translating_of(run),
        "attempts": life.attempt_rows(run),
        "lost": life.lost(run),
        "timeline": timeline(run),
        "ledger": life.ledger_words(run),
        "events": life.event_rows(run),
        "events_summary": life.events_summary(run),
        "commands": provenance.commands(run),
        "provenance": provenance.provenance(run),
        "config_text": provenance.config_text(run),
    }


def _by_name(figures: Sequence[SketchFigure]) -> list[tuple[str, list[SketchFigure]]]:
    names = dict.fromkeys(figure.name for figure in figures)
    return [
        (SKETCHES.get(name, f"{name.replace('_', ' ').capitalize()}."), [one for one in figures if one.name == name])
        for name in names
    ]


def _source_hash(text: str) -> str:
    """The one style that the content security policy lets through."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _verbatim(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # our own file: escaped it would be another style, with another hash
