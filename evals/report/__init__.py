"""`thalweg report`: what a run is and whether it is well, as one static page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """See `evals.report.page.write_report`; imported here only when it is called."""
    from evals.report.page import write_report as write

    return write(runs, out)
