"""Search and scores are exact: against sacrebleu's own command line, plain greedy search, and an exhaustive one."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from evals.translation.decoding import Search, padded, translate
from evals.translation.scoring import by_length, scores, signatures
from evals.workplace import ranks

PAD, START, END = 0, 1, 2
REFERENCES = ["Ein Hund läuft schnell über die Wiese.", "Zwei Männer sitzen auf einer Bank.", "Eine Frau singt."]
TRANSLATIONS = ["Ein Hund läuft über die Wiese.", "Zwei Männer stehen auf einer Bank.", "Die Frau singt ein Lied."]


@pytest.fixture(scope="module")
def world():
    with ranks() as (world, _):
        yield world


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=7, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=16, init_std=0.6,
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END, forced_eos_token_id=None,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def sentences():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 7, size=length) for length in (3, 7, 2, 5, 6, 3, 4, 8, 2)]


def search(**changes):
    return Search(**{"start": START, "end": END, "pad": PAD, "max_tokens": 6, "beams": 1, "length_penalty": 1.0,
                     "at_once": 4, **changes})  # fmt: skip


def test_scores_are_those_of_sacrebleus_command_line(tmp_path):
    (tmp_path / "references").write_text("\n".join(REFERENCES) + "\n")
    (tmp_path / "translations").write_text("\n".join(TRANSLATIONS) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "translations", "-m", "bleu", "chrf",
               "--chrf-word-order", "2", "--width", "14"]  # fmt: skip
    told = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    ours = scores(TRANSLATIONS, REFERENCES, "13a")
    assert [one["score"] for one in told] == pytest.approx([ours["bleu"], ours["chrf"]], abs=1e-10)
    signed = signatures("13a")
    assert [one["signature"] for one in told] == [signed["bleu"], signed["chrf"]]


def test_groups_by_length_hold_every_sentence_once():
    rows = by_length(REFERENCES, TRANSLATIONS, REFERENCES, "13a")
    assert [(row["most_words"], row["sentences"]) for row in rows] == [(5, 1), (10, 2)]
    assert rows[0]["bleu"] == scores(TRANSLATIONS[2:], REFERENCES[2:], "13a")["bleu"]


@torch.no_grad()
def test_one_beam_is_greedy_search(network, sentences, world):
    for sentence, found in zip(sentences, translate(network, sentences, search(), world), strict=True):
        written = []
        while len(written) < 6:
            given = torch.tensor([[START, *written]])
            logits = network(input_ids=torch.from_numpy(sentence)[None], decoder_input_ids=given).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == END:
                written.pop()
                break
        assert found.tolist() == written


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beams_find_what_an_exhaustive_search_finds(network, sentences, world, length_penalty):
    asked = search(max_tokens=3, beams=50, length_penalty=length_penalty)
    for sentence, found in zip(sentences[:3], translate(network, sentences[:3], asked, world), strict=True):
        best = max(every_translation(network, sentence, length_penalty))
        assert found.tolist() == [token for token in best[1] if token != END]


def every_translation(network, sentence, length_penalty):
    """(score, tokens) of whatever can be written in three tokens, cut ones included."""
    words = [token for token in range(7) if token != END]
    for length in (1, 2, 3):
        lasts = [END] if length < 3 else range(7)
        written = torch.tensor(
            [[*body, last] for body in itertools.product(words, repeat=length - 1) for last in lasts]
        )
        given = torch.cat([torch.full((len(written), 1), START), written[:, :-1]], dim=1)
        read = torch.from_numpy(sentence).expand(len(written), -1)
        logits = network(input_ids=read, decoder_input_ids=given).logits.log_softmax(-1)
        sums = logits.gather(2, written[..., None]).sum(dim=(1, 2)) / length**length_penalty
        yield from zip(sums.tolist(), written.tolist(), strict=True)


def test_what_stands_beside_a_sentence_does_not_matter(network, sentences, world):
    asked = search(beams=3)
    together = translate(network, sentences, asked, world)
    alone = [translate(network, [sentence], asked, world)[0] for sentence in sentences]
    assert [one.tolist() for one in together] == [one.tolist() for one in alone]


def test_padding_stands_behind_the_sentences():
    tokens, seen = padded([np.array([5, 6]), np.array([7])], PAD, torch.device("cpu"))
    assert tokens.tolist() == [[5, 6], [7, PAD]]
    assert seen.tolist() == [[1, 1], [1, 0]]
