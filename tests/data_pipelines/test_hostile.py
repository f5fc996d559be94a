"""Shards made to harm: nothing is written or executed, what is whole is served, the rest is told in words.

Each is opened and read through, in a process of its own with little memory and time.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import resource
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from data_pipelines.base import SampleError, ThalwegError
from data_pipelines.decode import decode_array
from data_pipelines.indexer import write_index
from data_pipelines.manifest import Facts, Manifest, shard_of
from data_pipelines.shards import Dataset

MEMORY_BYTES, CPU_S, FILE_BYTES = 512 << 20, 20, 256 << 20
GOOD = ("good.jpg", b"pixels")


class Marker:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@dataclass(frozen=True)
class Case:
    """A hostile shard.

    Attributes:
        build: from a folder to the bytes of a tar in it; `marker` of the folder's parent must not come to be.
        keys: what is served all the same.
        words: found in what is said about the rest.
    """

    build: Callable[[Path], bytes]
    keys: tuple[str, ...]
    words: str = ""
    suffix: str = ".tar"


def member(name: str | bytes, data: bytes = b"", kind: bytes = b"0", size: bytes | None = None, **rest: Any) -> bytes:
    """A ustar member; `size` overrides what its header claims."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(data)
    for attribute, value in rest.items():
        setattr(info, attribute, value)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    raw = name.encode() if isinstance(name, str) else name
    block[:100] = raw[:100].ljust(100, b"\0")
    if size is not None:
        block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def tar(*parts: bytes) -> bytes:
    """The parts, then a good sample, then the end mark."""
    return b"".join(parts) + member(*GOOD) + bytes(1024)


def pax(**records: str) -> bytes:
    body = b""
    for key, value in records.items():
        text = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(text) + len(str(len(text)))
        length += len(str(length)) - len(str(len(text)))
        body += str(length).encode() + text
    return member("pax", body, b"x")


def longname(name: bytes, kind: bytes = b"L") -> bytes:
    return member("././@LongLink", name + b"\0", kind)


def pickled(folder: Path) -> bytes:
    return pickle.dumps(Marker(folder.parent / "marker"))


def object_array(folder: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Marker(folder.parent / "marker")], dtype=object), allow_pickle=True)
    return file.getvalue()


def huge_array() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**15,)})
    return file.getvalue()


def zip_bomb(size: int) -> bytes:
    return gzip.compress(bytes(size), 9)


