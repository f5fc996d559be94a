"""The training loop: next batch -> objective -> backward -> step -> monitors -> maybe checkpoint.

All that happens besides is listed in `train` itself, in the order in which it happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from data_pipelines.base import DataError, SavedAndStopped, ThalwegError, UserError
from data_pipelines.batch import Batch
from data_pipelines.ledger import NUM_LIMBS, from_limbs, to_limbs
from data_pipelines.quarantine import complaint, is_too_much, read_lines
from pretrain.engine import StepStats
from pretrain.monitors import Alarms, EmbeddingStatistics
from pretrain.optim import learning_rate
from pretrain.profiling import Profiler
from pretrain.reading import Fetched, ReadingError, failure_of_any
from pretrain.session import Session, on_rank_0
from pretrain.signals import StopFlag
from pretrain.watchdog import Watchdog
from pretrain.watching import online_probe, sketches, validate

LEDGER_MODULUS = 1 << 128


def train(session: Session, stop: StopFlag) -> None:
    """Run until the last step.

    Raises:
        SavedAndStopped: a signal asked for it; a checkpoint was committed.
        UserError: too many bad steps in a row, or data unreadable beyond its budget: starting again would not help.
        ReadingError: the data failed a rank; a checkpoint of the last whole step was committed.
        ThalwegError: the last checkpoint could not be written.
    """
    recipe, engine, progress = session.recipe, session.engine, session.progress
    watch = Watch(session)
    with Profiler(session) as profiler, Watchdog(session) as watchdog:
        fetched = fetch(session, watchdog, progress.step)
        if words := failure_of_any(session.world, fetched.failure):
            raise ReadingError(words)
        while progress.step < session.total_steps:
            began = time.perf_counter()
            last = progress.step + 1 == session.total_steps
            batches = fetched.batches
            # the next step's, so that a rank whose data fails tells the others before they wait for it
            fetched = fetch(session, watchdog, progress.step + 1)
            stats = engine.accumulate(batches)
            flags = (stop.is_set, fetched.failure is not None, session.is_written)
            shared = share(session, stats, batches, flags, fetched.waited_s)
            bad_step = session.guard.complaint(shared.loss, shared.grad_norm)
            lr = learning_rate(progress.step, session.total_steps, recipe.optim, recipe.train.global_batch)
            weights = watch.weights_before()
            if bad_step is None:
                engine.apply(lr, progress.step / session.total_steps)
                session.guard.took(shared.grad_norm)
            else:
                engine.skip()
                skip_or_give_up(session, bad_step)
            progress.step += 1
            progress.position += recipe.train.global_batch
            progress.ledger = (progress.ledger + shared.ledger) % LEDGER_MODULUS
            progress.replaced += shared.replaced
            watch.after_step(shared, stats, lr, weights, time.perf_counter() - began)
            watchdog.beat()
            profiler.step()

            no_data = failure_of_any(session.world, fetched.failure) if shared.no_data else look(session, watch, last)
            bad_data = is_too_much(progress.replaced, progress.position, recipe.data.max_quarantined)
            if due(progress.step, recipe.monitor.log_every, last):
                watch.write()
            if shared.all_written:
                session.finish_save()
            if shared.stop or no_data or bad_data or due(progress.step, recipe.checkpoint.every, last):
                session.begin_save()
            if bad_data:
                give_up_data(session)
            if no_data:
                stop_reading(session, no_data)
            if shared.stop and not last:
                stop_here(session, stop)
        session.finish_save()
    if session.saved_step != session.total_steps:
        raise ThalwegError(f"the last checkpoint could not be written; step {session.saved_step} is the newest")
    session.event(
        "end", f"done: {session.total_steps} steps, {progress.position} samples, {progress.replaced} replaced"
    )


def fetch(session: Session, watchdog: Watchdog, step: int) -> Fetched:
    """This rank's micro batches of a step, or why there are none; nothing behind the last step."""
    if step == session.total_steps:
        return Fetched()
    began = time.perf_counter()
    batches, failure = [], None
    with watchdog.reading():
        try:
            batches = session.next_micro_batches()
        except DataError as error:
            failure = str(error)
    return Fetched(tuple(batches), failure, time.perf_counter() - began)


