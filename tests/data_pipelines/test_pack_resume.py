"""Shards made by many workers, and by commands that were killed, are those of one undisturbed process."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from data_pipelines.base import DataError, UserError
from data_pipelines.manifest import Facts
from data_pipelines.pack import pack
from data_pipelines.pack.shard import LeftOut, Made
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.shards import Dataset

PACK = """
import sys, time
from pathlib import Path
from data_pipelines.pack import imagefolder, pack
made, slow = imagefolder.fitted, float(sys.argv[3])
def fitted(*arguments):
    time.sleep(slow)
    return made(*arguments)
imagefolder.fitted = fitted
pack("imagefolder", sys.argv[1], Path(sys.argv[2]), {"samples_per_shard": 10, "workers": int(sys.argv[4])})
"""


@pytest.fixture
def folder(tmp_path):
    """Two classes of 60 images, and two files that are none."""
    rng = np.random.default_rng(0)
    for name in ("bird", "cat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(60):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(file, "PNG")
            (tmp_path / "in" / name / f"{number}.png").write_bytes(file.getvalue())
        (tmp_path / "in" / name / "broken.png").write_bytes(b"no image")
    return tmp_path / "in"


def files_of(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_bytes_do_not_depend_on_the_number_of_workers(folder, tmp_path):
    for workers in (1, 3):
        pack("imagefolder", str(folder), tmp_path / str(workers), {"samples_per_shard": 10, "workers": workers})
    assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
    assert len(files_of(tmp_path / "3")) > 12


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_command_goes_on_where_it_was(folder, tmp_path, workers):
    pack("imagefolder", str(folder), tmp_path / "whole", {"samples_per_shard": 10})
    command = [sys.executable, "-c", PACK, str(folder), str(tmp_path / "out")]
    stage = tmp_path / ".out.partial"
    first = subprocess.Popen([*command, "0.02", str(workers)])
    _wait_for(lambda: len(list(stage.glob("records/train-*.json"))) >= 4)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "out").exists()
    kept = {path: path.stat().st_mtime_ns for path in (stage / "train").glob("*.tar.index")}
    assert kept
    time.sleep(0.2)  # workers die with their parent
    subprocess.run([*command, "0", str(workers)], check=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    done = {tmp_path / "out" / path.relative_to(stage): at for path, at in kept.items()}
    assert sum(path.stat().st_mtime_ns == at for path, at in done.items()) >= 4
    assert not stage.exists()


def _wait_for(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_interrupted_is_kept_for_the_same_command_alone(folder, tmp_path):
    def stop(stage, done, total):
        if done == 35:
            raise KeyboardInterrupt

    def attempt(**config):
        seen = []
        pack(
            "imagefolder",
            str(folder),
            tmp_path / "out",
            {"samples_per_shard": 10, **config},
            progress=lambda stage, done, total: seen.append(done),
        )
        return seen[0]

    for again, first in (({}, 31), ({"seed": 1}, 1), ({"max_side": 5}, 1)):
        with pytest.raises(KeyboardInterrupt):
            pack("imagefolder", str(folder), tmp_path / "out", {"samples_per_shard": 10}, progress=stop)
        assert attempt(**again) == first
        for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(KeyboardInterrupt):
        pack("imagefolder", str(folder), tmp_path / "out", {"samples_per_shard": 10}, progress=stop)
    (folder / "bird" / "new.png").write_bytes((folder / "bird" / "1.png").read_bytes())
    assert attempt() == 1


def test_a_used_folder_is_refused_before_anything_is_read(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        pack("imagefolder", str(tmp_path / "nowhere"), tmp_path / "out")


def test_two_commands_do_not_write_one_set(folder, tmp_path):
    stage = tmp_path / ".out.partial"
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time; os.makedirs(sys.argv[1]); lock = os.open(sys.argv[1] + '/lock', os.O_RDWR | "
            "os.O_CREAT); fcntl.lockf(lock, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)",
            str(stage),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline()
        with pytest.raises(UserError, match="another process packs into it"):
            pack("imagefolder", str(folder), tmp_path / "out")
    finally:
        other.kill()
        other.wait()


def test_a_killed_worker_is_told_and_its_shard_is_made_again(tmp_path):
    def make(number, deadly):
        if number == 25 and deadly and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return LeftOut(f"{number}") if number == 7 else Made(f"k{number}", {"txt": b"x"})

    def write(out, deadly):
        split = Split(
            "train", range(40), 40, 40, lambda: (Facts(), ()), make=partial(make, deadly=deadly), identity="numbers"
        )
        return write_sets(out, [split], PackConfig(samples_per_shard=10, workers=2), name="toy", source="test")

    parent = os.getpid()
    with pytest.raises(DataError, match="a worker was killed"):
        write(tmp_path / "out", True)
    [again] = write(tmp_path / "out", False)
    write(tmp_path / "whole", False)
    assert again.num_samples == 39
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_figures_of_a_set_stand_beside_its_manifest(folder, tmp_path):
    [train] = pack("imagefolder", str(folder), tmp_path / "out", {"val_fraction": 0, "licence": "CC0", "max_side": 6})
    figures = json.loads((tmp_path / "out" / "train" / "statistics.json").read_text())
    assert figures["samples"] == train.num_samples == 120
    assert figures["classes"] == {"bird": 60, "cat": 60}
    assert figures["images_height_width"] == {"5 x 6": 120} and figures["left_out"] == 2
    assert sum(figures["samples_below_bytes"].values()) == 120
    manifest = Dataset.open(str(tmp_path / "out" / "train")).manifest
    assert (manifest.licence, manifest.source) == ("CC0", str(folder))
