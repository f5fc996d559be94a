import json
import pickle
import tracemalloc
from dataclasses import fields
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.base import UserError
from data_pipelines.hashing import mix
from data_pipelines.order import Order, Slots, Stream, lane_hop, legal_world_sizes, micro_positions

SHUFFLES = ("window", "full", "none")
shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
# (dataset, shard, member) of slots 40 to 47; another outcome means that no run of an earlier version can go on.
GOLDEN_SLOTS = {
    "window": [(0, 2, 0), (0, 2, 5), (0, 0, 0), (1, 0, 0), (0, 0, 4), (0, 2, 3), (0, 0, 2), (1, 0, 18)],
    "full": [(0, 0, 3), (0, 0, 1), (0, 0, 0), (1, 0, 3), (0, 2, 8), (0, 2, 6), (0, 2, 3), (1, 0, 18)],
    "none": [(0, 2, 5), (0, 0, 1), (0, 2, 1), (1, 0, 10), (0, 2, 6), (0, 0, 2), (0, 2, 2), (1, 0, 11)],
}
contract = settings(max_examples=150, deadline=None)


@st.composite
def mixtures(draw, names=("web", "books", "code")):
    """Streams whose lanes fill L."""
    num_lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]))
    names = names[: draw(st.integers(1, min(len(names), num_lanes)))]
    return [
        Stream(name, np.array(draw(shard_sizes)), lanes)
        for name, lanes in zip(names, draw(shared_out(num_lanes, len(names))), strict=True)
    ], num_lanes


@st.composite
def shared_out(draw, total, parts):
    """`parts` numbers >= 1 that sum to `total`."""
    edges = sorted(draw(st.permutations(range(1, total)))[: parts - 1])
    return np.diff([0, *edges, total]).tolist()


@st.composite
def orders(draw, shuffles=SHUFFLES):
    streams, num_lanes = draw(mixtures())
    window, shuffle = draw(st.integers(1, 40)), draw(st.sampled_from(shuffles))
    return Order(draw(st.integers(0, 2**63)), streams, num_lanes, window=window, shuffle=shuffle)


@st.composite
def changing_orders(draw):
    """An order whose weights change twice; with the second change a dataset comes, where a lane is free for it."""
    order = draw(orders())
    position = 0
    for sets in (order.streams, (*order.streams, Stream("new", np.array(draw(shard_sizes)), 1))):
        sets = sets[: order.num_lanes]
        lanes = draw(shared_out(order.num_lanes, len(sets)))
        streams = [Stream(old.name, old.shard_sizes, count) for old, count in zip(sets, lanes, strict=True)]
        position += draw(st.integers(0, 40)) * order.num_lanes
        order = Order.from_state(
            order.seed,
            streams,
            order.num_lanes,
            json.loads(json.dumps(order.to_state())),
            position,
            window=order.window,
            shuffle=order.shuffle,
        )
    return order


def rounds(order, count):
    return order.slots(np.arange(count * order.num_lanes))


def enough_rounds(order, epochs=2.5):
    """Rounds in which every dataset ends some epochs."""
    return max(int(epochs * stream.num_samples / stream.lanes) + 2 for stream in order.streams)


def members(slots, rows):
    return sorted(zip(slots.shard[rows].tolist(), slots.member[rows].tolist(), strict=True))


def every_member(stream):
    return [(shard, member) for shard, size in enumerate(stream.shard_sizes) for member in range(size)]


def table(slots):
    """One tuple a slot, of all that `Slots` says about it."""
    return zip(*(getattr(slots, field.name).tolist() for field in fields(Slots)), strict=True)


def assert_equal(first: Slots, second: Slots, rows=slice(None)):
    for field in fields(Slots):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)[rows]), field.name


