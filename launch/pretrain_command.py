"""`thalweg pretrain`: ranks on this machine under torchrun, started again while they make progress."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from data_pipelines.base import UserError
from pretrain.__main__ import add_arguments, renamed

if TYPE_CHECKING:
    from pretrain.config import Recipe
    from pretrain.run.directory import RunDirectory

MAX_STARTS_WITHOUT_PROGRESS = 3
FINAL_CODES = (0, 2, 85)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `pretrain`."""
    parser = subparsers.add_parser(
        "pretrain",
        help="pretrain by a recipe, here, on every visible GPU; an existing run is resumed",
        description="Pretrain by a recipe on this machine. Lost ranks are started again from the last checkpoint.",
    )
    add_arguments(parser)
    parser.add_argument("--ranks", type=int, help="processes; every visible GPU by default, 1 on a CPU")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check what can be checked cheaply, then start ranks until the run is done."""
    from pretrain.config import load_recipe
    from pretrain.run.directory import RunDirectory
    from pretrain.sources import check_sizes, open_sources, total_steps

    recipe = load_recipe(options.recipe, options.overrides)
    ranks = options.ranks or visible_gpus() or 1
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: want at least 1")
    try:
        sources = open_sources(recipe)
    except UserError:
        _refuse_objective(recipe)  # said before what its data lacks
        raise
    check_sizes(recipe, sources, ranks)
    total_steps(recipe, sources.num_samples)
    overrides = list(options.overrides)
    if options.new_run:
        recipe = renamed(recipe)
        overrides.append(f"name={recipe.name}")
    command = [options.recipe, *overrides]
    if options.debug:
        command.append("--debug")
    rollback = ["--rollback-to", str(options.rollback_to)] if options.rollback_to is not None else []
    return supervise(RunDirectory.of(recipe), command, rollback, ranks)


def _refuse_objective(recipe: Recipe) -> None:
    """Raises UserError for a wrong name or key; the ranks do it too: importing an objective takes seconds."""
    from pretrain.objectives import configured

    configured(recipe.objective)


def supervise(run_directory: RunDirectory, command: list[str], first_only: list[str], ranks: int) -> int:
    """Start the ranks; start them again after a failure, as long as checkpoints are committed in between."""
    from pretrain.checkpoint import committed

    without_progress = 0
    extra = first_only
    with Forwarder() as forwarder:
        while True:
            before = committed(run_directory.checkpoints)
            code = forwarder.call(rank_command("pretrain", [*command, *extra], ranks), rank_environment(ranks))
            if code in FINAL_CODES or forwarder.asked_to_stop:
                return code
            without_progress = 0 if committed(run_directory.checkpoints) != before else without_progress + 1
            if without_progress >= MAX_STARTS_WITHOUT_PROGRESS:
                print(
                    f"thalweg: {without_progress} starts without a new checkpoint; giving up. "
                    f"Logs: {run_directory.root}/logs",
                    file=sys.stderr,
                )
                return code
            extra = []
            print("thalweg: a rank was lost; starting again from the last checkpoint", file=sys.stderr)


def rank_command(module: str, arguments: list[str], ranks: int) -> list[str]:
    """One process without a launcher, or torchrun on a free port of its own."""
    if ranks == 1:
        return [sys.executable, "-m", module, *arguments]
    torchrun = ["-m", "launch.torchrun", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--nnodes=1"]
    return [sys.executable, *torchrun, f"--nproc-per-node={ranks}", "-m", module, *arguments]


def rank_environment(ranks: int) -> dict[str, str]:
    """Cores are shared out over ranks unless the user said otherwise."""
    cores = len(os.sched_getaffinity(0))
    return {"OMP_NUM_THREADS": str(max(1, cores // ranks)), "TORCHELASTIC_ERROR_FILE": os.devnull, **os.environ}


def visible_gpus() -> int:
    """GPUs this process may use, without importing torch where there can be none."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/kfd").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def ranks_of(process: int) -> list[psutil.Process]:
    """The ranks below torchrun, or the one process there is; torchrun would make 1 of their exit codes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        return (parent.children() if "launch.torchrun" in parent.cmdline() else []) or [parent]
    return []


class Forwarder:
    """Runs a child in its own session and hands stop signals on to it, once each."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Forwarder:
        self._before = {number: signal.signal(number, self._forward) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def call(self, command: list[str], environment: dict[str, str]) -> int:
        """Run to the end; the exit code, 1 where a signal ended it."""
        self._child = subprocess.Popen(command, env=environment, start_new_session=True)
        code = self._child.wait()
        return code if code >= 0 else 1

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if self._child is not None and self._child.poll() is None:
            for process in ranks_of(self._child.pid):
                process.terminate()
