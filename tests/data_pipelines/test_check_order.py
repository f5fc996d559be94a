import numpy as np
import pytest

from data_pipelines.check import Reading, Report, check
from data_pipelines.check.order import judge_shards
from data_pipelines.manifest import Facts
from data_pipelines.pack.writer import PackConfig, Split, write_sets

MB = 10**6


def packed(folder, samples, per_shard=100):
    split = Split("train", samples, len(samples), 0, lambda: (Facts(labels_field="cls"), ()))
    [dataset] = write_sets(folder, [split], PackConfig(samples_per_shard=per_shard), name="toy", source="test")
    return dataset.path


def told(report, kind):
    return [finding.text for finding in report.findings if finding.kind == kind]


def fact(report, name):
    [text] = [text for known, text in report.facts if known == name]
    return text


def labelled(labels):
    return [(f"k{number}", {"bin": b"x", "cls": str(label).encode()}) for number, label in enumerate(labels)]


def test_many_lanes_mix_a_sorted_set_and_few_do_not(tmp_path):
    path = packed(tmp_path / "set", labelled(np.repeat(np.arange(10), 80)))
    poor = check(path, reading=Reading(global_batch=32, num_lanes=2, window=8))
    assert any(words.startswith("the shuffle is poor: a batch of 32 holds ") for words in told(poor, "warning"))
    good = check(path, reading=Reading(global_batch=32, num_lanes=32, window=8))
    assert not any("shuffle is poor" in words for words in told(good, "warning"))
    assert fact(good, "shuffle").endswith("of 10 classes, 9.7 by chance (shuffle=window, window 8)")


def test_lanes_that_have_more_to_read_than_others_are_warned_of(tmp_path):
    sizes = np.where(np.arange(800) < 100, 4000, 10)
    path = packed(tmp_path / "set", [(f"k{number}", {"bin": b"x" * size}) for number, size in enumerate(sizes)])
    report = check(path, reading=Reading(global_batch=8, num_lanes=8))
    assert fact(report, "lanes").startswith("8 of 100 samples; the heaviest has ")
    assert any(words.startswith("lanes are uneven") for words in told(report, "warning"))
    mixed = [
        (f"k{number}", {"bin": b"x" * size}) for number, size in enumerate(np.random.default_rng(0).permutation(sizes))
    ]
    report = check(packed(tmp_path / "mixed", mixed), reading=Reading(global_batch=8, num_lanes=8))
    assert not any("uneven" in words for words in told(report, "warning"))


def test_a_set_that_does_not_fill_the_lanes_is_warned_of(tmp_path):
    report = check(packed(tmp_path / "set", labelled([0, 1])), reading=Reading(global_batch=4, num_lanes=4))
    assert "2 samples do not fill 4 lanes: steps hold samples more than once" in told(report, "warning")


@pytest.mark.parametrize(
    ("shard_bytes", "num_lanes", "words"),
    [
        ([MB] * 2000, 8, "shards are small, 1.0 MB"),
        ([3000 * MB] * 4, 4, "shards are large, 3.0 GB"),
        ([500 * MB] * 4, 256, "4 shards are few for 256 lanes"),
        ([64 * MB] * 400, 256, None),
        ([MB] * 10, 256, None),  # a small set: its shards do not matter
    ],
)
def test_shards_of_another_size_are_advised_where_it_matters(shard_bytes, num_lanes, words):
    report = Report("set", bytes=sum(shard_bytes), shard_bytes=shard_bytes)
    judge_shards(report, num_lanes)
    advice = told(report, "advice")
    assert len(advice) == (words is not None) and all(text.startswith(words) for text in advice)
