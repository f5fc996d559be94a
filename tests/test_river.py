"""Whole runs, as a user starts them: killed, stopped, resumed on other ranks; losses and ledger must not notice."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import time

import psutil
import pytest

from pretrain.checkpoint import committed, newest_whole
from pretrain.run.directory import RunDirectory
from tests.river import TINY, finish, ledger, losses, rank_processes, start, steps_done, thalweg, until, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("river")]

KILLS = int(os.environ.get("THALWEG_KILLS", "1"))
"""Random moments at which a rank is killed; `make soak` wants more."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, digits):
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken")
    thalweg("pretrain", str(write_recipe(folder, "unbroken", digits)), "--ranks", "2")
    return RunDirectory(folder / "runs" / "unbroken")


def run_named(folder, name) -> RunDirectory:
    return RunDirectory(folder / "runs" / name)


def test_run_logs_every_step_and_verifies(unbroken):
    assert sorted(losses(unbroken)) == list(range(1, 13))
    assert unbroken.finished()
    assert "are exactly what the order says" in thalweg("runs", "verify", str(unbroken.root))


def test_finished_run_says_so_and_exits_0(unbroken):
    before = unbroken.metrics()
    output = thalweg("pretrain", str(unbroken.root / "config.yaml"), "--ranks", "2")
    assert "is finished" in output
    assert unbroken.metrics() == before


