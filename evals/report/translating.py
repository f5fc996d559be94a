"""Translations in the page: scores beside published ones, sentences, BLEU by length, attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from evals.report.attention import attention
from evals.report.judging import CONTROLS
from evals.report.record import Judgement, RunRecord, is_number
from evals.report.ticks import grouped

EVAL = "translation"
MOST_ALIGNMENTS = 4
"""Pictures of attention in the page."""


class Score(NamedTuple):
    """A BLEU and whose it is."""

    name: str
    bleu: str
    where: str = "here"


PUBLISHED = (
    Score("GRU with back-translation, Sennrich 2016", "28.1", "WMT16 En-Ro"),
    Score("ConvS2S, BPE", "29.88", "WMT16 En-Ro"),
    Score("Luong 2015", "20.9", "WMT14 En-De"),
    Score("ByteNet", "23.75", "WMT14 En-De"),
    Score("GNMT, word pieces", "24.61", "WMT14 En-De"),
    Score("ConvS2S, BPE", "25.16", "WMT14 En-De"),
    Score("GNMT, word pieces", "38.95", "WMT14 En-Fr"),
    Score("ConvS2S, BPE", "40.46", "WMT14 En-Fr"),
)
"""Source: Gehring 2017, arXiv:1705.03122, table 1, and the papers it quotes."""


class Length(NamedTuple):
    """Sentences of a range of source lengths."""

    words: str
    sentences: str
    bleu: str


@dataclass(frozen=True)
class Translating:
    """What the page shows of one run's newest judged checkpoint.

    Attributes:
        samples: source, reference, translation, and the translation of the network learned from scratch.
    """

    step: str
    data: str
    direction: str
    here: tuple[Score, ...]
    signatures: tuple[str, ...]
    lengths: tuple[Length, ...]
    samples: tuple[tuple[str, ...], ...]
    alignments: tuple[Markup, ...]


def translating_of(run: RunRecord) -> Translating | None:
    """The newest result; None where there is none."""
    found = [one for one in run.judgements if one.eval_name == EVAL]
    if not found:
        return None
    newest = max(found, key=lambda one: one.step)
    alt = f"Attention of run {run.name}: tokens of a translation beside the tokens of its source."
    drawn = [attention(one, alt) for one in _mappings(newest.details.get("alignments"))[:MOST_ALIGNMENTS]]
    test, signatures = newest.data.get("test"), newest.details.get("signatures")
    return Translating(
        step=grouped(newest.step),
        data=str(test.get("name", "")) if isinstance(test, Mapping) else "",
        direction=str(newest.details.get("direction", "")),
        here=tuple(_here(newest)),
        signatures=tuple(f"{name}: {words}" for name, words in signatures.items())
        if isinstance(signatures, Mapping)
        else (),
        lengths=tuple(_lengths(newest.details.get("by_length"))),
        samples=tuple(
            tuple(str(sample.get(part, "")) for part in ("source", "reference", "translation", "from_scratch"))
            for sample in _mappings(newest.details.get("samples"))
        ),
        alignments=tuple(one for one in drawn if one is not None),
    )


def _here(one: Judgement) -> list[Score]:
    whose = {"this network": one.metrics, **{words: one.controls.get(name, {}) for name, words in CONTROLS.items()}}
    return [Score(name, f"{scores['bleu']:.1f}") for name, scores in whose.items() if "bleu" in scores]


def _lengths(rows: Any) -> list[Length]:
    """Groups with their bounds in words: "6 to 10"."""
    found, least = [], 1
    for row in _mappings(rows):
        most, bleu = row.get("most_words"), row.get("bleu")
        words = f"{least} to {most}" if is_number(most) else f"{least} and more"
        if is_number(bleu):
            found.append(Length(words, str(row.get("sentences", "")), f"{bleu:.1f}"))
        least = int(most) + 1 if is_number(most) else least
    return found


def _mappings(rows: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
