"""`thalweg runs`: look at runs, follow one, prove its ledger."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from data_pipelines.base import UserError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `runs list|show|follow|stop|verify`."""
    parser = subparsers.add_parser("runs", help="list, show, follow or verify runs")
    parser.set_defaults(run=list_runs, folder=Path("runs"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="all runs of a folder, one line each")
    listing.add_argument("folder", nargs="?", type=Path, default=Path("runs"))
    listing.set_defaults(run=list_runs)
    for name, handler, text in (
        ("show", show_run, "what a run is and how it stands"),
        ("follow", follow_run, "its figures as they are written, until it ends"),
        ("stop", stop, "ask its jobs to save and to stay down"),
        ("verify", verify_run, "recompute which samples it consumed and compare with its ledger"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("path", metavar="RUN", help="the run's folder")
        action.set_defaults(run=handler)


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
        print(f"  event        step {event.get('step')}: {event.get('kind')} {event.get('words', '')}")
    return 0


def follow_run(options: argparse.Namespace) -> int:
    """New lines of metrics and events until the run ends or nobody works on it."""
    from pretrain.run.attempt import is_alive
    from pretrain.run.directory import RunDirectory

    run = RunDirectory.open(options.path)
    shown_metrics = shown_events = 0
    while True:
        metrics, events = run.metrics(), run.events()
        for event in events[shown_events:]:
            print(f"step {event.get('step')}: {event.get('kind')} {event.get('words', '')}", flush=True)
        for line in metrics[shown_metrics:]:
            print("  ".join(f"{k}={v:.4g}" for k, v in line.items() if k not in {"time", "attempt"}), flush=True)
        shown_metrics, shown_events = len(metrics), len(events)
        newest = max(run.attempts(), default=None)
        if newest is None or not is_alive(run.attempts_folder, newest):
            print(f"{run.name}: {run.status()}")
            return 0
        time.sleep(1)


def stop(options: argparse.Namespace) -> int:
    """Jobs of a launched run leave at their next step boundary; `thalweg launch` takes the run up again."""
    from launch.submit import stop_run
    from pretrain.run.directory import RunDirectory

    for submission in stop_run(RunDirectory.open(options.path).root.absolute()):
        print(f"{submission.kind} job {submission.job_id}: asked to save and to stay down")
    return 0


def verify_run(options: argparse.Namespace) -> int:
    """Exit code 0 when the ledger is what the order says, 1 when it is not."""
    from pretrain.run.directory import RunDirectory
    from pretrain.run.verify import verify

    verdict = verify(RunDirectory.open(options.path))
    print(verdict.words)
    return 0 if verdict.holds else 1
