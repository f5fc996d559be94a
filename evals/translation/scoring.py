"""Scores of translations, all by sacrebleu; nothing here counts n-grams itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sacrebleu.metrics import BLEU, CHRF

Tokenization = Literal["13a", "intl", "char", "zh", "none"]
"""sacrebleu's tokenizers that need no download."""

LENGTHS = (5, 10, 15, 20, 30, 50)
"""Upper bounds of the groups of source lengths, in words."""


def scores(translations: Sequence[str], references: Sequence[str], tokenize: Tokenization) -> dict[str, float]:
    """BLEU and chrF++ of a corpus, in [0, 100]."""
    return {name: metric.corpus_score(translations, [references]).score for name, metric in _metrics(tokenize).items()}


def signatures(tokenize: Tokenization) -> dict[str, str]:
    """How each score was computed, in sacrebleu's words."""
    found = {}
    for name, metric in _metrics(tokenize).items():
        metric.corpus_score(["a"], [["a"]])  # the number of references belongs to the signature
        found[name] = str(metric.get_signature())
    return found


def by_length(
    sources: Sequence[str], translations: Sequence[str], references: Sequence[str], tokenize: Tokenization
) -> list[dict[str, Any]]:
    """BLEU of the sentences whose source has up to so many words, group by group; empty groups are left out."""
    rows, above = [], 0
    for most in (*LENGTHS, None):
        chosen = [i for i, text in enumerate(sources) if above < len(text.split()) <= (most or 10**9)]
        above = most or above
        if chosen:
            bleu = scores([translations[i] for i in chosen], [references[i] for i in chosen], tokenize)["bleu"]
            rows.append({"most_words": most, "sentences": len(chosen), "bleu": bleu})
    return rows


def _metrics(tokenize: Tokenization) -> dict[str, Any]:
    return {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF(word_order=2)}
