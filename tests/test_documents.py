"""Commands in README.md and docs/ are commands: their words and flags are known, their recipes exist."""

from __future__ import annotations

import re
import shlex

import pytest

from launch.cli import parse
from pretrain.config import recipe_names
from tests.conftest import ROOT

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACES = "/.:"
"""A word with one of these names a file, not a packaged recipe."""


def commands() -> list[str]:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for path in documents for block in BLOCK.findall(path.read_text()) for line in block.splitlines()]
    return [line for line in lines if line.startswith("thalweg ")]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documents_parses(line: str) -> None:
    known = parse(shlex.split(line, comments=True)[1:])
    recipe = getattr(known, "recipe", None)
    if recipe is not None and not set(recipe) & set(PLACES) and "NAME" not in recipe:
        assert recipe in recipe_names()
