"""What a run is and whether it is well, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from evals.report.judging import best_of
from evals.report.record import RunRecord, is_number
from evals.report.ticks import compact, grouped
from pretrain.config import Monitor

OBJECTIVES = {
    "mae": "masked-autoencoder pretraining",
    "info_nce": "contrastive (InfoNCE) pretraining",
    "masked_lm": "masked language modelling",
}
"""Names of objectives in prose; others stand as they are."""


Mood = Literal["well", "care", "alarm"]


@dataclass(frozen=True)
class Verdict:
    """The state in two words, and the whole story in a sentence.

    Attributes:
        mood: colours the headline.
    """

    mood: Mood
    headline: str
    sentence: str


def verdict(run: RunRecord) -> Verdict:
    """What stands under the run's name."""
    state = "finished" if run.finished else "running" if run.alive else "stopped" if run.metrics else "not begun"
    lasting = lasting_alarms(run)
    mood: Mood = "alarm" if lasting else "well" if state in ("finished", "running") else "care"
    health = {"alarm": ", not well", "well": " and well", "care": ""}[mood]
    parts = [f"{_what(run)} {_progress(run, state)}{_with_troubles(run, lasting) if run.metrics else ''}"]
    if run.quarantined:
        samples = "sample was" if run.quarantined == 1 else "samples were"
        parts.append(f"{grouped(run.quarantined)} unreadable {samples} replaced and listed")
    if best := best_of(run.judgements):
        parts.append(best)
    return Verdict(mood, f"{state.capitalize()}{health}", "; ".join(parts) + ".")


def _what(run: RunRecord) -> str:
    name = str(run.objective.get("name", "pretraining"))
    words = OBJECTIVES.get(name, name)
    parameters = run.info.get("parameters")
    network = f" of a {compact(parameters, 3)}-parameter network" if is_number(parameters) else ""
    sets = run.info.get("data")
    data = f" on {', '.join(map(str, sets))}" if isinstance(sets, Mapping) and sets else ""
    return f"{words[:1].upper()}{words[1:]}{network}{data}"


def _progress(run: RunRecord, state: str) -> str:
    total = f" of {grouped(run.total_steps)}" if run.total_steps else ""
    if state == "not begun":
        return "has not logged a step yet"
    seen = f" ({grouped(run.position)} samples{_epochs(run)})" if run.position else ""
    if state == "finished":
        return f"did all its {grouped(run.total_steps or run.step)} steps{seen}"
    if state == "running":
        return f"is at step {grouped(run.step)}{total}{seen}"
    return f"stands still at step {grouped(run.step)}{total}{seen}{_how_it_ended(run)}"


def _epochs(run: RunRecord) -> str:
    samples = run.info.get("samples")
    return f", {compact(run.position / samples, 3)} epochs" if is_number(samples) and samples else ""


def _how_it_ended(run: RunRecord) -> str:
    newest = run.attempts[max(run.attempts)] if run.attempts else {}
    if newest.get("exit_code") == 85:
        return ", saved and ready to be started again"
    if newest.get("message"):
        return f", because {newest['message']}"
    return "" if newest.get("status") == "ended" else ", its process gone without a word"


def lasting_alarms(run: RunRecord) -> frozenset[str]:
    """Kinds of alarms whose condition still holds at the newest metrics: the monitors hear the run once more."""
    if not run.metrics:
        return frozenset()
    from pretrain.monitors import Alarms

    try:
        monitor = Monitor.model_validate(run.config.get("monitor") or {})
    except ValidationError:
        monitor = Monitor()
    alarms = Alarms(monitor)
    lasting: frozenset[str] = frozenset()
    for line in run.metrics:
        figures = {key: value for key, value in line.items() if is_number(value)}
        if "loss" in figures:
            alarms.hear(figures)
            # The rank is measured at some lines only; until it is measured again, a collapse holds.
            lasting = alarms.raised | (lasting & {"collapse"} if "effective_rank" not in figures else frozenset())
    losses = run.curve("loss")
    return lasting | ({"no finite loss"} if len(losses) and math.isnan(losses[-1, 1]) else set())


def _with_troubles(run: RunRecord, lasting: frozenset[str]) -> str:
    by_kind: dict[str, list[int]] = {kind: [] for kind in sorted(lasting)}
    for kind, step, _ in run.alarms:
        by_kind.setdefault(kind, []).append(step)
    troubles = [_trouble(kind, steps, kind in lasting) for kind, steps in by_kind.items()]
    return f", with {' and '.join(troubles)}" if troubles else ", without an alarm"


def _trouble(kind: str, steps: list[int], lasts: bool) -> str:
    end = " that lasts" if lasts else " that has passed"
    if not steps:
        return kind if kind.startswith("no ") else f"{_article(kind)} {kind} alarm due now"
    if len(steps) == 1:
        return f"{_article(kind)} {kind} alarm at step {grouped(steps[0])}{end}"
    return f"{len(steps)} {kind} alarms, the last at step {grouped(steps[-1])}{end}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
