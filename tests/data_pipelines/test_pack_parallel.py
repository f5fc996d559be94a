from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipelines.base import UserError
from data_pipelines.pack import pack
from data_pipelines.views import Draw
from data_pipelines.views.parallel import ParallelText

NOUNS = [("river", "Fluss"), ("bridge", "Brücke"), ("stone", "Stein"), ("bank", "Ufer"), ("valley", "Tal")]
PLACES = [("here", "hier"), ("there", "dort"), ("below", "unten"), ("above", "oben")]
LINES = [
    (f"The {noun} number {number} lies {place}.", f"{nomen} Nummer {number} liegt {ort}.")
    for number in range(4)
    for noun, nomen in NOUNS
    for place, ort in PLACES
]
CONFIG = {"languages": "en,de", "vocabulary_size": 320}


def write(folder, lines=LINES, name="train"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.en").write_text("".join(f"{en}\n" for en, _ in lines))
    with gzip.open(folder / f"{name}.de.gz", "wt", newline="") as file:
        file.write("".join(f"{de}\n" for _, de in lines))
    return str(folder / name)


def samples(dataset):
    found = [dataset.read(s, m) for s, size in enumerate(dataset.shard_sizes) for m in range(int(size))]
    return sorted(found, key=lambda sample: sample.key)


def texts(dataset, language):
    return [sample.fields[f"{language}.txt"].decode() for sample in samples(dataset)]


def tokens_of(sample, language):
    return np.load(io.BytesIO(sample.fields[f"{language}.npy"]), allow_pickle=False)


def test_pairs_stay_pairs_and_keys_number_their_lines(tmp_path):
    [train] = pack("parallel", write(tmp_path / "in"), tmp_path / "out", CONFIG)
    assert list(zip(texts(train, "en"), texts(train, "de"), strict=True)) == LINES
    assert [sample.key for sample in samples(train)] == [f"pair{number:09d}" for number in range(len(LINES))]
    assert train.fields == ("de.npy", "de.txt", "en.npy", "en.txt")
    order = [train.key(0, member) for member in range(10)]
    assert order != sorted(order)


def test_tokens_are_the_text_without_special_ones(tmp_path):
    [train] = pack("parallel", write(tmp_path / "in"), tmp_path / "out", CONFIG)
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    facts = train.manifest.facts
    counted = 0
    for sample, (en, de) in zip(samples(train), LINES, strict=True):
        sides = tokens_of(sample, "en"), tokens_of(sample, "de")
        assert [tokenizer.decode(side.tolist(), skip_special_tokens=False) for side in sides] == [en, de]
        assert not set(np.concatenate(sides).tolist()) & set(facts.special_tokens.values())
        counted += len(sides[0]) + len(sides[1])
    assert (facts.languages, facts.tokens) == (("en", "de"), counted)
    names = {name: tokenizer.id_to_token(token) for name, token in facts.special_tokens.items()}
    assert names["lang:en"] == "<en>" and names["lang:de"] == "<de>" and names["tag"] == "<tag>"
    assert facts.vocabulary_size == tokenizer.get_vocab_size() <= 320


def test_a_view_reads_what_was_packed(tmp_path):
    [train] = pack("parallel", write(tmp_path / "in"), tmp_path / "out", CONFIG)
    facts = train.manifest.facts
    known = {"vocabulary_size": facts.vocabulary_size, "special_tokens": facts.special_tokens}
    found = ParallelText(source="de", target="en", **known).sample(samples(train)[3], Draw(0, 0))
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    said = found["labels"][found["labels"] >= 0]
    assert said[-1] == facts.special_tokens["sep"]
    assert tokenizer.decode(said[:-1].tolist()) == LINES[3][0]
    assert found["source"][0] == facts.special_tokens["lang:de"]


def test_validation_comes_from_its_own_files_or_from_a_share(tmp_path):
    source = write(tmp_path / "in", LINES[:60])
    held = write(tmp_path / "in", LINES[60:], "val")
    train, val = pack("parallel", source, tmp_path / "one", {**CONFIG, "validation": held})
    assert (texts(train, "en"), texts(val, "en")) == tuple([en for en, _ in part] for part in (LINES[:60], LINES[60:]))
    assert samples(val)[0].key == "pair000000000"
    train, val = pack("parallel", source, tmp_path / "two", {**CONFIG, "val_fraction": 0.2})
    assert 3 < val.num_samples < 30
    assert sorted(texts(train, "de") + texts(val, "de")) == sorted(de for _, de in LINES[:60])
    numbers = {sample.key for dataset in (train, val) for sample in samples(dataset)}
    assert numbers == {f"pair{number:09d}" for number in range(60)}


def test_validation_text_teaches_the_tokenizer_nothing(tmp_path):
    source = write(tmp_path / "in", LINES[:60])
    held = write(tmp_path / "in", [("xyzzy " * 40, "xyzzy " * 40)], "val")
    alone = pack("parallel", source, tmp_path / "one", CONFIG)
    with_val = pack("parallel", source, tmp_path / "two", {**CONFIG, "validation": held})
    assert with_val[0].digest == alone[0].digest


def test_empty_and_broken_sides_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.en").write_bytes(b"one\n\n three\xa0\xff\nfour\nfive \n")
    (tmp_path / "a.de").write_bytes("eins\nzwei\ndrei\n \nfünf\u2028und\u00a0mehr \n".encode())
    [train] = pack("parallel", str(tmp_path / "a"), tmp_path / "out", {**CONFIG, "vocabulary_size": 280})
    assert texts(train, "en") == ["one", "five "]
    assert texts(train, "de") == ["eins", "fünf\u2028und\u00a0mehr "]
    assert [sample.key for sample in samples(train)] == ["pair000000000", "pair000000004"]
    assert train.manifest.notes == (
        "1 lines that are not UTF-8 were left out",
        "2 lines with an empty side were left out",
    )


def test_tables_and_json_lines_hold_the_same_pairs(tmp_path):
    (tmp_path / "t.tsv").write_text("".join(f"{en}\t{de}\n" for en, de in LINES) + "one cell\n")
    records = [{"en": en, "de": de} for en, de in LINES[:40]]
    records += [{"translation": {"en": en, "de": de}} for en, de in LINES[40:]]
    with gzip.open(tmp_path / "j.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(record) + "\n" for record in [*records, {"en": "alone"}]) + "no json\n")
    found = [
        pack("parallel", str(source), tmp_path / name, CONFIG)[0]
        for name, source in (("1", write(tmp_path / "in")), ("2", tmp_path / "t.tsv"), ("3", tmp_path / "j.jsonl.gz"))
    ]
    assert len({dataset.digest for dataset in found}) == 1
    assert [dataset.manifest.notes for dataset in found[1:]] == [
        ("1 lines without 2 sides were left out",),
        ("2 lines without 2 sides were left out",),
    ]


def test_a_second_set_uses_the_tokenizer_of_the_first(tmp_path):
    source = write(tmp_path / "in")
    [first] = pack("parallel", source, tmp_path / "one", CONFIG)
    other = write(tmp_path / "in", LINES[:5], "back")
    [second] = pack(
        "parallel", other, tmp_path / "two", {"languages": "en,de", "tokenizer": first.path, "tagged": True}
    )
    assert second.manifest.facts.special_tokens == first.manifest.facts.special_tokens
    assert second.manifest.facts.tokenizer_digest == first.manifest.facts.tokenizer_digest
    assert {sample.fields["tag"] for sample in samples(second)} == {b"1"}


def test_a_tokenizer_without_the_languages_says_that_its_start_token_stands_in(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(en for en, _ in LINES))
    config = {"document": "line", "vocabulary_size": 100, "val_fraction": 0}
    [text] = pack("text", str(tmp_path / "a.txt"), tmp_path / "text", config)
    [train] = pack("parallel", write(tmp_path / "in"), tmp_path / "out", {**CONFIG, "tokenizer": text.path})
    assert train.manifest.notes == ("the tokenizer has no token for en, de: its start token stands in",)


@pytest.mark.parametrize(
    ("lines", "change", "words"),
    [
        ({"en": 3, "de": 2}, {}, r"not aligned: .*a.en has 3 lines, .*a.de has 2 lines"),
        ({"en": 2, "de": 3}, {}, r"not aligned: .*a.en has 2 lines, .*a.de has 3 lines"),
        ({"en": 3}, {}, r"neither .*a.de nor .*a.de.gz is there"),
        ({"en": 0, "de": 0}, {}, "no pair in it"),
        ({"en": 3, "de": 3}, {"languages": "en"}, "at least 2 items"),
        ({"en": 3, "de": 3}, {"languages": "en,en"}, "name one twice"),
        ({"en": 3, "de": 3}, {"languages": "en,German"}, "want a code such as de"),
        ({"en": 3, "de": 3}, {"validation": "b", "val_fraction": 0.1}, "not both"),
        ({"en": 3, "de": 3}, {"vocabulary_size": 200}, "holds no words"),
    ],
)
def test_one_line_for_each_mistake(tmp_path, lines, change, words):
    for language, count in lines.items():
        (tmp_path / f"a.{language}").write_text("word\n" * count)
    with pytest.raises(UserError, match=words) as error:
        pack("parallel", str(tmp_path / "a"), tmp_path / "out", {**CONFIG, **change})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
