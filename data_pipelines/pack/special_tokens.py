"""Which token of a tokenizer plays which part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from tokenizers import Tokenizer

from data_pipelines.base import UserError

BERT_NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OTHER_NAMES = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
ROLES = {
    "pad": ("pad_token",),
    "unk": ("unk_token",),
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
"""Keys of tokenizer_config.json by role, in the order of the names above, which serve where the keys are absent."""
SENTINEL = "<extra_{}>"
TAG = "<tag>"
"""Marks back-translated text."""
LANGUAGE = re.compile(r"[a-z]{2,3}([_-][A-Za-z]+)?")


def language_token(language: str) -> str:
    """`<de>`."""
    return f"<{language}>"


def special_ids(tokenizer: Tokenizer, settings: dict[str, Any], languages: Sequence[str]) -> dict[str, int]:
    """Ids by role; where none begins a text (T5), or one does both (OPT), the token that ends a text begins it too.

    Args:
        settings: of tokenizer_config.json.
        languages: whose tokens are looked for under other makers' names too.

    Raises:
        UserError: it has no token for padding or the end of a text.
    """
    ids = {}
    for (role, keys), bert, other in zip(ROLES.items(), BERT_NAMES, OTHER_NAMES, strict=True):
        names = [*(_content(settings.get(key)) for key in keys), bert, other]
        known = [tokenizer.token_to_id(name) for name in names if name is not None]
        found = next((number for number in known if number is not None), None)
        if found is not None:
            ids[role] = found
    missing = [role for role in ("pad", "sep") if role not in ids]
    if missing:
        wanted = [" or ".join(ROLES[role]) for role in missing]
        raise UserError(
            f"data pack: the tokenizer has no token for {' and '.join(missing)}: none of the usual name, and its "
            f"tokenizer_config.json names no {' and no '.join(wanted)}"
        )
    ids.setdefault("cls", ids["sep"])
    return {**ids, **_languages_of(tokenizer, languages, set(ids.values())), **_numbered(tokenizer), **_tag(tokenizer)}


def _content(token: Any) -> str | None:
    """transformers writes a special token as its text, or as a mapping that holds it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _languages_of(tokenizer: Tokenizer, languages: Sequence[str], taken: set[int]) -> dict[str, int]:
    """Tokens named `<de>`, and those that other makers gave the languages asked for: `de_DE`, `__de__`."""
    special = {t.content: n for n, t in tokenizer.get_added_tokens_decoder().items() if t.special and n not in taken}
    found = {name[1:-1]: number for name, number in special.items() if _is_language_token(name)}
    for language in languages:
        number = next((special[name] for name in (language, f"__{language}__") if name in special), None)
        if number is not None:
            found.setdefault(language, number)
    return {f"lang:{language}": number for language, number in sorted(found.items(), key=itemgetter(1))}


def _is_language_token(name: str) -> bool:
    usual = {"<pad>", "<unk>", "<bos>", "<eos>", "<cls>", "<sep>", TAG}
    return name not in usual and name == language_token(name[1:-1]) and LANGUAGE.fullmatch(name[1:-1]) is not None


def _numbered(tokenizer: Tokenizer) -> dict[str, int]:
    """Sentinels as made here, or as T5 names them."""
    ids: dict[str, int] = {}
    for pattern in (SENTINEL, "<extra_id_{}>"):
        while (number := tokenizer.token_to_id(pattern.format(len(ids)))) is not None:
            ids[f"sentinel:{len(ids)}"] = number
    return ids


def _tag(tokenizer: Tokenizer) -> dict[str, int]:
    number = tokenizer.token_to_id(TAG)
    return {} if number is None else {"tag": number}
