"""`thalweg recipes|objectives`: what there is, one line each."""

from __future__ import annotations

import argparse
import json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `recipes`, `objectives` and `schema`."""
    recipes = subparsers.add_parser("recipes", help="recipes that come with thalweg, and whose results they state")
    recipes.set_defaults(run=list_recipes)
    objectives = subparsers.add_parser("objectives", help="objectives, this package's and plugged-in ones")
    objectives.set_defaults(run=list_objectives)
    schema = subparsers.add_parser("schema", help="JSON Schema of a recipe, for editors")
    schema.set_defaults(run=print_schema)


def list_recipes(options: argparse.Namespace) -> int:
    """Name, whose result, summary."""
    from pretrain.config import load_tree, recipe_names

    for name in recipe_names():
        tree = load_tree(name)
        whose = "ran here " if tree.get("ran_here") else "published"
        print(f"{name:24} {whose}  {tree.get('summary', '')}")
    return 0


def list_objectives(options: argparse.Namespace) -> int:
    """Name and the first line of its text."""
    from pretrain.objectives import objective_class, objective_names

    for name in objective_names():
        print(f"{name:24} {first_sentence(objective_class(name).__doc__)}")
    return 0


def print_schema(options: argparse.Namespace) -> int:
    """The recipe's JSON Schema."""
    from pretrain.config import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0


def first_sentence(text: str | None) -> str:
    """The first line of a docstring."""
    return (text or "").strip().split("\n")[0]
