"""Sets in stores that are real, and fail in every way that stores do."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from data_pipelines.base import DataError, SampleError, UserError
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset
from data_pipelines.storage import Storage, exists, fingerprint, glob, join, names_in, open_reader
from tests import stores
from tests.stores import FaultyServer, s3_environment, s3_server, upload, web_server

SHARDS, MEMBERS = 4, 6
SHARD = "train-000001.tar"
PATIENT, HASTY = Storage(deadline_s=30), Storage(deadline_s=0.5)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A set on disk, in a folder "a/train"."""
    samples = [(f"k{n:02d}", {"jpg": f"pixels of {n} ".encode() * 500, "cls": b"1"}) for n in range(SHARDS * MEMBERS)]
    split = Split("train", samples, len(samples), 0, lambda: (Facts(), ()))
    config = PackConfig(samples_per_shard=MEMBERS)
    [dataset] = write_sets(tmp_path_factory.mktemp("packed") / "a", [split], config, name="toy", source="test")
    return dataset


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyServer]:
    with s3_server() as server:
        yield server


def everything(dataset: Dataset) -> list[tuple[str, dict[str, bytes]]]:
    samples = [dataset.read(shard, member) for shard in range(SHARDS) for member in range(MEMBERS)]
    return [(sample.key, dict(sample.fields)) for sample in samples]


class StoreContract:
    """What every store must do; `address` holds the packed set."""

    @pytest.fixture(autouse=True)
    def another_machine(self, tmp_path, monkeypatch):
        monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))

    def remove(self, address: str, name: str) -> None:
        raise NotImplementedError

    def replace(self, address: str, name: str, content: bytes) -> None:
        raise NotImplementedError

    def test_a_set_reads_as_it_does_on_disk(self, address, packed):
        remote = Dataset.open(address)
        assert remote.digest == packed.digest and remote.is_remote
        assert everything(remote) == everything(packed)

    def test_what_is_asked_for_side_by_side_is_what_is_read(self, address, packed):
        remote = Dataset.open(address)
        places = [(shard, member) for shard in range(SHARDS) for member in range(MEMBERS)]
        found = {places[::-1][row]: sample for row, sample in remote.read_all(places[::-1])}
        assert list(found) == places
        assert [(sample.key, dict(sample.fields)) for sample in found.values()] == everything(packed)

    def test_names_and_patterns_are_found(self, address, packed):
        names = [path.name for path in sorted(Path(packed.path).iterdir())]
        assert names_in(address) == names
        assert glob(f"{address}/*.tar") == [f"{address}/{name}" for name in names if name.endswith(".tar")]
        assert exists(f"{address}/{SHARD}") and not exists(f"{address}/none.tar")

    def test_tars_without_a_manifest_are_indexed_on_the_fly(self, address, packed):
        plain = Dataset.open(f"{address}/{SHARD}")
        assert plain.num_samples == MEMBERS
        assert plain.read(0, 2).fields == packed.read(1, 2).fields

    def test_an_empty_object_is_empty(self, address):
        self.replace(address, "empty", b"")
        reader = open_reader(f"{address}/empty")
        assert reader.size == 0 and reader.pread(0, 10) == b""

    def test_missing_shards_are_listed_at_the_start(self, address):
        for number in (1, 3):
            self.remove(address, f"train-{number:06d}.tar")
        with pytest.raises(UserError, match=r"2 of 4 shards are missing: train-000001.tar, train-000003.tar"):
            Dataset.open(address)

    def test_a_shard_that_goes_missing_costs_its_samples_alone(self, address, packed):
        held = Dataset.open(address)
        self.remove(address, SHARD)
        self.remove(address, f"{SHARD}.index")
        with pytest.raises(SampleError, match=f"cannot be read.*{SHARD}"):
            held.read(1, 0)
        assert held.read(2, 0).key == packed.key(2, 0)

    def test_a_replaced_object_has_another_fingerprint(self, address):
        before = fingerprint(f"{address}/{SHARD}")
        assert fingerprint(f"{address}/{SHARD}") == before
        self.replace(address, SHARD, b"something else")
        assert fingerprint(f"{address}/{SHARD}") != before


