"""Damaged tars and forged indexes: exact samples or a reported error, never a crash, a hang or a silent loss.

`THALWEG_FUZZ=N` tries N examples of each instead of the usual few.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipelines.base import DataError
from data_pipelines.index import MAX_SAMPLE_BYTES, Header, Index, payload_digest
from data_pipelines.indexer import index_tar

pytestmark = pytest.mark.slow

BLOCK = 512
EXAMPLES = int(os.environ.get("THALWEG_FUZZ", "150"))
thorough = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Fields = dict[str, bytes]


def write(samples: dict[str, Fields], format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for key, fields in samples.items():
            for name, data in fields.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def original(count: int, size: int) -> dict[str, Fields]:
    return {f"k{n}": {"jpg": bytes([65 + n]) * (size + 7 * n), "cls": str(n).encode()} for n in range(count)}


@st.composite
def mutations(draw, data: bytes) -> bytes:
    """One wound: a flipped byte, a cut, a run of garbage or zeros."""
    kind = draw(st.sampled_from(["flip", "cut", "garbage", "zeros"]))
    place = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        return data[:place]
    if kind == "flip":
        length, run = 1, bytes([data[place] ^ draw(st.integers(1, 255))])
    else:
        length = draw(st.integers(1, 3 * BLOCK))
        run = bytes(length) if kind == "zeros" else draw(st.randoms(use_true_random=False)).randbytes(length)
    return data[:place] + run[: len(data) - place] + data[place + length :]


@st.composite
def operations(draw, data: bytes) -> bytes:
    """Blocks that were lost, doubled, moved or come from elsewhere."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(blocks) - 1))
        kind = draw(st.sampled_from(["lose", "double", "move", "foreign"]))
        block = blocks.pop(place) if kind in {"lose", "move"} and len(blocks) > 1 else blocks[place]
        if kind in {"double", "move"}:
            blocks.insert(draw(st.integers(0, len(blocks))), block)
        elif kind == "foreign":
            blocks.insert(place, draw(st.binary(min_size=BLOCK, max_size=BLOCK)))
    return b"".join(blocks)


def is_zeroed_to_the_end(whole: bytes, wounded: bytes) -> bool:
    """Members that end in an end mark's zeros were never there, for all that a tar itself can say."""
    end = -(-len(wounded.rstrip(b"\0")) // BLOCK) * BLOCK
    return len(wounded) == len(whole) and bool(whole[end:].strip(b"\0"))


def served(path: Path, data: bytes) -> tuple[Index, dict[str, dict[str, int]]]:
    """The index of a tar, checked against the bytes it points to; sizes by key and field."""
    path.write_bytes(data)
    index = Index.from_bytes(index_tar(str(path)).to_bytes(), "fuzzed")
    sizes = {}
    for number in range(index.num_samples):
        start, size = index.span(number)
        fields = index.fields_of(number, data[start : start + size])
        assert payload_digest(fields.items()) == int(index.digests[number])
        sizes[index.key(number)] = {name: len(value) for name, value in fields.items()}
    return index, sizes


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "a.tar"


@thorough
@given(data=st.data(), count=st.integers(1, 5), size=st.sampled_from([0, 1, 300, 512, 1500]))
def test_what_a_wound_takes_is_told(path, data, count, size):
    samples = original(count, size)
    whole = write(samples, tarfile.USTAR_FORMAT)
    wounded = data.draw(mutations(whole))
    assume(not is_zeroed_to_the_end(whole, wounded))
    index, sizes = served(path, wounded)
    expected = {key: {name: len(value) for name, value in fields.items()} for key, fields in samples.items()}
    if not index.header.damage:
        assert sizes == expected
    for key, fields in sizes.items():
        assert fields.items() <= expected[key].items(), "nothing is served that was not there"


@thorough
@given(
    data=st.data(),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    long=st.booleans(),
)
def test_blocks_in_any_disorder_are_read_to_an_end(path, data, format, long):
    samples = original(3, 600)
    if long and format != tarfile.USTAR_FORMAT:
        samples = {f"{'ü' * 120}/{key}": fields for key, fields in samples.items()}
    served(path, data.draw(operations(write(samples, format))))


@thorough
@given(content=st.binary(max_size=4 * BLOCK))
def test_any_bytes_are_read_to_an_end(path, content):
    index, _ = served(path, content)
    assert index.num_samples or index.header.damage or not content.strip(b"\0")


whole_numbers = st.one_of(st.integers(0, 40), st.integers(-(2**63), 2**63 - 1))


def lines(dtype):
    return hnp.arrays(dtype, st.integers(0, 4), elements=whole_numbers if dtype == np.int64 else None)


@thorough
@given(data=st.data())
def test_a_forged_index_is_refused_or_leads_nowhere_outside_its_shard(data):
    """The forger knows how to make the digest right."""
    index = Index(
        header=Header(
            shard_bytes=data.draw(st.one_of(st.integers(0, 100), st.integers(0, 2**62))),
            shard_digest="0" * 32,
            fields=tuple(data.draw(st.lists(st.text(max_size=3), max_size=3))),
        ),
        **{name: data.draw(lines(np.int64), label=name) for name in ("offsets", "sizes", "starts", "key_starts")},
        field_ids=data.draw(hnp.arrays(np.uint16, st.integers(0, 4))),
        key_bytes=data.draw(hnp.arrays(np.uint8, st.integers(0, 8))),
        digests=data.draw(hnp.arrays(np.uint64, st.integers(0, 3))),
    )
    use(index)


@thorough
@given(data=st.data(), count=st.integers(1, 4))
def test_one_false_number_in_an_index_is_refused_or_leads_nowhere_outside_its_shard(path, data, count):
    path.write_bytes(write(original(count, 300), tarfile.USTAR_FORMAT))
    index = index_tar(str(path))
    name = data.draw(st.sampled_from(["offsets", "sizes", "starts", "key_starts"]))
    array = getattr(index, name).copy()
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(whole_numbers)
    use(dataclasses.replace(index, **{name: array}))


def use(forged: Index) -> None:
    try:
        index = Index.from_bytes(forged.to_bytes(), "forged")
    except DataError as error:
        assert "damaged" in str(error)
        return
    for number in range(index.num_samples):
        start, size = index.span(number)
        assert start >= 0 and 0 <= size <= MAX_SAMPLE_BYTES and start + size <= index.header.shard_bytes
        index.fields_of(number, bytes(min(size, 100)))
        try:
            index.key(number)
        except UnicodeDecodeError:
            pytest.fail("a key that is no text was let in")


@thorough
@given(content=st.binary(max_size=300), length=st.integers(0, 2**64 - 1))
def test_any_bytes_are_no_index(content, length):
    for sidecar in (content, length.to_bytes(8, "little") + content):
        with pytest.raises(DataError, match="damaged"):
            Index.from_bytes(sidecar, "any")