def look(session: Session, watch: Watch, last: bool) -> str | None:
    """Validation, sketches and the online probe, each at its interval; words when their data fails a rank."""
    recipe, step = session.recipe, session.progress.step
    try:
        if due(step, recipe.validation.every, last) and session.sources.validation is not None:
            watch.note(validate(session))
            sketches(session)
        if recipe.probe is not None and due(step, recipe.probe.every, last):
            watch.note(online_probe(session))
    except ReadingError as error:
        return str(error)
    return None


def give_up_data(session: Session) -> NoReturn:
    """Leave because too many samples of the whole run were unreadable; saved, since more of them may be allowed."""
    session.finish_save()
    progress, allowed = session.progress, session.recipe.data.max_quarantined

    def words() -> str:
        return complaint(progress.replaced, progress.position, allowed, read_lines(session.run.quarantine))

    raise UserError(on_rank_0(session.world, words))


def stop_reading(session: Session, words: str) -> NoReturn:
    """Leave because the data failed a rank, saved if that can be."""
    session.finish_save()
    saved, step = session.saved_step, session.progress.step
    raise ReadingError(f"{words}; " + (f"saved at step {step}" if saved == step else f"not saved since step {saved}"))


def stop_here(session: Session, stop: StopFlag) -> NoReturn:
    """Leave at a step boundary, saved if that can be."""
    session.finish_save()
    step = session.progress.step
    if session.saved_step != step:
        raise ThalwegError(f"asked to stop at step {step}, but the last checkpoint is of step {session.saved_step}")
    raise SavedAndStopped(f"saved at step {step} after {stop.name or 'a stop on another rank'}; start again to go on")


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return last or step % every == 0


@dataclass(frozen=True)
class Shared:
    """What all ranks know of a step after its one all-reduce.

    Attributes:
        loss: mean over the rows of the global batch.
        grad_norm: L2 norm over all parameters, before clipping.
        stop: some rank was asked to stop.
        no_data: some rank could not read the next step's batches.
        all_written: every rank has written its part of the save that is under way.
        waited: share of the ranks' time spent waiting for data, in seconds a rank.
        replaced: slots of the step whose own sample was unreadable.
        ledger: 128-bit sum over the step's slots.
        logs: the objective's own figures and mean energies, over ranks and micro steps.
    """

    loss: float
    grad_norm: float
    stop: bool
    no_data: bool
    all_written: bool
    waited: float
    replaced: int
    ledger: int
    logs: dict[str, float]


def share(
    session: Session, stats: StepStats, batches: Sequence[Batch], flags: tuple[bool, bool, bool], waited: float
) -> Shared:
    """The step's one all-reduce: a float64 vector on the CPU group (docs/order.md, rule 10).

    A non-finite loss or gradient on one rank makes the sums non-finite on all: every rank sees it.
    """
    own = {**stats.logs, **{f"{name}_energy": float(values.mean()) for name, values in stats.energies.items()}}
    names = sorted(own)
    head = [stats.loss_sum, stats.rows, stats.squared_grad_norm, *flags, waited, sum(b.replaced for b in batches)]
    logs = [own[name] for name in names]
    limbs = to_limbs(sum(batch.ledger for batch in batches) % LEDGER_MODULUS)
    total = session.world.sum(np.concatenate([head, logs, limbs]).astype(np.float64))
    loss_sum, rows, squared, stops, no_data, written, waits, replaced = total[: len(head)]
    ranks = session.world.world_size
    return Shared(
        loss=loss_sum / rows if rows else 0.0,
        grad_norm=math.sqrt(squared) if squared >= 0 else math.nan,
        stop=stops > 0,
        no_data=no_data > 0,
        all_written=written == ranks,
        waited=waits / ranks,
        replaced=int(replaced),
        ledger=from_limbs(total[-NUM_LIMBS:]),
        logs={name: value / ranks for name, value in zip(names, total[len(head) : -NUM_LIMBS], strict=True)},
    )


def skip_or_give_up(session: Session, bad_step: str) -> None:
    """Count a step that is bad in those words; raises UserError when the budget is spent."""
    spent = session.guard.skip()
    session.event("skipped", f"step skipped: {bad_step} ({session.guard.in_a_row} in a row)")
    if spent:
        session.finish_save()
        raise UserError(
            f"run {session.run.root}: {session.guard.in_a_row} bad steps in a row, the last because {bad_step}; "
            f"lower optim.base_lr or set optim.clip_norm, and go on from an earlier checkpoint with --rollback-to STEP"
        )


