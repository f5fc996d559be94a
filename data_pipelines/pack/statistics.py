"""What a packed set is like, in figures: `statistics.json` beside its manifest, and a line for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.manifest import Shard
from data_pipelines.pack.shard import Seen

STATISTICS = "statistics.json"
LISTED_SIZES = 20


def statistics(seen: Seen, shards: Sequence[Shard], classes: Sequence[str] | None) -> bytes:
    """The file's content: samples by class, by size in bytes, and by size of the image."""
    figures: dict[str, Any] = {
        "samples": sum(shard.samples for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "left_out": len(seen.left_out),
        "near_others": len(seen.near),
        "samples_below_bytes": {str(2**bits): count for bits, count in sorted(seen.sizes.items())},
    }
    if seen.labels:
        figures["classes"] = _by_class(seen, classes)
    images = [(kind, count) for kind, count in seen.kinds.most_common() if len(kind) >= 2]
    if images:
        figures["images_height_width"] = {f"{kind[0]} x {kind[1]}": count for kind, count in images[:LISTED_SIZES]}
        figures["image_sizes"] = len({kind[:2] for kind, _ in images})
    return json.dumps(figures, indent=1, ensure_ascii=False).encode() + b"\n"


def _by_class(seen: Seen, classes: Sequence[str] | None) -> dict[str, int]:
    """Samples by the class's name, in the order of class numbers; classes without samples too."""
    if classes is None:
        return dict(sorted(seen.labels.items()))
    return {name: seen.labels.get(str(number), 0) for number, name in enumerate(classes)}


def in_words(folder: Path) -> str | None:
    """One line on a packed set, None where it has no figures."""
    try:
        figures = json.loads((folder / STATISTICS).read_text())
    except (OSError, ValueError):
        return None
    words = [f"{figures['bytes'] / 1e6:.1f} MB"]
    if counts := figures.get("classes"):
        rarest, commonest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        words.append(
            f"{len(counts)} classes of {counts[rarest]} ({rarest}) to {counts[commonest]} ({commonest}) samples"
        )
    if sizes := figures.get("image_sizes"):
        commonest = next(iter(figures["images_height_width"]))
        words.append(f"{sizes} sizes of images, most often {commonest}" if sizes > 1 else f"all images {commonest}")
    for name, what in (("left_out", "left out"), ("near_others", "left out as near other sets")):
        if figures[name]:
            words.append(f"{figures[name]} {what}")
    return "; ".join(words)
