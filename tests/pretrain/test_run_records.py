"""Line files: torn lines, overwritten attempts."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pretrain.run.records import LineWriter, read_lines, surviving


def test_line_torn_by_a_kill_is_closed_off_and_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    with LineWriter(path, attempt=2) as writer:
        writer.write({"step": 2})
    assert read_lines(path) == [{"step": 1}, {"attempt": 2, "step": 2}]


def test_every_prefix_of_a_file_reads(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with LineWriter(path, attempt=1) as writer:
        for step in range(3):
            writer.write({"step": step, "words": "naïve\n„quoted“"})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert [line["step"] for line in read_lines(path)] == list(range(whole[:length].count(b"\n") or 0)) or (
            json.loads(whole[:length].split(b"\n")[-1])
        )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=6))
def test_surviving_lines_are_those_of_an_unbroken_run(attempts):
    """Each attempt begins at or before where the one before it ended, and logs every step it does."""
    lines, began, done = [], {}, 0
    for number, (back, steps) in enumerate(attempts, start=1):
        began[number] = max(0, done - back)
        done = began[number] + steps
        lines += [{"attempt": number, "step": step} for step in range(began[number] + 1, done + 1)]
    assert [line["step"] for line in surviving(lines, began)] == list(range(1, done + 1))