class FaultyStoreContract(StoreContract):
    """Stores of servers that fail on demand: `server` stands between them and us."""

    @pytest.fixture(autouse=True)
    def short_silence(self, monkeypatch):
        for module in ("stores", "web"):
            monkeypatch.setattr(f"data_pipelines.storage.{module}.SILENCE_S", 0.5)
        monkeypatch.setattr("data_pipelines.storage.retry.LONGEST_WAIT_S", 0.2)

    @pytest.fixture(autouse=True)
    def without_faults(self, server):
        yield
        server.fault = lambda request: None
        server.dark.clear()

    @pytest.mark.slow
    def test_faults_in_turn_cost_nothing_but_time(self, address, server, packed):
        faults = iter([stores.unavailable, None, stores.reset, stores.refuse, None, stores.truncate, stores.hang] * 3)
        server.fault = lambda request: next(faults, None)
        assert everything(Dataset.open(address, storage=PATIENT)) == everything(packed)
        assert next(faults, "spent") == "spent"

    def test_a_broken_answer_is_resumed_at_its_byte_under_the_same_tag(self, address, server):
        reader = open_reader(f"{address}/{SHARD}", PATIENT)
        whole = reader.pread(0, reader.size)
        server.requests.clear()
        breaks = iter([stores.truncate, stores.truncate])
        server.fault = lambda request: next(breaks, None)
        assert reader.pread(100, 8000) == whole[100:8100]
        assert [request.start for request in server.requests] == [100, 4100, 6100]
        assert len({request.headers["if-match"] for request in server.requests}) == 1

    def test_a_slow_answer_is_waited_for(self, address, server, packed):
        server.fault = lambda request: stores.crawl
        assert Dataset.open(address, storage=PATIENT).read(0, 1).fields == packed.read(0, 1).fields

    def test_an_answer_too_slow_for_the_deadline_is_given_up(self, address, server):
        reader = open_reader(f"{address}/{SHARD}", Storage(deadline_s=1))
        server.fault = lambda request: stores.crawl
        with pytest.raises(OSError, match="not done within"):
            reader.pread(0, reader.size)

    @pytest.mark.slow
    def test_an_outage_shorter_than_the_deadline_is_sat_out(self, address, server, packed):
        remote = Dataset.open(address, storage=PATIENT)
        server.dark.set()
        threading.Timer(1.0, server.dark.clear).start()
        assert everything(remote) == everything(packed)

    def test_an_object_that_never_comes_is_given_up_and_others_are_read(self, address, server, packed):
        remote = Dataset.open(address, storage=HASTY)
        remote.index(1)
        server.fault = lambda request: stores.unavailable if SHARD in request.path else None
        with pytest.raises(SampleError, match=SHARD):
            remote.read(1, 0)
        server.requests.clear()
        with pytest.raises(SampleError, match=SHARD):
            remote.read(1, 1)
        assert len(server.requests) == 1, "one try for an object that was given up"
        assert remote.read(2, 0).key == packed.key(2, 0)

    def test_a_store_that_is_gone_ends_in_words_instead_of_a_wait_for_every_sample(self, address, server):
        remote = Dataset.open(address, storage=HASTY)
        remote.read(0, 0)
        remote.read(1, 0)
        server.dark.set()
        with pytest.raises(SampleError):
            remote.read(0, 1)
        server.requests.clear()
        with pytest.raises(DataError, match="has given nothing for") as caught:
            remote.read(1, 2)
        assert not isinstance(caught.value, SampleError)
        assert len(server.requests) <= 4  # this one and one that came before; the library tries each once more

    def test_an_object_that_changes_under_a_reader_is_refused(self, address, server):
        remote = Dataset.open(address)
        remote.read(1, 0)
        content = bytearray(open_reader(f"{address}/{SHARD}").pread(0, 10**6))
        content[:9] = b"different"
        self.replace(address, SHARD, bytes(content))
        with pytest.raises(DataError, match=f"{SHARD} was replaced while it was read") as caught:
            remote.read(1, 1)
        assert not isinstance(caught.value, SampleError)

    def test_a_store_that_compares_no_tags_is_watched_all_the_same(self, address, server):
        remote = Dataset.open(address)
        remote.read(1, 0)
        self.replace(address, SHARD, bytes(open_reader(f"{address}/{SHARD}").size))
        server.fault = lambda request: self.answer_unconditionally
        with pytest.raises(DataError, match=f"{SHARD} was replaced while it was read"):
            remote.read(1, 1)

    @staticmethod
    def answer_unconditionally(request, answer):
        request.headers.pop("if-match", None)
        stores.send(request, request.again())

    def test_a_store_out_of_reach_at_the_start_is_named(self, address, server):
        server.dark.set()
        with pytest.raises(DataError, match="dataset"):
            Dataset.open(address, storage=HASTY)


class TestMemory(StoreContract):
    @pytest.fixture
    def address(self, packed, tmp_path):
        self.files = fsspec.filesystem("memory")
        self.files.put(packed.path, f"/{tmp_path.name}/train", recursive=True)
        return f"memory://{tmp_path.name}/train"

    def test_names_and_patterns_are_found(self, address, packed):
        assert SHARD in names_in(address)
        assert len(glob(f"{address}/*.tar")) == SHARDS

    def remove(self, address, name):
        self.files.rm(f"{address}/{name}")

    def replace(self, address, name, content):
        self.files.pipe(f"{address}/{name}", content)


