"""Sets of images and sets of clips in one mixture: two crops of an image, two moments of a clip."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipelines.base import UserError, parse
from data_pipelines.loader import Loader
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from launch.cli import main
from pretrain.config import Recipe
from pretrain.objectives import build
from pretrain.objectives.info_nce import InfoNCE
from pretrain.run.directory import RunDirectory
from pretrain.sources import open_sources
from tests.river import finish, losses, start

SIZE, FRAMES = 12, 4
ENCODER = {"architecture": "resnet", "embedding_size": 4, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
INFO_NCE = {
    "name": "info_nce", "encoder": ENCODER, "frame_distance": [1, 2],
    "projector": {"hidden_size": 8, "output_size": 4},
}  # fmt: skip


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)).save(file, "png")
    return file.getvalue()


def packed(folder: Path, name: str, samples: list[tuple[str, dict[str, bytes]]], **facts: Any) -> str:
    split = Split("train", samples, len(samples), 0, lambda: (Facts(channels=1, **facts), ()))
    [dataset] = write_sets(folder / name, [split], PackConfig(samples_per_shard=8), name=name, source="test")
    return dataset.path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """20 images of value 0 to 19; 12 clips whose frames have values from 100 up, one more from frame to frame."""
    folder = tmp_path_factory.mktemp("sets")
    images = [(f"i{n:02d}", {"png": picture(n)}) for n in range(20)]
    clips = [(f"c{n:02d}", {f"{t:02d}.png": picture(100 + 10 * n + t) for t in range(FRAMES)}) for n in range(12)]
    size = {"image_size": (SIZE, SIZE)}
    return packed(folder, "images", images, **size), packed(folder, "clips", clips, **size, frames=FRAMES)


def recipe_of(sets: tuple[str, str], objective: dict[str, Any] = INFO_NCE, **changes: Any) -> dict[str, Any]:
    sources = [{"path": sets[0], "weight": 3}, {"path": sets[1], "weight": 1}]
    tree = {"name": "mixed", "objective": objective, "data": {"sources": sources, "workers": 0}}
    return {**tree, "train": {"global_batch": 8, "steps": 4}, **changes}


def test_facts_are_those_of_the_clips_and_say_that_there_are_stills(sets: tuple[str, str]) -> None:
    facts = open_sources(parse(Recipe, recipe_of(sets), "recipe")).facts()
    assert (facts.frames, facts.stills, facts.image_size, facts.channels) == (FRAMES, True, (SIZE, SIZE), 1)
    alone = open_sources(parse(Recipe, recipe_of(sets, data={"path": sets[1]}), "recipe")).facts()
    assert (alone.frames, alone.stills) == (FRAMES, False)


def test_an_objective_of_one_kind_refuses_both(sets: tuple[str, str]) -> None:
    sources = open_sources(parse(Recipe, recipe_of(sets), "recipe"))
    for name in ("mae", "mae_video"):
        with pytest.raises(UserError, match=f"{name} takes images or clips, and the sources hold both"):
            build({"name": name}, sources.facts(), 0)
    clips = open_sources(parse(Recipe, recipe_of(sets, data={"path": sets[1]}), "recipe")).facts()
    with pytest.raises(UserError, match="the data holds clips; choose mae_video"):
        build({"name": "mae"}, clips, 0)


@pytest.mark.parametrize("crop_on", ["cpu", "device"])
def test_every_batch_holds_exact_shares_of_pairs_from_both(sets: tuple[str, str], crop_on: str) -> None:
    plain = {"jitter": 0.0, "grey": 0.0, "area": [1.0, 1.0]}
    recipe = parse(Recipe, recipe_of(sets, {**INFO_NCE, "crop_on": crop_on, "first": plain}), "recipe")
    sources = open_sources(recipe)
    model = build(recipe.objective, sources.facts(), 0)
    assert isinstance(model, InfoNCE)
    loader = iter(
        Loader(
            sources.datasets, sources.order(recipe), model.view, seed=0, global_batch=8, accumulation=1, rank=0,
            world_size=1, start=0, workers=0, prefetch=2, quarantine=None,
        )
    )  # fmt: skip
    for _ in range(5):
        batch = model.view.batch(next(loader))
        values = [(batch[f"view{view}"] * 0.5 + 0.5).mean(dim=(1, 2, 3)).mul(255).round().int() for view in (0, 1)]
        kinds = [key[0] for key in batch.keys]
        assert (kinds.count("i"), kinds.count("c")) == (6, 2)
        for key, first, second in zip(batch.keys, *(value.tolist() for value in values), strict=True):
            number, apart = int(key[1:]), abs(first - second)
            assert (first, apart) == (number, 0) if key[0] == "i" else (apart in (1, 2) and first // 10 == 10 + number)


@pytest.mark.slow
def test_a_run_learns_from_both(sets: tuple[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    monitor = {"log_every": 1, "tensorboard": False}
    recipe.write_text(yaml.safe_dump(recipe_of(sets, runs=str(tmp_path / "runs"), monitor=monitor)))
    code, output = finish(start(str(recipe), module="pretrain"))
    assert code == 0, output
    assert "images-train 0.75 (6 lanes), clips-train 0.25 (2 lanes)" in output
    run = RunDirectory(tmp_path / "runs" / "mixed")
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert main(["runs", "verify", str(run.root)]) == 0
