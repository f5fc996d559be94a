"""The embedding seen from near: nearest neighbours, and the map of all validation samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from markupsafe import Markup

from data_pipelines.base import ThalwegError
from evals.report.pictures import BLOCKY_SIDE, Picture, thumbnail
from evals.report.record import RunRecord
from evals.report.scatter import project, scatter
from evals.report.ticks import grouped
from evals.report.validation import Features, newest_features

NEIGHBOURS = 8
QUERIES = 8
MAP_SAMPLES = 1000
"""Of the map; t-SNE takes about three seconds for so many on one core."""


@dataclass(frozen=True)
class Cell:
    """A query or one of its neighbours; `other` marks a neighbour of another class."""

    picture: Picture
    label: str
    blocky: bool
    other: bool = False


@dataclass(frozen=True)
class Closeup:
    """What the template shows; `words` says why there is nothing to show."""

    words: str = ""
    rows: Sequence[Sequence[Cell]] = ()
    agreement: str = ""
    map: Markup | None = None
    map_words: str = ""


def closeup_of(run: RunRecord) -> Closeup:
    """The close-up of a run's newest export; words where there is none."""
    try:
        return closeup(newest_features(run), run.name)
    except (ThalwegError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # Whatever is wrong with an export or a data set, the rest of the page is worth having.
        return Closeup(f"No neighbours and no map: {error}.")


def closeup(features: Features, run_name: str) -> Closeup:
    """Neighbours and map of one run's newest features."""
    import torch

    from pretrain.probes import neighbours

    count = len(features.vectors)
    if count < NEIGHBOURS + 2 or not np.isfinite(features.vectors).all():
        return Closeup("No neighbours and no map: the validation set is too small, or its features are not finite.")
    queries = pick_queries(features.labels, QUERIES)
    bank = torch.from_numpy(np.ascontiguousarray(features.vectors))
    _, found = neighbours(bank[queries], bank, NEIGHBOURS + 1)
    near = [
        [row for row in rows if row != query][:NEIGHBOURS] for query, rows in zip(queries, found.tolist(), strict=True)
    ]
    drawn = np.linspace(0, count - 1, min(count, MAP_SAMPLES)).astype(int)
    return Closeup(
        rows=[row for row in map(partial(_row, features), queries, near) if row],
        agreement=_agreement(features.labels, queries, near),
        map=_map(features, drawn, run_name),
        map_words=_map_words(features, drawn),
    )


def _map(features: Features, rows: np.ndarray, run_name: str) -> Markup:
    labels = features.labels[rows]
    coloured = ", coloured by class" if (labels >= 0).any() else ""
    alt = f"Map of {len(rows)} validation samples of run {run_name}{coloured}."
    return scatter(project(features.vectors[rows]), labels if coloured else None, features.classes, alt)


def _map_words(features: Features, rows: np.ndarray) -> str:
    coloured = ", one colour a class" if (features.labels[rows] >= 0).any() else ""
    return (
        f"Map of {grouped(len(rows))} validation samples{coloured}: t-SNE of the {features.kind} features at step "
        f"{grouped(features.step)}, which saw no label. Near points are alike; the sizes of clusters and the distances "
        f"between them mean nothing."
    )


def pick_queries(labels: np.ndarray, count: int) -> list[int]:
    """The first sample of each class while they last, then the first of all others."""
    _, firsts = np.unique(labels, return_index=True)
    chosen = [int(index) for index in firsts if labels[index] >= 0][:count]
    rest = (index for index in range(len(labels)) if index not in chosen)
    while len(chosen) < min(count, len(labels)):
        chosen.append(next(rest))
    return chosen


def _row(features: Features, query: int, near: Sequence[int]) -> list[Cell]:
    cells = [_cell(features, index, features.labels[index] != features.labels[query]) for index in (query, *near)]
    return [cell for cell in cells if cell] if cells[0] else []


def _cell(features: Features, index: int, other: bool) -> Cell | None:
    pixels = features.image(index)
    if pixels is None:
        return None
    label = class_name(features.classes, int(features.labels[index]))
    return Cell(thumbnail(pixels, alt=label or "validation sample"), label, max(pixels.shape[:2]) <= BLOCKY_SIDE, other)


def class_name(classes: Sequence[str], label: int) -> str:
    """The class in words, its number where it has no name, empty where unknown."""
    if label < 0:
        return ""
    return classes[label] if label < len(classes) else str(label)


def _agreement(labels: np.ndarray, queries: Sequence[int], near: Sequence[Sequence[int]]) -> str:
    pairs = [(query, row) for query, rows in zip(queries, near, strict=True) for row in rows]
    known = [(a, b) for a, b in pairs if labels[a] >= 0 and labels[b] >= 0]
    if not known:
        return ""
    same = sum(labels[a] == labels[b] for a, b in known)
    return f"{same} of {len(known)} neighbours are of the query's class; the others are set in red."
