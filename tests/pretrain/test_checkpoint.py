"""Checkpoints: whole or not there, whatever is killed, damaged or exchanged."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from data_pipelines.base import CheckpointError
from pretrain import checkpoint
from pretrain.checkpoint import CheckpointReader, committed, newest_whole, path_of, retain
from pretrain.config import EngineConfig, Optim, Train
from pretrain.engine import Cut, Engine
from tests.pretrain.engine_ranks import file_size_limit
from tests.pretrain.toys import AutoEncoder, Coupled, make_batch

TRAIN = Train(global_batch=8)


def build(world, objective=None, optim=None):
    return Engine(objective or AutoEncoder(ema=True), EngineConfig(zero_stage=2), optim or Optim(), TRAIN, world)


def save(engine, folder, step, attempt=1):
    state = {"progress": {"step": step, "position": step * 8}}
    return checkpoint.save(folder, engine, engine.world, state, attempt)


def take_step(engine):
    engine.accumulate([make_batch(range(8))])
    engine.apply(1e-2, 0.5)


@pytest.fixture(scope="module")
def saved(lonely_world, tmp_path_factory):
    """Checkpoints of steps 1 and 2; tests damage copies of them."""
    folder = tmp_path_factory.mktemp("saved")
    engine = build(lonely_world)
    for step in (1, 2):
        take_step(engine)
        save(engine, folder, step)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


# Arithmetic of who holds what


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8),
    st.integers(1, 9),
    st.data(),
)
def test_every_element_of_a_line_is_held_once(sizes, world_size, data):
    total = sum(sizes)
    piece = max(1, -(-total // world_size))
    offset, cuts = 0, []
    for size in sizes:
        cuts.append(Cut((size,), offset, piece))
        offset += size
    for cut in [*cuts, *(Cut.even((size,), world_size) for size in sizes)]:
        held = [range(*cut.held_by(rank)) for rank in range(world_size)]
        assert [i for part in held for i in part] == list(range(cut.numel))
        start = data.draw(st.integers(0, cut.numel))
        stop = data.draw(st.integers(start, cut.numel))
        parts = list(cut.holders(start, stop))
        assert [i for _, a, b in parts for i in range(a, b)] == list(range(start, stop))
        assert all(a < b and a >= held[rank].start and b <= held[rank].stop for rank, a, b in parts)


# What is on disk


def test_a_checkpoint_is_readable_by_safetensors_alone(folder):
    manifest = json.loads((path_of(folder, 2) / "MANIFEST.json").read_text())
    line = manifest["tensors"]["encoder_net.embed.weight"]
    assert line["shape"] == [13, 12] and line["kinds"] == ["w", "exp_avg", "exp_avg_sq"]
    with safe_open(path_of(folder, 2) / "rank-00000.safetensors", framework="pt") as file:
        weight = file.get_tensor("encoder_net.embed.weight|w|0")
        assert json.loads(file.metadata()["digests"]).keys() == set(file.keys())
    reader = CheckpointReader(path_of(folder, 2))
    assert torch.equal(weight, reader.read("encoder_net.embed.weight"))
    assert reader.state == {"progress": {"step": 2, "position": 16}}
    assert reader.names("ema").keys() == {
        n for n in manifest["tensors"] if n.startswith("target_net.") and n != "target_net.seen"
    }


def test_any_part_of_a_tensor_is_read_alone(folder):
    reader = CheckpointReader(path_of(folder, 2))
    name = "encoder_net.layer.1.0.weight"
    assert torch.equal(reader.read(name, "exp_avg", 5, 40), reader.read(name, "exp_avg")[5:40])
    assert reader.read(name, "w", 7, 7).numel() == 0
    with pytest.raises(CheckpointError, match="no 'w' of 'nothing'"):
        reader.read("nothing")


def test_buffers_keep_their_dtype(folder):
    seen = CheckpointReader(path_of(folder, 2)).read("encoder_net.seen", "buffer")
    assert seen.dtype == torch.int64 and seen.tolist() == [2]


# Damage


def damages(path: Path) -> list[Path]:
    return sorted(path.iterdir())


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("how", ["a flipped bit", "truncated", "missing"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_taken(folder, name, how):
    file = path_of(folder, 2) / name
    if how == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        if how == "truncated":
            data = data[:-1]
        else:
            data[random.Random(name).randrange(len(data))] ^= 1
        file.write_bytes(data)
    reader, words = newest_whole(folder)
    assert reader is not None and reader.manifest.step == 1
    if (name, how) == ("MANIFEST.json", "missing"):
        assert words == []  # without it the folder is no checkpoint
    else:
        assert len(words) == 1 and str(file) in words[0]


@given(st.integers(0, 10**9), st.integers(0, 7))
def test_no_bit_of_a_manifest_can_change_unseen(saved, where, bit):
    data = bytearray((path_of(saved, 2) / "MANIFEST.json").read_bytes())
    tree = json.loads(data)
    data[where % len(data)] ^= 1 << bit
    scratch = saved.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "MANIFEST.json").write_bytes(data)
    try:
        manifest = CheckpointReader(scratch).manifest
    except CheckpointError as error:
        assert str(scratch) in str(error)
    else:  # white space is no content
        assert json.loads(manifest.to_json()) == tree


def test_a_file_of_another_checkpoint_is_not_taken_for_ones_own(folder):
    name = "rank-00000.safetensors"
    shutil.copy(path_of(folder, 1) / name, path_of(folder, 2) / name)
    with pytest.raises(CheckpointError, match=name):
        CheckpointReader(path_of(folder, 2)).verify()
    with pytest.raises(CheckpointError, match="another checkpoint"):
        CheckpointReader(path_of(folder, 2)).read("decoder.weight")


def test_a_damaged_tensor_is_seen_when_it_is_read(folder):
    reader = CheckpointReader(path_of(folder, 2))
    file = path_of(folder, 2) / "rank-00000.safetensors"
    needle = reader.read("decoder.weight").numpy().tobytes()
    file.write_bytes(file.read_bytes().replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))
    with pytest.raises(CheckpointError, match=r"digest of 'decoder.weight\|w\|0'"):
        CheckpointReader(path_of(folder, 2)).read("decoder.weight")


def test_nothing_whole_is_said_with_all_names(folder):
    for step in (1, 2):
        (path_of(folder, step) / "state.json").unlink()
    reader, words = newest_whole(folder)
    assert reader is None and len(words) == 2
    assert newest_whole(folder / "absent") == (None, [])


# Another model


def test_a_checkpoint_of_another_model_is_refused_with_the_first_difference(lonely_world, folder):
    reader = CheckpointReader(path_of(folder, 2))
    with pytest.raises(
        CheckpointError, match=r"parameter 'net\.embed\.weight' is absent there and of shape \[13, 12\] here"
    ):
        build(lonely_world, Coupled()).load(reader)
    with pytest.raises(
        CheckpointError, match=r"ema of 'target_net\.embed\.weight' is of shape \[13, 12\] there and absent here"
    ):
        build(lonely_world, AutoEncoder()).load(reader)
    wider = AutoEncoder(ema=True)
    wider.fixed = torch.nn.Parameter(torch.zeros(6, 3), requires_grad=False)
    with pytest.raises(
        CheckpointError, match=r"parameter 'fixed' is of shape \[5, 3\] there and of shape \[6, 3\] here"
    ):
        build(lonely_world, wider).load(reader)


def test_a_loaded_engine_goes_on_as_if_never_stopped(lonely_world, folder):
    engine = build(lonely_world, AutoEncoder(ema=True, seed=7))  # other weights, all replaced
    engine.load(CheckpointReader(path_of(folder, 1)))
    assert (engine.updates, engine.steps) == (1, 1)
    take_step(engine)
    reader = CheckpointReader(path_of(folder, 2))
    pieces = list(engine.slices())
    assert len(pieces) == sum(len(line.kinds) for line in reader.manifest.tensors.values())
    for piece in pieces:
        assert torch.equal(piece.tensor, reader.read(piece.name, piece.kind, piece.start, piece.stop)), piece.name


def test_a_checkpoint_is_of_the_moment_at_which_it_was_begun(lonely_world, tmp_path):
    """Training goes on while it is written: weights, moments, averages, buffers and counters move."""
    engine = build(lonely_world)
    take_step(engine)
    then = {(piece.name, piece.kind): piece.tensor.clone() for piece in engine.slices()}
    state = {"progress": {"step": 1}, "norms": [1.0]}
    release = hold_writers(tmp_path)
    save = checkpoint.Save(tmp_path, engine, lonely_world, state, attempt=1)
    take_step(engine)
    state["norms"].append(2.0)
    assert not save.is_written and committed(tmp_path) == []
    release.set()
    reader = CheckpointReader(save.commit())
    assert all(torch.equal(reader.read(name, kind), tensor.view(-1)) for (name, kind), tensor in then.items())
    assert (reader.manifest.engine.steps, reader.state["norms"]) == (1, [1.0])


def hold_writers(folder: Path) -> threading.Event:
    """A slow disk: other threads wait before they make anything below `folder`. Python tells of such calls first."""
    release, this = threading.Event(), threading.get_ident()

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.mkdir" and str(arguments[0]).startswith(str(folder)) and threading.get_ident() != this:
            release.wait(60)

    sys.addaudithook(hear)
    return release


# The folder


def test_only_old_checkpoints_and_left_overs_are_deleted(lonely_world, tmp_path):
    engine = build(lonely_world)
    for step in (10, 20, 30, 40, 50):
        save(engine, tmp_path, step)
    (tmp_path / "step-00000060.attempt-1").mkdir()
    (tmp_path / "notes").mkdir()
    assert retain(tmp_path, keep_last=2, keep_every=20, spared={10}) == [30]
    assert committed(tmp_path) == [10, 20, 40, 50]
    assert (tmp_path / "notes").is_dir() and not (tmp_path / "step-00000060.attempt-1").exists()


def test_a_folder_that_is_still_staged_is_no_checkpoint(folder):
    path_of(folder, 2).rename(folder / "step-00000002.attempt-3")
    assert committed(folder) == [1]


def test_a_save_replaces_a_damaged_checkpoint_of_its_step(lonely_world, folder):
    (path_of(folder, 2) / "state.json").write_text("{}")
    save(build(lonely_world), folder, 2, attempt=2)
    reader, words = newest_whole(folder)
    assert reader is not None and (reader.manifest.step, reader.manifest.attempt, words) == (2, 2, [])
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_a_full_disk_costs_nothing_but_the_new_checkpoint(lonely_world, folder):
    engine = build(lonely_world)
    with file_size_limit(5000), pytest.raises(OSError, match="rank 0: File too large"):
        save(engine, folder, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    assert newest_whole(folder)[0].manifest.step == 2
    save(engine, folder, 3)
    assert committed(folder) == [1, 2, 3]


# kill -9


@pytest.fixture(scope="module")
def forks():
    """Starts savers in moments: they are forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.pretrain.saver"])
    return context


