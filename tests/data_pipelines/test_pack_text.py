import gzip
import io
import json

import numpy as np
import pytest
from datasets import Dataset as HubDataset
from datasets import DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers

from data_pipelines.base import UserError
from data_pipelines.pack import pack
from data_pipelines.pack.tokenizer_training import _in_order

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
    assert train.manifest.notes == ("1 documents that are not UTF-8 or hold no text were left out",)
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    assert documents_in(train, tokenizer, train.facts()["special_tokens"])[-1] == "whole again"


def test_a_line_longer_than_any_buffer_is_cut_in_rows(tmp_path):
    (tmp_path / "a.txt").write_text("river water " * 40_000)
    [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / "out", {**CONFIG, "row_tokens": 1024})
    total = sum(int((tokens != train.facts()["special_tokens"]["pad"]).sum()) for tokens, _ in rows(train))
    assert total == 80_000 + 1 + train.num_samples


def test_rows_count_their_tokens_and_mark_words_and_sentences(tmp_path):
    text = 'River water. "Stone bridge!" Energy 3.14 learns...\nbank'
    (tmp_path / "a.txt").write_text(f"{text}\n\n{text}\n\n{WORDS}")
    [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / "out", {**CONFIG, "row_tokens": 64, "val_fraction": 0})
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    special = train.facts()["special_tokens"]
    counted = 0
    for tokens, segments, marks in marked_rows(train):
        names = [tokenizer.id_to_token(int(token)) for token in tokens]
        counted += (segments > 0).sum()
        assert not marks[np.isin(tokens, [special[name] for name in ("pad", "cls", "sep")])].any()
        words = [not name.startswith(("##", "[")) for name in names]
        assert ((marks & 1) > 0).tolist() == words
        assert set(marks[(marks & 2) > 0].tolist()) <= {3}
    assert train.facts()["tokens"] == counted
    tokens, segments, marks = next(marked_rows(train))
    first = np.flatnonzero(segments == 1)
    starts = first[marks[first] & 2 > 0]
    sentences = [tokenizer.decode(part.tolist()) for part in np.split(tokens[first], starts - first[0])]
    assert [sentence for sentence in sentences if sentence] == [
        "river water.", '" stone bridge! "', "energy 3. 14 learns...", "bank"
    ]  # fmt: skip


def test_pieces_of_a_long_text_change_neither_words_nor_sentences(tmp_path, monkeypatch):
    text = "".join(f"{sentence(number)}{'. ' if number % 3 else '!  '}" for number in range(200))
    (tmp_path / "a.txt").write_text(text)
    config = {**CONFIG, "model": "bpe", "vocabulary_size": 400}
    [whole] = pack("text", str(tmp_path / "a.txt"), tmp_path / "whole", config)
    monkeypatch.setattr("data_pipelines.pack.tokenizer.PIECE_CHARACTERS", 40)
    again = {**CONFIG, "tokenizer": whole.path}
    [cut] = pack("text", str(tmp_path / "a.txt"), tmp_path / "cut", again)
    assert cut.digest == whole.digest
    marks = np.concatenate([marks for _, _, marks in marked_rows(cut)])
    assert (marks & 2 > 0).sum() == 200


def marked_rows(dataset):
    """(tokens, segments, marks), in the order of the text."""
    samples = [dataset.read(s, m) for s, size in enumerate(dataset.shard_sizes) for m in range(int(size))]
    for sample in sorted(samples, key=lambda sample: sample.key):
        yield tuple(np.load(io.BytesIO(sample.fields[f"{name}.npy"])) for name in ("tokens", "segments", "marks"))


@pytest.mark.parametrize("model", ["wordpiece", "bpe", "unigram"])
def test_words_of_every_model_are_the_words_of_the_text(books, tmp_path, model):
    folder, documents = books
    config = {**CONFIG, "model": model, "vocabulary_size": 400, "val_fraction": 0}
    [train] = pack("text", str(folder), tmp_path / "out", config)
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    words = []
    for tokens, _, marks in marked_rows(train):
        for token, mark in zip(tokens.tolist(), marks.tolist(), strict=True):
            if token in train.facts()["special_tokens"].values():
                continue
            if mark & 1:
                words.append([])
            words[-1].append(token)
    assert [tokenizer.decode(word).strip() for word in words] == " ".join(documents).split()
    assert documents_in(train, tokenizer, train.facts()["special_tokens"]) == documents


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_equal_text_makes_an_equal_tokenizer_of_every_model(tmp_path, model):
    text = "".join(chr(0x3B1 + n * n % 23) * (n % 5 + 1) + " " * (n % 3) for n in range(4000)) + " éèçß 0123456789"
    (tmp_path / "a.txt").write_text(text)
    config = {"model": model, "vocabulary_size": 300, "val_fraction": 0}
    sets = [pack("text", str(tmp_path / "a.txt"), tmp_path / f"out{number}", config)[0] for number in range(4)]
    assert len({dataset.manifest.facts.tokenizer_digest for dataset in sets}) == 1
    assert sets[0].facts()["vocabulary_size"] <= 300