CASES = {
    "absolute path": Case(lambda f: tar(member(f"{f.parent}/marker.jpg", b"x")), ("good",), "points out of its folder"),
    "parent path": Case(lambda f: tar(member("../marker.jpg", b"x")), ("good",), "points out of its folder"),
    "parent path inside": Case(lambda f: tar(member("a/../../marker.jpg", b"x")), ("good",), "points out"),
    "symbolic link": Case(lambda f: tar(member("s.jpg", kind=b"2", linkname="/etc/passwd")), ("good",), "is a link"),
    "hard link": Case(lambda f: tar(member("s.jpg", kind=b"1", linkname="/etc/passwd")), ("good",), "is a link"),
    "link, then a file through it": Case(
        lambda f: tar(member("d", kind=b"2", linkname=str(f.parent)), member("d/marker.jpg", b"x")),
        ("d/marker", "good"),
        "is a link",
    ),
    "character device": Case(lambda f: tar(member("s.jpg", kind=b"3", devmajor=1, devminor=9)), ("good",), "device"),
    "block device": Case(lambda f: tar(member("s.jpg", kind=b"4")), ("good",), "device"),
    "pipe": Case(lambda f: tar(member("s.jpg", kind=b"6")), ("good",), "device"),
    "kind that nobody knows": Case(lambda f: tar(member("s.jpg", b"x", b"Q")), ("good",), "is a link, device"),
    "duplicate field": Case(lambda f: tar(member("s.jpg", b"1"), member("s.jpg", b"2")), ("good",), "twice"),
    "duplicate key": Case(lambda f: tar(member(*GOOD), member("s.jpg", b"2")), ("good", "s", "good")),
    "old sparse file": Case(lambda f: tar(member("s.jpg", b"", b"S")), ("good",), "sparse"),
    "PAX sparse file": Case(
        lambda f: tar(pax(GNU__sparse__major="1", GNU__sparse__realsize=str(1 << 60)), member("s.jpg", b"x")),
        ("good",),
        "sparse",
    ),
    "PAX path": Case(lambda f: tar(pax(path=f"{f.parent}/marker.jpg"), member("s.jpg", b"x")), ("good",), "points out"),
    "PAX size": Case(lambda f: tar(pax(size=str(1 << 62)), member("s.jpg", b"x")), (), "cut off"),
    "PAX negative size": Case(lambda f: tar(pax(size="-512"), member("s.jpg", b"")), ("good",), "negative size"),
    "PAX size of another script": Case(lambda f: tar(pax(size="²"), member("s.jpg")), ("good",), "PAX header"),
    "PAX size of many figures": Case(lambda f: tar(pax(size="9" * 5000), member("s.jpg")), ("good",), "PAX header"),
    "PAX of a gigabyte": Case(lambda f: tar(member("pax", b"", b"x", size=b"10000000000\0")), (), "second header of"),
    "long name": Case(lambda f: tar(longname(b"../" * 50 + b"marker.jpg"), member("s.jpg")), ("good",), "points out"),
    "longer name than names are": Case(
        lambda f: tar(longname(b"a" * 100_000 + b".jpg"), member("s.jpg")), ("good",), "member name of"
    ),
    "long names in a row": Case(lambda f: tar(*[longname(b"n.jpg")] * 500, member("s.jpg")), ("n", "good")),
    "empty name": Case(lambda f: tar(member(b"", b"x")), ("good",), "member name of 0 bytes"),
    "claimed size": Case(lambda f: tar(member("s.jpg", b"x", size=b"77777777777\0")), (), "cut off"),
    "base-256 size": Case(lambda f: tar(member("s.jpg", b"x", size=b"\x80" + b"\xff" * 11)), (), "cut off"),
    "negative base-256 size": Case(lambda f: tar(member("s.jpg", b"", size=b"\xff" * 12)), ("good",), "negative size"),
    "size of letters": Case(lambda f: tar(member("s.jpg", b"", size=b"-0000000001\0")), ("good",), "header damaged"),
    "name that is no text": Case(lambda f: tar(member(b"\xff\xfe.jpg", b"x")), ("\\xff\\xfe", "good")),
    "name of control signs": Case(lambda f: tar(member("a\n\x1b[2J.jpg", b"x")), ("a\n\x1b[2J", "good")),
    "name without a field": Case(lambda f: tar(member("README", b"x")), ("good",)),
    "tar in a tar": Case(lambda f: tar(member("inner.tar", tar(member("../marker.jpg", b"x")))), ("inner", "good")),
    "header inside a member": Case(lambda f: tar(member("s.jpg", member("fake.jpg", b"x"))), ("s", "good")),
    "garbage": Case(lambda f: np.random.default_rng(0).bytes(100_000), (), "header damaged"),
    "nothing": Case(lambda f: b"", (), "ends without an end mark"),
    "no end mark": Case(lambda f: member(*GOOD), ("good",), "ends without an end mark"),
    "tiny members": Case(
        lambda f: tar(*[member(f"{n}.x") for n in range(5000)]), (*map(str, range(5000)), "good"), ""
    ),
    "tiny members to be left out": Case(lambda f: tar(member("../x.jpg") * 50_000), ("good",), "more was left out"),
    "more members than a shard may have": Case(
        lambda f: tar(member(*GOOD), member("README") * 70_000), ("good",), "more than 65536 members"
    ),
    "many fields": Case(lambda f: tar(*[member(f"s.{n}") for n in range(5000)]), ("s", "good")),
    "gzip bomb": Case(lambda f: zip_bomb(64 << 20), (), "unpacks to more than", ".tar.gz"),
    "gzip of gzip": Case(lambda f: gzip.compress(gzip.compress(tar())), (), "no samples", ".tar.gz"),
    "gzip that ends early": Case(lambda f: gzip.compress(tar())[:-20], ("good",), "end mark", ".tar.gz"),
    "pickled field": Case(lambda f: tar(member("s.pkl", pickled(f))), ("s", "good")),
    "pickled torch field": Case(lambda f: tar(member("s.pth", pickled(f))), ("s", "good")),
    "code as a field": Case(lambda f: tar(member("s.pyd", pickled(f))), ("s", "good")),
    "array of objects": Case(lambda f: tar(member("s.npy", object_array(f))), ("s", "good"), "array damaged"),
    "array of a petabyte": Case(lambda f: tar(member("s.npy", huge_array())), ("s", "good"), "array damaged"),
    "pickle for an array": Case(lambda f: tar(member("s.npy", pickled(f))), ("s", "good"), "array damaged"),
}  # fmt: skip


