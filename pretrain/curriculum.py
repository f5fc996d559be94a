"""What a recipe's curriculum makes of an objective's view."""

from __future__ import annotations

from data_pipelines.views import View
from data_pipelines.views.staged import Staged
from pretrain.config import Recipe
from pretrain.objective import Objective


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
