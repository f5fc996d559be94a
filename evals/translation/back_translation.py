"""Back-translation: text of the target language alone becomes pairs, its source side written by a reverse model.

Source: Sennrich 2015, arXiv:1511.06709; the tag on what was written by a model is Caswell 2019, arXiv:1906.06442.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.base import UserError
from data_pipelines.batch import Sample
from data_pipelines.pack import pack
from data_pipelines.pack.spool import npy
from evals.finetuning import finish, opened
from evals.translation.decoding import translate
from evals.translation.lesson import Lesson
from evals.translation.sentences import decoded, lines_of, tokenizer_of
from pretrain.export import LoadedEncoder
from pretrain.objectives.translation import Translation
from pretrain.session import on_rank_0


def back_translated(encoder: LoadedEncoder, lesson: Lesson, monolingual: str) -> str:
    """The packed set of tagged pairs, made the first time.

    Args:
        lesson: of the direction that the pairs shall serve; the reverse model gets the same budget.
        monolingual: text of the target language, a sentence a line.

    Raises:
        UserError: no text, or the training set's tokenizer has no token `tag`.
    """
    place, train = lesson.place, lesson.data.train
    out = place.folder / "back_translated"
    if on_rank_0(place.world, (out / "train" / "manifest.json").is_file):
        return str(out / "train")
    if "tag" not in train.manifest.facts.special_tokens:
        raise UserError(f"data {train.path}: its tokenizer has no token `tag` for back-translated pairs; pack it again")
    texts, tokenizer = lines_of(monolingual), tokenizer_of(train)
    reverse = replace(lesson, direction=lesson.direction.reverse)
    run = finish(reverse.recipe(encoder.folder, place.folder / "reverse", ()), place)
    objective = opened(run, place)
    assert isinstance(objective, Translation)
    tokens = [np.array(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    field = f"{reverse.direction.source}.npy"
    given = [objective.view.source_of(Sample(key="", fields={field: npy(ids)})) for ids in tokens]
    guesses = translate(objective.network, given, reverse.search(objective), place.world)
    on_rank_0(place.world, lambda: _pack(lesson, out, decoded(tokenizer, guesses), texts))
    return str(out / "train")


def _pack(lesson: Lesson, out: Path, guesses: Sequence[str], texts: Sequence[str]) -> None:
    """Pack guesses beside what they are guesses of, as any aligned files."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "back_translated"
        for language, lines in zip(lesson.direction, (guesses, texts), strict=True):
            words = (" ".join(line.split()) for line in lines)  # a guess may hold a line end
            prefix.with_suffix(f".{language}").write_text("".join(f"{line}\n" for line in words))
        settings = {"languages": list(lesson.direction), "tokenizer": lesson.data.train.path, "tagged": True}
        pack("parallel", str(prefix), out, settings)
