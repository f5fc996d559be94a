"""The proof: what a run consumed, recomputed from its order (docs/order.md, rule 10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipelines.base import UserError
from data_pipelines.ledger import expected
from data_pipelines.quarantine import num_bad, read_lines
from data_pipelines.quarantine import replaced as replaced_slots
from pretrain.checkpoint import CheckpointReader, committed, path_of
from pretrain.run.directory import RunDirectory
from pretrain.sources import open_sources


@dataclass(frozen=True)
class Verdict:
    """Attributes: holds: every logged step agrees; words: the verdict in one line."""

    holds: bool
    words: str


def verify(run: RunDirectory) -> Verdict:
    """Recompute the ledger at every step a run has logged.

    Raises:
        UserError: the run logged nothing yet, or its data changed.
    """
    recipe = run.recipe()
    # What stood in for samples that are opted out is told by the quarantine; the list may be gone by now.
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"opt_out": None})})
    sources = open_sources(recipe)
    run.refuse_other(recipe, sources.digests())
    lines = run.ledger()
    if not lines:
        raise UserError(f"run {run.root}: nothing logged yet; there is no ledger to verify")
    order = sources.order(recipe, _segments(run), lines[-1]["position"])
    replaced = replaced_slots(run.quarantine)
    total, position = 0, 0
    for line in lines:
        total = (total + expected(order, sources.datasets, position, line["position"], replaced)) % (1 << 128)
        position = line["position"]
        if total != int(line["total"], 16):
            return Verdict(
                False,
                f"run {run.root}: the ledger DIFFERS from the order at step {line['step']} (slots up to {position})",
            )
    epochs, bad = position / sources.num_samples, num_bad(read_lines(run.quarantine))
    opted_out = f"{len(replaced) - bad} opted out, " if len(replaced) > bad else ""
    return Verdict(
        True,
        f"run {run.root}: {position:,} slots in {len(lines)} steps are exactly what the order says "
        f"({epochs:.2f} epochs, {bad} replaced, {opted_out}{len(run.attempts())} attempts)",
    )


def _segments(run: RunDirectory) -> list[dict[str, Any]]:
    """How the mixture changed over the run's life, as its newest checkpoint tells."""
    steps = committed(run.checkpoints)
    segments: list[dict[str, Any]] = (
        CheckpointReader(path_of(run.checkpoints, steps[-1])).state["order"] if steps else []
    )
    return segments
