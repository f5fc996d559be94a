"""Objectives by name. To add one: a file, a line here, a recipe, a test; or an entry point.

Third parties register theirs under the entry-point group "thalweg.objectives".
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from data_pipelines.base import Strict, UserError, did_you_mean, parse

if TYPE_CHECKING:
    from pretrain.objective import DataFacts, Objective

OBJECTIVES = {
    "causal_lm": "pretrain.objectives.causal_lm:CausalLanguageModel",
    "classify": "pretrain.objectives.classify:Classify",
    "denoising_seq2seq": "pretrain.objectives.denoising_seq2seq:DenoisingSeq2Seq",
    "info_nce": "pretrain.objectives.info_nce:InfoNCE",
    "mae": "pretrain.objectives.mae:MaskedAutoencoder",
    "mae_video": "pretrain.objectives.mae_video:MaskedVideoAutoencoder",
    "masked_lm": "pretrain.objectives.masked_lm:MaskedLanguageModel",
    "translation": "pretrain.objectives.translation:Translation",
}
GROUP = "thalweg.objectives"


def objective_names() -> list[str]:
    """All that can be asked for, sorted; nothing is imported."""
    return sorted({*OBJECTIVES, *(point.name for point in entry_points(group=GROUP))})


def objective_class(name: str) -> type[Objective]:
    """Import the class that `name` stands for.

    Raises:
        UserError: no such objective (nearest named).
    """
    if name in OBJECTIVES:
        module, _, attribute = OBJECTIVES[name].partition(":")
        found: type[Objective] = getattr(import_module(module), attribute)
        return found
    for point in entry_points(group=GROUP, name=name):
        loaded: type[Objective] = point.load()
        return loaded
    raise UserError(f"objective {name!r} does not exist{did_you_mean(name, objective_names())}")


def configured(tree: Mapping[str, Any]) -> tuple[type[Objective], Strict]:
    """The class that a recipe's `objective` names, and its settings, before any data is known.

    Raises:
        UserError: unknown name or key.
    """
    settings = dict(tree)
    if "name" not in settings:
        raise UserError(f"recipe objective: no name; known: {', '.join(objective_names())}")
    chosen = objective_class(str(settings.pop("name")))
    return chosen, parse(chosen.Config, settings, "recipe objective")


def build(tree: Mapping[str, Any], facts: DataFacts, seed: int) -> Objective:
    """Draw an objective: the same parameters on every rank and at every world size.

    Args:
        tree: the recipe's `objective`: `name` and the keys of that objective's Config.
        facts: of the data it will see.
        seed: of the run; with it alone the parameters are drawn, on the current default device
            (the CPU, or meta where only shapes are wanted).

    Raises:
        UserError: unknown name or key, or settings that do not fit the data.
    """
    import torch

    from data_pipelines.hashing import mix

    chosen, config = configured(tree)
    if facts.stills and not chosen.takes_stills_beside_clips:
        raise UserError(
            f"recipe objective: {tree['name']} takes images or clips, and the sources hold both; "
            f"leave one kind out of data.sources, or choose info_nce"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(mix(seed, "parameters")) >> 1)
        return chosen(config, facts)
