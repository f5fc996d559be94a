"""A run's life: its attempts, what happened, and whether its ledger holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from data_pipelines.base import ThalwegError
from evals.report.record import ALARMS, RunRecord, is_number
from evals.report.ticks import grouped
from evals.report.validation import is_local

MOST_VERIFIED = 5_000_000
"""Slots whose ledger the report recomputes itself; beyond, it names the command that does."""

MOST_EVENTS = 60


@dataclass(frozen=True)
class AttemptRow:
    """One start of the run."""

    number: int
    began: str
    where: str
    ranks: str
    first: str
    last: str
    end: str


@dataclass(frozen=True)
class EventRow:
    """One line of events.jsonl."""

    step: str
    attempt: str
    time: str
    kind: str
    words: str
    alarm: bool


def attempt_rows(run: RunRecord) -> list[AttemptRow]:
    """All starts, by number."""
    newest = max(run.attempts, default=0)
    return [
        AttemptRow(
            number=number,
            began=moment(record.get("began")),
            where=_where(record),
            ranks=str(record.get("world_size", "–")),
            first=_count(record.get("began_at_step")),
            last=_count(run.reached.get(number)),
            end=_end(record, number == newest, run.alive),
        )
        for number, record in run.attempts.items()
    ]


def lost(run: RunRecord) -> str:
    """What the restarts cost, in words."""
    if len(run.attempts) < 2:
        return "One start carried the run so far." if run.attempts else ""
    numbers = list(run.attempts)
    again = 0
    for earlier, later in pairwise(numbers):
        began = run.attempts[later].get("began_at_step")
        if is_number(began):
            again += max(0, run.reached.get(earlier, 0) - int(began))
    done = (
        f"{grouped(again)} logged {'step' if again == 1 else 'steps'} had to be done again"
        if again
        else "no logged step had to be done again"
    )
    return f"Starting again is resuming from the last checkpoint: over {len(numbers)} attempts {done}."


def event_rows(run: RunRecord) -> list[EventRow]:
    """The newest events, oldest first; checkpoints are left out, they are many and alike."""
    told = [event for event in run.events if event.get("kind") != "checkpoint"]
    return [
        EventRow(
            step=_count(event.get("step")),
            attempt=str(event.get("attempt", "–")),
            time=moment(event.get("time")),
            kind=str(event.get("kind", "")).replace("_", " "),
            words=str(event.get("words", "")),
            alarm=event.get("kind") in ALARMS,
        )
        for event in told[-MOST_EVENTS:]
    ]


def events_summary(run: RunRecord) -> str:
    """How many events, and of what kind."""
    kinds: dict[str, int] = {}
    for event in run.events:
        kind = str(event.get("kind", "")).replace("_", " ")
        kinds[kind] = kinds.get(kind, 0) + 1
    return "Events: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())


@dataclass(frozen=True)
class LedgerWords:
    """What the ledger says, and the command that checks it."""

    words: str
    command: str


def ledger_words(run: RunRecord) -> LedgerWords:
    """Whether the samples consumed are exactly those of the order; recomputed here where that is quick."""
    command = f"thalweg runs verify {run.address}"
    if not run.ledger:
        return LedgerWords("The ledger is empty: no sample has been consumed yet.", command)
    newest = run.ledger[-1]
    words = (
        f"The ledger stands at step {_count(newest.get('step'))}, after {grouped(run.position)} samples, "
        f"with the digest {newest.get('total', '–')}."
    )
    holds = _ledger_holds(run)
    if holds is not None:
        words += (
            " Recomputed from the order for this page it is equal: exactly the samples the order names were consumed."
            if holds
            else " Recomputed from the order for this page it DIFFERS: other samples were consumed."
        )
    return LedgerWords(words, command)


def _ledger_holds(run: RunRecord) -> bool | None:
    """None where it cannot be told here: too long a run, or its data elsewhere."""
    if run.position > MOST_VERIFIED or not _data_is_here(run):
        return None
    from pretrain.run.verify import verify

    try:
        return verify(run.directory).holds
    except (ThalwegError, OSError, ValueError, KeyError, TypeError):
        return None


def _data_is_here(run: RunRecord) -> bool:
    paths = run.info.get("data_paths")
    return isinstance(paths, Mapping) and bool(paths) and all(is_local(path) for path in paths.values())


def moment(seconds: Any) -> str:
    """A time of the run's own records, in UTC."""
    if not is_number(seconds) or not 0 <= seconds < 1e11:
        return "–"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _where(record: Mapping[str, Any]) -> str:
    host = str(record.get("host", "–"))
    return f"{host}, job {record['job']}" if record.get("job") else host


def _end(record: Mapping[str, Any], is_newest: bool, alive: bool) -> str:
    if record.get("status") != "ended":
        if is_newest and alive:
            return "at work"
        return "its process died without a word"
    code = record.get("exit_code")
    known = {0: "done", 85: "saved and stopped"}.get(code, f"exit code {code}") if isinstance(code, int) else "ended"
    return f"{known}: {record['message']}" if record.get("message") else known


def _count(value: Any) -> str:
    return grouped(value) if is_number(value) else "–"
