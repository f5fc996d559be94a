"""Whole runs from an S3 that fails: the samples are those of the order, to the last one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.shards import Dataset
from data_pipelines.storage.cache import PARTIAL
from launch.cli import main
from launch.pretrain_command import rank_command
from pretrain.checkpoint import committed
from pretrain.run.directory import RunDirectory
from tests import stores
from tests.river import finish, ledger, losses, start, steps_done, thalweg, until
from tests.stores import FaultyServer, Request, s3_environment, s3_server, upload

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("river")]

STEPS = 8


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST in 17 shards, so that ranks and workers have many open."""
    folder = tmp_path_factory.mktemp("sets") / "mnist"
    assert main(["data", "pack", "mnist", str(folder), "samples_per_shard=250"]) == 0
    return folder


@pytest.fixture(scope="module")
def s3(mnist: Path) -> Iterator[FaultyServer]:
    with s3_server() as server:
        upload(server, mnist / "train", "s3://bucket/train")
        yield server


@pytest.fixture
def environment(s3: FaultyServer, tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {**s3_environment(s3), "THALWEG_CACHE": str(tmp_path / "cache")}
    s3.fault = lambda request: None
    s3.dark.clear()


def pretrain(folder: Path, *overrides: str) -> list[str]:
    return [
        "pretrain", "mae_debug", "--ranks", "2", "data.path=s3://bucket/train", "data.validation=null", "probe=null",
        f"runs={folder}", f"train.steps={STEPS}", "monitor.log_every=1", "monitor.tensorboard=false", *overrides,
    ]  # fmt: skip


def everyday_faults(request: Request) -> stores.Fault | None:
    """Two requests in seven fail, in a way that changes."""
    kinds = (stores.unavailable, stores.reset, stores.truncate, stores.refuse)
    return kinds[request.number % len(kinds)] if request.number % 7 in {0, 3} else None


@pytest.fixture(scope="module")
def undisturbed(s3: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """From a cache that holds three of the seventeen shards, at another prefetch and number of workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cap = 3 * 10**6
    environment = {**s3_environment(s3), "THALWEG_CACHE": str(folder / "cache")}
    process = start(*pretrain(folder, f"data.storage.cache_bytes={cap}", "data.workers=1"), **environment)
    used: set[int] = set()
    shards = folder / "cache" / "shards"
    while process.poll() is None:
        used.add(sum(_size(path) for path in shards.glob("*")) if shards.is_dir() else 0)
        time.sleep(0.02)
    code, output = finish(process)
    assert code == 0, output
    assert 0 < max(used) <= cap
    assert any(path.suffix != PARTIAL for path in shards.glob("*.*"))
    return RunDirectory(folder / "mae_debug")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_disk_cache_smaller_than_the_set_serves_the_same_samples(undisturbed, mnist):
    dataset = Dataset.open(str(mnist / "train"))
    assert sum(Path(dataset.place(shard)[0]).stat().st_size for shard in range(len(dataset.shard_sizes))) > 3 * 10**6
    assert sorted(losses(undisturbed)) == list(range(1, STEPS + 1))
    assert undisturbed.info()["data"] == {dataset.name: dataset.digest}


def test_refusals_resets_and_an_outage_change_no_sample_and_no_loss(undisturbed, s3, environment, tmp_path):
    s3.fault = everyday_faults
    process = start(*pretrain(tmp_path, "data.workers=2", "data.storage.deadline_s=60"), **environment)
    run = RunDirectory(tmp_path / "mae_debug")
    until(lambda: steps_done(run) >= 2, process)
    s3.dark.set()
    threading.Timer(3.0, s3.dark.clear).start()
    code, output = finish(process)
    assert code == 0, output
    assert ledger(run) == ledger(undisturbed)
    assert losses(run) == losses(undisturbed)
    assert len(run.attempts()) == 1
    assert not list(run.quarantine.glob("*"))
    s3.fault = lambda request: None
    assert "are exactly what the order says" in thalweg("runs", "verify", str(run.root), **environment)


def test_credentials_that_expire_stop_all_ranks_with_a_checkpoint_and_new_ones_go_on(
    undisturbed, s3, environment, tmp_path
):
    """Ranks read ahead, so that they meet the refusal in different steps."""
    recipe = ["mae_debug", *pretrain(tmp_path, "checkpoint.every=1000", "data.workers=1", "data.prefetch=1")[4:]]
    ranks = rank_command("pretrain", recipe, 2)[3:]  # without a supervisor, which would start them again
    process = start(*ranks, module="launch.torchrun", **environment)
    run = RunDirectory(tmp_path / "mae_debug")
    until(lambda: steps_done(run) >= 2, process)
    s3.fault = lambda request: stores.expired
    code, output = finish(process)
    assert code == 1, output
    stopped_at = steps_done(run)
    assert 2 <= stopped_at < STEPS
    assert committed(run.checkpoints) == [stopped_at]
    assert output.count("renew them and start again") == 1, "one rank speaks for all"
    assert f"; saved at step {stopped_at}" in output
    assert run.attempts()[1]["exit_code"] == 1
    s3.fault = lambda request: None
    thalweg(*pretrain(tmp_path, "checkpoint.every=1000", "data.workers=0"), **environment)
    assert ledger(run) == ledger(undisturbed)
    assert losses(run) == losses(undisturbed)
    assert "are exactly what the order says" in thalweg("runs", "verify", str(run.root), **environment)
