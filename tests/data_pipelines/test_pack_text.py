import gzip
import io

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipelines.base import UserError
from data_pipelines.pack import pack

WORDS = "river water valley energy sample surface learning stone bridge bank"


def sentence(number):
    words = WORDS.split()
    return " ".join(words[(number * step + step) % len(words)] for step in range(3, 3 + number % 17 + 2))


@pytest.fixture
def books(tmp_path):
    """Two files, one gzipped, of 60 documents in all, one of them longer than many rows."""
    (tmp_path / "books").mkdir()
    documents = [sentence(number) for number in range(60)]
    documents[7] = " ".join(sentence(number) for number in range(100))
    (tmp_path / "books" / "a.txt").write_text("\n\n".join(documents[:30]) + "\n")
    with gzip.open(tmp_path / "books" / "b.txt.gz", "wt") as file:
        file.write("\n\n".join(documents[30:]))
    return tmp_path / "books", documents


CONFIG = {"vocabulary_size": 100, "row_tokens": 16, "val_fraction": 0.2}


def rows(dataset):
    """(tokens, segments) in the order of the keys, which is the order of the text."""
    samples = [dataset.read(s, m) for s, size in enumerate(dataset.shard_sizes) for m in range(int(size))]
    for sample in sorted(samples, key=lambda sample: sample.key):
        yield tuple(
            np.load(io.BytesIO(sample.fields[name]), allow_pickle=False) for name in ("tokens.npy", "segments.npy")
        )


def documents_in(dataset, tokenizer, special):
    """The text again, by following the rows."""
    open_document, found = [], []
    for tokens, segments in rows(dataset):
        assert tokens.shape == segments.shape == (16,)
        assert (tokens[0], segments[0]) == (special["cls"], 1)
        assert ((segments == 0) == (tokens == special["pad"])).all()
        assert set(np.diff(segments[segments > 0]).tolist()) <= {0, 1}
        for token in tokens[1:]:
            if token == special["sep"]:
                found.append(tokenizer.decode(open_document))
                open_document = []
            elif token != special["pad"]:
                open_document.append(int(token))
    assert not open_document
    return found


def test_rows_hold_every_document_once_and_in_full(books, tmp_path):
    folder, documents = books
    train, val = pack("text", str(folder), tmp_path / "out", CONFIG)
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    special = train.facts()["special_tokens"]
    in_train, in_val = (documents_in(dataset, tokenizer, special) for dataset in (train, val))
    assert sorted(in_train + in_val) == sorted(documents)
    assert len(in_val) > 3
    assert [d for d in documents if d in set(in_train)] == in_train


def test_facts_name_the_tokenizer(books, tmp_path):
    train, _ = pack("text", str(books[0]), tmp_path / "out", CONFIG)
    facts = train.facts()
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    assert facts["vocabulary_size"] == tokenizer.get_vocab_size() <= 100
    assert facts["row_tokens"] == 16
    assert facts["special_tokens"] == {
        name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("pad", "unk", "cls", "sep", "mask")
    }
    assert facts["tokenizer_digest"]


def test_equal_text_makes_equal_vocabulary_and_bytes(books, tmp_path):
    sets = [pack("text", str(books[0]), tmp_path / f"out{number}", CONFIG) for number in range(4)]
    assert len({tuple(dataset.digest for dataset in both) for both in sets}) == 1


def test_set_opens_as_a_transformers_tokenizer(books, tmp_path):
    from transformers import AutoTokenizer

    train, _ = pack("text", str(books[0]), tmp_path / "out", CONFIG)
    tokenizer = AutoTokenizer.from_pretrained(train.path)
    assert tokenizer.mask_token_id == train.facts()["special_tokens"]["mask"]


def test_a_named_tokenizer_is_used_as_it_is(books, tmp_path):
    first = pack("text", str(books[0]), tmp_path / "one", CONFIG)
    again = pack("text", str(books[0]), tmp_path / "two", {**CONFIG, "tokenizer": first[0].path})
    assert [dataset.digest for dataset in again] == [dataset.digest for dataset in first]


def test_bytes_that_are_not_utf8_cost_their_document_alone(tmp_path):
    text = b"\n".join(sentence(number).encode() for number in range(20)) + b"\n\xff\xfe broken\n" + b"whole again\n"
    (tmp_path / "a.txt").write_bytes(text)
    [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / "out", {**CONFIG, "document": "line", "val_fraction": 0})
    assert train.manifest.notes == ("1 documents that are not UTF-8 were left out",)
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    assert documents_in(train, tokenizer, train.facts()["special_tokens"])[-1] == "whole again"


def test_a_line_longer_than_any_buffer_is_cut_in_rows(tmp_path):
    (tmp_path / "a.txt").write_text("river water " * 40_000)
    [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / "out", {**CONFIG, "row_tokens": 1024})
    total = sum(int((tokens != train.facts()["special_tokens"]["pad"]).sum()) for tokens, _ in rows(train))
    assert total == 80_000 + 1 + train.num_samples


def test_one_line_for_each_mistake(books, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "none").mkdir()
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    cases = [
        ((None, {}), "want a text file or folder"),
        ((str(tmp_path / "none"), {}), "no text file"),
        ((str(tmp_path / "empty.txt"), {}), "no text in it"),
        ((str(tmp_path / "bad.txt.gz"), {}), "Not a gzipped file"),
        ((str(books[0]), {"tokenizer": str(tmp_path)}), "no tokenizer.json there"),
        ((str(books[0]), {"tokenizer": str(tmp_path / "empty.txt")}), "tokenizer="),
    ]
    for (source, config), words in cases:
        with pytest.raises(UserError, match=words) as error:
            pack("text", source, tmp_path / "out", config)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