def test_a_unigram_forgets_the_order_in_which_its_trainer_met_rare_characters():
    trained = [("<unk>", 0.0), ("the", -2.0), ("ab", -3.0), ("a", -9.0 + 1e-15)]
    ladders = [[("x", -10.0), ("y", -9.9999), ("z", -9.9998)], [("z", -10.0), ("x", -9.9999), ("y", -9.9998)]]
    found = [_in_order([*trained, *ladder], ["<unk>"]) for ladder in ladders]
    rare = [("x", -10.0), ("y", -10.0), ("z", -10.0)]
    assert found[0] == found[1] == [("<unk>", 0.0), ("the", -2.0), ("ab", -3.0), ("a", -9.0), *rare]


def test_case_is_kept_or_lost_as_asked(tmp_path):
    (tmp_path / "a.txt").write_text("Über Flüsse\n\n" * 20)
    for model, lowercase, decoded in (
        ("wordpiece", None, "uber flusse"), ("wordpiece", False, "Über Flüsse"),
        ("bpe", None, "Über Flüsse"), ("bpe", True, "über flüsse"),
        ("unigram", None, "Über Flüsse"), ("unigram", True, "über flüsse"),
    ):  # fmt: skip
        config = {"model": model, "lowercase": lowercase, "vocabulary_size": 300, "row_tokens": 16, "val_fraction": 0}
        [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / f"{model}{lowercase}", config)
        tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
        assert documents_in(train, tokenizer, train.facts()["special_tokens"])[0] == decoded


def test_a_language_begins_its_rows_and_sets_share_a_tokenizer(books, tmp_path):
    config = {**CONFIG, "language": "de", "languages": "en,fr", "sentinels": 3}
    first, _ = pack("text", str(books[0]), tmp_path / "de", config)
    tokenizer = Tokenizer.from_file(f"{first.path}/tokenizer.json")
    facts = first.manifest.facts
    names = {name: tokenizer.id_to_token(token) for name, token in facts.special_tokens.items() if ":" in name}
    assert names == {
        "lang:de": "<de>", "lang:en": "<en>", "lang:fr": "<fr>",
        "sentinel:0": "<extra_0>", "sentinel:1": "<extra_1>", "sentinel:2": "<extra_2>",
    }  # fmt: skip
    assert {int(tokens[0]) for tokens, _, _ in marked_rows(first)} == {facts.special_tokens["lang:de"]}
    other, _ = pack("text", str(books[0]), tmp_path / "fr", {**CONFIG, "language": "fr", "tokenizer": first.path})
    assert other.manifest.facts.special_tokens == facts.special_tokens
    assert (facts.language, other.manifest.facts.language) == ("de", "fr")
    with pytest.raises(UserError, match=r"no token for the language 'it', such as <it>"):
        pack("text", str(books[0]), tmp_path / "it", {**CONFIG, "language": "it", "tokenizer": first.path})


def test_norwegian_is_a_language(books, tmp_path):
    train, _ = pack("text", str(books[0]), tmp_path / "no", {**CONFIG, "language": False})  # YAML's language=no
    assert train.manifest.facts.language == "no"


def test_names_of_special_tokens_in_a_text_are_words(tmp_path):
    (tmp_path / "a.txt").write_text("river [SEP] water [CLS] stone [PAD]\n" * 9)
    [train] = pack("text", str(tmp_path / "a.txt"), tmp_path / "out", {**CONFIG, "document": "line", "val_fraction": 0})
    special = train.facts()["special_tokens"]
    every = np.concatenate([tokens for tokens, _, _ in marked_rows(train)])
    assert (every == special["sep"]).sum() == 9
    assert (every == special["cls"]).sum() == train.num_samples


