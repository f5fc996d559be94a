"""Line charts as inline SVG: no library, no script, colours by CSS class so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from markupsafe import Markup

from evals.report.ticks import MINUS, common_exponent, compact, log_ticks, nice_ticks

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24
"""Of the plot inside the picture, in its own units (about one CSS pixel)."""

MAX_POINTS = 300
"""Points drawn of one line; a picture of 360 pixels shows no more."""

SMOOTH_FROM = 60
"""Noisy lines with at least so many points are drawn faint under their running median."""

DOTTED_UP_TO = 15
"""Exact lines of so few points show each of them."""

COLORS = 10
"""Classes c0 to c9 of the style sheet."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: in the legend.
        points: (N, 2) of step and value, steps ascending; values that are not finite break the line.
        color: index of a colour, taken modulo `COLORS`.
        dash: 0 solid, 1 dashed, 2 dotted.
        noisy: measured on single batches, so worth smoothing.
    """

    label: str
    points: np.ndarray
    color: int = 0
    dash: int = 0
    noisy: bool = False

    @property
    def style(self) -> str:
        """CSS classes of the line and of its swatch in the legend."""
        return f"c{self.color % COLORS} d{min(self.dash, 2)}"

    @property
    def last(self) -> str:
        """The newest finite value, in words."""
        values = self.points[np.isfinite(self.points[:, 1]), 1]
        return compact(float(values[-1]), 3) if len(values) else "not finite"


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: a thin vertical line."""

    step: float
    kind: Literal["restart", "alarm"]


@dataclass(frozen=True)
class Chart:
    """One picture of a small multiple.

    Attributes:
        title: what is measured.
        lines: drawn in order, later ones on top.
        unit: of the values, shown beside the title.
        marks: restarts and alarms.
        band: True shades what lies between the first two lines.
        log: logarithmic values, where all are positive and they span more than a decade and a half.
        from_zero: the axis starts at zero.
        levels: horizontal reference lines, (label, value).
        steps: (first, last) step of the axis; those of the lines when None.
    """

    title: str
    lines: Sequence[Line]
    unit: str = ""
    marks: Sequence[Mark] = ()
    band: bool = False
    log: bool = False
    from_zero: bool = False
    levels: Sequence[tuple[str, float]] = ()
    steps: tuple[float, float] | None = None

    @property
    def words(self) -> str:
        """The picture for those who do not see it."""
        told = [
            f"{line.label}: {compact(float(finite[0]), 3)} at step {compact(float(steps[0]))}, "
            f"{compact(float(finite[-1]), 3)} at step {compact(float(steps[-1]))}"
            for line in self.lines
            for steps, finite in [_finite(line.points)]
            if len(finite)
        ]
        return f"{self.title} by step. {'; '.join(told) or 'No finite value'}."

    @cached_property
    def svg(self) -> Markup:
        """The drawing."""
        return draw(self)


def draw(chart: Chart) -> Markup:
    """`chart` as one SVG element that carries its own description."""
    frame = _Frame(chart)
    plot = Markup("").join(
        [
            *(_mark(frame, mark) for mark in chart.marks),
            *(_level(frame, value) for _, value in chart.levels),
            *([_band(frame, *chart.lines[:2])] if chart.band and len(chart.lines) > 1 else []),
            *(piece for line in chart.lines for piece in _line(frame, line)),
        ]
    )
    return Markup(
        '<svg class="plot" role="img" aria-label="{words}" viewBox="0 0 {width} {height}">'
        '{axes}<svg x="{left}" y="{top}" width="{inner_width}" height="{inner_height}">{plot}</svg>{names}</svg>'
    ).format(
        words=chart.words,
        width=WIDTH,
        height=HEIGHT,
        axes=_axes(frame),
        left=LEFT,
        top=TOP,
        inner_width=_number(frame.width),
        inner_height=_number(frame.height),
        plot=plot,
        names=Markup("").join(_level_names(frame, chart.levels)),
    )


class _Frame:
    """Where steps and values lie inside the plot."""

    width = WIDTH - LEFT - RIGHT
    height = HEIGHT - TOP - BOTTOM

    def __init__(self, chart: Chart) -> None:
        steps = np.concatenate([_finite(line.points)[0] for line in chart.lines] or [np.zeros(1)])
        first, last = chart.steps or ((steps.min(), steps.max()) if len(steps) else (0.0, 1.0))
        self.first, self.last = float(first), float(max(last, first + 1))
        values = np.concatenate([_extent(line) for line in chart.lines] + [np.array([v for _, v in chart.levels])])
        self.air = 0.12 if chart.levels else 0.06  # names of levels want room below the lowest
        self.log = bool(
            chart.log and not chart.from_zero and len(values) and values.min() > 0 and values.max() > 30 * values.min()
        )
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        self.low, self.high = self._padded(min(low, 0.0) if chart.from_zero else low, high, chart.from_zero)

    def _padded(self, low: float, high: float, from_zero: bool) -> tuple[float, float]:
        if self.log:
            return low / 1.2, high * 1.2
        air = self.air * (high - low) or 0.1 * abs(high) or 1.0
        return (low if from_zero and low == 0 else low - air), high + air

    def x(self, steps: np.ndarray | float) -> np.ndarray:
        return (np.asarray(steps, dtype=float) - self.first) / (self.last - self.first) * self.width

    def y(self, values: np.ndarray | float) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log10(np.maximum(values, low)), math.log10(low), math.log10(high)
        return np.asarray(self.height - (values - low) / (high - low) * self.height)


