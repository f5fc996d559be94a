from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import DataError, SampleError, UserError
from data_pipelines.batch import Batch, Sample
from data_pipelines.hashing import mix
from data_pipelines.ledger import expected
from data_pipelines.loader import Loader, finite_batches
from data_pipelines.order import Order, Stream, micro_positions
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.quarantine import read_lines, replaced
from data_pipelines.shards import Dataset, Facts
from data_pipelines.views import Draw

LANES = 4
MODULUS = 2**128


@dataclass(frozen=True)
class Reading:
    """A view that shows which sample was read, and draws."""

    def sample(self, sample: Sample, draw: Draw) -> dict[str, np.ndarray]:
        return {
            "text": np.frombuffer(sample.fields["txt"].ljust(24), np.uint8),
            "noise": draw.rng("noise").random(3).astype(np.float32),
        }

    def batch(self, batch: Batch) -> Batch:
        return batch


@dataclass(frozen=True)
class Acting(Reading):
    """Does something at one slot first."""

    position: int
    act: Callable[[], object]

    def sample(self, sample, draw):
        if draw.position == self.position:
            self.act()
        return super().sample(sample, draw)


def write_tars(folder: Path, shard_sizes) -> None:
    folder.mkdir()
    for shard, size in enumerate(shard_sizes):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for member in range(size):
                content = f"{folder.name} {shard} {member}".encode()
                entry = tarfile.TarInfo(f"{folder.name}-{shard}-{member}.txt")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@contextmanager
def sets_of(all_shard_sizes):
    """Datasets "a", "b" ... of plain tars."""
    with tempfile.TemporaryDirectory() as folder:
        datasets = []
        for name, shard_sizes in zip("abc", all_shard_sizes, strict=False):
            write_tars(Path(folder) / name, shard_sizes)
            datasets.append(Dataset.open(str(Path(folder) / name), name=name))
        yield datasets


def order_of(datasets, seed=0, num_lanes=LANES, **rest):
    lanes = [num_lanes - len(datasets) + 1] + [1] * (len(datasets) - 1)
    streams = [Stream(d.name, d.shard_sizes, m) for d, m in zip(datasets, lanes, strict=True)]
    return Order(seed, streams, num_lanes, **{"window": 4, **rest})


def loader_of(datasets, order, view=None, **rest):
    settings = {
        "seed": 0, "global_batch": 8, "accumulation": 1, "rank": 0, "world_size": 1, "start": 0, "workers": 0,
        "prefetch": 2, "quarantine": None,
    }  # fmt: skip
    return Loader(datasets, order, view or Reading(), **{**settings, **rest})


def read(loader, count):
    try:
        return list(islice(loader, count))
    finally:
        loader.close()


@pytest.fixture
def packed(tmp_path):
    """60 samples in 4 shards, with indexes that know their digests."""
    samples = [(f"key{n:02d}", {"txt": f"sample {n:02d}".encode()}) for n in range(60)]
    split = Split("train", samples, 60, 600, lambda: (Facts(), ()))
    return write_sets(tmp_path / "set", [split], PackConfig(samples_per_shard=15), name="set", source="a test")[0]


def damage(dataset, key, back=False):
    """Change one byte of a sample in its tar, or change it back."""
    good, bad = f"sample {key[3:]}".encode(), f"sXmple {key[3:]}".encode()
    for path in Path(dataset.path).glob("*.tar"):
        content = path.read_bytes()
        path.write_bytes(content.replace(bad, good) if back else content.replace(good, bad))


def assert_equal(ours, theirs):
    assert ours.keys == theirs.keys
    assert ours.ledger == theirs.ledger and ours.replaced == theirs.replaced
    assert ours.fields.keys() == theirs.fields.keys()
    for name, value in ours.fields.items():
        assert torch.equal(value, theirs[name])
    for name in ("positions", "weight", "key_hash"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))


shard_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
runs = st.fixed_dictionaries(
    {
        "all_shard_sizes": st.lists(shard_sizes, min_size=1, max_size=2),
        "seed": st.integers(0, 2**40),
        "world_size": st.sampled_from([1, 2, 4]),
        "accumulation": st.sampled_from([1, 2]),
        "global_batch": st.sampled_from([8, 16]),
        "shuffle": st.sampled_from(["window", "full", "none"]),
        "first_step": st.integers(0, 50),
    }
)


