from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.quarantine import Line, Quarantine, complaint, is_too_much, read_lines, replaced


def line(g, served=(0, 1, 2), attempt=1, key="k", shard="s.tar"):
    return Line(g, key, shard, "damaged", served, attempt)


def test_lines_are_on_disk_when_add_returns(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine", 3)
    quarantine.add([line(5), line(6)])
    written = (tmp_path / "quarantine" / "rank-3.jsonl").read_text().splitlines()
    assert [json.loads(text)["g"] for text in written] == [5, 6]
    assert json.loads(written[0])["reason"] == "damaged"


def test_nothing_is_written_where_nothing_is_bad(tmp_path):
    Quarantine(tmp_path / "quarantine", 0).add([])
    assert not (tmp_path / "quarantine").exists()


def test_lines_of_all_ranks_and_attempts_are_known_to_each(tmp_path):
    Quarantine(tmp_path, 0).add([line(1)])
    Quarantine(tmp_path, 1).add([line(2)])
    assert set(Quarantine(tmp_path, 0).known) == {1, 2}


def test_the_latest_attempt_says_what_stands_at_a_slot(tmp_path):
    Quarantine(tmp_path, 1).add([line(1, served=(0, 0, 9), attempt=2)])
    Quarantine(tmp_path, 9).add([line(1, served=(0, 0, 4), attempt=1)])
    assert replaced(tmp_path) == {1: (0, 0, 9)}


def test_a_known_line_is_not_written_again(tmp_path):
    Quarantine(tmp_path, 0).add([line(1)])
    before = (tmp_path / "rank-0.jsonl").read_text()
    second = Quarantine(tmp_path, 0)
    second.add([second.known[1]])
    assert (tmp_path / "rank-0.jsonl").read_text() == before


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(1, 200))
def test_a_torn_line_is_left_out_and_the_next_one_whole(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("torn")
    Quarantine(folder, 0).add([line(1), line(2)])
    path = folder / "rank-0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    survivors = [g for g in (1, 2) if g in replaced(folder)]
    Quarantine(folder, 0).add([line(3)])
    assert [found.g for found in read_lines(folder)] == [*survivors, 3]


@settings(deadline=None, max_examples=40)
@given(key=st.text(st.characters(codec=None), max_size=20), shard=st.text(max_size=20))
def test_any_name_survives(tmp_path_factory, key, shard):
    folder = tmp_path_factory.mktemp("names")
    written = line(1, key=key, shard=shard)
    Quarantine(folder, 0).add([written])
    assert read_lines(folder) == [written]


def test_the_first_ten_are_free_and_the_eleventh_is_not():
    assert not is_too_much(10, 10, 0.001)
    assert is_too_much(11, 11, 0.001)


def test_a_share_within_the_budget_goes_on():
    assert not is_too_much(40, 4000, 0.01)
    assert is_too_much(41, 4000, 0.01)


def test_the_worst_shards_are_named_first_and_ten_at_most():
    lines = [line(row, key=f"k{row}", shard=f"shard-{n:02d}.tar") for n in range(12) for row in range(n + 1)]
    words = complaint(78, 240, 0.0, lines)
    assert "78 of 240" in words and "worst shards: shard-11.tar (12), shard-10.tar (11)" in words
    assert "shard-02" in words and "shard-01" not in words


def test_a_bad_sample_that_is_met_at_several_slots_counts_once_for_its_shard():
    assert "s.tar (1)." in complaint(11, 20, 0.0, [line(g, key="k") for g in range(11)])
