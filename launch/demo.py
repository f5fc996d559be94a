"""`thalweg demo`: the whole river on packaged data, minutes on a laptop.

Every stage is a process of its own that a user could have started: this file only calls the same
commands, kills a rank on the way, and looks whether what came out is what was promised.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.base import ThalwegError

RANKS = 2
KILL_AT_STEP = 40
JOB_TIMEOUT_S = 900.0
EVALS = {"linear_probe": ["budgets=[10]", "repeats=3"], "knn": []}
"""Evals and what is asked of them: few labels and all, three draws of the few."""
RUNS = {"mae": "mae_small", "info_nce": "info_nce_small"}
LEAST_RANK = 8.0
"""Effective rank that is well above collapse (1) for ten classes of digits."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole river on packaged data, minutes on a laptop",
        description="Packs MNIST, pretrains MAE and InfoNCE on 2 ranks, kills a rank, judges and reports.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, runs and the report")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Gate:
    """One promise of the demo. Attributes: holds; words: the figures that decide it."""

    holds: bool
    words: str


def run(options: argparse.Namespace) -> int:
    """All stages, then the table; exit code 1 when a promise does not hold."""
    began = time.monotonic()
    out: Path = options.out
    shutil.rmtree(out, ignore_errors=True)
    data, runs = out / "data", out / "runs"
    stage(1, "pack 5,000 packaged MNIST digits into shards")
    thalweg("data", "pack", "mnist", str(data))
    common = [f"runs={runs}", f"data.path={data / 'train'}", f"data.validation={data / 'val'}"]
    stage(2, f"pretrain a masked autoencoder (ViT), {RANKS} ranks, ZeRO-2")
    pretrain("mae", common)
    stage(3, f"pretrain InfoNCE (ResNet), {RANKS} ranks, ZeRO-2; rank 1 is killed at step {KILL_AT_STEP}")
    with RankKiller(runs / "info_nce", KILL_AT_STEP) as killer:
        pretrain("info_nce", common)
    stage(4, "prove from the order which samples each run consumed")
    for name in RUNS:
        thalweg("runs", "verify", str(runs / name))
    stage(5, "judge the checkpoints: jobs of their own, through submitit's local executor")
    judge([runs / name for name in RUNS])
    stage(6, "write the report")
    report = out / "report.html"
    thalweg("report", *(str(runs / name) for name in RUNS), "--out", str(report))
    gates = list(promises(runs, killer.killed))
    summary(runs, gates, report, time.monotonic() - began)
    return 0 if all(gate.holds for gate in gates) else 1


def stage(number: int, words: str) -> None:
    """A headline."""
    print(f"\n[{number}/6] {words}", flush=True)


def thalweg(*arguments: str) -> None:
    """A command as the user would type it.

    Raises:
        ThalwegError: it failed.
    """
    code = subprocess.run([sys.executable, "-m", "launch.cli", *arguments], check=False).returncode
    if code:
        raise ThalwegError(f"demo: `thalweg {' '.join(arguments)}` ended with exit code {code}")


def pretrain(name: str, overrides: Sequence[str]) -> None:
    """A run of a packaged recipe on this demo's data."""
    thalweg("pretrain", RUNS[name], f"name={name}", *overrides, "engine.zero_stage=2", "--ranks", str(RANKS))


class RankKiller:
    """Sends SIGKILL to rank 1 once the run has reached a step, as a failing machine would."""

    def __init__(self, run: Path, step: int) -> None:
        self._run, self._step = run, step
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.killed = 0

    def __enter__(self) -> RankKiller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        from pretrain.run.attempt import attempts
        from pretrain.run.records import read_lines

        while not self._done.wait(0.2):
            lines = read_lines(self._run / "ledger.jsonl")
            if lines and lines[-1]["step"] >= self._step:
                process = attempts(self._run / "attempts")[1]["processes"][1]
                os.kill(process, signal.SIGKILL)
                self.killed = process
                print(f"demo: SIGKILL to rank 1 (process {process}) after step {lines[-1]['step']}", flush=True)
                return