def _axes(frame: _Frame) -> Markup:
    ticks = log_ticks(frame.low, frame.high) if frame.log else nice_ticks(frame.low, frame.high)
    exponent = 0 if frame.log else common_exponent(ticks)
    pieces = [_value_tick(frame, value, compact(value / 10.0**exponent)) for value in ticks]
    if exponent:
        power = Markup('<text class="tick halo" x="{}" y="{}">×10<tspan dy="-4" class="power">{}</tspan></text>')
        pieces.append(power.format(LEFT + 4, TOP + 6, str(exponent).replace("-", MINUS)))
    pieces.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT))
    pieces += [_step_tick(frame, step) for step in nice_ticks(frame.first, frame.last)]
    return Markup("").join(pieces)


def _value_tick(frame: _Frame, value: float, text: str) -> Markup:
    y = _number(TOP + float(frame.y(value)))
    return Markup(
        '<path class="grid" d="M{} {y}H{}"/><text class="tick" x="{}" y="{y}" dy=".32em" text-anchor="end">{}</text>'
    ).format(LEFT, WIDTH - RIGHT, LEFT - 6, text, y=y)


def _step_tick(frame: _Frame, step: float) -> Markup:
    x, y = LEFT + float(frame.x(step)), HEIGHT - BOTTOM
    anchor = "end" if x > WIDTH - RIGHT - 10 else "middle"
    return Markup(
        '<path class="axis" d="M{x} {}v4"/><text class="tick" x="{x}" y="{}" text-anchor="{}">{}</text>'
    ).format(y, y + 17, anchor, compact(step), x=_number(x))


def _mark(frame: _Frame, mark: Mark) -> Markup:
    x = _number(float(frame.x(mark.step)))
    return Markup('<path class="mark {}" d="M{} 0V{}"/>').format(mark.kind, x, _number(frame.height))


def _level(frame: _Frame, value: float) -> Markup:
    return Markup('<path class="level" d="M0 {}H{}"/>').format(_number(float(frame.y(value))), _number(frame.width))


def _level_names(frame: _Frame, levels: Sequence[tuple[str, float]]) -> Iterable[Markup]:
    """Each at its line: the highest above it, all others below, so that two close lines keep both names."""
    for index, (label, value) in enumerate(sorted(levels, key=lambda level: -level[1])):
        y = TOP + float(frame.y(value)) + (12 if index else -4)
        yield Markup('<text class="tick halo" x="{}" y="{}" text-anchor="end">{}</text>').format(
            WIDTH - RIGHT, _number(y), label
        )


def _band(frame: _Frame, lower: Line, upper: Line) -> Markup:
    """The area between two lines, on the steps that both have."""
    steps, first, second = np.intersect1d(lower.points[:, 0], upper.points[:, 0], return_indices=True)
    edges = [_thinned(np.column_stack([steps, line.points[at, 1]])) for line, at in ((lower, first), (upper, second))]
    edges = [edge[np.isfinite(edge[:, 1])] for edge in edges]
    outline = np.concatenate([edges[0], edges[1][::-1]])
    return Markup('<path class="band" d="{}Z"/>').format(_path(frame, outline)) if len(steps) > 1 else Markup("")


def _line(frame: _Frame, line: Line) -> Iterable[Markup]:
    points = _thinned(line.points)
    smooth = line.noisy and len(line.points) >= SMOOTH_FROM
    yield Markup('<path class="line {} {}" d="{}"/>').format(
        line.style, "faint" if smooth else "", _path(frame, points)
    )
    if smooth:
        yield Markup('<path class="line {}" d="{}"/>').format(line.style, _path(frame, running_median(line.points)))
    elif len(points) <= DOTTED_UP_TO and not line.noisy:
        steps, values = _finite(points)
        dots = "".join(f"M{_number(x)} {_number(y)}h0" for x, y in zip(frame.x(steps), frame.y(values), strict=True))
        yield Markup('<path class="dots {}" d="{}"/>').format(line.style, dots)


def running_median(points: np.ndarray) -> np.ndarray:
    """Centred median over a fortieth of the finite points, at most `MAX_POINTS` of it.

    A median, so that one spike leaves the line where it was; narrower at both ends, so that they stay true.
    """
    finite = points[np.isfinite(points[:, 1])]
    half, last = max(2, len(finite) // 80), len(finite) - 1
    centres = np.unique(np.linspace(0, last, min(len(finite), MAX_POINTS)).astype(int))
    reach = np.minimum(half, np.minimum(centres, last - centres))
    medians = [np.median(finite[c - r : c + r + 1, 1]) for c, r in zip(centres, reach, strict=True)]
    return np.column_stack([finite[centres, 0], medians])


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most about `MAX_POINTS` points that keep the lowest and the highest value of each stretch."""
    if len(points) <= MAX_POINTS:
        return points
    stretches = np.array_split(np.arange(len(points)), MAX_POINTS // 2)
    kept = [0, len(points) - 1]
    for stretch in stretches:
        values = points[stretch, 1]
        if np.isfinite(values).any():
            kept += [stretch[np.nanargmin(values)], stretch[np.nanargmax(values)]]
    return points[np.unique(kept)]


def _path(frame: _Frame, points: np.ndarray) -> str:
    pieces, pen = [], "M"
    for x, y, finite in zip(frame.x(points[:, 0]), frame.y(points[:, 1]), np.isfinite(points[:, 1]), strict=True):
        if finite:
            pieces.append(f"{pen}{_number(x)} {_number(y)}")
        pen = "L" if finite else "M"
    return "".join(pieces)


def _finite(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = points[np.isfinite(points[:, 1])]
    return kept[:, 0], kept[:, 1]


def _extent(line: Line) -> np.ndarray:
    """Values the axis must show; single spikes of a noisy line may leave the picture."""
    _, values = _finite(line.points)
    if line.noisy and len(values) >= SMOOTH_FROM:
        return np.concatenate([np.percentile(values, [1, 99]), running_median(line.points)[:, 1]])
    return values


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
