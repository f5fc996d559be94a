"""The embedding map: features on a plane, one colour a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from evals.report.charts import COLORS

SIDE = 420
"""Of the square picture, in its own units."""

NAMED_CLASSES = 12
"""Up to so many classes carry their name in the picture."""


def project(features: np.ndarray) -> np.ndarray:
    """Features (N, D) on a plane, (N, 2), by t-SNE from a PCA start; the same picture every time.

    Source: van der Maaten 2008, JMLR 9; sklearn's Barnes-Hut version on one thread, since the order of
    a threaded sum would change the picture from run to run.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    with threadpool_limits(1):
        few = PCA(min(30, *unit.shape), random_state=0).fit_transform(unit)
        if len(few) < 10:
            return np.pad(few, ((0, 0), (0, 2)))[:, :2]
        tsne = TSNE(perplexity=min(30.0, (len(few) - 1) / 3), max_iter=500, init="pca", random_state=0)
        return np.asarray(tsne.fit_transform(few))


def scatter(points: np.ndarray, labels: np.ndarray | None, names: Sequence[str], alt: str) -> Markup:
    """Points (N, 2) as one SVG element.

    Args:
        labels: (N,) classes, -1 where unknown; None paints all alike.
        names: of the classes.
    """
    low, high = points.min(0), points.max(0)
    scaled = 10 + (points - low) / np.maximum(high - low, 1e-12) * (SIDE - 20)
    kinds = np.zeros(len(points), dtype=int) if labels is None else labels
    present = [int(kind) for kind in np.unique(kinds)]
    clouds = [_cloud(scaled[kinds == kind], kind) for kind in present]
    named = labels is not None and len(present) <= NAMED_CLASSES
    texts = [_name(scaled[kinds == kind], names[kind]) for kind in present if named and 0 <= kind < len(names)]
    return Markup(
        '<svg class="plot" role="img" aria-label="{alt}" viewBox="0 0 {side} {side}">{clouds}{texts}</svg>'
    ).format(alt=alt, side=SIDE, clouds=Markup("").join(clouds), texts=Markup("").join(texts))


def _cloud(points: np.ndarray, kind: int) -> Markup:
    dots = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)
    return Markup('<path class="cloud c{}" d="{}"/>').format(max(kind, 0) % COLORS, dots)


def _name(points: np.ndarray, name: str) -> Markup:
    """At the point nearest to the middle of its class, so that it lies on the class even where that is bent."""
    middle = np.median(points, axis=0)
    x, y = points[np.argmin(((points - middle) ** 2).sum(1))]
    return Markup('<text class="name halo" x="{:.0f}" y="{:.0f}" text-anchor="middle" dy=".35em">{}</text>').format(
        x, y, name
    )
