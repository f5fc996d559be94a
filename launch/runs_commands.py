"""`thalweg runs`: look at runs, follow, compare and prove them, stop and start their jobs, clear up."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.base import UserError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `runs` and its actions."""
    parser = subparsers.add_parser("runs", help="list, show, follow, compare, verify, stop, requeue or prune runs")
    parser.set_defaults(run=list_runs, folder=Path("runs"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="all runs of a folder, one line each")
    listing.add_argument("folder", nargs="?", type=Path, default=Path("runs"))
    listing.set_defaults(run=list_runs)
    for name, handler, text in (
        ("show", show_run, "what a run is and how it stands"),
        ("follow", follow_run, "its figures as they are written, until it ends"),
        ("stop", stop, "ask its jobs to save and to stay down"),
        ("requeue", requeue, "start the latest job of a stopped run again, as it was submitted"),
        ("verify", verify_run, "recompute which samples it consumed and compare with its ledger"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("path", metavar="RUN", help="the run's folder")
        action.set_defaults(run=handler)
    comparison = actions.add_parser("compare", help="two runs side by side: config, last figures, evals")
    comparison.add_argument("paths", nargs=2, metavar="RUN", help="their folders")
    comparison.set_defaults(run=compare_runs)
    pruning = actions.add_parser("prune", help="delete the checkpoints that the run's recipe does not keep")
    pruning.add_argument("path", metavar="RUN", help="the run's folder")
    pruning.add_argument("--dry-run", action="store_true", help="name them, delete nothing")
    pruning.set_defaults(run=prune_run)


def list_runs(options: argparse.Namespace) -> int:
    """One line a run."""
    from pretrain.run.directory import run_directories

    runs = run_directories(options.folder)
    if not runs:
        raise UserError(f"no runs in {options.folder}; `thalweg pretrain RECIPE` makes one")
    for run in runs:
        metrics = run.metrics()
        step = metrics[-1]["step"] if metrics else 0
        loss = f"loss {metrics[-1]['loss']:.4g}" if metrics and "loss" in metrics[-1] else ""
        print(f"{run.name:32} {run.status():10} step {step}/{run.info()['steps']}  {loss}")
    return 0


def show_run(options: argparse.Namespace) -> int:
    """Identity, state, latest figures, checkpoints, evals."""
    from launch.watch import failures
    from pretrain.checkpoint import committed
    from pretrain.run.directory import RunDirectory

    run = RunDirectory.open(options.path)
    info, metrics = run.info(), run.metrics()
    print(f"{run.root}: {run.status()}, {len(run.attempts())} attempt(s), code {info['code']}")
    print(f"  objective    {info['identity']['objective']['name']}, {info['parameters']:,} parameters")
    print(
        f"  data         {', '.join(f'{n} ({d[:12]})' for n, d in info['data'].items())}: {info['samples']:,} samples"
    )
    print(f"  checkpoints  {', '.join(map(str, committed(run.checkpoints))) or 'none'} of {info['steps']} steps")
    for path in sorted(run.evals.glob("step-*/*.json")):
        print(f"  eval         {path.parent.name} {path.stem}")
    for failure in failures(run.root):
        print(f"  eval FAILED  {failure}")
    if metrics:
        print("  latest       " + "  ".join(f"{k}={v:.4g}" for k, v in metrics[-1].items() if k != "time"))
    for event in run.events()[-8:]:
        print(f"  event        {_told(event)}")
    return 0


def _told(event: Mapping[str, Any]) -> str:
    """One line; a checkpoint is told by its own step, since it is written while later steps are made."""
    if event.get("kind") == "checkpoint":
        return f"step {event.get('step')}: checkpoint of step {event.get('checkpoint')} written"
    return f"step {event.get('step')}: {event.get('kind')}: {event.get('words', '')}"


def follow_run(options: argparse.Namespace) -> int:
    """New lines of metrics and events until the run ends or nobody works on it."""
    from pretrain.run.attempt import is_alive
    from pretrain.run.directory import RunDirectory

    run = RunDirectory.open(options.path)
    steps = run.info()["steps"]
    shown_metrics = shown_events = 0
    while True:
        metrics, events = run.metrics(), run.events()
        for event in events[shown_events:]:
            print(_told(event), flush=True)
        for number in range(shown_metrics, len(metrics)):
            line = metrics[number]
            figures = "  ".join(f"{k}={v:.4g}" for k, v in line.items() if k not in {"time", "attempt", "step"})
            print(f"step {line['step']}/{steps}  {figures}{time_left(metrics[: number + 1], steps)}", flush=True)
        shown_metrics, shown_events = len(metrics), len(events)
        newest = max(run.attempts(), default=None)
        if newest is None or not is_alive(run.attempts_folder, newest):
            print(f"{run.name}: {run.status()}")
            return 0
        time.sleep(1)


def time_left(metrics: Sequence[Mapping[str, Any]], steps: int) -> str:
    """The words for what is left at the pace of the last ten lines; empty before there is a pace."""
    from pretrain.scribe import duration

    latest = [line for line in metrics[-10:] if line["attempt"] == metrics[-1]["attempt"]]
    done, seconds = (latest[-1][key] - latest[0][key] for key in ("step", "time"))
    return f"  left {duration(seconds / done * (steps - latest[-1]['step']))}" if done else ""


def stop(options: argparse.Namespace) -> int:
    """Jobs of a launched run leave at their next step boundary; `thalweg launch` takes the run up again."""
    from launch.submit import stop_run
    from pretrain.run.directory import RunDirectory

    for submission in stop_run(RunDirectory.open(options.path).root.absolute()):
        print(f"{submission.kind} job {submission.job_id}: asked to save and to stay down")
    return 0


def requeue(options: argparse.Namespace) -> int:
    """The same config on the same cluster; the run goes on from its newest checkpoint."""
    from launch.launch_commands import tell
    from launch.submit import resubmit
    from pretrain.run.directory import RunDirectory

    return tell(*resubmit(RunDirectory.open(options.path).root.absolute()))


def compare_runs(options: argparse.Namespace) -> int:
    """What differs between two runs, and what came of it."""
    from rich.console import Console
    from rich.table import Table

    from launch.compare import compare
    from pretrain.run.directory import RunDirectory

    runs = [RunDirectory.open(path) for path in options.paths]
    table = Table(title_justify="left")
    table.add_column()
    for run in runs:
        table.add_column(run.name, overflow="fold")
    for name, rows in compare(*runs).items():
        table.add_section()
        table.add_row(f"[bold]{name}[/]")
        for row in rows:
            table.add_row(*row)
    Console().print(table)
    return 0


def prune_run(options: argparse.Namespace) -> int:
    """Refuses while the run is at work: it clears up after itself then."""
    from launch.submit import release_abandoned
    from pretrain.checkpoint import retain, surplus
    from pretrain.run.attempt import refuse_if_alive
    from pretrain.run.directory import RunDirectory

    run = RunDirectory.open(options.path)
    for newest in list(run.attempts())[-1:]:
        refuse_if_alive(run.attempts_folder, newest)
    if not options.dry_run:
        release_abandoned(run.root)
    keep = run.recipe().checkpoint
    delete = surplus if options.dry_run else retain
    steps = delete(run.checkpoints, keep.keep_last, keep.keep_every, run.awaiting_export())
    verb = "would be deleted" if options.dry_run else "deleted"
    print(f"{run.root}: checkpoints of {', '.join(map(str, steps)) or 'no step'} {verb}")
    return 0


def verify_run(options: argparse.Namespace) -> int:
    """Exit code 0 when the ledger is what the order says, 1 when it is not."""
    from pretrain.run.directory import RunDirectory
    from pretrain.run.verify import verify

    verdict = verify(RunDirectory.open(options.path))
    print(verdict.words)
    return 0 if verdict.holds else 1
