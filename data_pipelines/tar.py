"""Reads the headers of a tar without trusting them: forward only, bounded memory, nothing extracted.

Python's `tarfile` ends without a word at a damaged header, which would lose the rest of a shard.
This reader says what it left out and finds the next whole header. It knows ustar, GNU long names,
base-256 sizes and PAX `path` and `size`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

BLOCK = 512
MAX_MEMBERS = 2**21
"""Of a shard, second headers included: an index is made in memory."""
MAX_HEADER_BYTES = 1 << 20
MAX_NAME_BYTES = 4096
_ZEROS = bytes(BLOCK)
_SECOND_HEADERS = {b"x", b"X", b"g", b"L", b"K"}
_BODILESS = {b"1", b"2", b"3", b"4", b"5", b"6"}  # links, devices, folders, pipes: no data follows


class Stream(Protocol):
    """A forward-only source of bytes."""

    def take(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        ...

    def skip(self, size: int) -> int:
        """Pass over up to `size` bytes; returns how many there were."""
        ...

    def tell(self) -> int:
        """Position of the next byte."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One entry; the stream stands at its first byte when it is yielded.

    Attributes:
        offset: of its first byte in the tar.
        size: bytes.
        kind: "file" holds data; "folder" and "other" (links, devices, sparse files) hold none for us.
    """

    name: str
    offset: int
    size: int
    kind: Literal["file", "folder", "other"]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something was left out at `offset`."""

    offset: int
    reason: str

    def __str__(self) -> str:
        return f"byte {self.offset}: {self.reason}"


@dataclass(slots=True)
class _Extra:
    """What second headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    damaged: bool = False
    """They could not be read: name and size are not known for sure."""


@dataclass(slots=True)
class _Header:
    block: bytes
    name: bytes = field(init=False)
    size: int = field(init=False)
    kind: bytes = field(init=False)

    def __post_init__(self) -> None:
        block = self.block
        self.name = block[:100].split(b"\0", 1)[0]
        prefix = block[345:500].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and prefix:  # GNU's "ustar  " keeps other things there
            self.name = prefix + b"/" + self.name
        self.size = _number(block[124:136])
        self.kind = b"0" if block[156:157] == b"\0" else block[156:157]


def members(stream: Stream) -> Iterator[Member | Damage]:
    """Walk a tar. The caller may read a member's bytes; the rest is skipped.

    Yields:
        Members in file order, and `Damage` where something was left out. The walk ends at the end of the file, or
        after `MAX_MEMBERS`; an end mark before that may be a lost block, and is passed.
    """
    extra = _Extra()
    lost = False
    end_mark: int | None = None
    for _ in range(MAX_MEMBERS):
        start = stream.tell()
        block = stream.take(BLOCK)
        if len(block) < BLOCK:
            if end_mark is None:
                yield Damage(start, "the file ends without an end mark")
            return
        if block == _ZEROS:
            end_mark = start if end_mark is None else end_mark
            continue
        if end_mark is not None:
            yield Damage(end_mark, "an end mark, and more behind it")
            end_mark = None
        header = _parse(block)
        if header is None:
            if not lost:
                yield Damage(start, "header damaged")
            lost, extra = True, _Extra()
            continue
        lost = False
        if header.kind in _SECOND_HEADERS:
            problem = _read_extra(stream, header, extra)
            if problem:
                yield Damage(start, problem)
                extra = _Extra(damaged=True)
            continue
        yield from _visit(stream, start, header, extra)
        extra = _Extra()
    yield Damage(stream.tell(), f"more than {MAX_MEMBERS} members")


def _visit(stream: Stream, start: int, header: _Header, extra: _Extra) -> Iterator[Member | Damage]:
    """Yield the member of `header` and leave the stream at the next header."""
    sparse = header.kind == b"S" or extra.sparse
    if header.kind == b"S":
        _skip_sparse_map(stream, header.block)
    size = 0 if header.kind in _BODILESS else header.size if extra.size is None else extra.size
    raw = header.name if extra.name is None else extra.name
    offset = stream.tell()
    if size < 0:
        yield Damage(start, "member of negative size")
        return
    if not raw or len(raw) > MAX_NAME_BYTES or b"\0" in raw:
        yield Damage(start, f"member name of {len(raw)} bytes")
    elif not extra.damaged:
        yield Member(raw.decode("utf-8", "backslashreplace"), offset, size, _kind(header.kind, sparse))
    stream.skip(offset + size + -size % BLOCK - stream.tell())
    if stream.tell() < offset + size:
        yield Damage(start, f"member of {size} bytes is cut off after {stream.tell() - offset}")


def _kind(flag: bytes, sparse: bool) -> Literal["file", "folder", "other"]:
    if flag == b"5":
        return "folder"
    return "file" if flag in {b"0", b"7"} and not sparse else "other"


def _parse(block: bytes) -> _Header | None:
    """None when the checksum is wrong or a number is none."""
    try:
        stored = _number(block[148:156])
        unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if stored != unsigned:
            return None
        return _Header(block)
    except ValueError:
        return None


def _number(text: bytes) -> int:
    """Octal digits, or GNU's base-256 when the first bit is set."""
    if text[0] & 0x80:
        magnitude = int.from_bytes(text, "big") & ((1 << (8 * len(text) - 1)) - 1)
        return magnitude - (1 << (8 * len(text) - 1)) if text[0] & 0x40 else magnitude
    digits = text.split(b"\0", 1)[0].strip()
    if digits and not digits.isdigit():
        raise ValueError(f"no octal number: {digits!r}")
    return int(digits or b"0", 8)


def _read_extra(stream: Stream, header: _Header, extra: _Extra) -> str:
    """Fold a second header into `extra`; returns what is wrong with it, else ""."""
    if not 0 <= header.size <= MAX_HEADER_BYTES:
        stream.skip(max(header.size, 0) + -header.size % BLOCK)
        return f"second header of {header.size} bytes"
    body = stream.take(header.size)
    stream.skip(-header.size % BLOCK)
    if len(body) < header.size:
        return "second header is cut off"
    if header.kind == b"L":
        extra.name = body.split(b"\0", 1)[0]
    elif header.kind in {b"x", b"X"}:
        try:
            _fold_pax(body, extra)
        except ValueError:
            return "PAX header damaged"
    return ""


def _fold_pax(body: bytes, extra: _Extra) -> None:
    """Records are "LENGTH KEY=VALUE\\n", LENGTH counting itself."""
    while body.strip(b"\0"):
        digits, space, _ = body[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = body[len(digits) + 1 : length]
        if not space or length > len(body) or not record.endswith(b"\n"):
            raise ValueError("PAX record")
        key, _, value = record[:-1].partition(b"=")
        if key == b"path":
            extra.name = value
        elif key == b"size":
            extra.size = int(value)
        elif key.startswith(b"GNU.sparse"):
            extra.sparse = True
        body = body[length:]


def _skip_sparse_map(stream: Stream, block: bytes) -> None:
    """Old GNU sparse files carry more maps while a flag says so."""
    more = block[482]
    while more:
        block = stream.take(BLOCK)
        more = block[504] if len(block) == BLOCK else 0
