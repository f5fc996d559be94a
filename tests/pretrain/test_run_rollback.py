"""Going back: later steps are set aside with all that was made of them."""

import pytest

from data_pipelines.base import UserError
from pretrain.run.directory import RunDirectory
from pretrain.run.rollback import roll_back


@pytest.fixture
def run(tmp_path):
    for step in (3, 6, 9):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "MANIFEST.json").touch()
    return RunDirectory(tmp_path)


def test_unknown_step_is_answered_with_the_steps_there_are(run, tmp_path):
    with pytest.raises(UserError, match=r"--rollback-to 5: .* has no checkpoint of that step; there are 3, 6, 9$"):
        roll_back(run, 5)
    with pytest.raises(UserError, match="there are none yet"):
        roll_back(RunDirectory(tmp_path / "absent"), 5)


def test_what_was_set_aside_before_stays(run):
    for _ in range(2):
        roll_back(run, 6)
        (run.checkpoints / "step-00000009").mkdir()
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == [
        "dropped-step-00000009", "dropped-step-00000009-2", "step-00000003", "step-00000006", "step-00000009"
    ]  # fmt: skip
