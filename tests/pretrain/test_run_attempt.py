"""One process at a time works on a run, whatever died before it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from data_pipelines.base import UserError
from pretrain.run import attempt as module
from pretrain.run.attempt import Attempt, FencedError, attempts, began, is_alive

HOLD = """
import sys, time
from pathlib import Path
from pretrain.run.attempt import Attempt
Attempt.begin(Path(sys.argv[1]), step=3)
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """A real process that works on the run."""
    folder = tmp_path / "run" / "attempts"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield folder, process
    process.kill()
    process.wait()


def test_second_process_is_refused_in_one_line(holder):
    folder, process = holder
    with pytest.raises(UserError, match=rf"in use by attempt 1 \(process {process.pid} on") as refusal:
        Attempt.begin(folder, step=0)
    assert "\n" not in str(refusal.value)


def test_killed_process_is_taken_over_at_once(holder):
    folder, process = holder
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    attempt = Attempt.begin(folder, step=5)
    assert attempt.number == 2
    attempt.end(0)
    assert attempts(folder)[2]["status"] == "ended"


def test_zombie_is_no_worker(holder):
    folder, process = holder
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(folder, 1)


def test_slurm_that_starts_its_job_again_ends_the_earlier_start(tmp_path, monkeypatch):
    """Its ranks on a lost node may run on, and beat."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    old = Attempt.begin(tmp_path, step=0)
    with pytest.raises(UserError, match="in use by attempt 1"):
        Attempt.begin(tmp_path, step=0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    new = Attempt.begin(tmp_path, step=0)
    with pytest.raises(FencedError):
        old.check()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(UserError, match="in use by attempt 2"):
        Attempt.begin(tmp_path, step=0)
    old.end(1)
    new.end(0)


def test_fenced_off_process_may_not_commit(tmp_path):
    first = Attempt.begin(tmp_path, step=0)
    first.check()
    (tmp_path / "2.json").write_text("{}")
    with pytest.raises(FencedError, match="attempt 2 has taken over"):
        first.check()
    first.end(1)


@pytest.mark.parametrize("beats", [True, False])
def test_attempt_of_another_host_is_judged_by_its_counter(tmp_path, monkeypatch, beats):
    """The observer watches the counter on its own clock: the two machines' clocks are never compared."""
    monkeypatch.setattr(module, "BEAT_PERIOD_S", 0.05)
    attempt = Attempt.begin(tmp_path, step=0)
    attempt.update(process={"space": "another machine"}, began=-1e9)
    if not beats:
        attempt._ended.set()
    assert is_alive(tmp_path, 1) is beats
    attempt.end(0)


def test_file_in_creation_does_not_stop_a_reader(tmp_path):
    (tmp_path / "1.json").write_text("")
    assert attempts(tmp_path) == {1: {}}
    (tmp_path / "2.json").write_text(json.dumps({"status": "ended"}))
    assert list(attempts(tmp_path)) == [1, 2]
    assert began(tmp_path) == {}
