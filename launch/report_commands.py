"""`thalweg report`: one static page about one run, or about several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report`."""
    parser = subparsers.add_parser(
        "report", help="one static HTML page about runs: curves, probes, pictures, provenance"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; several share their curves")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the first run)")
    parser.set_defaults(run=write)


def write(options: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from evals.report import write_report

    print(write_report(options.runs, options.out))
    return 0
