import time

import numpy as np
import pytest

from data_pipelines.base import SampleError
from data_pipelines.bench import (
    Pace,
    Parts,
    choose,
    micro_batches,
    sweep,
    time_parts,
    worker_counts,
    workers_needed,
)
from data_pipelines.loader import Loader
from data_pipelines.manifest import Facts
from data_pipelines.order import Order, Stream
from data_pipelines.pack.writer import PackConfig, Split, write_sets

BATCH = 128


class Slow:
    """A view that takes a while; of every second sample if it is `picky`."""

    def __init__(self, picky=False):
        self.picky = picky

    def sample(self, sample, draw):
        if self.picky and int(sample.key[1:]) % 2:
            raise SampleError("odd")
        time.sleep(0.002)
        return {"text": np.frombuffer(sample.fields["txt"], np.uint8)}

    def batch(self, batch):
        return batch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    samples = [(f"k{number}", {"txt": b"x" * 100}) for number in range(640)]
    split = Split("train", samples, len(samples), 0, lambda: (Facts(), ()))
    return write_sets(tmp_path_factory.mktemp("bench") / "set", [split], PackConfig(), name="toy", source="test")[0]


@pytest.fixture
def order(dataset):
    return Order(0, [Stream("toy", dataset.shard_sizes, 32)], 32)


@pytest.mark.parametrize("picky", [False, True])
def test_parts_of_a_sample_are_told_apart(dataset, order, picky):
    parts = time_parts([dataset], order, Slow(picky), seed=0, seconds=0.05)
    assert parts.view_s >= 0.002 > parts.read_s > 0
    assert parts.sample_bytes == dataset.manifest.shards[0].bytes / dataset.shard_sizes[0]
    assert parts.samples_per_s == pytest.approx(1 / (parts.read_s + parts.view_s + parts.stack_s))
    assert parts.words().startswith("read ")


def test_a_set_without_a_readable_sample_is_not_timed_for_ever(dataset, order):
    class Never(Slow):
        def sample(self, sample, draw):
            raise SampleError("no image", key=sample.key)

    with pytest.raises(SampleError, match="no image"):
        time_parts([dataset], order, Never(), seed=0, seconds=0.0)


def test_each_number_of_workers_is_timed_on_samples_of_its_own(dataset, order):
    seen = []

    def batches(workers, start):
        loader = Loader(
            [dataset], order, Slow(), seed=0, global_batch=BATCH, accumulation=micro_batches(BATCH), rank=0,
            world_size=1, start=start, workers=workers, prefetch=1, quarantine=None,
        )  # fmt: skip
        try:
            for batch in loader:
                seen.append((workers, int(batch.positions[0])))
                yield batch
        finally:
            loader.close()
            seen.append((workers, "closed"))

    paces = list(sweep(batches, [0, 1], seconds=0.0, stride=2 * BATCH))
    assert [pace.workers for pace in paces] == [0, 1]
    assert all(pace.samples_per_s > 0 for pace in paces)
    assert [word for word in seen if word[1] == "closed"] == [(0, "closed"), (1, "closed")]
    assert [word for word in seen if word[1] in (0, 2 * BATCH)] == [(0, 0), (1, 2 * BATCH)]


def test_waiting_follows_from_what_is_asked_and_given():
    assert Pace(2, 500.0).data_wait(1000.0) == 0.5
    assert Pace(2, 1000.0).data_wait(500.0) == 0.0
    assert Pace(0, 500.0).data_wait(500.0) == 0.5  # reads and computes in turn


def test_fewest_workers_that_do_are_chosen():
    paces = [Pace(0, 90.0), Pace(1, 100.0), Pace(2, 190.0), Pace(4, 350.0), Pace(8, 370.0)]
    assert choose(paces, None).workers == 4  # 8 give little more
    assert choose(paces, 10.0).workers == 1  # not 0: a GPU would wait for every batch
    assert choose(paces, 150.0).workers == 2
    assert choose(paces, 160.0).workers == 4  # a quarter to spare
    assert choose(paces, 10_000.0).workers == 4
    assert choose([Pace(0, 90.0), Pace(1, 50.0)], None).workers == 0


def test_workers_are_counted_with_a_quarter_to_spare():
    assert workers_needed(1000.0, 100.0) == 13
    assert workers_needed(10.0, 100.0) == 1


def test_steps_are_cut_into_bites_that_fill_in_time():
    assert [micro_batches(size) for size in (1, 64, 128, 4096, 97, 96)] == [1, 1, 2, 64, 97, 2]


def test_worker_counts_end_at_the_cores():
    assert worker_counts(1) == [0, 1]
    assert worker_counts(24)[-2:] == [16, 24]


def test_parts_add_up():
    assert Parts(0.001, 0.002, 0.001, 10.0).samples_per_s == 250
    assert Parts(0.001, 0.002, 0.001, 10.0).words() == "read 25%, decode and view 50%, stack 25%"
