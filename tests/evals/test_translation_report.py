"""Translations in the page: scores beside controls and published ones, sentences escaped, attention inside the file."""

from __future__ import annotations

import json
import re

import pytest

from evals.protocol import Result
from evals.report.attention import CELL, SHADES, attention
from evals.report.page import page
from evals.report.record import RunRecord
from pretrain.run.directory import RunDirectory
from tests.evals.report_fixture import write_run

DETAILS = {
    "direction": "en-de",
    "signatures": {"bleu": "nrefs:1|tok:13a"},
    "by_length": [{"most_words": 5, "sentences": 3, "bleu": 12.34}, {"most_words": None, "sentences": 2, "bleu": 5.0}],
    "samples": [{"source": "<b>dog</b>", "reference": "Hund", "translation": "Katze", "from_scratch": "..."}],
    "alignments": [{"source": ["a", "b", "c"], "target": ["Stra\u00dfe", "<i>"], "weights": [[0.5, 0, 0], [0, 0, 1]]}],
}


def written(tmp_path, details):
    root = write_run(tmp_path)
    path = RunDirectory(root).evals / "step-00000600" / "translation-0123456789abcdef.json"
    result = Result(
        name="translation", protocol="translation/1", run="mae_mnist", step=600, metrics={"bleu": 21.27, "chrf": 40.0},
        controls={"raw": {"bleu": 0.48, "chrf": 13.7}, "random_init": {"bleu": 9.9, "chrf": 20.0}},
        pictures={}, details=details, config={}, data={"test": {"name": "pairs-val"}}, checkpoint="0" * 32, code="0",
        seconds=1, created=0,
    )  # fmt: skip
    path.write_text(json.dumps(result.model_dump()))
    return page([RunRecord.read(root)])


def table(html, label):
    body = html.split(f'aria-label="{label}"')[1].split("</table>")[0]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)]


def test_scores_stand_beside_controls_and_published_ones(tmp_path):
    rows = table(written(tmp_path, DETAILS), "Published translation scores")
    assert rows[1:4] == [["this network", "21.3", "here"], ["raw input", "0.5", "here"], ["random init", "9.9", "here"]]
    assert ["ByteNet", "23.75", "WMT14 En-De: other data, other size"] in rows


def test_sentences_and_lengths_are_shown_and_escaped(tmp_path):
    html = written(tmp_path, DETAILS)
    assert table(html, "Sample translations")[1] == ["&lt;b&gt;dog&lt;/b&gt;", "Hund", "Katze", "..."]
    assert [row[1:] for row in table(html, "BLEU by length")] == [["1 to 5", "6 and more"], ["3", "2"], ["12.3", "5.0"]]
    assert "nrefs:1|tok:13a" in html


def test_alignments_are_drawn_in_the_page_with_letters_of_any_language(tmp_path):
    html = written(tmp_path, DETAILS)
    figure = html.split('aria-label="Attention of run')[1].split("</svg>")[0]
    assert re.findall(r"<text[^>]*>(.*?)</text>", figure) == ["a", "b", "c", "Stra\u00dfe", "&lt;i&gt;"]


def test_an_alignment_is_dark_where_the_network_looked():
    [half, whole] = re.findall(r'opacity="([\d.]+)" d="M(\d+) (\d+)h\d+', attention(DETAILS["alignments"][0], "x"))
    assert [float(half[0]), float(whole[0])] == [0.5, 1.0]  # cells of no weight are not drawn
    assert (int(whole[1]) - int(half[1]), int(whole[2]) - int(half[2])) == (2 * CELL, CELL)
    assert SHADES % 2 == 0


@pytest.mark.parametrize(
    "found",
    [
        None,
        {"source": ["a"], "target": ["b"]},
        {"source": ["a"], "target": ["b"], "weights": [[1.0, 2.0]]},
        {"source": ["a", "b"], "target": ["b"], "weights": [[1.0], [2.0]]},
        {"source": ["a"], "target": ["b"], "weights": [[float("nan")]]},
        {"source": ["a"], "target": ["b"], "weights": [["x"]]},
        {"source": [], "target": [], "weights": []},
        {"source": ["a"] * 99, "target": ["b"], "weights": [[1.0] * 99]},
    ],
)
def test_what_is_no_alignment_is_not_drawn(found):
    assert attention(found, "x") is None


@pytest.mark.parametrize(
    "details", [{}, {"samples": "x", "by_length": [3], "signatures": [1], "direction": None, "alignments": [{}]}]
)
def test_details_of_a_stranger_do_not_break_the_page(tmp_path, details):
    html = written(tmp_path, details)
    assert table(html, "Published translation scores")[1][1] == "21.3"
    assert 'aria-label="Sample translations"' not in html
    assert 'aria-label="Attention' not in html
