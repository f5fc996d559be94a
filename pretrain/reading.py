"""Reading with one voice: where the data fails one rank, all of them stop at the same place.

A rank that raised by itself would leave the others waiting in a collective, and no checkpoint could be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.base import DataError
from data_pipelines.batch import Batch
from pretrain.distributed import World


class ReadingError(DataError):
    """The data failed some rank, and every rank raises this, in the same words."""


@dataclass(frozen=True)
class Fetched:
    """What reading ahead gave this rank.

    Attributes:
        batches: the micro batches of one step; none where reading failed.
        failure: why it did, in words.
        waited_s: seconds that it took.
    """

    batches: tuple[Batch, ...] = ()
    failure: str | None = None
    waited_s: float = 0.0


def failure_of_any(world: World, own: str | None) -> str | None:
    """What failed on the lowest rank on which something did, for every rank; each calls it alike."""
    failed = [(rank, words) for rank, words in enumerate(world.gather_object(own)) if words is not None]
    if not failed:
        return None
    rank, words = failed[0]
    others = len(failed) - 1
    return f"rank {rank}: {words}" + (f" (and {others} more rank{'s' if others > 1 else ''})" if others else "")


def in_step(world: World, batches: Iterator[Batch]) -> Iterator[Batch]:
    """This rank's batches, as long as every rank can read its own; all ranks have as many.

    Raises:
        ReadingError: one could not.
    """
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except DataError as error:
            failure = str(error)
        if words := failure_of_any(world, failure):
            raise ReadingError(words)
        if batch is None:
            return
        yield batch
