"""Everything a run needs, set up once: starting IS resuming (promise 2)."""

from __future__ import annotations

import logging
import platform
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from data_pipelines.base import CheckpointError, ThalwegError
from data_pipelines.batch import Batch
from data_pipelines.loader import Loader
from data_pipelines.mixture import weights_used
from data_pipelines.order import Order
from data_pipelines.views import View
from pretrain import checkpoint
from pretrain.config import Recipe
from pretrain.curriculum import stages_in_words, training_view
from pretrain.distributed import World
from pretrain.engine import Engine
from pretrain.guard import Guard
from pretrain.objective import Objective
from pretrain.objectives import build, configured
from pretrain.run.attempt import Attempt, attempts, refuse_if_alive
from pretrain.run.directory import RunDirectory
from pretrain.run.process import describe
from pretrain.run.rollback import roll_back
from pretrain.scribe import Scribe, start_logging
from pretrain.sources import Sources, check_sizes, open_sources, total_steps

log = logging.getLogger("pretrain")

SHARE_OF_WATCHDOG = 0.8
"""Of its time that data workers may be silent: they are given up, and the run saved, before it bites."""

Value = TypeVar("Value")


@dataclass
class Progress:
    """How far a run is; all that a checkpoint holds besides tensors.

    Attributes:
        step: optimizer steps done, skipped ones included.
        position: the next slot, G.
        ledger: 128-bit sum over all slots consumed so far.
        replaced: samples that were unreadable and replaced so far.
    """

    step: int = 0
    position: int = 0
    ledger: int = 0
    replaced: int = 0


