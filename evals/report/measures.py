"""Measures of evals: their names in prose, their numbers in print, which way is up."""

from __future__ import annotations

import re
from collections.abc import Mapping

from evals.report.ticks import MINUS, compact

PHRASES = (
    (re.compile(r"^top1@k1$"), "top-1, nearest neighbour"),
    (re.compile(r"^weighted@k1$"), "top-1, nearest neighbour weighted"),
    (re.compile(r"^top1@k(\d+)$"), r"top-1, \1 neighbours"),
    (re.compile(r"^weighted@k(\d+)$"), r"top-1, \1 weighted neighbours"),
    (re.compile(r"^top1@all$"), "top-1, all labels"),
    (re.compile(r"^top1@(\d+)$"), r"top-1, \1 labels a class"),
    (re.compile(r"^bleu$"), "BLEU"),
    (re.compile(r"^chrf$"), "chrF++"),
    (re.compile(r"^round_trip_bleu$"), "BLEU of the references through the tokenizer"),
)
EVALS = {"knn": "k\N{NON-BREAKING HYPHEN}NN", "linear_probe": "linear probe"}

LOWER_IS_BETTER = re.compile(r"loss|error|perplexity|mse|distance", re.IGNORECASE)
A_SHARE = re.compile(r"top_?\d|weighted|accuracy|precision|recall|\bf1|iou", re.IGNORECASE)


def spoken(name: str) -> str:
    """An eval or a measure in prose: "top1@10" is "top-1, 10 labels a class"."""
    for pattern, phrase in PHRASES:
        if pattern.match(name):
            return pattern.sub(phrase, name).replace("top-1", "top\N{NON-BREAKING HYPHEN}1")
    return EVALS.get(name, name.replace("_", " "))


def is_detail(name: str) -> bool:
    """Whether a metric explains another one ("cls.top1@10", "top1_std@10") instead of standing for itself."""
    return "." in name or "_std" in name


def written(name: str, metrics: Mapping[str, float]) -> str:
    """A number as the table prints it: shares as percent, with the spread over draws where it was measured."""
    value, spread = metrics[name], metrics.get(name.replace("@", "_std@", 1)) if "@" in name else None
    if not is_share(name, value):
        return compact(value)
    around = f" ± {100 * spread:.1f}" if spread is not None else ""
    return f"{100 * value:.1f}{around} %"


def in_print(name: str, value: float) -> float:
    """A value in the unit of the table: percent for shares."""
    return 100 * value if is_share(name, value) else value


def is_share(name: str, value: float) -> bool:
    """Whether `value` is a share of one."""
    return bool(A_SHARE.search(name)) and 0 <= value <= 1


def better(name: str, values: list[float]) -> float:
    """The best of `values`."""
    return min(values) if LOWER_IS_BETTER.search(name) else max(values)


def signed(difference: float) -> str:
    """A difference with its sign: +4.3."""
    text = f"{difference:+.1f}" if 0.1 <= abs(difference) < 1000 or difference == 0 else f"{difference:+.3g}"
    return text.replace("-", MINUS)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts 10 before 100, and both before words."""
    return [(int(part), "") if part.isdecimal() else (10**9, part) for part in re.split(r"(\d+)", name) if part]