def test_every_format_gives_the_same_documents(tmp_path):
    documents = [sentence(number) for number in range(40)]
    records = [{"text": document, "number": number} for number, document in enumerate(documents)]
    data = HubDataset.from_list(records)
    (tmp_path / "p").mkdir()
    (tmp_path / "lines.txt").write_text("\n".join(documents))
    with gzip.open(tmp_path / "lines.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, records)))
    data.to_parquet(str(tmp_path / "p" / "part.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "splits"))
    sources = ["lines.txt", "lines.jsonl.gz", "p", "saved", "splits/train"]
    sets = [
        pack("text", str(tmp_path / source), tmp_path / f"out{number}", {**CONFIG, "document": "line"})
        for number, source in enumerate(sources)
    ]
    assert len({tuple(dataset.digest for dataset in both) for both in sets}) == 1
    with pytest.raises(UserError, match=r"several splits; name one: .*splits/train, .*splits/test"):
        pack("text", str(tmp_path / "splits"), tmp_path / "out", CONFIG)
    for source in sources[1:]:
        with pytest.raises(UserError, match=r"no 'body' among .*text.*; choose with field=NAME"):
            pack("text", str(tmp_path / source), tmp_path / "out", {**CONFIG, "field": "body"})


def test_records_without_text_are_left_out_and_counted(tmp_path):
    lines = [json.dumps({"body": sentence(number)}) for number in range(20)]
    lines += ["no json", '{"body": 3}', '{"other": "x"}', '{"body": "  "}', "[1]", ""]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    [train] = pack("text", str(tmp_path / "a.jsonl"), tmp_path / "out", {**CONFIG, "field": "body", "val_fraction": 0})
    assert train.manifest.notes == ("4 documents that are not UTF-8 or hold no text were left out",)
    tokenizer = Tokenizer.from_file(f"{train.path}/tokenizer.json")
    assert documents_in(train, tokenizer, train.facts()["special_tokens"]) == [sentence(number) for number in range(20)]


def test_a_hub_out_of_reach_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"hub:nobody/nothing cannot be had \(HF_HUB_OFFLINE is set\).*save_to_disk"
    ) as error:
        pack("text", "hub:nobody/nothing", tmp_path / "out", CONFIG)
    assert "\n" not in str(error.value)


def saved_tokenizer(folder, tokens, **settings):
    """A folder as transformers leaves it: a vocabulary of whole words and of `tokens`, all special."""
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*tokens, *WORDS.split()])}, tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(tokens)
    tokenizer.enable_truncation(4)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize(
    ("tokens", "settings", "roles"),
    [
        (["<unk>", "<s>", "<pad>", "</s>", "<mask>"], {}, {"unk": 0, "cls": 1, "pad": 2, "sep": 3, "mask": 4}),
        (["<pad>", "</s>", "<extra_id_0>"], {}, {"pad": 0, "cls": 1, "sep": 1, "sentinel:0": 2}),
        (["!", "[end]"], {"pad_token": "!", "eos_token": {"content": "[end]"}}, {"pad": 0, "cls": 1, "sep": 1}),
        (["<pad>", "</s>", "de_DE", "en_XX"], {}, {"pad": 0, "cls": 1, "sep": 1, "lang:de_DE": 2}),
    ],
)  # fmt: skip
def test_a_tokenizer_from_elsewhere_is_read_with_its_roles(books, tmp_path, tokens, settings, roles):
    config = {**CONFIG, "val_fraction": 0, "tokenizer": saved_tokenizer(tmp_path / "t", tokens, **settings)}
    if "lang:de_DE" in roles:
        config["language"] = "de_DE"
    [train] = pack("text", str(books[0]), tmp_path / "out", config)
    assert train.manifest.facts.special_tokens == roles
    words = sum(len(document.split()) for document in books[1])
    assert train.manifest.facts.tokens == words + len(books[1]) + train.num_samples  # nothing truncated


def test_a_tokenizer_without_an_end_or_padding_is_refused(books, tmp_path):
    path = saved_tokenizer(tmp_path / "t", ["<unk>", "<s>"])
    with pytest.raises(UserError, match="no token for pad and sep") as error:
        pack("text", str(books[0]), tmp_path / "out", {**CONFIG, "tokenizer": path})
    assert "\n" not in str(error.value)


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
