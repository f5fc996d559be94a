import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import DataError
from data_pipelines.index import Index, payload_digest, read_index
from data_pipelines.indexer import index_tar, split_name, write_index

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="./\0%"), min_size=1, max_size=140)
SAMPLES = st.dictionaries(
    NAMES, st.dictionaries(st.sampled_from(["jpg", "cls", "seg.png", "json"]), st.binary(max_size=1500), min_size=1)
)


def make_tar(path, members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(index, data):
    """What an index says of a tar's bytes."""
    result = {}
    for sample in range(index.num_samples):
        offset, size = index.span(sample)
        result[index.key(sample)] = index.fields_of(sample, data[offset : offset + size])
    return result


def plain(count):
    return [(f"s{number}.{name}", f"{name} {number}".encode()) for number in range(count) for name in ("jpg", "cls")]


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_index_gives_back_names_and_bytes_of_any_tar(tmp_path_factory, samples, format):
    samples = {key: fields for key, fields in samples.items() if not (key.startswith("__") and key.endswith("__"))}
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    make_tar(
        path, [(f"{key}.{name}", data) for key, fields in samples.items() for name, data in fields.items()], format
    )
    index = Index.from_bytes(index_tar(str(path)).to_bytes(), "a.tar.index")
    assert contents(index, path.read_bytes()) == samples
    assert not index.header.damage
    assert [int(digest) for digest in index.digests] == [payload_digest(fields.items()) for fields in samples.values()]
    assert index.header.shard_digest == xxhash.xxh3_128(path.read_bytes()).hexdigest()


def test_payload_digest_is_that_of_the_contract():
    want = xxhash.xxh3_64(b"jpg\0pixels" + b"cls\x003").intdigest()
    assert payload_digest([("jpg", b"pixels"), ("cls", b"3")]) == want


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.c/d.jpg", ("a/b.c/d", "jpg")),
        ("a/d.seg.PNG", ("a/d", "seg.png")),
        ("plain", None),
        (".hidden", None),
        ("__meta__/x.jpg", None),
        ("two\nlines.jpg", ("two\nlines", "jpg")),
    ],
)
def test_names_split_as_webdataset_splits_them(name, parts):
    assert split_name(name) == parts


def test_truncated_tar_serves_what_is_whole(tmp_path):
    whole = make_tar(tmp_path / "a.tar", plain(20)).read_bytes()
    last = index_tar(str(tmp_path / "a.tar"))
    stops = [last.span(sample)[0] + last.span(sample)[1] for sample in range(last.num_samples)]
    # A cut inside the first sample leaves nothing to compare it with, so that what is there of it is served.
    for cut in [*range(2 * stops[0], stops[-1] + 512, 333), *range(2048, stops[-1] + 512, 512)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        index = index_tar(str(tmp_path / "cut.tar"))
        assert index.num_samples == sum(stop <= cut for stop in stops), cut
        assert index.header.damage, cut


@pytest.mark.parametrize("offset", [0, 5, 124, 150, 156, 257, 300])
def test_flipped_byte_in_a_header_costs_its_sample_alone(tmp_path, offset):
    path = make_tar(tmp_path / "a.tar", plain(10))
    data = bytearray(path.read_bytes())
    data[data.index(b"s2.jpg") + offset] ^= 0x55
    path.write_bytes(data)
    index = index_tar(str(path))
    assert [index.key(sample) for sample in range(index.num_samples)] == [f"s{n}" for n in range(10) if n != 2]
    assert "header damaged" in index.header.damage[0]


def hostile(tmp_path):
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"special{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("/etc/marker.jpg", "../marker.jpg", "a/../../marker.jpg", "good.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 6
            tar.addfile(info, io.BytesIO(b"pixels"))
        for data in (b"one", b"two"):
            info = tarfile.TarInfo("twice.jpg")
            info.size = 3
            tar.addfile(info, io.BytesIO(data))
    return path


def test_hostile_members_are_left_out_in_words_and_never_extracted(tmp_path):
    index = index_tar(str(hostile(tmp_path)))
    assert [index.key(sample) for sample in range(index.num_samples)] == ["good"]
    told = "\n".join(index.header.damage)
    for words in (
        "is a link, device",
        "'/etc/marker.jpg' points out",
        "'../marker.jpg' points out",
        "field 'jpg' twice",
    ):
        assert words in told
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.tar"]


def header(name, size, kind=b"0"):
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "block",
    [
        header("big.jpg", b"\x80" + b"\xff" * 11),
        header("negative.jpg", b"\xff" * 12),
        header("long", b"\x80" + (1 << 62).to_bytes(11, "big"), b"L"),
        header("pax", b"77777777777\0", b"x"),
    ],
)
def test_absurd_sizes_end_in_words_not_in_memory(tmp_path, block):
    path = tmp_path / "a.tar"
    path.write_bytes(block + b"x" * 512)
    index = index_tar(str(path))
    assert index.num_samples == 0
    assert index.header.damage


@pytest.mark.parametrize(
    "record", [b"9 path=a\n", b"999 path=a\n", b"x path=a\n", b"11 size=-5\n", b"0 \n", b"12 size=abc\n"]
)
def test_pax_tricks_do_not_stop_the_walk(tmp_path, record):
    path = tmp_path / "a.tar"
    make_tar(path, plain(3))
    pax = header("pax", b"%011o\0" % len(record), b"x") + record.ljust(512, b"\0")
    path.write_bytes(pax + path.read_bytes())
    index = index_tar(str(path))
    assert [index.key(sample) for sample in range(index.num_samples)][-2:] == ["s1", "s2"]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_damage_to_an_index_is_noticed(tmp_path_factory, data):
    path = make_tar(tmp_path_factory.mktemp("tar") / "a.tar", plain(4))
    sidecar = bytearray(index_tar(str(path)).to_bytes())
    place = data.draw(st.integers(0, len(sidecar) - 1))
    sidecar[place] ^= data.draw(st.integers(1, 255))
    try:
        index = Index.from_bytes(bytes(sidecar), "a.tar.index")
    except DataError as error:
        assert "damaged" in str(error)
    else:  # only bytes that carry no meaning, as padding, may change unseen
        assert contents(index, path.read_bytes()) == contents(index_tar(str(path)), path.read_bytes())


def test_index_bytes_are_the_same_every_time(tmp_path):
    path = make_tar(tmp_path / "a.tar", plain(50))
    assert len({index_tar(str(path)).to_bytes() for _ in range(5)}) == 1


def test_index_of_an_empty_tar_has_no_samples(tmp_path):
    path = make_tar(tmp_path / "a.tar", [])
    assert write_index(path).num_samples == 0
    assert read_index(str(path) + ".index").num_samples == 0


def test_many_tiny_members_take_bounded_notes(tmp_path):
    path = make_tar(tmp_path / "a.tar", [(f"../{number}.x", b"") for number in range(1500)])
    assert len(index_tar(str(path)).header.damage) == 1001


def test_spans_of_neighbours_do_not_overlap(tmp_path):
    index = index_tar(str(make_tar(tmp_path / "a.tar", plain(30))))
    spans = np.array([index.span(sample) for sample in range(index.num_samples)])
    assert (spans[1:, 0] >= spans[:-1].sum(1)).all()


def test_missing_index_is_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_index(str(tmp_path / "none.index"))