@dataclass
class Session:
    """A run at work in this process.

    Attributes:
        attempt: the right to write; rank 0 alone has it.
        processes: by rank, its host and what tells its process from others (`run.process.describe`).
        scribe: rank 0 alone has one.
        saved_step: of the newest committed checkpoint.
    """

    recipe: Recipe
    run: RunDirectory
    world: World
    sources: Sources
    engine: Engine
    total_steps: int
    progress: Progress
    guard: Guard
    order: Order
    loader: Loader
    attempt_number: int
    attempt: Attempt | None
    processes: list[dict[str, Any]]
    scribe: Scribe | None
    saved_step: int
    _save: checkpoint.Save | None = field(default=None, repr=False)
    _stream: Iterator[Batch] | None = field(default=None, repr=False)

    @classmethod
    def start(cls, recipe: Recipe, world: World, rollback_to: int | None = None) -> Session | None:
        """Set a run up, or take it up again; None when it is finished already.

        Args:
            rollback_to: go on from the checkpoint of this step, whatever came after it.

        Raises:
            UserError: the recipe, its data or the run directory do not allow it.
            CheckpointError: no checkpoint of the run can be read any more.
        """
        configured(recipe.objective)  # its mistakes are found before a large set is opened
        sources = open_sources(recipe)
        check_sizes(recipe, sources, world.world_size)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"num_lanes": sources.num_lanes})})
        objective = build(recipe.objective, sources.facts(), recipe.seed)
        run = RunDirectory.of(recipe)
        if on_rank_0(world, lambda: _is_finished(run, recipe, sources, rollback_to)):
            if world.rank == 0:
                log.info("run %s is finished; `thalweg report %s` shows it", run.root, run.root)
            return None
        view = training_view(objective, recipe)
        engine = Engine(objective, recipe.engine, recipe.optim, recipe.train, world, seed=recipe.seed, view=view)
        steps = on_rank_0(world, lambda: _lay_down(run, recipe, sources, objective))
        progress, guard, segments = Progress(), Guard(recipe.train), []
        reader, damaged = checkpoint.newest_whole(run.checkpoints, world)
        if reader is None and damaged:
            raise CheckpointError(f"run {run.root}: no checkpoint is whole: {'; '.join(damaged)}")
        if reader is not None:
            engine.load(reader)
            progress = Progress(**{**reader.state["progress"], "ledger": int(reader.state["progress"]["ledger"], 16)})
            guard.restore(reader.state["guard"])
            segments = reader.state["order"]
        elif recipe.init_from:
            _initialize(engine, recipe.init_from, world)
        order = sources.order(recipe, segments, progress.position)
        attempt, number, processes = _begin(run, world, progress.step)
        start_logging(run, number, world.rank)
        scribe = Scribe(run, recipe, number, progress.step, steps) if world.rank == 0 else None
        session = cls(
            recipe, run, world, sources, engine, steps, progress, guard, order,
            _loader(recipe, run, sources, order, view, world, progress.position, number), number, attempt,
            processes, scribe, progress.step,
        )  # fmt: skip
        session.announce(damaged)
        return session

    def announce(self, damaged: list[str]) -> None:
        """Say what starts here, and from what."""
        for words in damaged:
            self.event("damaged", words)
        if self.scribe is not None:  # one rank looks at the files
            for dataset in (*self.sources.datasets, self.sources.validation):
                for words in dataset.truncated() if dataset else ():
                    self.event("damaged", f"{words}; they count as unreadable")
        for words in self.order.repeats_in_step(self.recipe.train.global_batch):
            self.event("repeats", words)
        if len(self.sources.datasets) > 1:
            self.event("mixture", weights_used([d.name for d in self.sources.datasets], self.sources.lanes))
        for words in stages_in_words(self.recipe, self.sources):
            self.event("curriculum", words)
        if (opt_out := self.sources.opt_out) is not None:
            words = f"{len(opt_out)} keys are passed over, as {self.recipe.data.opt_out} says"
            self.event("opt_out", words, digest=opt_out.digest, keys=len(opt_out))
        if self.progress.step:
            self.event(
                "resume", f"resumed at step {self.progress.step} of {self.total_steps} (attempt {self.attempt_number})"
            )
        else:
            self.event("start", f"run {self.run.root}: {self.total_steps} steps on {self.world.world_size} rank(s)")

    def next_micro_batches(self) -> list[Batch]:
        """The micro batches of the next step, still in the host's memory."""
        if self._stream is None:
            self._stream = iter(self.loader)
        return [next(self._stream) for _ in range(self.recipe.train.accumulation)]

    def event(self, kind: str, words: str = "", **facts: Any) -> None:
        """Write an event; rank 0 alone does."""
        if self.scribe is not None:
            self.scribe.event(kind, self.progress.step, words, **facts)

    def begin_save(self) -> None:
        """Let a checkpoint of this moment be written in the background, once the one before it is done."""
        self.finish_save()
        state = {
            "progress": {**asdict(self.progress), "ledger": f"{self.progress.ledger:032x}"},
            "guard": self.guard.state(),
            "order": self.order.to_state(),
            "run": self.run.name,
            "attempt": self.attempt_number,
        }
        self._save = checkpoint.Save(self.run.checkpoints, self.engine, self.world, state, self.attempt_number)

    @property
    def is_written(self) -> bool:
        """Whether a save is under way of which this rank has written its part."""
        return self._save is not None and self._save.is_written

    def finish_save(self) -> None:
        """Commit the save under way, if there is one; words, when the store refuses. Every rank calls it alike."""
        if self._save is None:
            return
        save, self._save = self._save, None
        if self.attempt is not None:
            self.attempt.check()
        try:
            save.commit()
        except OSError as error:
            self.event(
                "save_failed",
                f"checkpoint of step {save.step} not written ({error.strerror}); the last good one stays, training "
                "goes on",
            )
            return
        self.saved_step = save.step
        self.event("checkpoint", "", checkpoint=save.step)
        if self.world.rank == 0:
            keep = self.recipe.checkpoint
            checkpoint.retain(self.run.checkpoints, keep.keep_last, keep.keep_every, self.run.awaiting_export())

    def close(self) -> None:
        """Stop workers and close files; the attempt is ended by the caller, who knows how it went."""
        self.loader.close()
        if self.scribe is not None:
            self.scribe.close()