def read_through(path: str, answers: Any) -> None:
    """Open, read every sample, decode what looks decodable; the outcome as plain data."""
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    keys, said = [], []
    try:
        dataset = Dataset.open(path)
        for shard, size in enumerate(dataset.shard_sizes):
            said += dataset.index(shard).header.damage
            for number in range(int(size)):
                try:
                    sample = dataset.read(shard, number)
                    keys.append(sample.key)
                    for name, data in sample.fields.items():
                        if name.endswith("npy"):
                            decode_array(data)
                except SampleError as error:
                    said.append(str(error))
    except ThalwegError as error:
        said.append(str(error))
    answers.send((keys, "\n".join(said)))


def outcome_of(path: Path) -> tuple[list[str], str]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=read_through, args=(str(path), theirs))
    child.start()
    theirs.close()
    try:
        assert ours.poll(60), "no answer"
        outcome: tuple[list[str], str] = ours.recv()
        return outcome
    except EOFError:
        child.join()
        raise AssertionError(f"it ended without an answer, exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("name", CASES)
def test_hostile_shards_do_no_harm(name, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.foreign.FREE_INFLATION", 8 << 20)
    monkeypatch.setattr("data_pipelines.tar.MAX_MEMBERS", 2**16)
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    folder, case = tmp_path / "set", CASES[name]
    folder.mkdir()
    path = folder / f"shard{case.suffix}"
    path.write_bytes(case.build(folder))
    keys, said = outcome_of(path)
    assert tuple(keys) == case.keys, said
    assert case.words in said
    left = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert left <= {"set", "cache"} and [p.name for p in folder.iterdir()] == [path.name]


@pytest.fixture
def packed(tmp_path):
    """A folder of one shard, with index and manifest."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar(member("s.jpg", b"bytes")))
    index = write_index(folder / "a.tar")
    manifest = Manifest.make(name="set", fields=index.header.fields, facts=Facts(), shards=[shard_of("a.tar", index)])
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"file": "/etc/passwd"},
        {"file": "../../etc/passwd"},
        {"file": "file:///etc/passwd"},
        {"file": "https://elsewhere/a.tar"},
        {"file": "pipe:touch marker"},
        {"file": ".."},
        {"file": ""},
        {"samples": -1},
        {"samples": 10**17},
        {"samples": 10**400},
        {"bytes": 10**30},
        {"digest": 7},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_hostile_manifest_leads_nowhere(packed, change):
    tree = json.loads((packed / "manifest.json").read_bytes())
    tree["shards"][0].update(change)
    (packed / "manifest.json").write_text(json.dumps(tree))
    keys, said = outcome_of(packed)
    assert keys == [] and said
    assert sorted(p.name for p in packed.iterdir()) == ["a.tar", "a.tar.index", "manifest.json"]
