"""Whole shards on local disk: never over the cap, never in the way, one fetch a machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from data_pipelines.storage import Storage, once, open_reader
from data_pipelines.storage.cache import PARTIAL, CachedReader, ShardCache
from data_pipelines.storage.remote import Remote, RemoteReader
from tests import stores
from tests.stores import web_server

SIZE = 50_000


@pytest.fixture(autouse=True)
def own_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    for number in range(6):
        (tmp_path / "served" / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    with web_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


def remote(server, number):
    return RemoteReader(Remote(f"{server.url}/{number}.tar", deadline_s=20))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fetched_shard_is_read_without_the_store(server, folder):
    cache = ShardCache(folder, 10 * SIZE)
    assert cache.fetch(remote(server, 3))
    reader = CachedReader(remote(server, 3), cache)
    server.requests.clear()
    assert reader.pread(0, SIZE) == bytes([3]) * SIZE
    assert reader.pread(SIZE - 5, 99) == bytes([3]) * 5
    assert not server.requests


def test_ranges_are_read_while_the_shard_is_on_its_way_and_the_disk_from_then_on(server, folder):
    gate = threading.Event()

    def wait(request, answer):
        gate.wait(20)
        stores.send(request, answer)

    server.fault = lambda request: wait if request.headers["range"] == f"bytes=0-{SIZE - 1}" else None
    reader = CachedReader(remote(server, 2), ShardCache(folder, 10 * SIZE))
    assert reader.pread(10, 20) == bytes([2]) * 20
    gate.set()
    until(lambda: list(folder.glob("*.tar")))
    server.requests.clear()
    assert reader.pread(10, SIZE) == bytes([2]) * (SIZE - 10)
    assert not server.requests


def test_what_was_used_longest_ago_makes_room(server, folder):
    cache = ShardCache(folder, 3 * SIZE)
    readers = [remote(server, number) for number in range(6)]
    for number in (0, 1, 2):
        assert cache.fetch(readers[number])
        time.sleep(0.01)
    held = cache.open(readers[0])
    del held
    assert cache.fetch(readers[3])
    assert [cache.open(readers[number]) is not None for number in range(4)] == [True, False, True, True]
    assert used(folder) == 3 * SIZE


def test_shards_in_use_stay_and_the_cap_holds(server, folder):
    cache = ShardCache(folder, 2 * SIZE + 10)
    readers = [remote(server, number) for number in range(3)]
    held = [cache.fetch(reader) and cache.open(reader) for reader in readers[:2]]
    assert not cache.fetch(readers[2])
    assert used(folder) == 2 * SIZE
    assert [local.pread(0, 1) for local in held] == [b"\0", b"\1"]
    held.pop(0)
    assert cache.fetch(readers[2])
    assert cache.open(readers[0]) is None
    assert used(folder) == 2 * SIZE


def test_a_shard_larger_than_the_cap_is_read_by_ranges(server, folder):
    cache = ShardCache(folder, SIZE - 1)
    assert not cache.fetch(remote(server, 1))
    assert CachedReader(remote(server, 1), cache).pread(5, 5) == bytes([1]) * 5
    assert used(folder) == 0


def test_changed_content_is_another_file(server, folder, tmp_path):
    cache = ShardCache(folder, 10 * SIZE)
    assert cache.fetch(remote(server, 1))
    (tmp_path / "served" / "1.tar").write_bytes(b"new" * SIZE)
    reader = CachedReader(remote(server, 1), ShardCache(folder, 10 * SIZE))
    assert reader.pread(0, 6) == b"newnew"


def test_a_shard_that_cannot_be_fetched_leaves_nothing_and_is_read_by_ranges(server, folder, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    reader = CachedReader(remote(server, 1), ShardCache(folder, 10 * SIZE))
    until(lambda: any(request.headers["range"] == f"bytes=0-{SIZE - 1}" for request in server.requests))
    until(lambda: not list(folder.glob("*.*ar*")))
    assert reader.pread(0, 3) == bytes([1]) * 3


def fetch_in_child(url, folder, cap_bytes, number):
    ShardCache(folder, cap_bytes).fetch(RemoteReader(Remote(f"{url}/{number}.tar", deadline_s=20)))


@pytest.mark.slow
def test_processes_fetch_a_shard_once_and_keep_to_one_cap(server, folder):
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=fetch_in_child, args=(server.url, folder, 3 * SIZE, number % 2)) for number in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    whole = [request.path for request in server.requests if request.headers["range"] == f"bytes=0-{SIZE - 1}"]
    assert sorted(whole) == ["/0.tar", "/1.tar"]
    assert used(folder) == 2 * SIZE


@pytest.mark.slow
def test_what_a_killed_process_was_fetching_is_fetched_anew(server, folder):
    server.fault = lambda request: stores.hang if request.headers["range"] == f"bytes=0-{SIZE - 1}" else None
    child = multiprocessing.get_context("spawn").Process(
        target=fetch_in_child, args=(server.url, folder, 3 * SIZE, 1), daemon=True
    )
    child.start()
    until(lambda: list(folder.glob(f"*{PARTIAL}")))
    cache = ShardCache(folder, 3 * SIZE)
    assert not cache.fetch(remote(server, 1))  # it is at it
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    server.fault = lambda request: None
    assert cache.fetch(remote(server, 1))
    assert cache.open(remote(server, 1)).pread(0, 2) == b"\1\1"
    assert used(folder) == SIZE


def test_the_cache_is_asked_for_in_the_settings(server):
    reader = open_reader(f"{server.url}/4.tar", Storage(cache_bytes=10 * SIZE))
    folder = Path(os.environ["THALWEG_CACHE"]) / "shards"
    until(lambda: list(folder.glob("*.tar")))
    server.requests.clear()
    assert reader.pread(7, 7) == bytes([4]) * 7
    assert not server.requests


def once_in_child(folder, answers):
    os.environ["THALWEG_CACHE"] = str(folder)

    def make():
        answers.put("made")
        time.sleep(0.2)
        return b"content"

    answers.put(once("a thing", make))


@pytest.mark.slow
def test_work_of_a_machine_is_done_by_the_first_that_asks(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    jobs = [context.Process(target=once_in_child, args=(tmp_path, answers)) for _ in range(3)]
    for job in jobs:
        job.start()
    said = [answers.get(timeout=60) for _ in range(4)]
    for job in jobs:
        job.join()
    assert said == ["made", b"content", b"content", b"content"]


def test_work_that_fails_or_grows_old_is_done_again():
    def fail():
        raise OSError("no")

    with pytest.raises(OSError):
        once("x", fail)
    assert once("x", lambda: b"1", max_age_s=60) == b"1"
    assert once("x", lambda: b"2", max_age_s=60) == b"1"
    assert once("x", lambda: b"3", max_age_s=0) == b"3"