def check_against_the_order(run, workers):
    """Three steps of all ranks hold what the order says, with the draws of their slots, and prove it."""
    batch, accumulation, world_size = run["global_batch"], run["accumulation"], run["world_size"]
    start = run["first_step"] * batch
    with sets_of(run["all_shard_sizes"]) as datasets:
        order = order_of(datasets, run["seed"], shuffle=run["shuffle"])
        ledger = 0
        for rank in range(world_size):
            loader = loader_of(
                datasets, order, seed=run["seed"], global_batch=batch, accumulation=accumulation,
                rank=rank, world_size=world_size, start=start, workers=workers,
            )  # fmt: skip
            for number, found in enumerate(read(loader, 3 * accumulation)):
                step, micro = divmod(number, accumulation)
                wanted = micro_positions(start + step * batch, batch, accumulation, micro, rank, world_size)
                assert found.positions.tolist() == wanted.tolist()
                slots = order.slots(wanted)
                places = zip(slots.dataset.tolist(), slots.shard.tolist(), slots.member.tolist(), strict=True)
                for row, (dataset, shard, member) in enumerate(places):
                    key = datasets[dataset].key(shard, member)
                    assert found.keys[row] == key
                    assert bytes(found["text"][row].tolist()).split()[1:] == [b"%d" % shard, b"%d" % member]
                    noise = Draw(run["seed"], int(wanted[row])).rng("noise").random(3).astype(np.float32)
                    assert found["noise"][row].tolist() == noise.tolist()
                    assert int(found.key_hash[row]) % 2**64 == int(mix("key", key))
                assert found.weight.tolist() == [1.0] * len(wanted)
                ledger += found.ledger
        assert ledger % MODULUS == expected(order, datasets, start, start + 3 * batch)


@settings(deadline=None, max_examples=20)
@given(runs)
def test_every_step_holds_what_the_order_says(run):
    check_against_the_order(run, workers=0)


