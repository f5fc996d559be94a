"""What happens to a loader when its data fails: the rest of the samples, the same order, words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.base import DataError
from data_pipelines.batch import Batch, Sample
from data_pipelines.ledger import expected
from data_pipelines.loader import Loader
from data_pipelines.manifest import Facts
from data_pipelines.order import Order, Stream
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.quarantine import complaint, read_lines, replaced
from data_pipelines.shards import Dataset
from data_pipelines.storage import Storage
from data_pipelines.views import Draw
from tests import stores
from tests.stores import web_server

pytestmark = pytest.mark.slow

SHARDS, MEMBERS = 6, 10
COUNT = SHARDS * MEMBERS
LANES, BATCH = 4, 12


class Reading:
    """A view that shows which sample was read."""

    def sample(self, sample: Sample, draw: Draw) -> dict[str, np.ndarray]:
        return {"text": np.frombuffer(sample.fields["txt"][:10], np.uint8)}

    def batch(self, batch: Batch) -> Batch:
        return batch


def packed(folder: Path, count: int = COUNT, members: int = MEMBERS) -> Dataset:
    samples = [(f"key{n:02d}", {"txt": f"sample {n:03d}".encode() * 30}) for n in range(count)]
    split = Split("train", samples, count, 0, lambda: (Facts(), ()))
    return write_sets(folder / "set", [split], PackConfig(samples_per_shard=members), name="set", source="test")[0]


@pytest.fixture
def dataset(tmp_path):
    return packed(tmp_path)


def order_of(dataset, lanes=LANES):
    return Order(0, [Stream(dataset.name, dataset.shard_sizes, lanes)], lanes, window=4)


def loader_of(dataset, quarantine=None, *, lanes=LANES, **rest):
    settings = {
        "seed": 0, "global_batch": BATCH, "accumulation": 1, "rank": 0, "world_size": 1, "start": 0, "workers": 0,
        "prefetch": 2,
    }  # fmt: skip
    return Loader([dataset], order_of(dataset, lanes), Reading(), quarantine=quarantine, **{**settings, **rest})


def read(loader, count):
    try:
        return list(islice(loader, count))
    finally:
        loader.close()


def keys(batches):
    return [key for batch in batches for key in batch.keys]


def shard(dataset, number):
    return Path(dataset.place(number)[0])


@pytest.mark.parametrize("cut", [0, 1, 511, 513, 1000, 4000, 6001, 9999])
def test_a_truncated_shard_costs_what_lies_behind_the_cut_and_every_loss_is_counted(dataset, tmp_path, cut):
    whole = keys(read(loader_of(dataset), COUNT // BATCH))
    lost = {dataset.key(2, m) for m in range(MEMBERS) if sum(dataset.index(2).span(m)) > cut}
    os.truncate(shard(dataset, 2), cut)
    batches = read(loader_of(Dataset.open(dataset.path), tmp_path / "quarantine"), COUNT // BATCH)
    assert [key for key in keys(batches) if key not in lost] == keys(batches)
    changed = [old for old, new in zip(whole, keys(batches), strict=True) if old != new]
    assert set(changed) == lost
    assert sum(batch.replaced for batch in batches) == len(lost)
    lines = read_lines(tmp_path / "quarantine")
    assert {line.key for line in lines} == lost and {line.shard for line in lines} <= {shard(dataset, 2).name}
    total = sum(batch.ledger for batch in batches) % 2**128
    assert total == expected(order_of(dataset), [dataset], 0, COUNT, replaced(tmp_path / "quarantine"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_goes_missing_in_mid_run_is_replaced(dataset, tmp_path, workers):
    held = Dataset.open(dataset.path)
    for number in (1, 4):
        shard(dataset, number).unlink()
        Path(f"{shard(dataset, number)}.index").unlink()
    folder = tmp_path / "quarantine"
    batches = read(loader_of(held, folder, workers=workers), COUNT // BATCH)
    assert not {f"key{n:02d}" for n in (*range(10, 20), *range(40, 50))} & set(keys(batches))
    assert sum(batch.replaced for batch in batches) == 20
    assert {line.shard for line in read_lines(folder)} == {"train-000001.tar", "train-000004.tar"}


def test_of_many_bad_shards_the_ten_worst_are_named(tmp_path):
    dataset, folder = packed(tmp_path, 240, 12), tmp_path / "quarantine"
    for number in range(20):
        tar, bad = shard(dataset, number), min(number, 11)
        content = bytearray(tar.read_bytes())
        for member in range(bad):
            content[dataset.index(number).span(member)[0]] ^= 0xFF
        tar.write_bytes(content)
    read(loader_of(Dataset.open(dataset.path), folder), 20)  # one epoch
    words = complaint(11, 20, 0.1, read_lines(folder)).split("worst shards: ")[1].split(". See")[0]
    named = [part.split(" ")[0] for part in words.split(", ")]
    assert len(named) == 10
    assert set(named) == {f"train-{number:06d}.tar" for number in range(10, 20)}


@pytest.mark.parametrize("rest", [{"prefetch": 1}, {"prefetch": 7}, {"workers": 3}])
def test_a_resume_with_other_workers_or_prefetch_reads_the_same(dataset, rest):
    undisturbed = read(loader_of(dataset, workers=1), 6)
    resumed = read(loader_of(dataset, start=2 * BATCH, **{"workers": 1, **rest}), 4)
    assert keys(undisturbed[2:]) == keys(resumed)
    assert [batch.ledger for batch in undisturbed[2:]] == [batch.ledger for batch in resumed]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 3, 13])
def test_sets_smaller_than_a_batch_or_than_the_lanes_go_round_and_round(tmp_path, count, workers):
    dataset = packed(tmp_path, count)
    epochs = 4
    got = keys(read(loader_of(dataset, workers=workers), epochs * count))  # BATCH epochs each
    for epoch in range(0, len(got) - count + 1, count):
        assert sorted(got[epoch : epoch + count]) == [f"key{n:02d}" for n in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_set_that_fails_now_and_then_gives_the_samples_of_the_local_one(
    dataset, tmp_path, monkeypatch, workers
):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("data_pipelines.storage.retry.LONGEST_WAIT_S", 0.2)
    local = read(loader_of(dataset), 10)
    kinds = [stores.unavailable, stores.reset, stores.truncate, stores.refuse]
    with web_server(Path(dataset.path).parent) as server:
        server.fault = lambda request: kinds[request.number % 4] if request.number % 5 < 2 else None
        for storage in (Storage(deadline_s=30), Storage(deadline_s=30, cache_bytes=10**5)):
            remote = Dataset.open(f"{server.url}/train", storage=storage)
            batches = read(loader_of(remote, tmp_path / "quarantine", workers=workers), 10)
            assert keys(batches) == keys(local)
            assert [batch.ledger for batch in batches] == [batch.ledger for batch in local]
    assert not (tmp_path / "quarantine").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_object_that_never_comes_is_replaced_by_the_rule_after_the_deadline(
    dataset, tmp_path, monkeypatch, workers
):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    with web_server(Path(dataset.path).parent) as server:
        remote = Dataset.open(f"{server.url}/train", storage=Storage(deadline_s=3.0))
        server.fault = lambda request: stores.unavailable if "000003.tar" in request.path else None
        batches = read(loader_of(remote, tmp_path / "quarantine", workers=workers), COUNT // BATCH)
    assert sum(batch.replaced for batch in batches) == MEMBERS
    assert not {f"key{n:02d}" for n in range(30, 40)} & set(keys(batches))


def test_a_store_that_is_gone_ends_the_run_in_words_and_quarantines_nothing(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    with web_server(Path(dataset.path).parent) as server:
        remote = Dataset.open(f"{server.url}/train", storage=Storage(deadline_s=0.5))
        loader = loader_of(remote, tmp_path / "quarantine", workers=2)
        batches = iter(loader)
        next(batches)
        server.dark.set()
        with pytest.raises(DataError, match=r"has given nothing for|none of the 60 samples"):
            list(islice(batches, 20))
        loader.close()
    assert not (tmp_path / "quarantine").exists()


MEMORY = """
    import gc, sys
    from itertools import islice
    import psutil
    sys.path.insert(0, sys.argv[1])
    from tests.data_pipelines.test_faults import COUNT, BATCH, loader_of
    from data_pipelines.shards import Dataset

    loader = loader_of(Dataset.open(sys.argv[2]), workers=1)
    batches = iter(loader)
    def resident():
        gc.collect()
        return [psutil.Process(pid).memory_info().rss for pid in (psutil.Process().pid, *loader.pids)]
    measured = []
    for epoch in range(210):
        for _ in islice(batches, COUNT // BATCH):
            pass
        if epoch in (9, 209):
            measured.append(resident())
    loader.close()
    print(measured)
"""


@pytest.mark.slow
def test_memory_of_a_rank_and_its_worker_stays_flat_over_epochs(dataset):
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(Path(__file__).parents[2]), dataset.path],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    early, late = json.loads(answer.stdout)
    assert all(after <= 1.05 * before for before, after in zip(early, late, strict=True)), (early, late)


def test_a_shard_replaced_by_another_of_the_same_set_is_not_mixed_in(dataset):
    shutil.copy(shard(dataset, 0), shard(dataset, 1))
    shutil.copy(f"{shard(dataset, 0)}.index", f"{shard(dataset, 1)}.index")
    with pytest.raises(DataError, match="another shard than the manifest's"):
        read(loader_of(Dataset.open(dataset.path)), COUNT // BATCH)
