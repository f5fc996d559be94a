import tracemalloc

import numpy as np
import pytest

from data_pipelines.base import UserError
from data_pipelines.order import Order, Stream
from data_pipelines.plan import plan, synthetic_stream


def imagenet(num_lanes, window, shuffle="window"):
    order = Order(
        0, [synthetic_stream("imagenet", 1_281_167, 1_282, num_lanes)], num_lanes, window=window, shuffle=shuffle
    )
    return plan(order, global_batch=4096, accumulation=2, world_size=8, epochs=300, sample_bytes=110_000)


def test_figures_of_a_known_run():
    figures = imagenet(4096, 64)
    assert figures.steps == 93_836  # ceil(300 * 1_281_167 / 4096)
    assert (figures.samples_per_rank_step, figures.micro_batch) == (512, 256)
    assert f"reads {512 * 0.11:.2f} MB in" in "\n".join(figures.lines())
    assert figures.legal_world_sizes == tuple(2**power for power in range(12))
    assert figures.open_shards_per_rank == 512
    assert 512 / 64 < figures.requests_per_rank_step < 512 / 64 + 1


def test_lanes_shuffle_sorted_shards_better_than_windows_do():
    many_lanes, large_windows = imagenet(4096, 64).streams[0], imagenet(256, 1024).streams[0]
    assert many_lanes.parts_reached == many_lanes.parts == 1000
    assert large_windows.parts_reached < 600
    assert 980 < many_lanes.parts_reached_by_chance < 986


def test_full_shuffle_reaches_what_chance_does_and_reads_sample_by_sample():
    figures = imagenet(256, 64, "full")
    assert abs(figures.streams[0].parts_reached - figures.streams[0].parts_reached_by_chance) < 10
    assert figures.requests_per_rank_step == figures.samples_per_rank_step


def test_ten_billion_samples_on_4096_ranks_fit_into_200_mb():
    tracemalloc.start()
    order = Order(0, [synthetic_stream("web", 10**10, 10**6, 4096)], 4096)
    figures = plan(order, global_batch=16_384, accumulation=1, world_size=4096, epochs=1, sample_bytes=1e5)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert figures.steps == -(-(10**10) // 16_384)
    assert figures.samples_per_rank_step == 4
    assert figures.table_bytes <= 40 * 10**6
    assert peak_bytes < 200 * 10**6


def test_a_plan_is_of_the_first_mixture_and_names_those_to_come():
    streams = [Stream("a", np.array([3000]), 4), Stream("b", np.array([500]), 4)]
    stages = [(0, {"a": 8}), (320, {"a": 2, "b": 6})]
    order = Order.from_state(0, streams, 8, (), 0, planned=stages)
    figures = plan(order, global_batch=32, accumulation=1, world_size=4, epochs=1)
    assert [(stream.lanes, stream.samples_per_step) for stream in figures.streams] == [(8, 32), (0, 0)]
    assert figures.streams[1].parts_reached == 0
    assert "stage        from step 10: a 0.25 (2 lanes), b 0.75 (6 lanes)" in figures.lines()


def test_a_mixture_is_planned_dataset_by_dataset():
    order = Order(0, [Stream("a", np.array([30, 0, 70]), 6), Stream("b", np.array([5]), 2)], 8)
    figures = plan(order, global_batch=32, accumulation=1, world_size=4, epochs=2.5, sample_bytes=10)
    assert [stream.samples_per_step for stream in figures.streams] == [24, 8]
    assert [stream.num_shards for stream in figures.streams] == [2, 1]
    assert figures.steps == 9  # ceil(2.5 * 105 / 32)
    assert len(figures.warnings) == 1
    text = "\n".join(figures.lines())
    assert "a: 100 samples in 2 shards, weight 0.75 (6 lanes); a step takes 24" in text
    assert "ranks        4; legal: 1, 2, 4, 8" in text
    assert "warning      dataset 'b' has 5 samples, but every step takes 8" in text


def test_reads_are_told_by_step_and_by_second_where_the_pace_is_known():
    order = Order(0, [synthetic_stream("a", 10_000, 10, 8)], 8, shuffle="full")
    sizes = {"global_batch": 64, "accumulation": 1, "world_size": 4, "epochs": 1}
    lines = plan(order, **sizes, sample_bytes=1e6, step_s=0.5).lines()
    assert "             reads 16.00 MB in 16 requests a step; 32.00 MB in 32 a second" in lines
    assert "all ranks    read 64.00 MB in 64 requests a step; 128.00 MB in 128 a second" in lines
    assert not any("second" in line or "MB in" in line for line in plan(order, **sizes).lines())


def test_indexes_of_open_shards_are_counted():
    few_lanes, many_lanes = (Order(0, [synthetic_stream("a", 10**6, 100, lanes)], lanes) for lanes in (8, 64))
    sizes = {"global_batch": 64, "accumulation": 1, "world_size": 8, "epochs": 1}
    assert plan(few_lanes, **sizes).index_bytes == 10_000 * 80
    assert plan(many_lanes, **sizes).index_bytes == 8 * 10_000 * 80


def test_sizes_that_do_not_fit_are_refused_before_any_work():
    order = Order(0, [synthetic_stream("a", 100, 4, 8)], 8)
    with pytest.raises(UserError, match="start 2 or 4 ranks"):
        plan(order, global_batch=32, accumulation=1, world_size=3, epochs=1, sample_bytes=1)


def test_synthetic_shards_hold_every_sample():
    sizes = synthetic_stream("a", 103, 10, 1).shard_sizes
    assert sizes.sum() == 103
    assert sizes.max() - sizes.min() <= 1
