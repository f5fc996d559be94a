"""Tars of a folder, and of a bucket, indexed in place: by one command, and by jobs side by side."""

from __future__ import annotations

import io
import tarfile
import time

import pytest

from data_pipelines.base import UserError
from data_pipelines.shards import Dataset
from launch.cli import main
from launch.cluster import load_cluster
from launch.entry import exit_code_of
from launch.indexing import IndexEntry, submit_indexing
from launch.job import Submission
from tests.stores import s3_environment, s3_server, upload, web_server

TARS, MEMBERS = 7, 5


def write_tar(path, number):
    with tarfile.open(path, "w") as tar:
        for member in range(MEMBERS):
            for name, content in (("txt", f"text {number} {member}".encode()), ("cls", b"%d" % (member % 2))):
                info = tarfile.TarInfo(f"s{number}_{member}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """A folder of foreign tars; jobs are kept below the test's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tars").mkdir()
    for number in range(TARS):
        write_tar(tmp_path / "tars" / f"{number:02d}.tar", number)
    (tmp_path / "tars" / "classes.txt").write_text("even\nodd\n")
    return tmp_path / "tars"


@pytest.mark.slow
def test_a_bucket_is_indexed_in_place(tars, monkeypatch, capsys):
    with s3_server() as server:
        for name, value in s3_environment(server).items():
            monkeypatch.setenv(name, value)
        upload(server, tars, "s3://bucket/tars")
        assert main(["data", "index", "s3://bucket/tars"]) == 0
        assert f"00.tar: {MEMBERS} samples" in capsys.readouterr().out
        assert {"manifest.json", "06.tar.index"} < {path.rsplit("/")[-1] for path in written(server)}
        dataset = Dataset.open("s3://bucket/tars")
        assert dataset.read(3, 2).fields["txt"] == b"text 3 2"
        assert main(["data", "index", str(tars)]) == 0
        assert Dataset.open(str(tars)).digest == dataset.digest and dataset.classes == ("even", "odd")


def written(server):
    return [request.path for request in server.requests if request.method == "PUT"]


def test_a_web_server_is_only_read(tars):
    with web_server(tars) as server:
        assert main(["data", "index", server.url]) == 2


def test_the_manifest_is_written_when_all_parts_are_whole(tars):
    held = _Held()
    lines = submit_indexing(str(tars), held, 3)
    assert [line.split(",")[0] for line in lines[:3]] == [f"job held {n}: part {n} of 3" for n in (1, 2, 3)]
    for entry, whole in zip(held.entries, (False, False, True), strict=True):
        assert exit_code_of(entry._index) == 0
        assert (tars / "manifest.json").exists() == whole
    assert Dataset.open(str(tars)).num_samples == TARS * MEMBERS
    # Tars that were changed since are indexed again, the others left alone.
    stamps = {path.name: path.stat().st_mtime_ns for path in tars.glob("*.index")}
    write_tar(tars / "02.tar", 20), write_tar(tars / "07.tar", 7)
    submit_indexing(str(tars), load_cluster("debug"), 3)
    changed = {path.name for path in tars.glob("*.index") if stamps.get(path.name) != path.stat().st_mtime_ns}
    assert changed == {"02.tar.index", "07.tar.index"}
    dataset = Dataset.open(str(tars))
    assert dataset.num_samples == (TARS + 1) * MEMBERS and dataset.read(2, 0).fields["txt"] == b"text 20 0"


class _Held:
    """A cluster whose jobs wait until the test runs them."""

    def __init__(self):
        self.entries: list[IndexEntry] = []

    def for_evals(self):
        return self

    def submit(self, job, entry):
        self.entries.append(entry)
        return Submission("held", str(len(self.entries)), str(job.folder))


@pytest.mark.slow
def test_jobs_of_the_local_cluster_index_a_folder(tars, capsys):
    assert main(["data", "index", str(tars), "--cluster", "local", "--jobs", "2"]) == 0
    assert "part 2 of 2" in capsys.readouterr().out
    deadline = time.monotonic() + 120
    while not (tars / "manifest.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert Dataset.open(str(tars)).num_samples == TARS * MEMBERS


def test_mistakes_are_told(tars, tmp_path):
    with pytest.raises(UserError, match="name the folder"):
        submit_indexing(str(tars / "0*.tar"), load_cluster("debug"))
    with pytest.raises(UserError, match="--jobs must be at least 1"):
        submit_indexing(str(tars), load_cluster("debug"), 0)
    (tars / "z.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"z\.tar\.gz is gzipped"):
        submit_indexing(str(tars), load_cluster("debug"))