@pytest.mark.parametrize("kill", range(KILLS))
def test_rank_killed_at_a_random_moment_is_started_again_and_the_losses_are_bit_equal(unbroken, tmp_path, digits, kill):
    recipe, run = write_recipe(tmp_path, "killed", digits), run_named(tmp_path, "killed")
    process = start("pretrain", str(recipe), "--ranks", "2")
    victim, step = random.choice([0, 1]), random.randint(2, 9)
    until(lambda: steps_done(run) >= step, process)
    time.sleep(random.random() / 50)  # somewhere in a step, a save, or between; steps are short
    os.kill(rank_processes(run)[victim], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert len(run.attempts()) == 2, output
    assert losses(run) == losses(unbroken)
    assert ledger(run) == ledger(unbroken)
    assert "2 attempts" in thalweg("runs", "verify", str(run.root))


def test_rank_that_hangs_is_named_by_the_one_that_answers_and_the_run_goes_on(unbroken, tmp_path, digits):
    monitor = {**TINY["monitor"], "watchdog_s": 4}
    recipe, run = write_recipe(tmp_path, "hung", digits, monitor=monitor), run_named(tmp_path, "hung")
    process = start("pretrain", str(recipe), "--ranks", "2")
    victim, step = random.choice([0, 1]), random.randint(2, 9)
    until(lambda: steps_done(run) >= step, process)
    stopped = rank_processes(run)[victim]
    os.kill(stopped, signal.SIGSTOP)
    code, output = finish(process)
    assert code == 0, output
    hang, *others = [event for event in run.events() if event["kind"] == "hang"]
    assert (hang["silent"], hang["attempt"], others) == ([victim], 1, [])
    assert f"rank {victim} (process {stopped} on {socket.gethostname()}) did not answer" in hang["words"]
    assert hang["words"] in output
    (stacks,) = run.logs(1).glob("stacks-rank-*.txt")
    assert stacks.name == f"stacks-rank-{1 - victim}.txt"
    assert "loop.py" in stacks.read_text()
    assert not psutil.pid_exists(stopped)
    assert losses(run) == losses(unbroken)
    assert "2 attempts" in thalweg("runs", "verify", str(run.root))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signalled_run_saves_at_a_step_boundary_exits_85_and_goes_on_elsewhere(unbroken, tmp_path, digits, number):
    """The second start has another world size and ZeRO stage: the same samples, nearly the same losses."""
    recipe, run = write_recipe(tmp_path, "stopped", digits), run_named(tmp_path, "stopped")
    process = start("pretrain", str(recipe), "--ranks", "2")
    until(lambda: steps_done(run) >= 4, process)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 85, output
    assert "start again to go on" in output
    stopped_at = steps_done(run)
    thalweg("pretrain", str(recipe), "--ranks", "1", "engine.zero_stage=3")
    assert run.attempts()[2]["began_at_step"] == stopped_at
    assert ledger(run) == ledger(unbroken)
    assert losses(run) == pytest.approx(losses(unbroken), rel=1e-4)


def test_run_goes_on_from_an_earlier_checkpoint_and_records_the_steps_of_a_profile(unbroken, tmp_path, digits):
    shutil.copytree(unbroken.root, tmp_path / "runs" / "unbroken")
    recipe, run = write_recipe(tmp_path, "unbroken", digits), run_named(tmp_path, "unbroken")
    for folder in (run.exports, run.evals):
        (folder / "step-00000012").mkdir(parents=True)  # of weights that the run will not have again
    thalweg("pretrain", str(recipe), "--ranks", "1", "--rollback-to", "9", "profile=10:12")
    assert {line["step"]: line["attempt"] for line in run.metrics()} == {n: 1 + (n > 9) for n in range(1, 13)}
    assert losses(run) == pytest.approx(losses(unbroken), rel=1e-4)
    assert ledger(run) == ledger(unbroken)
    assert committed(run.checkpoints) == [9, 12]
    assert sorted(path.name for path in run.root.glob("*/dropped-*")) == ["dropped-step-00000012"] * 4
    assert "2 attempts" in thalweg("runs", "verify", str(run.root))
    trace = json.loads((run.logs(2) / "profile.json").read_text())
    assert {"step 11", "step 12"} == {e["name"] for e in trace["traceEvents"] if e["name"].startswith("step ")}
    assert any(e["name"] == "aten::addmm" and e["ph"] == "X" and e["dur"] > 0 for e in trace["traceEvents"])


def test_run_that_falls_ill_says_so_while_it_lives(tmp_path, digits):
    """A learning rate that no network bears, and more time for reading than is allowed."""
    recipe = write_recipe(
        tmp_path,
        "ill",
        digits,
        train={"global_batch": 32, "steps": 24, "spike_factor": 1e30},
        optim={"base_lr": 10.0, "lr_scaling": "none", "warmup": 30, "schedule": "constant"},
        monitor={"log_every": 3, "tensorboard": False, "min_effective_rank": 0.1, "max_data_wait": 0.001},
        checkpoint={"every": 24},
    )
    output = thalweg("pretrain", str(recipe), "--ranks", "1")
    alarms = {event["kind"]: event for event in run_named(tmp_path, "ill").events()}
    for kind, words in {
        "collapse": "of 32 dimensions: the encoder is collapsing",
        "divergence": "is far above its best mean",
        "starvation": "of the time goes into waiting for data",
    }.items():
        assert words in alarms[kind]["words"]
        assert alarms[kind]["words"] in output
        assert 3 <= alarms[kind]["step"] < 24


def test_full_disk_costs_checkpoints_but_no_step_and_the_end_tells(tmp_path, digits):
    """The kernel lets no file grow beyond what the run's records need: every save fails in the background."""
    train = {"global_batch": 16, "steps": 160}
    recipe, run = write_recipe(tmp_path, "full", digits, train=train), run_named(tmp_path, "full")
    process = start(str(recipe), "checkpoint.every=20", "monitor.log_every=20", module="pretrain")
    until(lambda: committed(run.checkpoints), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    code, output = finish(process)
    assert code == 1, output
    good = committed(run.checkpoints)
    assert f"the last checkpoint could not be written; step {good[-1]} is the newest" in output
    assert steps_done(run) == 160
    failed = [event["words"] for event in run.events() if event["kind"] == "save_failed"]
    assert len(failed) >= 2 and all("File too large" in words for words in failed)
    assert newest_whole(run.checkpoints)[1] == []


def test_run_in_use_is_refused(tmp_path, digits):
    recipe, run = write_recipe(tmp_path, "busy", digits, train={"global_batch": 16, "steps": 100000}), None
    run = run_named(tmp_path, "busy")
    process = start("pretrain", str(recipe), "--ranks", "1")
    try:
        until(lambda: steps_done(run) >= 1, process)
        code, output = finish(start("pretrain", str(recipe), "--ranks", "1"))
        assert code == 2
        assert "in use by attempt 1" in output
    finally:
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 85