class TestWeb(FaultyStoreContract):
    @pytest.fixture
    def server(self, packed, tmp_path):
        shutil.copytree(packed.path, tmp_path / "served" / "a b" / "train")
        self.folder = tmp_path / "served" / "a b" / "train"
        with web_server(tmp_path / "served") as server:
            yield server

    @pytest.fixture
    def address(self, server):
        return f"{server.url}/a%20b/train"

    def remove(self, address, name):
        (self.folder / name).unlink()

    def replace(self, address, name, content):
        (self.folder / name).write_bytes(content)

    def test_a_server_that_lists_nothing_is_asked_for_every_shard(self, address, server):
        (self.folder / SHARD).unlink()
        server.fault = lambda request: stores.not_found if request.path.endswith("/") else None
        with pytest.raises(UserError, match=f"1 of 4 shards are missing: {SHARD}"):
            Dataset.open(address)

    def test_names_of_every_kind_are_found(self, address):
        name = "ü #1? 50%.tar"
        (self.folder / SHARD).rename(self.folder / name)
        assert name in names_in(address)
        assert glob(f"{address}/*1*.tar") == [join(address, name)]
        assert Dataset.open(join(address, name)).num_samples == MEMBERS

    def test_a_server_without_ranges_is_refused(self, address, server):
        server.fault = lambda request: self.whole if SHARD in request.path else None
        with pytest.raises(DataError, match="answers no range requests"):
            Dataset.open(address).read(1, 1)

    @staticmethod
    def whole(request, answer):
        request.headers.pop("range", None)
        stores.send(request, request.again())

    def test_refused_credentials_stop_at_once(self, address, server):
        remote = Dataset.open(address)
        server.fault = lambda request: stores.unauthorized
        with pytest.raises(DataError, match="renew the credentials") as caught:
            remote.read(0, 0)
        assert not isinstance(caught.value, SampleError)


class TestS3(FaultyStoreContract):
    @pytest.fixture
    def server(self, s3, monkeypatch):
        for name, value in s3_environment(s3).items():
            monkeypatch.setenv(name, value)
        return s3

    @pytest.fixture
    def address(self, server, packed, request):
        bucket = f"bucket-{abs(hash(request.node.name)) % 10**9}"
        self.client = upload(server, Path(packed.path), f"s3://{bucket}/a b/train")
        self.bucket = bucket
        return f"s3://{bucket}/a b/train"

    def remove(self, address, name):
        self.client.delete_object(Bucket=self.bucket, Key=f"a b/train/{name}")

    def replace(self, address, name, content):
        self.client.put_object(Bucket=self.bucket, Key=f"a b/train/{name}", Body=content)

    def test_a_bucket_that_is_not_there_is_named(self, server):
        with pytest.raises(UserError, match=r"dataset s3://nowhere/train: no such file or folder"):
            Dataset.open("s3://nowhere/train")

    def test_expired_credentials_are_looked_up_again(self, address, server, packed):
        remote = Dataset.open(address)
        refusals = iter([stores.expired])
        server.fault = lambda request: next(refusals, None)
        assert everything(remote) == everything(packed)
        assert next(refusals, "spent") == "spent"

    def test_credentials_that_stay_expired_stop_the_run_in_words(self, address, server):
        remote = Dataset.open(address)
        remote.read(0, 0)
        server.fault = lambda request: stores.expired
        with pytest.raises(DataError, match=r"credentials are refused \(ExpiredToken.*renew them and start again"):
            remote.read(0, 1)

    def test_objects_that_may_not_be_read_cost_their_samples_alone(self, address, server, packed):
        remote = Dataset.open(address)
        server.fault = lambda request: stores.denied if SHARD in request.path else None
        with pytest.raises(SampleError):
            remote.read(1, 0)
        assert remote.read(2, 0).key == packed.key(2, 0)


def test_faults_are_tried_again_with_growing_and_differing_pauses(monkeypatch):
    from data_pipelines.storage import retry

    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    health, failures = retry.Health("s3://bucket", lambda path: None), iter([OSError("busy")] * 60)

    def work(left_s):
        for error in islice(failures, 1):
            raise error
        return "done"

    assert retry.persist(work, health, "a.tar", 1000.0) == "done"
    assert len(set(pauses)) == len(pauses) == 60
    assert all(pause <= min(retry.FIRST_WAIT_S * 2**n, retry.LONGEST_WAIT_S) for n, pause in enumerate(pauses))
    assert max(pauses[20:]) > 5 * max(pauses[:3])