@settings(deadline=None, max_examples=5)
@given(runs, st.integers(1, 2))
def test_workers_are_no_part_of_the_order(run, workers):
    check_against_the_order({**run, "world_size": min(run["world_size"], 2)}, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_equals_the_tail_bit_by_bit(packed, workers):
    order = order_of([packed])
    whole = read(loader_of([packed], order, accumulation=2), 20)
    tail = read(loader_of([packed], order, accumulation=2, start=6 * 8, workers=workers, prefetch=1), 8)
    for ours, theirs in zip(tail, whole[12:], strict=True):
        assert_equal(ours, theirs)


def test_sizes_that_do_not_fit_are_refused(packed):
    with pytest.raises(UserError, match="num_lanes=4 is no multiple of world_size=3"):
        loader_of([packed], order_of([packed]), world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_replaced_by_the_orders_next_readable_one(packed, tmp_path, workers):
    order, folder = order_of([packed]), tmp_path / "quarantine"
    slots = order.slots(np.arange(40))
    place = 0, int(slots.shard[17]), int(slots.member[17])
    first, second, third = islice(order.substitutes(17), 3)
    damage(packed, packed.key(*place[1:]))
    damage(packed, packed.key(*first[1:]))
    ledger = 0
    loader = loader_of([packed], order, quarantine=folder, workers=workers)
    for batch in islice(loader, 5):
        ledger += batch.ledger
        found = {17, *replaced(folder)} & set(batch.positions.tolist())
        if 17 in found:
            row = batch.positions.tolist().index(17)
            assert batch.keys[row] == packed.key(*second[1:])
            assert batch["noise"][row].tolist() == Draw(0, 17).rng("noise").random(3).astype(np.float32).tolist()
        assert batch.replaced == len(set(batch.positions.tolist()) & set(replaced(folder)))  # already on disk
    loader.close()
    assert replaced(folder)[17] == second != third
    lines = [line for line in read_lines(folder) if line.g == 17]
    assert [line.key for line in lines] == [packed.key(*place[1:]), packed.key(*first[1:])]
    assert lines[0].shard == packed.manifest.shards[place[1]].file and "digest" in lines[0].reason
    assert ledger % MODULUS == expected(order, [packed], 0, 40, replaced(folder))
    assert ledger % MODULUS != expected(order, [packed], 0, 40)


def test_a_replay_takes_the_same_substitutes_at_any_world_size(packed, tmp_path):
    order, folder = order_of([packed]), tmp_path / "quarantine"
    bad = ["key03", "key22", "key41"]
    for key in bad:
        damage(packed, key)
    first = read(loader_of([packed], order, quarantine=folder), 10)
    assert sum(batch.replaced for batch in first) >= 3
    for key in bad:
        damage(packed, key, back=True)  # readable again: the lines count, not the day's weather
    again = read(loader_of([packed], order, quarantine=folder, attempt=2, workers=1), 10)
    for ours, theirs in zip(again, first, strict=True):
        assert_equal(ours, theirs)
    halves = [read(loader_of([packed], order, quarantine=folder, world_size=2, rank=r), 10) for r in (0, 1)]
    for whole, even, odd in zip(first, *halves, strict=True):
        assert {*even.keys, *odd.keys} == set(whole.keys)
        assert (even.ledger + odd.ledger) % MODULUS == whole.ledger


def test_a_substitute_that_turns_bad_is_replaced_by_the_next(packed, tmp_path):
    order, folder = order_of([packed]), tmp_path / "quarantine"
    slots = order.slots(np.arange(8))
    damage(packed, packed.key(int(slots.shard[3]), int(slots.member[3])))
    read(loader_of([packed], order, quarantine=folder), 1)
    served = replaced(folder)[3]
    damage(packed, packed.key(*served[1:]))
    once = read(loader_of([packed], order, quarantine=folder, attempt=2), 1)
    assert replaced(folder)[3] not in (served, (0, int(slots.shard[3]), int(slots.member[3])))
    assert_equal(read(loader_of([packed], order, quarantine=folder, attempt=3), 1)[0], once[0])


def test_replaced_rows_are_counted_with_their_batch(packed, tmp_path):
    for n in range(30, 45):
        damage(packed, f"key{n}")
    order = order_of([packed], num_lanes=1)
    batches = read(loader_of([packed], order, quarantine=tmp_path, global_batch=10), 6)
    assert sum(batch.replaced for batch in batches) == 15 == len({line.g for line in read_lines(tmp_path)})
    for batch in batches:
        assert batch.replaced == len({line.g for line in read_lines(tmp_path)} & set(batch.positions.tolist()))


def test_a_cut_without_a_readable_sample_ends_in_words(packed):
    for n in range(60):
        damage(packed, f"key{n:02d}")
    with pytest.raises(DataError, match=r"none of the 15 samples that may stand at slot \d can be read"):
        read(loader_of([packed], order_of([packed]), workers=1), 1)


def test_what_the_view_cannot_decode_is_quarantined_by_name(packed, tmp_path):
    batch = next(
        iter(loader_of([packed], order_of([packed]), Undecodable("key07"), global_batch=60, quarantine=tmp_path))
    )
    (line,) = read_lines(tmp_path)
    assert (line.key, line.shard, line.reason) == ("key07", "train-000000.tar", "image damaged: truncated")
    assert batch.replaced == 1 and "key07" not in batch.keys


@dataclass(frozen=True)
class Undecodable(Reading):
    key: str

    def sample(self, sample, draw):
        if sample.key == self.key:
            raise SampleError("image damaged: truncated")
        return super().sample(sample, draw)


class Growing(Reading):
    def sample(self, sample, draw):
        return {"text": np.zeros(draw.position % 2)}


@pytest.mark.parametrize("workers", [0, 1])
def test_fields_of_unequal_shapes_are_named(packed, workers):
    with pytest.raises(DataError, match="field 'text' differs within a batch"):
        read(loader_of([packed], order_of([packed]), Growing(), workers=workers), 1)


def fail():
    raise ZeroDivisionError("a bug of the view")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_keeps_its_own_name(packed, workers):
    with pytest.raises(ZeroDivisionError, match="a bug of the view"):
        read(loader_of([packed], order_of([packed]), Acting(3, fail), workers=workers), 1)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_run_in_words(packed):
    loader = loader_of([packed], order_of([packed]), Acting(8 * 6, kill_self), workers=2)
    with pytest.raises(DataError, match=r"data worker \d+ was killed by SIGKILL.*lower data.workers"):
        read(loader, 20)
    assert loader.pids == []


def test_a_worker_killed_between_batches_is_noticed_at_the_next(packed):
    loader = loader_of([packed], order_of([packed]), workers=2)
    batches = iter(loader)
    next(batches)
    for pid in loader.pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)  # the death itself must not raise here, in the middle of a training step
    with pytest.raises(DataError, match="was killed by SIGKILL"):
        list(islice(batches, 20))


def test_a_hanging_worker_ends_the_run_in_words(packed):
    loader = loader_of([packed], order_of([packed]), Acting(8, lambda: time.sleep(3600)), workers=1, timeout_s=2)
    batches = iter(loader)
    next(batches)
    pids = loader.pids
    with pytest.raises(DataError, match=r"gave nothing for 2 s"):
        next(batches)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_leave_signals_to_their_parent(packed):
    loader = loader_of([packed], order_of([packed]), workers=2)
    batches = iter(loader)
    next(batches)
    for pid in loader.pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    assert len(list(islice(batches, 10))) == 10
    loader.close()


def test_a_closed_loader_starts_again_at_its_start(packed):
    loader = loader_of([packed], order_of([packed]), workers=1)
    first = list(islice(loader, 3))
    again = list(islice(loader, 3))
    loader.close()
    for ours, theirs in zip(again, first, strict=True):
        assert_equal(ours, theirs)


def test_starting_a_loader_moves_no_random_state_of_the_process(packed):
    before = torch.get_rng_state()
    loader = loader_of([packed], order_of([packed]), workers=1)
    read(loader, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.waited_s > 0


SCRIPT = """
    import sys, time
    import numpy as np
    from data_pipelines.loader import Loader
    from data_pipelines.order import Order, Stream
    from data_pipelines.shards import Dataset

    class Slow:
        def sample(self, sample, draw):
            if draw.position >= 32:
                time.sleep(3600)
            return {"n": np.zeros(1)}

    dataset = Dataset.open(sys.argv[1])
    order = Order(0, [Stream("set", dataset.shard_sizes, 4)], 4)
    loader = Loader([dataset], order, Slow(), seed=0, global_batch=8, accumulation=1, rank=0, world_size=1, start=0,
                    workers=2, prefetch=4, quarantine=None)
    batches = iter(loader)
    next(batches)
    print(*loader.pids, flush=True)
"""


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@contextmanager
def python(script, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    try:
        yield process, pids
    finally:  # a failed test leaves nothing behind
        process.kill()
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_until_gone(pids, seconds=20):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


@pytest.mark.slow
def test_a_process_that_ends_without_closing_ends(packed):
    with python(SCRIPT, packed.path) as (process, pids):
        assert len(pids) == 2
        assert process.wait(timeout=60) == 0
        wait_until_gone(pids)


@pytest.mark.slow
def test_workers_die_with_a_killed_parent(packed):
    with python(SCRIPT + "    time.sleep(3600)\n", packed.path) as (process, pids):
        assert len(pids) == 2 and all(map(is_running, pids))
        process.kill()
        wait_until_gone(pids)


finite = {"seed": 0, "batch_size": 7, "rank": 0, "world_size": 1, "workers": 0}


@settings(deadline=None, max_examples=25)
@given(shard_sizes, st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(1, 40))
def test_a_finite_stream_holds_every_sample_once(sizes, world_size, batch_size, max_samples):
    with sets_of([sizes]) as (dataset,):
        every = [dataset.key(shard, member) for shard, size in enumerate(sizes) for member in range(size)]
        ranks = [
            list(
                finite_batches(
                    dataset, Reading(), seed=0, batch_size=batch_size, rank=rank, world_size=world_size, workers=0,
                    max_samples=max_samples,
                )
            )
            for rank in range(world_size)
        ]  # fmt: skip
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    rows = sorted(
        (position, key)
        for batches in ranks
        for batch in batches
        for position, key, weight in zip(batch.positions.tolist(), batch.keys, batch.weight.tolist(), strict=True)
        if weight
    )
    keys = [key for _, key in rows]
    if max_samples is None or max_samples >= len(every):
        assert keys == every
    else:
        assert len(keys) == len(set(keys)) == max_samples
        assert keys == sorted(keys, key=every.index)


def test_a_finite_stream_is_the_same_with_workers(packed):
    plain = list(finite_batches(packed, Reading(), **finite))
    worked = list(finite_batches(packed, Reading(), **{**finite, "workers": 2}))
    for ours, theirs in zip(worked, plain, strict=True):
        assert_equal(ours, theirs)


def test_samples_that_are_left_out_are_spread_over_sorted_files(packed):
    keys = [key for batch in finite_batches(packed, Reading(), **finite, max_samples=7) for key in batch.keys]
    assert keys == ["key00", "key08", "key17", "key25", "key34", "key42", "key51"]


def test_an_unreadable_sample_of_a_finite_stream_weighs_nothing(packed):
    damage(packed, "key59")
    batches = list(finite_batches(packed, Reading(), **finite))
    counted = [key for batch in batches for key, weight in zip(batch.keys, batch.weight, strict=True) if weight]
    assert counted == [f"key{n:02d}" for n in range(59)]
    assert sum(batch.replaced for batch in batches) == 1


def test_a_finite_stream_that_is_mostly_unreadable_is_refused(packed):
    for n in range(11):
        damage(packed, f"key{n:02d}")
    with pytest.raises(DataError, match=r"worst shards: train-000000\.tar"):
        list(finite_batches(packed, Reading(), **finite))


def test_a_finite_stream_that_is_left_early_leaves_no_worker(packed):
    before = set(psutil.Process().children())
    batches = finite_batches(packed, Reading(), **{**finite, "workers": 2})
    next(batches)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_running() for worker in workers)
