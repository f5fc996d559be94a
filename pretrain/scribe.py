"""What a run writes while it lives: metrics, events, ledger, TensorBoard, one console line. Rank 0 holds the pen."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from pretrain.config import Recipe
from pretrain.run.directory import RunDirectory
from pretrain.run.records import LineWriter

log = logging.getLogger("pretrain")


class Scribe:
    """The one writer of a run's line files."""

    def __init__(self, run: RunDirectory, recipe: Recipe, attempt: int, start_step: int, total_steps: int) -> None:
        self._metrics = LineWriter(run.root / "metrics.jsonl", attempt=attempt)
        self._events = LineWriter(run.root / "events.jsonl", attempt=attempt)
        self._ledger = LineWriter(run.root / "ledger.jsonl", attempt=attempt)
        self._total_steps = total_steps
        self._began = time.monotonic()
        self._start_step = start_step
        self._board = _tensorboard(run, start_step) if recipe.monitor.tensorboard else None
        self._wandb = _wandb(run, recipe) if recipe.monitor.wandb else None
        self._unsaid: list[str] = []

    def metrics(self, step: int, figures: Mapping[str, float]) -> None:
        """One line of figures, and the same to every viewer."""
        self._keep(self._metrics, {"step": step, "time": time.time(), **figures})
        for name, value in figures.items():
            if self._board is not None:
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(figures), step=step)

    def event(self, kind: str, step: int, words: str = "", **facts: Any) -> None:
        """Something happened that a reader of the run wants to know."""
        self._keep(self._events, {"step": step, "time": time.time(), "kind": kind, "words": words, **facts})
        if words:
            log.log(logging.WARNING if kind in WARNINGS else logging.INFO, "step %d: %s", step, words)

    def ledger(self, step: int, position: int, total: int) -> None:
        """Digest of all samples consumed up to `position`."""
        self._keep(self._ledger, {"step": step, "position": position, "total": f"{total:032x}"})

    def say(self, step: int, figures: Mapping[str, float]) -> None:
        """One console line with the figures that matter and the time left."""
        done = step - self._start_step
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total_steps - step)
        shown = [f"{name} {figures[name]:.4g}" for name in SHOWN if name in figures]
        log.info("step %d/%d  %s  left %s", step, self._total_steps, "  ".join(shown), duration(left))

    def close(self) -> None:
        """Flush and close everything."""
        for writer in (self._metrics, self._events, self._ledger):
            writer.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _keep(self, writer: LineWriter, line: Mapping[str, Any]) -> None:
        """A full disk costs lines, never the run; what was lost is said once."""
        try:
            writer.write(line)
        except OSError as error:
            if error.strerror not in self._unsaid:
                self._unsaid.append(str(error.strerror))
                log.warning("a line of the run's records could not be written (%s); training goes on", error.strerror)


SHOWN = ("loss", "lr", "grad_norm", "samples_per_s", "data_wait", "effective_rank")
WARNINGS = {"collapse", "divergence", "starvation", "skipped", "quarantine", "damaged", "save_failed", "repeats"}


def duration(seconds: float) -> str:
    """ "1 h 05 min", "3 min 20 s" or "8 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def start_logging(run: RunDirectory | None, attempt: int, rank: int) -> None:
    """Every rank writes its own log file; rank 0 also speaks on the console."""
    handlers: list[logging.Handler] = []
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    if run is not None:
        with contextlib.suppress(OSError):
            run.logs(attempt).mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(run.logs(attempt) / f"rank-{rank}.log"))
    logger = logging.getLogger("pretrain")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)


def _tensorboard(run: RunDirectory, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.root / "tensorboard"), purge_step=start_step + 1)


def _wandb(run: RunDirectory, recipe: Recipe) -> Any:
    from data_pipelines.base import UserError

    if importlib.util.find_spec("wandb") is None:
        raise UserError("monitor.wandb=true needs the package: pip install 'thalweg[wandb]'")
    import wandb

    return wandb.init(
        project="thalweg", name=run.name, id=run.name, resume="allow", config=recipe.model_dump(mode="json")
    )