def judge(runs: Sequence[Path]) -> None:
    """Every eval on the last checkpoint of every run, as jobs; fails with the first failed job's words."""
    from launch.cluster import load_cluster
    from launch.submit import submit_eval, wait
    from pretrain.checkpoint import committed, path_of

    cluster = load_cluster("local")
    jobs = []
    for run in runs:
        checkpoint = path_of(run / "checkpoints", committed(run / "checkpoints")[-1])
        jobs += [(run.name, name, *submit_eval(name, checkpoint, asked, cluster)) for name, asked in EVALS.items()]
    began = time.monotonic()
    for number, (run_name, name, job, submission) in enumerate(jobs, start=1):
        wait(submission, JOB_TIMEOUT_S)
        outcome = job.finished() or {"exit_code": 1, "message": f"see {submission.log}"}
        if outcome["exit_code"]:
            raise ThalwegError(f"demo: {name} of {run_name} failed: {outcome['message']}")
        left_s = (time.monotonic() - began) / number * (len(jobs) - number)
        print(f"  {number}/{len(jobs)} {name} of {run_name} done, about {left_s:.0f} s left", flush=True)


def results(run: Path) -> dict[str, dict[str, Any]]:
    """The newest result of each eval of a run, by the eval's name."""
    found = {}
    for path in sorted(run.glob("evals/step-*/*.json")):
        result = json.loads(path.read_text())
        found[result["name"]] = result
    return found


def promises(runs: Path, killed: int) -> Iterator[Gate]:
    """What the demo must show."""
    from pretrain.run.directory import RunDirectory

    contrastive, masked = RunDirectory(runs / "info_nce"), RunDirectory(runs / "mae")
    judged = results(contrastive.root)
    for eval_name, metric, words in (
        ("linear_probe", "top1@10", "linear probe, 10 labels a class"),
        ("linear_probe", "top1@all", "linear probe, all labels"),
        ("knn", "top1@k10", "k-NN"),
    ):
        result = judged[eval_name]
        mine = result["metrics"][metric]
        raw, untrained = (result["controls"][control][metric] for control in ("raw", "random_init"))
        yield Gate(
            mine > max(raw, untrained),
            f"InfoNCE {words}: {mine:.1%} above raw pixels {raw:.1%} and random init {untrained:.1%}",
        )
    rank = _last(contrastive, "effective_rank")
    yield Gate(rank > LEAST_RANK, f"InfoNCE effective rank {rank:.1f} above {LEAST_RANK:g}")
    error, fill = _last(masked, "validation_masked_mse_raw"), _last(masked, "validation_mean_fill_mse")
    yield Gate(error < fill / 2, f"MAE error on masked pixels {error:.4f} below half of mean filling, {fill / 2:.4f}")
    survived = killed > 0 and len(contrastive.attempts()) > 1 and contrastive.finished()
    yield Gate(survived, f"InfoNCE survived SIGKILL of a rank: {len(contrastive.attempts())} attempts, finished")


def _last(run: Any, name: str) -> float:
    values = [line[name] for line in run.metrics() if name in line]
    if not values:
        raise ThalwegError(f"demo: run {run.root} never measured {name}")
    return float(values[-1])


def summary(runs: Path, gates: Sequence[Gate], report: Path, seconds: float) -> None:
    """The table, and where to look next."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Accuracy on 1,000 held-out digits", title_justify="left")
    for column in ("run", "eval", "metric", "pretrained", "raw pixels", "random init"):
        table.add_column(column, justify="right" if column not in {"run", "eval", "metric"} else "left")
    for name in RUNS:
        for eval_name, result in results(runs / name).items():
            for metric, value in result["metrics"].items():
                controls = [result["controls"][control].get(metric) for control in ("raw", "random_init")]
                if metric.startswith("top1@") and all(control is not None for control in controls):
                    table.add_row(name, eval_name, metric, *(f"{number:.1%}" for number in (value, *controls)))
    console = Console()
    console.print()
    console.print(table)
    for gate in gates:
        console.print(
            f"{'[green]yes[/]' if gate.holds else '[red]NO [/]'}  {gate.words}", highlight=False, soft_wrap=True
        )
    console.print(f"\n{seconds:.0f} s. Look next at:", highlight=False)
    for path, words in _next_looks(runs, report):
        console.print(f"  {path:40} {words}", highlight=False, soft_wrap=True)


def _next_looks(runs: Path, report: Path) -> Iterator[tuple[str, str]]:
    yield str(report), "curves, reconstructions, neighbours, probes with their controls"
    yield str(runs / "info_nce"), "the run directory: config, metrics, events, ledger, checkpoints"
    yield f"thalweg runs show {runs / 'info_nce'}", "the same in words"
