"""What a recipe's curriculum makes of a run: views by stage, and words."""

from __future__ import annotations

from data_pipelines.mixture import weights_used
from data_pipelines.views import View
from data_pipelines.views.staged import Staged
from pretrain.config import Recipe
from pretrain.objective import Objective
from pretrain.sources import Sources


def training_view(objective: Objective, recipe: Recipe) -> View:
    """The objective's own view, or one that changes from stage to stage.

    Raises:
        UserError: the objective cannot take a stage.
    """
    settings: dict[str, int] = {}
    stages = [(0, objective.view)]
    for stage in recipe.curriculum:
        if stage.view():
            settings |= stage.view()
            stages.append((stage.step * recipe.train.global_batch, objective.view_at(**settings)))
    return Staged(stages) if len(stages) > 1 else objective.view


def stages_in_words(recipe: Recipe, sources: Sources) -> list[str]:
    """One line a stage: from which step on what is different."""
    planned = dict(sources.planned)
    lines = []
    for stage in recipe.curriculum:
        changes = [f"{name} {value}" for name, value in stage.view().items()]
        if lanes := planned.get(stage.step):
            changes.append(weights_used(list(lanes), list(lanes.values())))
        lines.append(f"curriculum from step {stage.step} on: {', '.join(changes)}")
    return lines
