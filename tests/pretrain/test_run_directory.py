"""The run's folder: refusals, names, what a reader finds."""

import pytest

from data_pipelines.base import UserError
from pretrain.config import Recipe
from pretrain.run.directory import RunDirectory, run_directories

DATA = {"train": "digest"}


def recipe(tmp_path, **changes) -> Recipe:
    tree = {
        "name": "r", "objective": {"name": "mae"}, "data": {"path": "d"}, "runs": str(tmp_path),
        "train": {"global_batch": 8, "steps": 4}, **changes,
    }  # fmt: skip
    return Recipe.model_validate(tree)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory.of(recipe(tmp_path))
    directory.create(recipe(tmp_path), {"steps": 4, "data": DATA})
    return directory


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a\nb", "/abs"])
def test_name_that_leaves_the_runs_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="one folder name"):
        RunDirectory.of(recipe(tmp_path, name=name))


@pytest.mark.parametrize("name", ["ünïcode", "with space", "quote'\"", "a=b"])
def test_odd_names_work(tmp_path, name):
    directory = RunDirectory.of(recipe(tmp_path, name=name))
    directory.create(recipe(tmp_path, name=name), {"steps": 4, "data": DATA})
    assert [found.name for found in run_directories(tmp_path)] == [name]
    assert directory.recipe().name == name


def test_another_recipe_is_refused_with_the_difference_and_the_way_out(run, tmp_path):
    with pytest.raises(UserError, match=r"train\.steps: 4 -> 5.*--new-run.*init_from=") as error:
        run.refuse_other(recipe(tmp_path, train={"global_batch": 8, "steps": 5}), DATA)
    assert "\n" not in str(error.value)


def test_other_data_is_another_run(run, tmp_path):
    with pytest.raises(UserError, match=r'data_digests\.train: "digest" -> "other"'):
        run.refuse_other(recipe(tmp_path), {"train": "other"})


def test_free_changes_go_on(run, tmp_path):
    run.refuse_other(recipe(tmp_path, engine={"zero_stage": 3}, monitor={"log_every": 1}), DATA)


def test_run_is_found_from_any_path_inside_it(run):
    inside = run.checkpoints / "step-00000004"
    inside.mkdir(parents=True)
    assert RunDirectory.open(inside).root == run.root
    with pytest.raises(UserError, match="no run here"):
        RunDirectory.open(run.root.parent)


def test_damaged_run_file_is_named(run):
    (run.root / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run.info()


def test_status_of_a_young_run(run):
    assert run.status() == "young"
    assert run.metrics() == run.ledger() == run.events() == []


def test_data_may_move_and_be_joined_but_not_be_exchanged(run, tmp_path):
    moved = recipe(tmp_path, data={"sources": [{"path": "elsewhere"}, {"path": "more", "weight": 2.0}]})
    run.refuse_other(moved, {**DATA, "more": "another digest"})
    with pytest.raises(UserError, match=r'data_digests\.train: "digest" -> null'):
        run.refuse_other(moved, {"more": "another digest"})
