"""Tokenizers trained on the text at hand. Equal text gives an equal tokenizer, byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_pipelines.base import UserError
from data_pipelines.pack.special_tokens import BERT_NAMES, OTHER_NAMES
from data_pipelines.pack.writer import Progress

ALPHABET = 1000
"""Characters a wordpiece or unigram vocabulary keeps at most, the rarest become unknown."""
UNKNOWN_STEP = 1e-4
"""What the unigram trainer adds from one character that its pruning lost to the next."""

Texts = Callable[[], Iterator[str]]
"""Reads pieces of the training text anew whenever it is called."""


def train(
    model: str, texts: Texts, *, vocabulary_size: int, lowercase: bool, more: Sequence[str], progress: Progress
) -> Tokenizer:
    """Train a `wordpiece`, `bpe` or `unigram`.

    Args:
        vocabulary_size: at most, special tokens included.
        more: special tokens besides those for padding, unknown, start, end and mask; they follow these.

    Raises:
        UserError: the vocabulary has no room for the text.
    """
    special = [*(BERT_NAMES if model == "wordpiece" else OTHER_NAMES), *more]
    smallest = len(special) + (256 if model == "bpe" else 1)
    if vocabulary_size <= smallest:
        raise UserError(
            f"data pack: vocabulary_size={vocabulary_size} holds no words; want more than {smallest} for a {model}"
        )
    if model == "bpe":
        return _train_bpe(texts, vocabulary_size, lowercase, special, progress)
    build = _train_word_piece if model == "wordpiece" else _train_unigram
    return build(texts, vocabulary_size, lowercase, special, progress)


def _alphabet(normalizer: normalizers.Normalizer, texts: Texts, progress: Progress) -> list[str]:
    """Characters of the text, the most frequent first."""
    counts: Counter[str] = Counter()
    progress("count characters", 0, 1)
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    progress("count characters", 1, 1)
    return sorted(counts, key=lambda c: (-counts[c], c))


def _learn(tokenizer: Tokenizer, texts: Iterator[str], trainer: trainers.Trainer, progress: Progress) -> None:
    progress("train the tokenizer", 0, 1)
    tokenizer.train_from_iterator(texts, trainer)
    progress("train the tokenizer", 1, 1)


def _train_word_piece(
    texts: Texts, vocabulary_size: int, lowercase: bool, special: list[str], progress: Progress
) -> Tokenizer:
    """In the manner of BERT. Source: Devlin 2018, arXiv:1810.04805, section 3."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    alphabet = _alphabet(normalizer, texts, progress)
    rare = dict.fromkeys(map(ord, alphabet[ALPHABET:]), " ")
    # The trainer numbers the inner characters in the random order of a hash map, and breaks ties of merges by number.
    # Naming them beforehand fixes the order.
    inner = [f"##{c}" for c in alphabet[:ALPHABET] if c.isalnum() or ord(c) > 127]
    scratch = Tokenizer(models.WordPiece(unk_token=special[1]))
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=[*special, *inner], show_progress=False
    )
    _learn(scratch, (normalizer.normalize_str(text).translate(rare) for text in texts()), trainer, progress)
    tokenizer = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token=special[1]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _train_bpe(
    texts: Texts, vocabulary_size: int, lowercase: bool, special: list[str], progress: Progress
) -> Tokenizer:
    """On bytes, in the manner of GPT-2: nothing is unknown. Source: Radford 2019, section 2.2."""
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _learn(tokenizer, texts(), trainer, progress)
    return tokenizer


def _train_unigram(
    texts: Texts, vocabulary_size: int, lowercase: bool, special: list[str], progress: Progress
) -> Tokenizer:
    """In the manner of sentencepiece. Source: Kudo 2018, arXiv:1804.10959, section 3.2."""
    steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if lowercase else [])])
    rare = dict.fromkeys(map(ord, _alphabet(normalizer, texts, progress)[ALPHABET:]), " ")
    scratch = Tokenizer(models.Unigram())
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary_size, special_tokens=special, unk_token=special[1], show_progress=False
    )
    _learn(scratch, (normalizer.normalize_str(text).translate(rare) for text in texts()), trainer, progress)
    pieces = _in_order(json.loads(scratch.to_str())["model"]["vocab"], special)
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _in_order(vocabulary: Sequence[tuple[str, float]], special: list[str]) -> list[tuple[str, float]]:
    """The trained pieces without the trainer's randomness.

    It sums in the order of a hash map, which moves the last digits of scores; and it numbers characters that its
    pruning lost, in such an order, upwards from the lowest score: here they all have that one.
    """
    pieces = [(piece, score) for piece, score in vocabulary if piece not in special]
    lowest = min(score for _, score in pieces)
    ladder = lowest + UNKNOWN_STEP * sum(len(piece) == 1 for piece, _ in pieces)
    rounded = [(piece, round(lowest if len(piece) == 1 and score < ladder else score, 6)) for piece, score in pieces]
    return [*((name, 0.0) for name in special), *sorted(rounded, key=lambda pair: (-pair[1], pair[0]))]