class Watch:
    """Figures between two log steps, and the alarms they raise."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._alarms = Alarms(session.recipe.monitor)
        self._embeddings = EmbeddingStatistics()
        self._noted: dict[str, float] = {}
        self._seconds = self._waited = 0.0
        self._steps = 0
        self._latest: dict[str, float] = {}
        self._flops_per_sample = session.engine.module.flops_per_sample()  # counting takes a second

    def weights_before(self) -> list[torch.Tensor] | None:
        """A copy of this rank's weights, at log steps only: the update is measured against it."""
        session = self._session
        upcoming = session.progress.step + 1
        if not due(upcoming, session.recipe.monitor.log_every, upcoming == session.total_steps):
            return None
        return [piece.tensor.clone() for piece in session.engine.slices() if piece.kind == "w"]

    def after_step(
        self, shared: Shared, stats: StepStats, lr: float, weights: list[torch.Tensor] | None, seconds: float
    ) -> None:
        """Take one step into account; the ledger is written for every step."""
        progress = self._session.progress
        self._steps += 1
        self._seconds += seconds
        self._waited += shared.waited
        for embeddings in stats.embeddings:
            self._embeddings.add(embeddings)
        self._latest = {"loss": shared.loss, "lr": lr, "grad_norm": shared.grad_norm, **shared.logs}
        if weights is not None:
            self._latest["update_ratio"] = self._update_ratio(weights)
        if shared.replaced:
            self._session.event(
                "quarantine", f"{shared.replaced} unreadable sample(s) replaced", replaced=shared.replaced
            )
        if self._session.scribe is not None:
            self._session.scribe.ledger(progress.step, progress.position, progress.ledger)

    def note(self, figures: dict[str, float]) -> None:
        """Figures that go with the next line, whenever it is written."""
        self._noted.update(figures)

    def write(self) -> None:
        """One line of metrics, one console line, new alarms."""
        session = self._session
        figures = {**self._latest, **self._speed(), **self._collapse(), **self._noted}
        self._noted = {}
        self._seconds = self._waited = 0.0
        self._steps = 0
        if session.scribe is None:
            return
        session.scribe.metrics(session.progress.step, figures)
        session.scribe.say(session.progress.step, figures)
        for kind, words in self._alarms.hear(figures):
            session.event(kind, words)

    def _speed(self) -> dict[str, float]:
        session = self._session
        samples = self._steps * session.recipe.train.global_batch
        rate = samples / self._seconds if self._seconds else 0.0
        return {
            "samples_per_s": rate,
            **self._work(rate),
            "data_wait": self._waited / self._seconds if self._seconds else 0.0,
            "memory_gib": memory_gib(session.world.device),
            "replaced": float(session.progress.replaced),
            "skipped": float(session.guard.skipped),
        }

    def _work(self, rate: float) -> dict[str, float]:
        """Tokens and FLOPs at so many samples a second; nothing where a sample's are not the same at every stage."""
        session = self._session
        stages, tokens = session.recipe.curriculum, session.sources.tokens_per_sample
        figures: dict[str, float] = {}
        if tokens is not None and not any(stage.max_tokens or stage.weights for stage in stages):
            figures |= {"tokens_per_s": tokens * rate, "tokens": tokens * session.progress.position}
        if not any(stage.view() for stage in stages):
            figures["tflops_per_rank"] = self._flops_per_sample * rate / session.world.world_size / 1e12
        return figures

    def _collapse(self) -> dict[str, float]:
        if self._embeddings.is_empty:
            return {}
        return self._embeddings.read(self._session.world.sum(self._embeddings.vector())) or {}

    def _update_ratio(self, before: list[torch.Tensor]) -> float:
        now = [piece.tensor for piece in self._session.engine.slices() if piece.kind == "w"]
        moved = sum(float((a - b).square().sum()) for a, b in zip(now, before, strict=True))
        size = sum(float(b.square().sum()) for b in before)
        total = self._session.world.sum(np.array([moved, size]))
        return math.sqrt(total[0] / total[1]) if total[1] > 0 else 0.0


def memory_gib(device: torch.device) -> float:
    """Peak memory of the accelerator, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**30
