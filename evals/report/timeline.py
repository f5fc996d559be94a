"""Attempts as bars over the steps: what each did, what was done again, where checkpoints and alarms lie."""

from __future__ import annotations

from markupsafe import Markup

from evals.report.record import ALARMS, RunRecord, is_number
from evals.report.ticks import compact, grouped, nice_ticks

WIDTH, LEFT, RIGHT, ROW, BAR, BOTTOM = 760, 76, 10, 24, 13, 22
MOST_ROWS = 20


def timeline(run: RunRecord) -> Markup | None:
    """One SVG element; None where there is but one attempt, or nothing was done yet."""
    last = max([run.total_steps or 0, run.step, *run.reached.values()])
    numbers = list(run.attempts)[-MOST_ROWS:]
    if len(run.attempts) < 2 or not last:
        return None
    rows = Markup("").join(_row(run, number, place, last) for place, number in enumerate(numbers))
    height = len(numbers) * ROW + BOTTOM
    words = f"Attempts {numbers[0]} to {numbers[-1]} of run {run.name} over {grouped(last)} steps."
    return Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}">{}{}</svg>').format(
        words, WIDTH, height, rows, _axis(last, height - BOTTOM)
    )


def _row(run: RunRecord, number: int, place: int, last: int) -> Markup:
    began = run.attempts[number].get("began_at_step")
    first = int(began) if is_number(began) else 0
    reached = max(first, run.reached.get(number, first))
    later = [record.get("began_at_step") for other, record in run.attempts.items() if other > number]
    kept = min([reached, *(max(first, int(step)) for step in later if is_number(step))])
    y = place * ROW + (ROW - BAR) / 2
    return Markup('<text class="tick" x="0" y="{}" dy=".35em">attempt {}</text>{}{}{}').format(
        place * ROW + ROW / 2,
        number,
        _bar(first, kept, y, last, "bar c0"),
        _bar(kept, reached, y, last, "bar lost c0"),
        Markup("").join(
            _point(event["step"], y, last, "point alarm" if event["kind"] in ALARMS else "point")
            for event in run.events
            if event.get("attempt") == number
            and event.get("kind") in (*ALARMS, "checkpoint")
            and is_number(event.get("step"))
        ),
    )


def _bar(start: int, stop: int, y: float, last: int, style: str) -> Markup:
    if stop <= start:
        return Markup("")
    x = _x(start, last)
    return Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
        style, x, y, _x(stop, last) - x, BAR
    )


def _point(step: float, y: float, last: int, style: str) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {}v{}"/>').format(style, _x(step, last), y, BAR)


def _axis(last: int, y: float) -> Markup:
    line = Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, y, WIDTH - RIGHT)
    return line + Markup("").join(_tick(step, last, y) for step in nice_ticks(0, last, 8))


def _tick(step: float, last: int, y: float) -> Markup:
    x, text = f"{_x(step, last):.1f}", compact(step)
    anchor = "end" if _x(step, last) > WIDTH - 16 else "middle"
    return Markup(
        '<path class="axis" d="M{} {}v4"/><text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>'
    ).format(x, y, x, y + 16, anchor, text)


def _x(step: float, last: int) -> float:
    return LEFT + min(step / last, 1.0) * (WIDTH - LEFT - RIGHT)
