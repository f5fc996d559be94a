"""`thalweg eval`, `thalweg evals` and `thalweg export`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.base import ThalwegError, UserError

if TYPE_CHECKING:
    from evals.protocol import Result


def add_parser(subparsers: Any) -> None:
    """Add the three commands; nothing heavy is imported before one of them runs."""
    judge = subparsers.add_parser(
        "eval",
        help="judge a checkpoint beside its controls; --watch RUN judges every one as it appears",
        description="Judge a checkpoint (or an export) and write the result beside its run, once.",
    )
    judge.add_argument("eval", nargs="?", metavar="EVAL", help="see `thalweg evals`")
    judge.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT", help="runs/NAME[/checkpoints/step-N], or an export"
    )
    judge.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.train, data.test and the eval's own keys"
    )
    judge.add_argument("--cluster", metavar="NAME|FILE.yaml", help="submit it as a job; see `thalweg clusters`")
    judge.add_argument(
        "--watch", metavar="RUN", help="submit the evals of a run's recipe for every checkpoint it keeps"
    )
    judge.add_argument("--once", action="store_true", help="with --watch: submit what is missing now, wait for nothing")
    judge.add_argument("--force", action="store_true", help="judge again though the result is there")
    judge.add_argument(
        "--ranks", type=int, help="processes of an eval that trains; every visible GPU by default, 1 on a CPU"
    )
    judge.set_defaults(run=run_eval_command)
    listing = subparsers.add_parser("evals", help="what checkpoints can be judged by, one line each")
    listing.set_defaults(run=list_evals)
    export = subparsers.add_parser("export", help="write a checkpoint's encoder for AutoModel.from_pretrained")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="runs/NAME or runs/NAME/checkpoints/step-N")
    export.add_argument("out", metavar="OUT", help="folder to make")
    export.set_defaults(run=run_export)


def run_eval_command(options: argparse.Namespace) -> int:
    """Judge here, submit a job, or watch a run."""
    if options.watch is not None:
        return _watch(options)
    if options.eval is None or options.checkpoint is None:
        raise UserError("thalweg eval wants EVAL CHECKPOINT, or --watch RUN; see `thalweg evals`")
    if options.cluster is not None:
        return _submit(options)
    from evals.protocol import run_eval

    ranks = _ranks_to_start(options)
    if ranks > 1:
        return _start(options, ranks)
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        result = run_eval(options.eval, options.checkpoint, options.overrides, force=options.force)
    except ThalwegError as error:
        if speaks:
            raise
        return error.exit_code
    if speaks:
        print_result(result)
    return 0


def _ranks_to_start(options: argparse.Namespace) -> int:
    """How many processes are to do what this one was asked for; 1 where it is such a process itself."""
    from evals.protocol import eval_module, takes_many_ranks
    from launch.pretrain_command import visible_gpus

    if not takes_many_ranks(eval_module(options.eval)):
        if options.ranks is not None:
            raise UserError(f"--ranks is for evals that train on many ranks; {options.eval} is one process")
        return 1
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: want at least 1")
    return 1 if "RANK" in os.environ else options.ranks or visible_gpus() or 1


def _start(options: argparse.Namespace, ranks: int) -> int:
    from launch.pretrain_command import Forwarder, rank_command, rank_environment

    arguments = ["eval", options.eval, options.checkpoint, *options.overrides]
    arguments += ["--force"] if options.force else []
    with Forwarder() as forwarder:
        return forwarder.call(rank_command("launch.cli", arguments, ranks), rank_environment(ranks))


def _watch(options: argparse.Namespace) -> int:
    if options.eval is not None:
        raise UserError(f"--watch judges by the recipe's own evals; leave out {options.eval!r}, or the flag")
    from launch.cluster import load_cluster
    from launch.watch import watch
    from pretrain.run.directory import RunDirectory

    run = RunDirectory.open(options.watch)
    tally = watch(run.root, load_cluster(options.cluster or "local"), options.once)
    return 1 if tally.failed else 0


def _submit(options: argparse.Namespace) -> int:
    if options.ranks is not None:
        raise UserError("--ranks starts processes here; a cluster's file says how many its evals get (evals.nodes)")
    if options.force:
        raise UserError("--force judges here and now; leave out --cluster, or delete the result file first")
    from evals.protocol import order_eval
    from launch.cluster import load_cluster
    from launch.submit import submit_eval

    order = order_eval(options.eval, options.checkpoint, options.overrides)  # a typo must not wait in a queue
    if order.subject.checkpoint is None:
        raise UserError(f"{options.checkpoint} is an export alone; jobs judge checkpoints of runs, leave out --cluster")
    _job, submission = submit_eval(
        options.eval, order.subject.checkpoint, options.overrides, load_cluster(options.cluster)
    )
    if submission.exit_code is not None:
        return int(submission.exit_code)
    print(f"job     {submission.kind} {submission.job_id}")
    print(f"log     {submission.log}")
    print(f"result  {order.path}")
    return 0


def list_evals(options: argparse.Namespace) -> int:
    """Name, protocol, first line of its text."""
    from evals.protocol import eval_module, eval_names

    for name in eval_names():
        module = eval_module(name)
        first_line = (module.__doc__ or "").strip().split("\n")[0]
        print(f"{name:24} {module.PROTOCOL:26} {first_line}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Export, and say how to open it."""
    from pretrain.export import export

    out = export(Path(options.checkpoint), Path(options.out))
    print(f'export  {out}\nopen    transformers.AutoModel.from_pretrained("{out}")')
    return 0


def print_result(result: Result) -> None:
    """Every metric with its controls beside it."""
    from rich.console import Console
    from rich.table import Table

    where = f"{result.run}, step {result.step}" if result.run else "export"
    table = Table(title=f"{result.protocol}  {where}  ({result.seconds:.0f} s)", title_justify="left")
    table.add_column("metric")
    for heading in ("pretrained", "raw input", "random init"):
        table.add_column(heading, justify="right")
    for name, value in result.metrics.items():
        controls = (result.controls.get(control, {}).get(name) for control in ("raw", "random_init"))
        table.add_row(name, *(_printed(name, number) for number in (value, *controls)))
    Console(file=sys.stdout).print(table)


def _printed(name: str, value: float | None) -> str:
    from evals.report.measures import is_share
    from evals.report.ticks import compact

    if value is None:
        return ""
    return f"{value:.1%}" if is_share(name, value) else compact(value)
