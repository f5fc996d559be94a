"""Recipes: one readable complaint for every mistake, and what may change on resume."""

import pytest
import yaml

from data_pipelines.base import UserError, apply_overrides
from pretrain.config import FREE_ON_RESUME, Recipe, identity_digest, load_recipe, merge

TREE = {"name": "r", "objective": {"name": "mae"}, "data": {"path": "d"}, "train": {"global_batch": 8, "steps": 4}}


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(TREE))
    return path


@pytest.mark.parametrize(
    "override, words",
    [
        ("optim.base_lrr=1", r"unknown key 'optim\.base_lrr'; did you mean 'base_lr'\?"),
        ("trian.steps=4", r"unknown key 'trian'; did you mean 'train'\?"),
        ("train.global_batch=many", r"train\.global_batch: .*integer.*got 'many'"),
        ("train.global_batch=-1", r"train\.global_batch: .*greater than 0, got -1"),
        ("engine.zero_stage=4", r"engine\.zero_stage"),
        ("train.steps", "not of the form key=value"),
        ("seed.x=1", "'seed' holds a value, not a group"),
        ("seed=[", "not YAML"),
    ],
)
def test_mistake_is_answered_in_one_line_with_its_place(recipe_file, override, words):
    if override.startswith("seed.x"):
        recipe_file.write_text(yaml.safe_dump({**TREE, "seed": 1}))
    with pytest.raises(UserError, match=words) as error:
        load_recipe(str(recipe_file), [override])
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mae_debug'"):
        load_recipe("mae_debgu")


def test_extends_merges_groups_and_stops_after_one_level(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TREE, "optim": {"base_lr": 1.0, "weight_decay": 0.5}}))
    (tmp_path / "child.yaml").write_text("extends: base\noptim: {base_lr: 2.0}\n")
    (tmp_path / "grandchild.yaml").write_text("extends: child\n")
    child = load_recipe(str(tmp_path / "child.yaml"))
    assert (child.optim.base_lr, child.optim.weight_decay) == (2.0, 0.5)
    with pytest.raises(UserError, match="one level"):
        load_recipe(str(tmp_path / "grandchild.yaml"))


def test_objective_of_another_name_inherits_nothing():
    base = {"objective": {"name": "mae", "mask_ratio": 0.75}}
    assert merge(base, {"objective": {"name": "info_nce"}}) == {"objective": {"name": "info_nce"}}
    assert merge(base, {"objective": {"mask_ratio": 0.5}})["objective"] == {"name": "mae", "mask_ratio": 0.5}


def test_override_does_not_touch_the_tree_it_was_given():
    tree = {"a": {"b": 1}}
    assert apply_overrides(tree, ["a.b=2", "a.c=x"]) == {"a": {"b": 2, "c": "x"}}
    assert tree == {"a": {"b": 1}}


def test_only_what_is_declared_free_leaves_the_identity_alone():
    recipe = Recipe.model_validate(TREE)
    free = recipe.model_copy(update={"monitor": recipe.monitor.model_copy(update={"log_every": 99})})
    other = recipe.model_copy(update={"seed": 1})
    assert identity_digest(free) == identity_digest(recipe) != identity_digest(other)


@pytest.mark.parametrize("path", FREE_ON_RESUME)
def test_free_paths_exist(path):
    node = Recipe.model_validate(TREE).model_dump()
    for part in path.split("."):
        node = node[part]


def test_written_config_is_the_run_again(recipe_file, tmp_path):
    recipe = load_recipe(str(recipe_file), ["optim.base_lr=0.125", "evals=[{name: knn, config: {k: [1]}}]"])
    again = tmp_path / "config.yaml"
    again.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    assert load_recipe(str(again)) == recipe


def test_profile_window_is_no_number_to_the_base_of_sixty(recipe_file):
    assert load_recipe(str(recipe_file), ["profile=1:2"]).profile == "1:2"
