"""Which curves the report shows of the metrics, and how runs share a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.report.charts import Chart, Line, Mark
from evals.report.record import RunRecord


@dataclass(frozen=True)
class Curve:
    """One picture: a title and the metrics in it.

    Attributes:
        series: (metric, its name in the legend); the name of a lone one is left empty.
        noisy: metrics measured on single batches.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    unit: str = ""
    noisy: bool = True
    band: bool = False
    log: bool = False
    from_zero: bool = False


PROGRESS = (
    Curve("Loss", (("loss", "training"), ("validation_loss", "validation")), log=True),
    Curve("Learning rate", (("lr", ""),), noisy=False, from_zero=True),
    Curve("Gradient norm", (("grad_norm", ""),), "before clipping", log=True),
    Curve("Throughput", (("samples_per_s", ""),), "samples/s, all ranks", from_zero=True),
    Curve("Waiting for data", (("data_wait", ""),), "share of the time", from_zero=True),
    Curve("Arithmetic", (("tflops_per_rank", ""),), "TFLOP/s a rank", from_zero=True),
    Curve("Memory", (("memory_gib", ""),), "GiB, peak", from_zero=True),
    Curve("Update ratio", (("update_ratio", ""),), "|update| / |weights|", log=True),
)
COLLAPSE = (
    Curve("Effective rank", (("effective_rank", ""),), "dimensions", from_zero=True),
    Curve("Embedding standard deviation", (("embedding_std", ""),), "mean over dimensions", from_zero=True),
    Curve(
        "Energies",
        (("positive_energy", "positive"), ("contrastive_energy", "contrastive")),
        band=True,
    ),
    Curve("Uniformity and alignment", (("uniformity", "uniformity"), ("alignment", "alignment")), "lower is better"),
    Curve(
        "Online probes",
        (("knn", "k\N{NON-BREAKING HYPHEN}NN"), ("probe", "linear")),
        "accuracy inside the run",
        noisy=False,
    ),
)
PLAIN = {"attempt", "step", "time", "embedding_dimensions", "replaced", "skipped"}
"""Numbers of a metrics line that are no curves."""

VALIDATION = "validation_"
"""Before the name of a metric that was measured over the validation set."""

MOST_OWN_CURVES = 12


def charts(runs: Sequence[RunRecord], curves: Sequence[Curve]) -> list[Chart]:
    """The pictures for which at least one run has a number."""
    drawn = (_chart(runs, curve) for curve in curves)
    return [chart for chart in drawn if chart.lines]


def own_curves(runs: Sequence[RunRecord]) -> list[Curve]:
    """The logs of the objectives themselves: all metrics that no other picture shows, with their validation twins."""
    shown = PLAIN | {key for curve in (*PROGRESS, *COLLAPSE) for key, _ in curve.series}
    keys = {key for run in runs for line in run.metrics for key in line} - shown
    names = sorted({key.removeprefix(VALIDATION) for key in keys})
    return [_own_curve(name, f"{VALIDATION}{name}" in keys) for name in names][:MOST_OWN_CURVES]


def _own_curve(name: str, validated: bool) -> Curve:
    title = name.replace("_", " ").capitalize().replace("mse", "MSE")
    twins = ((name, "training"), (f"{VALIDATION}{name}", "validation"))
    return Curve(title, twins if validated else ((name, ""),))


def _chart(runs: Sequence[RunRecord], curve: Curve) -> Chart:
    lines = [line for index, run in enumerate(runs) for line in _lines(run, curve, index, len(runs) > 1)]
    marks = [Mark(step, "restart") for run in runs for step in run.restarts]
    marks += [Mark(step, "alarm") for run in runs for _, step, _ in run.alarms]
    return Chart(
        title=curve.title,
        lines=lines,
        unit=curve.unit,
        marks=marks,
        band=curve.band and len(runs) == 1,
        log=curve.log,
        from_zero=curve.from_zero,
        steps=(0, max(run.step for run in runs)),
    )


def _lines(run: RunRecord, curve: Curve, index: int, several: bool) -> list[Line]:
    """Colours tell runs apart where there are several, and series where there is one run."""
    lines = []
    for number, (key, label) in enumerate(curve.series):
        points = run.curve(key)
        if not np.isfinite(points[:, 1]).any():
            continue
        name = " ".join(part for part in (run.name if several else "", label) if part)
        color, dash = (index, number) if several else (number, 0)
        # Validation and probes are few and exact; only what is measured on one batch is smoothed.
        noisy = curve.noisy and not key.startswith(VALIDATION)
        lines.append(Line(name, points, color, dash, noisy))
    return lines
