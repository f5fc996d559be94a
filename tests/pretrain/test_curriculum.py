"""Stages of a recipe: what they may change, and that networks take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.base import UserError, parse
from data_pipelines.batch import Batch
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.views.staged import Staged
from pretrain.config import Recipe, identity
from pretrain.curriculum import training_view
from pretrain.networks.vision import features, vision_encoder
from pretrain.networks.vit import stretched
from pretrain.objective import DataFacts, Objective
from pretrain.objectives import build
from pretrain.sources import open_sources

IMAGES = DataFacts(channels=1, image_size=(16, 16))
ROWS = DataFacts(vocabulary_size=30, row_tokens=12, special_tokens={"pad": 0, "mask": 1, "cls": 2, "sep": 3})
TINY_VIT = {
    "architecture": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16,
}  # fmt: skip
TINY_DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MAE = {"name": "mae", "encoder": TINY_VIT, "decoder": TINY_DECODER}


def recipe_of(*stages: dict[str, Any], **groups: Any) -> Recipe:
    tree = {"name": "r", "objective": {"name": "x"}, "data": {}, "train": {"global_batch": 8, "steps": 9}, **groups}
    return parse(Recipe, {**tree, "curriculum": stages}, "recipe r")


def view_of(objective: Objective, *stages: dict[str, Any]) -> Any:
    return training_view(objective, recipe_of(*stages))


def test_a_stage_keeps_what_it_does_not_name() -> None:
    language = build({"name": "masked_lm", "encoder": {"architecture": "bert", "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}}, ROWS, 0)  # fmt: skip
    view = view_of(
        language, {"step": 0, "max_tokens": 4}, {"step": 2, "weights": {"a": 1}}, {"step": 3, "max_tokens": 9}
    )
    assert isinstance(view, Staged)
    assert [view.at(step * 8).max_tokens for step in range(5)] == [4, 4, 4, 9, 9]
    assert view.at(0).mask_ratio == language.view.mask_ratio


def test_without_stages_of_its_own_the_view_is_the_objectives() -> None:
    model = build(MAE, IMAGES, 0)
    assert view_of(model) is model.view
    assert view_of(model, {"step": 4, "weights": {"a": 1}}) is model.view


@pytest.mark.parametrize(
    ("objective", "facts", "stage", "words"),
    [
        (MAE, IMAGES, {"max_tokens": 4}, "keeps one max_tokens for a whole run; it can change image_size"),
        (MAE, IMAGES, {"image_size": 10}, "patch_size=4 does not divide image_size=10"),
        ({"name": "info_nce", "encoder": TINY_VIT}, IMAGES, {"image_size": 10}, "no multiple of patch_size=4"),
    ],
)
def test_a_stage_that_a_network_cannot_take_is_refused(objective, facts, stage, words) -> None:
    with pytest.raises(UserError, match=f"recipe curriculum.*{words}"):
        view_of(build(objective, facts, 0), {"step": 1, **stage})


def test_stages_come_in_the_order_of_their_steps() -> None:
    with pytest.raises(UserError, match=r"begins at a later step than the one before, got \[3, 3\]"):
        recipe_of({"step": 3, "image_size": 8}, {"step": 3, "image_size": 16})
    with pytest.raises(UserError, match=r"curriculum\.0: a stage changes image_size, max_tokens or weights"):
        recipe_of({"step": 3})


def test_a_curriculum_is_part_of_a_run_and_its_absence_of_runs_that_began_without() -> None:
    assert "curriculum" not in identity(recipe_of())
    assert identity(recipe_of({"step": 0, "image_size": 8})) != identity(recipe_of({"step": 0, "image_size": 16}))


def test_positions_are_stretched_as_transformers_does_it() -> None:
    vit = vision_encoder(TINY_VIT, "test", image_size=16, channels=1)
    ours = stretched(vit.embeddings.position_embeddings[0], 36, leading=1)
    theirs = vit.embeddings.interpolate_pos_encoding(torch.empty(1, 37, 16), 24, 24)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert stretched(ours, 36, leading=1) is ours


@pytest.mark.parametrize("architecture", [TINY_VIT, {"architecture": "resnet", "embedding_size": 8,
    "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}])  # fmt: skip
@pytest.mark.parametrize("size", [8, 16, 24])
def test_encoders_take_images_of_other_sizes(architecture: dict[str, Any], size: int) -> None:
    encoder = vision_encoder(architecture, "test", image_size=16, channels=1)
    assert features(encoder, torch.zeros(2, 1, size, size)).pooled.shape == (2, 16)


@pytest.mark.parametrize("size", [8, 24])
def test_a_masked_autoencoder_paints_images_of_another_size(size: int) -> None:
    model = build(MAE, IMAGES, 0)
    patches = (size // 4) ** 2
    mask = torch.zeros(2, patches, dtype=torch.bool)
    mask[:, : round(0.75 * patches)] = True
    one = torch.ones(2)
    batch = Batch({"image": torch.randn(2, 1, size, size), "mask": mask}, ("a", "b"), one, one, one.long())
    seen = model.reconstruct(batch["image"], mask)
    assert seen.predicted.shape == (2, patches, 16) and seen.latents.shape[1] == 1 + patches - round(0.75 * patches)
    model(batch).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def packed(folder: Path) -> str:
    samples = [(f"k{number}", {"bin": b"x"}) for number in range(12)]
    split = Split("train", samples, 12, 12, lambda: (Facts(), ()))
    [dataset] = write_sets(folder, [split], PackConfig(), name=folder.name, source="test")
    return dataset.path


def test_mixtures_are_planned_by_step_and_by_name(tmp_path: Path) -> None:
    paths = [{"path": packed(tmp_path / name)} for name in ("web", "books")]

    def opened(*stages: dict[str, Any], position: int = 0, state: Any = (), **first: float):
        recipe = recipe_of(*stages, data={"sources": [{**paths[0], **first}, paths[1]]})
        order = open_sources(recipe).order(recipe, state, position)
        return order, [(segment.p0, dict(segment.lanes)) for segment in order.segments]

    stages = {"step": 0, "weights": {"web-train": 3, "books-train": 1}}, {"step": 3, "weights": {"books-train": 1}}
    order, segments = opened(*stages)
    assert segments == [(0, {"web-train": 6, "books-train": 2}), (3, {"books-train": 8})]
    assert opened(*stages, position=4 * 8, state=order.to_state(), weight=5.0)[1] == segments, "stages outrank `data`"
    late = opened({"step": 3, "weights": {"books-train": 1}}, position=8, state=opened()[0].to_state())[1]
    assert late == [(0, {"web-train": 4, "books-train": 4}), (3, {"books-train": 8})]
    with pytest.raises(
        UserError, match=r"curriculum, step 2: no dataset is named 'boks-train'; did you mean 'books-tra"
    ):
        opened({"step": 2, "weights": {"boks-train": 1}})
