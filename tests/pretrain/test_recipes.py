"""Every packaged recipe loads, builds, plans, and is what it says it is."""

from __future__ import annotations

import re
import resource

import pytest
import torch
from torch import nn

from data_pipelines.steps import check_batch, default_lanes, legal_world_sizes
from pretrain.config import RECIPES, load_recipe, recipe_names
from pretrain.objective import DataFacts, Objective
from pretrain.objectives import build, objective_names
from pretrain.optim import build_optimizer, learning_rate, parameter_groups

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, **{f"sentinel:{n}": 5 + n for n in range(100)}}
TEXT = {"masked_lm", "causal_lm", "denoising_seq2seq"}
IMAGENET = DataFacts(channels=3)
MNIST = DataFacts(channels=1, image_size=(28, 28))
KINETICS = DataFacts(channels=3, frames=64)
DRIVING = DataFacts(channels=3, image_size=(128, 256), frames=30, frames_per_second=17.0, label_frames=(19,))
RUNS_HERE = [name for name in recipe_names() if name.endswith(("_debug", "_small"))]
PUBLISHED = {
    # encoder millions by the paper: MAE 2111.06377 (ViT 2010.11929 table 1), MoCo v3 2104.02057 table 1,
    # He 2016 (25.6 with a classifier of 2.05), VideoMAE 2203.12602, BERT 1810.04805, RoBERTa 1907.11692,
    # T5 1910.10683, OPT 2205.01068;
    # by their released weights: BART base 140, mBART 611 (the paper says 680), OPT "350M" 331
    "mae_vitb16": 86, "mae_vitl16": 304, "mae_vith14": 632, "moco_v3_vits16": 22, "moco_v3_vitb16": 86,
    "simclr_resnet50": 23.5, "videomae_vitb16": 86, "bert_base": 110, "bert_large": 335, "roberta_base": 125,
    "bart_base": 140, "mbart": 611, "t5_base": 220, "opt_125m": 125, "opt_350m": 331, "opt_1.3b": 1300,
    "opt_2.7b": 2700, "opt_6.7b": 6700, "opt_13b": 13_000, "opt_30b": 30_000, "opt_66b": 66_000, "opt_175b": 175_000,
}  # fmt: skip
SLOW_TO_BUILD = ("videomae_vitb16",)
"""Transformers writes their tables of positions number by number."""
VOCABULARY = {"bert": 30_522, "roberta": 50_265, "bart": 50_265, "mbart": 250_027, "t5": 32_128, "opt": 50_272}
OPT = {
    # layers, heads, width, learning rate, tokens a step: Zhang 2022, arXiv:2205.01068, table 1
    "opt_125m": (12, 12, 768, 6.0e-4, 0.5e6), "opt_350m": (24, 16, 1024, 3.0e-4, 0.5e6),
    "opt_1.3b": (24, 32, 2048, 2.0e-4, 1e6), "opt_2.7b": (32, 32, 2560, 1.6e-4, 1e6),
    "opt_6.7b": (32, 32, 4096, 1.2e-4, 2e6), "opt_13b": (40, 40, 5120, 1.0e-4, 4e6),
    "opt_30b": (48, 56, 7168, 1.0e-4, 4e6), "opt_66b": (64, 72, 9216, 0.8e-4, 2e6),
    "opt_175b": (96, 96, 12288, 1.2e-4, 2e6),
}  # fmt: skip


def timed(names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_TO_BUILD else []) for name in names]


def facts_of(name: str) -> DataFacts:
    objective = load_recipe(name).objective
    if objective["name"] == "mae_video" or "frame_distance" in objective:
        return DRIVING if name in RUNS_HERE else KINETICS
    if objective["name"] not in TEXT:
        return MNIST if name in RUNS_HERE else IMAGENET
    architecture = objective.get("network", objective.get("encoder"))["architecture"]
    published = VOCABULARY[architecture], 2048 if architecture == "opt" else 512
    vocabulary, row_tokens = (8192, 128) if name in RUNS_HERE else published
    return DataFacts(vocabulary_size=vocabulary, row_tokens=row_tokens, special_tokens=SPECIAL)


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


@pytest.mark.parametrize("name", timed(PUBLISHED))
def test_published_networks_have_the_paper_s_size(name: str) -> None:
    assert millions(built(name).encoder().module) == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", timed(recipe_names()))
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


@pytest.mark.parametrize("name", ["bert_base", "roberta_base", "bart_base", "mbart", *OPT])
def test_text_recipes_decay_linearly_from_the_end_of_the_warm_up(name: str) -> None:
    recipe = load_recipe(name)
    optim, batch = recipe.optim, recipe.train.global_batch
    total = recipe.train.steps or 0
    warmup = int(optim.warmup if optim.warmup >= 1 else optim.warmup * total)
    assert learning_rate(warmup // 2, total, optim, batch) == pytest.approx(optim.base_lr / 2, rel=0.02)
    assert learning_rate(warmup, total, optim, batch) == pytest.approx(optim.base_lr, rel=1e-4)
    middle, end = optim.base_lr * (1 + optim.final_lr) / 2, optim.base_lr * optim.final_lr
    assert learning_rate((warmup + total) // 2, total, optim, batch) == pytest.approx(middle, rel=2e-3)
    assert learning_rate(total - 1, total, optim, batch) == pytest.approx(end, rel=1e-3, abs=optim.base_lr * 1e-5)


@pytest.mark.parametrize("name", OPT)
def test_opt_recipes_are_those_of_the_table(name: str) -> None:
    recipe, (layers, heads, width, rate, tokens) = load_recipe(name), OPT[name]
    network, optim = recipe.objective["network"], recipe.optim
    assert (network["num_hidden_layers"], network["num_attention_heads"], network["hidden_size"]) == (
        layers,
        heads,
        width,
    )
    assert network["ffn_dim"] == 4 * width and optim.base_lr == rate
    assert recipe.train.global_batch * 2048 == pytest.approx(tokens, rel=0.05)
    assert recipe.train.global_batch * 2048 * (recipe.train.steps or 0) == pytest.approx(300e9, rel=1e-4)
    assert (optim.betas, optim.weight_decay, optim.clip_norm, optim.final_lr) == ((0.9, 0.95), 0.1, 1.0, 0.1)
    warmup = optim.warmup if optim.warmup >= 1 else optim.warmup * (recipe.train.steps or 0)
    expected = 2000 if name == "opt_175b" else 375e6 / (recipe.train.global_batch * 2048)
    assert warmup == pytest.approx(expected, rel=0.01)


def test_the_largest_network_is_built_within_little_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert built("opt_175b").flops_per_sample() == pytest.approx(6 * 174.6e9 * 2048, rel=0.05)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB


@pytest.mark.parametrize("name", RUNS_HERE)
def test_recipes_for_here_are_small_and_drawn_for_real(name: str) -> None:
    objective = built(name, device="cpu")
    assert millions(objective) < 3
    assert all(parameter.isfinite().all() for parameter in objective.parameters())
    recipe = load_recipe(name)
    sets = {f"data/{name}" for name in ("mnist", "text", "driving", "en", "de")}
    assert {source.path for source in recipe.data.mixture()} <= {f"{folder}/train" for folder in sets}
    assert recipe.data.validation in {f"{folder}/val" for folder in sets}
