"""Shared fixtures; nothing here needs a network or the developers' data folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared_cores", deadline=None)  # how long a case takes is no property of the code
settings.load_profile("shared_cores")

# Before torch and BLAS are imported anywhere: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes and features are cached per test session, never in the user's home."""
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path_factory.getbasetemp() / "thalweg-cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The developers' data folder; tests of the product alone do without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout: the developers' data is not part of the product")
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged MNIST as `thalweg data pack mnist` packs it."""
    from launch.cli import main

    folder = tmp_path_factory.mktemp("digits") / "mnist"
    assert main(["data", "pack", "mnist", str(folder)]) == 0
    return folder
