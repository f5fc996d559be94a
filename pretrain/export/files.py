"""What stands in an export's folder, to those who write it and those who open it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import xxhash
from torch import Tensor
from transformers.utils import logging

from data_pipelines.base import Strict
from pretrain.networks.vision import Features

PREPROCESSOR = "preprocessor_config.json"
PROVENANCE = "thalweg"
"""Key of `preprocessor_config.json` under which an export says where it comes from."""


class Network(Protocol):
    """A network that transformers does not know; `type(network)(network.config)` draws it anew."""

    config: Strict

    def features(self, images: Tensor) -> Features:
        """Features of normalised images (B, C, H, W)."""
        ...


def provenance(folder: Path) -> dict[str, Any]:
    """Run, step and checkpoint that an export comes from; empty where it is not ours."""
    try:
        found: dict[str, Any] = json.loads((folder / PREPROCESSOR).read_text()).get(PROVENANCE, {})
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found


def weights_digest(folder: Path) -> str:
    """32 hex digits of an export's architecture and weights."""
    hasher = xxhash.xxh3_128()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            while block := file.read(2**24):
                hasher.update(block)
    return hasher.hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and its report on heads that were left out on purpose."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
