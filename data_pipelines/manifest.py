"""What a packed set says of itself: its shards, and the facts that an objective asks for before any sample is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError

from data_pipelines.base import Strict, UserError, canonical_json, digest_of
from data_pipelines.index import Index
from data_pipelines.storage import DEFAULTS, Storage, fingerprint, join, local_path, once, read_bytes

MANIFEST = "manifest.json"


class Facts(Strict):
    """What a set tells an objective before any sample is read.

    A field that came after `tokenizer_digest` enters the manifest's digest only where it is set (`Facts.identity`), so
    that a new one renames no packed set.
    """

    channels: int | None = None
    """Of its images, 1 or 3; None where there are none."""
    image_size: tuple[int, int] | None = None
    """(height, width) when all images agree."""
    vocabulary_size: int | None = None
    """Of the set's tokenizer; None where there is none."""
    row_tokens: int | None = None
    """Tokens a packed text row."""
    special_tokens: dict[str, int] = Field(default_factory=dict)
    """Ids by name: mask, pad, cls, sep, unk; `lang:de` of a language, `sentinel:0` of span corruption."""
    labels_field: str | None = None
    """Field that holds class numbers."""
    tokenizer_digest: str | None = None
    """blake2b-16 of its tokenizer.json without indentation, hexadecimal."""
    tokens: int | None = None
    """Tokens of the whole set, without padding."""
    language: str | None = None
    """Of packed text rows, which then begin with the token `lang:LANGUAGE`."""
    languages: tuple[str, ...] = ()
    """Of parallel text, in the order of its sides."""
    frames: int | None = None
    """Of every clip."""
    frames_per_second: float | None = None
    label_frames: tuple[int, ...] = ()
    """Frames that are labelled in every clip, numbered from 0."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """RGB by class number, to draw label maps."""
    moving_classes: tuple[int, ...] = ()
    """Classes of things that move by themselves."""

    def identity(self) -> dict[str, Any]:
        """What enters the manifest's digest, as plain data."""
        fields = type(self).model_fields
        first = list(fields)[: list(fields).index("tokenizer_digest") + 1]
        unset = {name for name in fields if name not in first and getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=unset)


class Shard(Strict):
    """One tar of a set."""

    file: str = Field(pattern=r"^[^/\x00]+$")
    """Name in the manifest's own folder, never a path out of it."""
    samples: int = Field(ge=0, le=2**31)
    bytes: int = Field(ge=0, le=2**62)
    digest: str
    """xxh3_128 of the tar, hexadecimal."""


class Manifest(Strict):
    """What a set is; written last, so that its presence says the set is whole."""

    version: Literal[1] = 1
    name: str
    source: str = ""
    """Where the samples came from, in words."""
    licence: str = ""
    fields: tuple[str, ...]
    facts: Facts = Facts()
    classes: tuple[str, ...] | None = None
    """Class names by number."""
    shards: tuple[Shard, ...]
    notes: tuple[str, ...] = ()
    """What was left out when the set was packed."""
    digest: str
    """Of all that decides what a run reads: fields, facts, classes, shards."""

    @classmethod
    def make(cls, *, fields: Sequence[str], facts: Facts, shards: Sequence[Shard], **rest: Any) -> Manifest:
        """A manifest with its digest."""
        classes = rest.get("classes")
        content = {
            "fields": list(fields),
            "facts": facts.identity(),
            "classes": list(classes) if classes is not None else None,
            "shards": [shard.model_dump() for shard in shards],
        }
        return cls(fields=tuple(fields), facts=facts, shards=tuple(shards), digest=digest_of(content), **rest)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"


def read_manifest(folder: str, storage: Storage = DEFAULTS) -> Manifest:
    """The manifest of a packed folder; of a remote one, read once by the ranks of a machine.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is no manifest of this version.
    """
    address = join(folder, MANIFEST)
    try:
        if local_path(address) is None:
            version = f"manifest {address} {fingerprint(address, storage)}"
            return Manifest.model_validate_json(once(version, lambda: read_bytes(address, storage)))
        return Manifest.model_validate_json(read_bytes(address))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{address}: {where or 'file'}: {first['msg']}") from None


def shard_of(tar: str, index: Index) -> Shard:
    """The manifest's line of an indexed tar."""
    return Shard(
        file=tar.rsplit("/", 1)[-1],
        samples=index.num_samples,
        bytes=index.header.shard_bytes,
        digest=index.header.shard_digest,
    )
