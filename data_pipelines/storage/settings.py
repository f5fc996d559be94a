"""What a user may choose about remote reading."""

from __future__ import annotations

from pydantic import Field

from data_pipelines.base import Strict


class Storage(Strict):
    """How remote data is read; none of this changes which samples are."""

    cache_bytes: int = Field(0, ge=0)
    """Disk for whole shards, shared by the ranks of a node, below $THALWEG_CACHE; 0 reads ranges alone."""
    deadline_s: float = Field(180.0, gt=0)
    """Longest that one read is tried again before its sample is replaced."""


DEFAULTS = Storage()
