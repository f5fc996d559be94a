"""The folder of a job: claims, starts, outcomes, and the decision to start again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launch.job import (
    DONE,
    MAX_STALLED_STARTS,
    SAVED,
    USER_ERROR,
    Job,
    Submission,
    stalled,
    what_next,
)
from pretrain.run.process import describe

CODES = st.sampled_from([0, 1, 2, 85, 137, 143])


def commit(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").touch()


@given(CODES, st.sets(st.sampled_from([USER_ERROR, SAVED])), st.integers(1, 5))
def test_a_job_starts_again_unless_done_refused_or_stuck(code: int, outcomes: set[int], starts: int) -> None:
    again = what_next(code, outcomes, starts).again
    saved = SAVED in outcomes or code == SAVED
    refused = not saved and (USER_ERROR in outcomes or code == USER_ERROR)
    assert again == (starts < MAX_STALLED_STARTS and not refused and (saved or code != DONE))


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_preemptions_with_progress_are_never_capped_and_others_are(progress: Iterable[bool]) -> None:
    starts, newest, without = [], 0, 0
    for moved in progress:
        starts.append(str(newest))
        without = 0 if moved else without + 1
        newest += moved
        verdict = what_next(SAVED, {SAVED}, stalled(starts, str(newest)))
        assert verdict.again == (without < MAX_STALLED_STARTS)
        if not verdict.again:
            break


def test_one_of_many_processes_gets_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: Job.next(tmp_path, "pretrain").claim(), range(8)))
    folders = sorted(path.name for path in (tmp_path / "logs" / "jobs").iterdir())
    assert sum(got) == len(folders) >= 1
    assert folders[0] == "pretrain-1"


def test_numbers_go_on_past_nine(tmp_path: Path) -> None:
    for _ in range(11):
        assert Job.next(tmp_path, "pretrain").claim()
    assert Job.next(tmp_path, "pretrain").folder.name == "pretrain-12"


def test_starts_are_counted_and_compared_with_the_newest_checkpoint(tmp_path: Path) -> None:
    job = Job.next(tmp_path, "pretrain")
    assert job.claim()
    assert [job.begin(), job.begin()] == [0, 1]
    assert job.what_next(1, 1).again
    commit(tmp_path, 10)
    (tmp_path / "checkpoints" / "step-00000020.attempt-1").mkdir()
    (tmp_path / "checkpoints" / "step-00000020.attempt-1" / "MANIFEST.json").touch()  # staged, not committed
    assert job.newest_checkpoint() == "step-00000010"
    assert [job.begin() for _ in range(12)][-1] == 13
    assert not job.what_next(13, 1).again
    commit(tmp_path, 20)
    assert job.what_next(13, 1).again


def test_a_start_that_was_replaced_may_not_ask_for_another(tmp_path: Path) -> None:
    job = Job.next(tmp_path, "pretrain")
    assert job.claim()
    assert job.begin(start=0) == 0
    assert job.what_next(0, 1).again
    job.begin(start=2)  # SLURM counted one that never got as far as the script
    lost = job.what_next(0, 1)
    assert (lost.again, lost.words) == (False, "start 2 has taken over from start 0")
    assert job.what_next(2, 1).again


def test_outcomes_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    job = Job.next(tmp_path, "pretrain")
    assert job.claim()
    job.leave(job.begin(), SAVED)
    assert job.what_next(0, 143).words == "saved on request"
    job.begin()
    assert job.what_next(1, 143).words == "failed with exit code 143"
    job.leave(1, USER_ERROR)
    assert not job.what_next(1, 143).again


def test_a_stop_asked_for_beats_everything(tmp_path: Path) -> None:
    job = Job.next(tmp_path, "pretrain")
    assert job.claim()
    job.leave(job.begin(), SAVED)
    job.stop.touch()
    assert not job.what_next(0, SAVED).again


def test_the_batch_script_asks_by_exit_code(tmp_path: Path) -> None:
    job = Job.next(tmp_path / "it's a run", "pretrain")
    assert job.claim()
    ask = [sys.executable, "-m", "launch.job"]
    subprocess.run([*ask, "begin", job.folder, "0"], check=True)
    subprocess.run([*ask, "begin", job.folder, "1"], check=True)
    failed = subprocess.run([*ask, "end", job.folder, "1", "137"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (0, "thalweg: failed with exit code 137; starting again\n")
    done = subprocess.run([*ask, "end", job.folder, "1", "0"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "thalweg: done; staying down\n")


def test_a_record_survives_reading(tmp_path: Path) -> None:
    job = Job.next(tmp_path, "pretrain")
    assert job.claim()
    assert job.submission() is None
    assert job.submitter() == describe()
    submission = Submission("local", "12", str(job.folder), describe())
    job.record(submission)
    assert job.submission() == submission
    assert submission.log == job.folder / "12_0_log.out"


def test_a_torn_record_reads_as_none(tmp_path: Path) -> None:
    job = Job.next(tmp_path, "pretrain")
    assert job.claim()
    (job.folder / "job.json").write_text('{"submis')
    assert job.submission() is None
