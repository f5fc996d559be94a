"""Every packaged recipe loads, builds, plans, and is what it says it is."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from data_pipelines.steps import check_batch, default_lanes, legal_world_sizes
from pretrain.config import RECIPES, load_recipe, recipe_names
from pretrain.objective import DataFacts, Objective
from pretrain.objectives import build, objective_names
from pretrain.optim import build_optimizer, learning_rate, parameter_groups

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
IMAGENET = DataFacts(channels=3)
MNIST = DataFacts(channels=1, image_size=(28, 28))
RUNS_HERE = [name for name in recipe_names() if name.endswith(("_debug", "_small"))]
PUBLISHED = {
    # encoder millions by the paper: MAE 2111.06377 (ViT 2010.11929 table 1), MoCo v3 2104.02057 table 1,
    # He 2016 (25.6 with a classifier of 2.05), BERT 1810.04805, RoBERTa 1907.11692
    "mae_vitb16": 86, "mae_vitl16": 304, "mae_vith14": 632, "moco_v3_vits16": 22, "moco_v3_vitb16": 86,
    "simclr_resnet50": 23.5, "bert_base": 110, "bert_large": 335, "roberta_base": 125,
}  # fmt: skip


def facts_of(name: str) -> DataFacts:
    if "bert" in name:
        vocabulary = 50_265 if "roberta" in name else 30_522
        return DataFacts(vocabulary_size=vocabulary, row_tokens=512, special_tokens=SPECIAL)
    if "masked_lm" in name:
        return DataFacts(vocabulary_size=8192, row_tokens=128, special_tokens=SPECIAL)
    return MNIST if name in RUNS_HERE else IMAGENET


def built(name: str, device: str = "meta") -> Objective:
    recipe = load_recipe(name)
    with torch.device(device):
        return build(recipe.objective, facts_of(name), recipe.seed)


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_every_published_recipe_is_checked_here() -> None:
    assert set(PUBLISHED) | set(RUNS_HERE) == set(recipe_names())
    kinds = {load_recipe(name).objective["name"] for name in recipe_names()}
    assert kinds == {load_recipe(f"{name}_debug").objective["name"] for name in kinds} <= set(objective_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_paper_s_size(name: str) -> None:
    assert millions(built(name).encoder().module) == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_and_its_steps_are_legal(name: str) -> None:
    recipe, objective = load_recipe(name), built(name)
    train = recipe.train
    lanes = recipe.data.num_lanes or default_lanes(train.global_batch)
    sizes = legal_world_sizes(train.global_batch, train.accumulation, lanes)
    assert {1, 2, 8} <= set(sizes)
    for size in sizes:
        check_batch(train.global_batch, train.accumulation, size, lanes)
    assert (train.steps is None) != (train.epochs is None)
    assert objective.flops_per_sample() > 0
    groups = parameter_groups(objective.named_parameters(), recipe.optim, objective.encoder().prefix)
    build_optimizer(groups, recipe.optim, recipe.engine.zero_stage, torch.device("cpu"))
    assert all(hasattr(objective.view, half) for half in ("sample", "batch"))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_its_source_and_its_command(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    opening = [line for line in lines if line.startswith("#")]
    assert lines[: len(opening)] == opening
    assert any(re.search(rf"thalweg (pretrain|launch) {name}\b", line) for line in opening)
    if name in PUBLISHED:
        assert any("arXiv:" in line for line in opening)
    assert load_recipe(name).summary and load_recipe(name).name == name


@pytest.mark.parametrize(("name", "total"), [("bert_base", 1_000_000), ("roberta_base", 500_000)])
def test_text_recipes_decay_linearly_from_the_end_of_the_warm_up(name: str, total: int) -> None:
    recipe = load_recipe(name)
    optim, batch = recipe.optim, recipe.train.global_batch
    warmup = int(optim.warmup)
    assert learning_rate(warmup - 1, total, optim, batch) == pytest.approx(optim.base_lr)
    middle = (warmup + total) // 2
    assert learning_rate(middle, total, optim, batch) == pytest.approx(optim.base_lr / 2, rel=1e-3)
    assert learning_rate(total - 1, total, optim, batch) < optim.base_lr * 1e-5


@pytest.mark.parametrize("name", RUNS_HERE)
def test_recipes_for_here_are_small_and_drawn_for_real(name: str) -> None:
    objective = built(name, device="cpu")
    assert millions(objective) < 3
    assert all(parameter.isfinite().all() for parameter in objective.parameters())
    recipe = load_recipe(name)
    assert recipe.data.mixture()[0].path in {"data/mnist/train", "data/text/train"}
    assert recipe.data.validation in {"data/mnist/val", "data/text/val"}