def on_rank_0(world: World, work: Callable[[], Value]) -> Value:
    """Do `work` on rank 0 and give its result, or its error, to every rank."""
    outcome: tuple[Any, ThalwegError | None] = (None, None)
    if world.rank == 0:
        try:
            outcome = (work(), None)
        except ThalwegError as error:
            outcome = (None, error)
    value, failure = world.broadcast_object(outcome)
    if failure is not None:
        raise failure
    result: Value = value
    return result


def _is_finished(run: RunDirectory, recipe: Recipe, sources: Sources, rollback_to: int | None) -> bool:
    """Whether the run has nothing left to do, once rolled back; refuses one that is another, or in use."""
    if run.exists():
        run.refuse_other(recipe, sources.digests())
        newest = max(attempts(run.attempts_folder), default=None)
        if newest is not None:
            refuse_if_alive(run.attempts_folder, newest)
    if rollback_to is not None:
        roll_back(run, rollback_to)
    return run.exists() and run.finished()


def _lay_down(run: RunDirectory, recipe: Recipe, sources: Sources, objective: Objective) -> int:
    """Make the run's folder once everything stands that could refuse the recipe; the run's steps."""
    if run.exists():
        run.update_config(recipe)
        steps: int = run.info()["steps"]
        return steps
    steps = total_steps(recipe, sources.num_samples)
    parameters = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    run.create(
        recipe,
        {
            "steps": steps,
            "parameters": parameters,
            "flops_per_sample": objective.flops_per_sample(),
            "facts": asdict(sources.facts()),
            "data": sources.digests(),
            "opt_out": sources.opt_out.digest if sources.opt_out else None,
            "data_paths": {dataset.name: dataset.path for dataset in sources.datasets},
            "samples": sources.num_samples,
            "lanes": dict(zip((d.name for d in sources.datasets), sources.lanes, strict=True)),
            "code": code_version(),
            "environment": environment(),
        },
    )
    return steps


def _begin(run: RunDirectory, world: World, step: int) -> tuple[Attempt | None, int, list[dict[str, Any]]]:
    attempt: Attempt | None = None

    def begin() -> int:
        nonlocal attempt
        attempt = Attempt.begin(run.attempts_folder, step)
        return attempt.number

    number = on_rank_0(world, begin)
    processes = world.gather_object({"host": socket.gethostname(), **describe()})
    if attempt is not None:
        attempt.update(world_size=world.world_size, processes=[process["pid"] for process in processes])
    return attempt, number, processes


def _loader(
    recipe: Recipe,
    run: RunDirectory,
    sources: Sources,
    order: Order,
    view: View,
    world: World,
    position: int,
    attempt: int,
) -> Loader:
    return Loader(
        sources.datasets,
        order,
        view,
        seed=recipe.seed,
        global_batch=recipe.train.global_batch,
        accumulation=recipe.train.accumulation,
        rank=world.rank,
        world_size=world.world_size,
        start=position,
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        quarantine=run.quarantine,
        attempt=attempt,
        timeout_s=SHARE_OF_WATCHDOG * recipe.monitor.watchdog_s,
    )


def _initialize(engine: Engine, source: str, world: World) -> None:
    from pretrain.initialize import initialize

    words = initialize(engine, source)
    if world.rank == 0:
        log.info("%s", words)


def code_version() -> dict[str, str]:
    """The version of this program, and the commit where it runs from a checkout."""
    version = {"version": metadata.version("thalweg")}
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        for name, command in {"commit": ["rev-parse", "HEAD"], "changes": ["status", "--porcelain", "-uno"]}.items():
            answer = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
            version[name] = answer.stdout.strip() if name == "commit" else str(bool(answer.stdout.strip())).lower()
    return version


def environment() -> dict[str, str]:
    """What a result may depend on besides code, config and data."""
    names = ("torch", "deepspeed", "transformers", "numpy", "webdataset")
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        name: metadata.version(name) for name in names
    }
