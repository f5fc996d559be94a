import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.base import UserError
from data_pipelines.pack import pack
from data_pipelines.pack.shard import MAX_SIZE, NAME_BYTES, header

NAMES = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=NAME_BYTES + 5)


@given(NAMES, st.integers(0, 2 * MAX_SIZE))
@example("k" * NAME_BYTES, MAX_SIZE)
@example("k" * (NAME_BYTES + 1), MAX_SIZE + 1)
@example("ü", 0)
def test_headers_are_those_of_tarfile(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert header(name, size) == info.tobuf(tarfile.PAX_FORMAT)


def test_sets_may_be_given_a_name_of_their_own(tmp_path):
    (tmp_path / "train.txt").write_text("one dog\n\ntwo cats\n\n" * 40)
    settings = {"row_tokens": 16, "vocabulary_size": 70, "name": "pets"}
    sets = pack("text", str(tmp_path / "train.txt"), tmp_path / "packed", settings)
    assert sets[0].name == "pets-train"
    with pytest.raises(UserError, match="name"):
        pack("text", str(tmp_path / "train.txt"), tmp_path / "again", {**settings, "name": "../pets"})