class TestEpochs:
    @given(orders())
    @contract
    def test_every_sample_comes_once_an_epoch(self, order):
        slots = rounds(order, enough_rounds(order))
        for index, stream in enumerate(order.streams):
            for epoch in (0, 1):
                rows = (slots.dataset == index) & (slots.epoch == epoch)
                assert members(slots, rows) == every_member(stream)
                assert sorted(slots.sample[rows].tolist()) == list(range(stream.num_samples))

    @given(orders())
    @contract
    def test_epochs_follow_each_other_round_by_round(self, order):
        slots = rounds(order, enough_rounds(order))
        for index, _ in enumerate(order.streams):
            of_stream = slots.dataset == index
            round_, epoch = slots.positions[of_stream] // order.num_lanes, slots.epoch[of_stream]
            first, last = ([edge(epoch[round_ == number]) for number in np.unique(round_)] for edge in (np.min, np.max))
            assert all(begun >= ended for ended, begun in zip(last, first[1:], strict=False))

    @given(orders())
    @contract
    def test_lanes_differ_by_at_most_one_sample_and_keep_their_cut(self, order):
        slots = rounds(order, enough_rounds(order))
        lane = slots.positions % order.num_lanes
        for index, stream in enumerate(order.streams):
            for epoch in (0, 1):
                rows = (slots.dataset == index) & (slots.epoch == epoch)
                pairs = set(zip(slots.cut[rows].tolist(), lane[rows].tolist(), strict=True))
                assert len(pairs) == len({cut for cut, _ in pairs}) == min(stream.lanes, stream.num_samples)
                sizes = np.bincount(slots.cut[rows], minlength=stream.lanes)
                assert sizes.max() - sizes.min() <= 1

    @given(orders(), st.integers(1, 5))
    @contract
    def test_a_step_takes_exactly_its_share_of_each_dataset(self, order, lanes_deep):
        batch = lanes_deep * order.num_lanes
        for step in (0, 1, 7):
            slots = order.slots(np.arange(step * batch, (step + 1) * batch))
            shares = [stream.lanes * batch // order.num_lanes for stream in order.streams]
            assert np.bincount(slots.dataset, minlength=len(shares)).tolist() == shares


class TestRanksAndRestarts:
    @given(orders(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 20))
    @contract
    def test_a_micro_step_holds_the_same_samples_at_any_world_size(self, order, lanes_deep, accumulation, step):
        batch = lanes_deep * order.num_lanes * accumulation
        for micro in range(accumulation):
            seen = set()
            for world_size in legal_world_sizes(batch, accumulation, order.num_lanes):
                shares = [
                    order.slots(micro_positions(step * batch, batch, accumulation, micro, rank, world_size))
                    for rank in range(world_size)
                ]
                assert {len(share) for share in shares} == {batch // accumulation // world_size}
                seen.add(tuple(sorted(row for share in shares for row in table(share))))
            assert len(seen) == 1

    @given(changing_orders(), st.data())
    @contract
    def test_a_restart_anywhere_reads_the_tail(self, order, data):
        whole = rounds(order, 120)
        again = Order(
            order.seed,
            order.streams,
            order.num_lanes,
            window=order.window,
            shuffle=order.shuffle,
            segments=json.loads(json.dumps(order.to_state())),
        )
        start = data.draw(st.integers(0, len(whole) - 1))
        assert_equal(again.slots(np.arange(start, len(whole))), whole, slice(start, None))

    @given(changing_orders(), st.lists(st.integers(0, 500), min_size=1, max_size=30))
    @contract
    def test_slots_do_not_depend_on_what_else_is_asked(self, order, positions):
        whole = order.slots(np.arange(501))
        assert_equal(order.slots(np.array(positions)), whole, positions)
        for position in positions[:3]:
            assert_equal(order.slots(np.array([position])), whole, [position])

    def test_any_shape_of_positions_is_answered_in_kind(self):
        order = Order(0, [Stream("a", np.array([50]), 4)], 4)
        assert order.slots(np.arange(24).reshape(2, 3, 4)).member.shape == (2, 3, 4)
        assert order.slots(np.arange(0)).member.shape == (0,)

    @pytest.mark.parametrize("shuffle", SHUFFLES)
    def test_an_order_travels_to_workers(self, shuffle):
        order = Order(0, [Stream("a", np.array([50, 20]), 4)], 4, shuffle=shuffle)
        before = order.slots(np.arange(100))
        assert_equal(pickle.loads(pickle.dumps(order)).slots(np.arange(100)), before)

    @pytest.mark.parametrize("shuffle", SHUFFLES)
    def test_far_positions_cost_what_near_ones_do(self, shuffle):
        peaks = []
        for start in (0, 10**12):
            order = Order(0, [Stream("a", np.full(1000, 70), 64), Stream("b", np.array([5]), 64)], 128, shuffle=shuffle)
            tracemalloc.start()
            order.slots(np.arange(start, start + 1280))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]

    def test_a_long_run_keeps_no_tables_of_epochs_gone_by(self):
        order = Order(0, [Stream("a", np.full(1000, 2), 4)], 4)
        tracemalloc.start()
        sizes = []
        for epoch in range(60):
            order.slots(np.arange(epoch * 2000, epoch * 2000 + 4))
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert sizes[-1] < 2 * sizes[5]


class TestSegments:
    @given(changing_orders())
    @contract
    def test_every_sample_comes_once_an_epoch_across_changes(self, order):
        slots = rounds(order, 80 + enough_rounds(order))
        for index, stream in enumerate(order.streams):
            of_stream = slots.dataset == index
            for epoch in (0, 1):
                assert members(slots, of_stream & (slots.epoch == epoch)) == every_member(stream)

    @given(changing_orders())
    @contract
    def test_shares_follow_the_newest_weights(self, order):
        start = order.segments[-1].p0 * order.num_lanes
        slots = order.slots(np.arange(start, start + 3 * order.num_lanes))
        lanes = [3 * stream.lanes for stream in order.streams]
        assert np.bincount(slots.dataset, minlength=len(lanes)).tolist() == lanes

    def test_what_was_read_before_a_change_stays(self):
        before = Order(0, [Stream("a", np.array([40]), 3), Stream("b", np.array([9]), 1)], 4)
        streams = [Stream("c", np.array([5]), 1), Stream("b", np.array([9]), 2), Stream("a", np.array([40]), 1)]
        after = Order.from_state(0, streams, 4, before.to_state(), 20)
        old, new = before.slots(np.arange(20)), after.slots(np.arange(20))
        names = [[order.streams[d].name for d in slots.dataset] for order, slots in ((before, old), (after, new))]
        assert names[0] == names[1]
        assert np.array_equal(old.member, new.member)

    def test_a_dataset_is_cut_anew_only_where_its_next_epoch_begins(self):
        sizes = np.array([40])
        before = Order(0, [Stream("a", sizes, 3), Stream("b", sizes, 1)], 4)
        after = Order.from_state(0, [Stream("a", sizes, 1), Stream("b", sizes, 3)], 4, before.to_state(), 20)
        slots = rounds(after, 100)
        of_a = slots.dataset == 0
        cuts = [len(set(slots.cut[of_a & (slots.epoch == epoch)].tolist())) for epoch in (0, 1)]
        assert cuts == [3, 1]

    def test_the_order_of_datasets_in_a_recipe_is_free(self):
        streams = [Stream("a", np.array([40]), 3), Stream("b", np.array([9]), 1)]
        order = Order(0, streams, 4)
        turned = Order.from_state(0, streams[::-1], 4, order.to_state(), 8)
        assert len(turned.segments) == 1
        assert np.array_equal(turned.slots(np.arange(99)).member, order.slots(np.arange(99)).member)
        assert np.array_equal(turned.slots(np.arange(99)).dataset, 1 - order.slots(np.arange(99)).dataset)

    def test_a_dataset_that_left_is_asked_for_by_name(self):
        order = Order(0, [Stream("a", np.array([40]), 3), Stream("b", np.array([9]), 1)], 4)
        alone = Order.from_state(0, [Stream("a", np.array([40]), 4)], 4, order.to_state(), 8)
        assert set(alone.slots(np.arange(8, 48)).dataset.tolist()) == {0}
        with pytest.raises(UserError, match="read dataset 'b'"):
            alone.slots(np.arange(4))

    def test_a_dataset_that_comes_back_goes_on_where_it_stood(self):
        sizes = np.array([40])
        both = [Stream("a", sizes, 2), Stream("b", sizes, 2)]
        order = Order(0, both, 4)
        order = Order.from_state(0, [Stream("a", sizes, 4)], 4, order.to_state(), 16)
        order = Order.from_state(0, both, 4, order.to_state(), 32)
        slots = order.slots(np.r_[np.arange(16), np.arange(32, 32 + 64)])
        of_b = (slots.dataset == 1) & (slots.epoch == 0)
        assert members(slots, of_b) == every_member(both[1])

    def test_a_change_inside_a_round_is_refused(self):
        order = Order(0, [Stream("a", np.array([40]), 3), Stream("b", np.array([9]), 1)], 4)
        other = [Stream("a", np.array([40]), 2), Stream("b", np.array([9]), 2)]
        with pytest.raises(UserError, match="no multiple of num_lanes=4"):
            Order.from_state(0, other, 4, order.to_state(), 6)
        with pytest.raises(UserError, match="no multiple of num_lanes=4"):
            Order.from_state(0, order.streams, 4, (), 0, planned=[(6, {"a": 4})])


class TestStages:
    """Mixtures that are planned for later."""

    @given(st.data(), changing_orders())
    @contract
    def test_a_plan_and_changes_by_hand_are_the_same_order(self, data, by_hand):
        """Also when the run goes on, from its state and the same plan, at any moment between."""
        seed, streams, num_lanes = by_hand.seed, by_hand.streams, by_hand.num_lanes
        rest = {"window": by_hand.window, "shuffle": by_hand.shuffle}
        plan = [(segment.p0 * num_lanes, segment.lanes) for segment in by_hand.segments]
        planned = Order.from_state(seed, streams, num_lanes, (), 0, planned=plan, **rest)
        last = by_hand.segments[-1].p0
        moment = data.draw(st.integers(0, last + 3)) * num_lanes
        state = json.loads(json.dumps(planned.to_state()))
        resumed = Order.from_state(seed, streams, num_lanes, state, moment, planned=plan, **rest)
        assert resumed.to_state() == planned.to_state()
        count = last + enough_rounds(by_hand)
        assert_equal(rounds(planned, count), rounds(by_hand, count))

    def test_each_stage_takes_its_exact_shares(self):
        streams = [Stream("web", np.array([40]), 2), Stream("books", np.array([9]), 2)]
        plan = [(0, {"web": 4}), (8, {"web": 1, "books": 3}), (20, {"books": 4})]
        slots = Order.from_state(0, streams, 4, (), 0, planned=plan).slots(np.arange(28))
        shares = [np.bincount(part, minlength=2).tolist() for part in np.split(slots.dataset, [8, 20])]
        assert shares == [[8, 0], [3, 9], [0, 8]]

    def test_a_stage_that_has_begun_stays_and_one_to_come_is_planned_anew(self):
        streams = [Stream("a", np.array([40]), 2), Stream("b", np.array([9]), 2)]
        old = Order.from_state(0, streams, 4, (), 0, planned=[(8, {"a": 3, "b": 1}), (16, {"a": 1, "b": 3})])
        new = Order.from_state(0, streams, 4, old.to_state(), 12, planned=[(8, {"a": 3, "b": 1}), (24, {"a": 4})])
        assert [(segment.p0, dict(segment.lanes)) for segment in new.segments] == [
            (0, {"a": 2, "b": 2}), (2, {"a": 3, "b": 1}), (6, {"a": 4}),
        ]  # fmt: skip


class TestSubstitutes:
    @given(changing_orders(), st.integers(0, 300))
    @contract
    def test_they_are_the_rest_of_the_cut_then_of_the_epoch_each_once(self, order, position):
        slot = order.slots(np.array([position]))
        dataset, epoch, cut = int(slot.dataset[0]), int(slot.epoch[0]), int(slot.cut[0])
        around = rounds(order, 100 + 2 * enough_rounds(order, epochs=epoch + 1))
        same_epoch = (around.dataset == dataset) & (around.epoch == epoch)
        same_cut = members(around, same_epoch & (around.cut == cut))
        own = (int(slot.shard[0]), int(slot.member[0]))
        found = [(shard, member) for index, shard, member in order.substitutes(position) if index == dataset]
        assert sorted([own, *found[: len(same_cut) - 1]]) == same_cut
        assert sorted([own, *found]) == members(around, same_epoch)

    @given(orders(shuffles=["window"]), st.integers(0, 60))
    @contract
    def test_the_rest_of_the_window_comes_first(self, order, position):
        slot = order.slots(np.array([position]))
        stream = order.streams[int(slot.dataset[0])]
        epoch, cut, place = int(slot.epoch[0]), int(slot.cut[0]), int(slot.place[0])
        offset = int(mix(order.seed, stream.name, "offset", epoch, cut)) % order.window
        around = rounds(order, 30 + 2 * enough_rounds(order, epochs=epoch + 1))
        same_window = (
            (around.dataset == slot.dataset[0])
            & (around.epoch == epoch)
            & (around.cut == cut)
            & ((around.place + offset) // order.window == (place + offset) // order.window)
        )
        others = [row for row in members(around, same_window) if row != (int(slot.shard[0]), int(slot.member[0]))]
        first = [(shard, member) for _, shard, member in islice(order.substitutes(position), len(others))]
        assert sorted(first) == others
        following = same_window & (around.place == place + 1)
        if following.any():
            assert members(around, following) == first[:1]

    def test_a_cut_of_one_sample_has_those_of_other_cuts_and_a_set_of_one_sample_none(self):
        three = Order(0, [Stream("a", np.array([3]), 4)], 4)
        assert len(list(three.substitutes(0))) == 2
        assert list(Order(0, [Stream("a", np.array([1]), 4)], 4).substitutes(0)) == []


def plain_window_order(seed, name, sizes, lanes, window, epoch, index):
    """Rules 3 and 4 of docs/order.md, written sample by sample."""
    num_samples = sum(sizes)
    place, cut = divmod(index, lanes)
    quotient, longer = divmod(num_samples, lanes)
    size, start = quotient + (cut < longer), cut * quotient + min(cut, longer)
    offset = int(mix(seed, name, "offset", epoch, cut)) % window
    number = (place + offset) // window
    inside = [k for k in range(number * window - offset, (number + 1) * window - offset) if 0 <= k < size]
    drawn = sorted(inside, key=lambda k: int(mix(seed, name, "window", epoch, cut, k)))
    place = drawn[place - inside[0]]
    place = (place + int(mix(seed, name, "phase", epoch, cut)) % size) % size
    sample = (start + place + int(mix(seed, name, "rotation", epoch)) % num_samples) % num_samples
    filled = [shard for shard, count in enumerate(sizes) if count]
    for shard in sorted(filled, key=lambda shard: int(mix(seed, name, "shard", epoch, shard))):
        if sample < sizes[shard]:
            return shard, sample
        sample -= sizes[shard]
    raise AssertionError("the epoch has more slots than samples")


class TestShuffle:
    @given(shard_sizes, st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**12), st.integers(0, 2**40))
    @contract
    def test_windows_are_shuffled_as_the_design_writes_it(self, sizes, lanes, window, start, seed):
        order = Order(seed, [Stream("a", np.array(sizes), lanes)], lanes, window=window)
        slots = order.slots(np.arange(start, start + 40))
        for row, position in enumerate(slots.positions.tolist()):
            round_, lane = divmod(position, lanes)
            epoch, index = divmod(round_ * lanes + lane * lane_hop(lanes) % lanes, sum(sizes))
            expected = plain_window_order(seed, "a", sizes, lanes, window, epoch, index)
            assert (slots.shard[row], slots.member[row]) == expected

    def test_without_a_shuffle_files_are_read_as_they_lie(self):
        order = Order(0, [Stream("a", np.array([3, 0, 2]), 1)], 1, shuffle="none")
        slots = order.slots(np.arange(10))
        assert slots.shard.tolist() == [0, 0, 0, 2, 2] * 2
        assert slots.member.tolist() == [0, 1, 2, 0, 1] * 2

    @pytest.mark.parametrize("shuffle", ["window", "full"])
    def test_seeds_names_and_epochs_each_draw_an_order_of_their_own(self, shuffle):
        def read(seed, name, epoch):
            order = Order(seed, [Stream(name, np.full(10, 20), 4)], 4, shuffle=shuffle)
            slots = order.slots(np.arange(epoch * 200, epoch * 200 + 200))
            return tuple(zip(slots.shard.tolist(), slots.member.tolist(), strict=True))

        assert len({read(0, "a", 0), read(1, "a", 0), read(0, "b", 0), read(0, "a", 1)}) == 4

    @pytest.mark.parametrize("shuffle", ["window", "full"])
    def test_no_slot_favours_a_part_of_sorted_shards(self, shuffle):
        sizes = np.full(8, 50)
        mean = np.zeros(32)
        for seed in range(600):
            slots = Order(seed, [Stream("a", sizes, 16)], 16, window=8, shuffle=shuffle).slots(np.arange(32))
            mean += (slots.shard * 50 + slots.member) / 399 / 600
        assert np.abs(mean - 0.5).max() < 4.5 * (1 / 12 / 600) ** 0.5

    def test_equal_sorted_shards_do_not_sweep_in_lockstep(self):
        # One cut is one shard, sorted inside: lanes in phase would read all beginnings first and all ends last.
        order = Order(1, [Stream("a", np.full(64, 256), 64)], 64, window=16)
        inside = order.slots(np.arange(64 * 256).reshape(256, 64)).member / 255
        assert inside.mean(axis=1).var() < 2.5 / 12 / 64

    def test_one_sorted_shard_does_not_tie_lanes_to_classes(self):
        order = Order(2, [Stream("a", np.array([640]), 8)], 8, window=16)
        places = order.slots(np.arange(640 * 300).reshape(-1, 8)).member.reshape(300, 80, 8) / 639
        assert np.abs(places[:, 0].mean(axis=0) - 0.5).max() < 4.5 * (1 / 12 / 300) ** 0.5

    def test_windows_of_the_lanes_begin_at_different_rounds(self):
        order = Order(0, [Stream("a", np.full(64, 64), 64)], 64, window=32)
        slots = order.slots(np.arange(64 * 64).reshape(64, 64))
        begun = (mix(0, "a", "offset", 0, slots.cut) % np.uint64(32) + slots.place.astype(np.uint64)) % np.uint64(
            32
        ) == 0
        assert begun[1:].sum(axis=1).max() < 10

    def test_sorted_classes_reach_a_batch_together(self):
        order = Order(0, [Stream("a", np.full(100, 1000), 1000)], 1000)
        for step in (0, 5, 40):
            slots = order.slots(np.arange(step * 1000, (step + 1) * 1000))
            assert len(np.unique((slots.shard * 1000 + slots.member) // 1000)) == 100

    @pytest.mark.parametrize(("shuffle", "expected"), GOLDEN_SLOTS.items())
    def test_the_order_of_a_seed_never_changes(self, shuffle, expected):
        streams = [Stream("a", np.array([5, 0, 9]), 3), Stream("b", np.array([20]), 1)]
        slots = Order(7, streams, 4, window=3, shuffle=shuffle).slots(np.arange(40, 48))
        assert list(zip(slots.dataset, slots.shard, slots.member, strict=True)) == expected


class TestEdges:
    @pytest.mark.parametrize("shuffle", SHUFFLES)
    def test_one_sample_fills_every_slot(self, shuffle):
        slots = Order(0, [Stream("a", np.array([0, 1]), 8)], 8, shuffle=shuffle).slots(np.arange(96))
        assert set(slots.shard.tolist()) == {1}
        assert set(slots.member.tolist()) == {0}
        assert sorted(slots.epoch.tolist()) == list(range(96))

    def test_a_window_larger_than_the_dataset_is_one_window(self):
        slots = Order(0, [Stream("a", np.array([5, 6]), 2)], 2, window=10**9).slots(np.arange(11))
        assert members(slots, slots.epoch == 0) == every_member(Stream("a", np.array([5, 6]), 2))

    @pytest.mark.parametrize("sizes", [[], [0, 0], [3, -1]])
    def test_a_dataset_without_samples_is_refused(self, sizes):
        with pytest.raises(UserError, match="dataset 'a' holds no samples"):
            Stream("a", np.array(sizes, dtype=np.int64), 1)

    def test_lanes_and_names_must_fit(self):
        with pytest.raises(UserError, match="sum to 3, the order has 4"):
            Order(0, [Stream("a", np.array([5]), 3)], 4)
        with pytest.raises(UserError, match="two datasets are named 'a'"):
            Order(0, [Stream("a", np.array([5]), 2), Stream("a", np.array([5]), 2)], 4)
        with pytest.raises(UserError, match="fills at least one"):
            Stream("a", np.array([5]), 0)

    def test_a_dataset_smaller_than_its_share_of_a_step_is_warned_of(self):
        order = Order(0, [Stream("a", np.array([30]), 6), Stream("b", np.array([5]), 2)], 8)
        assert order.repeats_in_step(16) == []
        assert order.repeats_in_step(40) == [
            "dataset 'b' has 5 samples, but every step takes 10 of it: steps hold samples more than once"
        ]

    def test_lanes_hop_by_the_nearest_coprime_to_the_golden_section(self):
        hops = {1: 0, 2: 1, 3: 1, 4: 1, 6: 1, 10: 7, 16: 9, 256: 157, 1000: 617, 4096: 2531}
        assert {num_lanes: lane_hop(num_lanes) for num_lanes in hops} == hops