def start_saver(forks, folder: Path, first: int, count: int, die_at: int | None):
    from tests.pretrain import saver

    process = forks.Process(target=saver.save_steps, args=(str(folder), first, count, die_at))
    process.start()
    return process


def assert_nothing_is_torn(folder: Path, at_least: int) -> int:
    """Each checkpoint that is listed is whole; gives the newest step."""
    steps = committed(folder)
    for step in steps:
        CheckpointReader(path_of(folder, step)).verify()
    assert steps and steps[-1] >= at_least
    return steps[-1]


@pytest.mark.slow
def test_killed_before_each_call_of_the_file_system(forks, tmp_path):
    first = start_saver(forks, tmp_path, 1, 1, die_at=None)
    first.join()
    assert first.exitcode == 0
    newest, at = 1, 0
    while True:
        at += 1
        process = start_saver(forks, tmp_path, newest + 1, 1, die_at=at)
        process.join()
        newest = assert_nothing_is_torn(tmp_path, newest)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert at > 12, "a save has more steps than that"
    assert newest > 2, "kills after the commit must keep the new checkpoint"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in committed(tmp_path)]


@pytest.mark.slow
def test_killed_at_random_moments(forks, tmp_path):
    moments = random.Random(5)
    newest = 0
    for _ in range(15):
        process = start_saver(forks, tmp_path, newest + 1, 10**6, die_at=None)
        deadline = time.monotonic() + 60
        while not (committed(tmp_path) or [0])[-1] > newest and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        newest = assert_nothing_is_torn(tmp_path, newest + 1)
