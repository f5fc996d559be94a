"""The report: whole, escaped, at peace with runs that are young, alive or odd, and quiet in a real browser."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.base import UserError
from evals.report import write_report
from evals.report.charts import Chart, Line, Mark, draw, running_median
from evals.report.closeup import closeup, pick_queries
from evals.report.provenance import config_text
from evals.report.record import RunRecord
from evals.report.ticks import compact, log_ticks, nice_ticks
from evals.report.validation import Features
from evals.report.verdict import verdict
from pretrain.monitors import PATIENCE
from pretrain.run.records import LineWriter

_SPEC = importlib.util.spec_from_file_location("report_fixture", Path(__file__).with_name("report_fixture.py"))
assert _SPEC is not None and _SPEC.loader is not None
fixture = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixture)

EVIL = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>\n{{ 7*7 }} \u202eüñ☃ & \\"
WRONG_VALUES = ("high", None, True, [1], {"a": 1}, float("nan"), float("inf"), 1e308, -(10**400), -5)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags of a page; complains about any that is not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_is_closed(page: Page) -> None:
    """Nothing runs, nothing is loaded, and the policy says so."""
    assert {"script", "iframe", "object", "embed", "link", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))
    policy = next(tag["content"] for tag in page.named("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)
    assert style is not None and policy is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;") and f"style-src 'sha256-{digest}'" in policy
    assert "url(" not in style[1] and "@import" not in style[1]


def test_a_finished_run_is_told_in_full(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path)
    path = write_report([run], None)
    page = Page(path)
    assert path == run / "report.html" and path.stat().st_size < 1_000_000
    assert_is_closed(page)
    for words in (
        "Finished and well",
        "did all its 600 steps (153,600 samples, 38.4 epochs), with a starvation alarm at step 120 that has passed",
        "1 unreadable sample was replaced",
        "4.7 points above raw input and 4.4 points above random init",
        "Effective rank",
        "60 logged steps had to be done again",
        "its process died without a word",
        "linear_probe/1",
        "top\u20111, 10 labels a class",
        "79.8 ± 0.6 %",
        "thalweg pretrain",
        "5c508e489622bbc1a5227b5e62ea4c8e17661c9e",
        "global_batch: 256",
    ):
        assert words in page.words, words
    assert all(tag["alt"] for tag in page.named("img")) and len(page.named("img")) == 3
    assert all(tag.get("aria-label") or tag.get("aria-hidden") for tag in page.named("svg") if tag.get("x") is None)


def test_the_page_is_a_function_of_the_run(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path)
    assert (
        write_report([run], tmp_path / "a.html").read_bytes() == write_report([run], tmp_path / "b.html").read_bytes()
    )


def test_two_runs_share_their_curves_and_their_best_number_is_marked(tmp_path: Path) -> None:
    runs = [fixture.write_run(tmp_path), fixture.write_run(tmp_path, "simclr", "info_nce", seed=1, finished=False)]
    page = Page(write_report(runs, tmp_path / "both.html"))
    assert_is_closed(page)
    assert "Stopped." in page.words and "saved and ready to be started again" in page.words
    assert page.words.count("Gradient norm") == 1
    labels = [tag["aria-label"] or "" for tag in page.named("svg") if "aria-label" in tag]
    assert any("mae_mnist training" in label and "simclr validation" in label for label in labels)
    best = re.findall(r'<td class="n best">([^<]*)</td>', page.html)
    assert "91.4 ± 0.6 %" in best and "79.8 ± 0.6 %" not in best


def test_a_young_run_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report([fixture.write_young_run(tmp_path)], None))
    assert_is_closed(page)
    assert "Not begun" in page.words and "has not logged a step yet" in page.words
    assert "No eval has been run yet" in page.words


def test_half_written_and_damaged_files_are_read_around(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path, finished=False)
    for name in ("metrics.jsonl", "events.jsonl", "ledger.jsonl", "quarantine/rank-0.jsonl"):
        with (run / name).open("ab") as file:
            file.write(b'{"attempt": 2, "step": 440, "loss": 0.2')
    (run / "evals" / "step-00000400" / "knn-0f3a9c2b71d4e5f6.json").write_text('{"name": "knn", "metr')
    (run / "evals" / "step-00000400" / "list-0.json").write_text("[1]")
    (run / "sketches" / "step-00000400" / "reconstructions.png").write_bytes(b"\x89PNG half")
    (run / "config.yaml").write_text("name: [unclosed")
    page = Page(write_report([run], None))
    assert_is_closed(page)
    assert "step 430 of 600" in page.words


def test_lines_that_lie_about_their_types_are_read_around(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path)
    with LineWriter(run / "metrics.jsonl", attempt=2) as lines:
        for value in WRONG_VALUES:
            lines.write({"step": 600, "loss": value})
    with LineWriter(run / "events.jsonl", attempt="two") as events:
        events.write({"kind": ["a"], "step": {}, "time": "noon", "words": 3})
    assert_is_closed(Page(write_report([run], None)))


@pytest.mark.parametrize("name", ["run.json", "attempts/1.json", "metrics.jsonl", "ledger.jsonl"])
def test_a_run_of_nonsense_is_answered_with_a_page_or_with_one_line(tmp_path: Path, name: str) -> None:
    run = fixture.write_run(tmp_path)
    whole = (run / name).read_text()
    for value in WRONG_VALUES:
        step = json.dumps({"step": value, "attempt": value, "position": value, "began_at_step": value, "schema": 1})
        (run / name).write_text(f"{whole}{step}\n" if name.endswith("l") else step)
        try:
            write_report([run], None)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_lost_loss_is_no_good_health(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path)
    with LineWriter(run / "metrics.jsonl", attempt=2) as lines:
        lines.write({"step": 600, "loss": float("nan")})
    found = verdict(RunRecord.read(run))
    assert found.mood == "alarm" and "no finite loss" in found.sentence


def test_a_collapse_that_lasts_is_told_apart_from_one_that_has_passed(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path)
    with LineWriter(run / "metrics.jsonl", attempt=2) as lines, LineWriter(run / "events.jsonl", attempt=2) as events:
        for _ in range(PATIENCE):
            lines.write({"step": 600, "loss": 0.3, "effective_rank": 1.2, "embedding_dimensions": 96.0})
        lines.write({"step": 600, "loss": 0.3})
        events.write({"step": 600, "kind": "collapse", "words": "the embeddings use 1.2 of 96 dimensions"})
    found = verdict(RunRecord.read(run))
    assert found.headline == "Finished, not well"
    assert (
        "a collapse alarm at step 600 that lasts and a starvation alarm at step 120 that has passed" in found.sentence
    )


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    evil_info = {
        "name": EVIL,
        "data": {EVIL: EVIL},
        "data_paths": {EVIL: EVIL},
        "facts": {EVIL: EVIL},
        "code": {EVIL: EVIL},
        "environment": {EVIL: EVIL},
        "identity_digest": EVIL,
    }
    run = fixture.write_run(tmp_path, "evil 'run' & <b>", summary=EVIL, info=evil_info)
    with LineWriter(run / "metrics.jsonl", attempt=2) as lines:
        lines.write({"step": 600, EVIL: 1.0})
    with LineWriter(run / "events.jsonl", attempt=EVIL) as events:
        events.write({"step": 600, "kind": EVIL, "words": EVIL})
        events.write({"step": 600, "kind": "collapse", "words": EVIL})
    record = {"began_at_step": 590, "status": "ended", "exit_code": EVIL, "message": EVIL, "host": EVIL, "job": EVIL}
    (run / "attempts" / "3.json").write_text(json.dumps({**record, "world_size": EVIL, "began": EVIL}))
    result = {"name": EVIL, "protocol": EVIL, "metrics": {EVIL: 1.0}, "controls": {"raw": {EVIL: 0.5}}}
    result |= {"config": {EVIL: EVIL, "list": [EVIL]}, "data": {"test": {"name": EVIL, "path": EVIL, "samples": EVIL}}}
    (run / "evals" / "step-00000600" / "evil-0.json").write_text(json.dumps(result))
    shutil.copy(
        run / "sketches" / "step-00000600" / "reconstructions.png",
        run / "sketches" / "step-00000600" / '<img src=x onerror=alert(3)>".png',
    )
    page = Page(write_report([run], None))
    assert_is_closed(page)
    assert page.words.count("<script>alert(1)</script>") > 15
    assert "49" not in page.words.split("alert(2)>")[1][:20]


def test_hostile_class_names_stay_words_in_both_pictures() -> None:
    images, labels = fixture.digits(60)
    features = Features(
        "cls", images.reshape(60, -1).astype(np.float32), labels, (EVIL,) * 10, 7, lambda row: images[row]
    )
    found = closeup(features, EVIL)
    assert found.map is not None and "<script" not in found.map and "<img" not in found.map
    assert found.rows[0][0].label == EVIL


def test_secrets_are_not_copied_into_the_page(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path, info={"environment": {"WANDB_API_KEY": "hunter2", "python": "3.11"}})
    with (run / "config.yaml").open("a") as config:
        config.write("s3:\n  secret_access_key: hunter2\nmirror: https://me:hunter2@example.org/x\nspecial_tokens: 5\n")
    assert "hunter2" not in write_report([run], None).read_text()
    assert "special_tokens: 5" in config_text(RunRecord.read(run))


def test_pictures_are_bounded(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (800, 1500, 3), dtype=np.uint8)
    for name in "abcdefgh":
        Image.fromarray(noise).save(run / "sketches" / "step-00000600" / f"{name}.png", compress_level=0)
    path = write_report([run], None)
    assert path.stat().st_size < 3_000_000
    assert "data:image/jpeg" in path.read_text()


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        write_report([tmp_path], None)
    with pytest.raises(UserError, match="name at least one"):
        write_report([], None)
    run = fixture.write_young_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another place"):
        write_report([run], tmp_path / "file" / "report.html")


def test_an_export_and_its_validation_set_give_neighbours_and_a_map(tmp_path: Path) -> None:
    run = fixture.write_run(tmp_path, data=fixture.write_data(tmp_path / "data"))
    assert "No neighbours and no map: no checkpoint" in Page(write_report([run], None)).words
    fixture.write_export(run)
    page = Page(write_report([run], None))
    assert_is_closed(page)
    assert "60 validation samples, one colour a class: t-SNE of the pooled features at step 600" in page.words
    pictures = [tag for tag in page.named("img") if tag["alt"] in fixture.CLASSES]
    assert len(pictures) == 8 * 9
    query = next(member for member in _members(tmp_path / "data" / "val") if member[1] == pictures[0]["alt"])
    shown = base64.b64decode((pictures[0]["src"] or "").partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), query[0])


def _members(folder: Path) -> list[tuple[np.ndarray, str]]:
    """Images and class names of a packed set in file order, read without our own reader."""
    members = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {name: tar.extractfile(name) for name in tar.getnames()}
            content = {name: file.read() for name, file in files.items() if file is not None}
        for name in (name for name in content if name.endswith(".png")):
            label = int(content[name.removesuffix("png") + "cls"])
            members.append((np.asarray(Image.open(io.BytesIO(content[name]))), fixture.CLASSES[label]))
    return members


def test_a_validation_set_that_is_gone_or_remote_is_said_in_words(tmp_path: Path) -> None:
    for place in ("s3://bucket/set", str(tmp_path / "gone")):
        run = fixture.write_run(tmp_path, f"run {place[:2]}", data=place)
        fixture.write_export(run)
        assert "is not on this machine" in Page(write_report([run], None)).words


def test_neighbours_are_the_nearest_and_never_the_query_itself() -> None:
    images, labels = fixture.digits(200)
    features = Features(
        "pooled", images.reshape(200, -1).astype(np.float32), labels, tuple("0123456789"), 7, lambda row: images[row]
    )
    found = closeup(features, "run")
    unit = features.vectors / np.linalg.norm(features.vectors, axis=1, keepdims=True)
    for query, cells in zip(pick_queries(labels, 8), found.rows, strict=True):
        order = [row for row in np.argsort(-(unit @ unit[query]), kind="stable") if row != query][:8]
        assert [cell.label for cell in cells] == [str(labels[row]) for row in (query, *order)]
        assert [cell.other for cell in cells[1:]] == [bool(labels[row] != labels[query]) for row in order]


def test_queries_show_every_class_before_any_class_twice() -> None:
    assert pick_queries(np.array([1, 1, 0, -1, 2]), 4) == [2, 0, 4, 1]
    assert pick_queries(np.array([-1, -1]), 8) == [0, 1]


def test_the_running_median_leaves_a_spike_behind_and_keeps_the_ends() -> None:
    points = np.column_stack([np.arange(100.0), np.linspace(1, 2, 100)])
    points[50, 1] = 1000.0
    smooth = running_median(points)
    assert smooth[:, 1].max() < 2.01 and smooth[0, 1] == 1.0 and smooth[-1, 1] == 2.0


numbers = st.one_of(st.floats(-1e29, 1e29), st.just(float("nan")))


@settings(deadline=None, max_examples=60)
@given(st.lists(numbers, max_size=400), st.booleans(), st.booleans(), st.booleans())
def test_any_curve_can_be_drawn(values: list[float], log: bool, noisy: bool, from_zero: bool) -> None:
    points = np.column_stack([np.arange(len(values), dtype=float), np.array(values, dtype=float)]).reshape(-1, 2)
    line = Line("line", points, noisy=noisy)
    chart = Chart(
        "Any", [line, line], marks=[Mark(3, "alarm")], log=log, from_zero=from_zero, band=True, levels=[("l", 0.5)]
    )
    drawn = draw(chart)
    assert "nan" not in drawn and "inf" not in drawn


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_inside_and_are_few(low: float, width: float) -> None:
    width = max(width, 1e-6 * abs(low))
    ticks = nice_ticks(low, low + width)
    assert 0 < len(ticks) <= 6
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


@given(st.floats(1e-12, 1e12), st.floats(30, 1e6))
def test_log_ticks_lie_inside_and_are_few(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= low * ratio for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.03125, "0.03125"),
        (1250, "1,250"),
        (12_500, "12.5k"),
        (3.4e6, "3.4M"),
        (1.5e-4, "1.5e\u22124"),
        (-2.5, "\u22122.5"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_the_command_says_where_the_page_is(tmp_path: Path) -> None:
    run = fixture.write_young_run(tmp_path)
    out = tmp_path / "page.html"
    command = [sys.executable, "-m", "launch.cli", "report", str(run), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out) and out.is_file()


MEASURE = """
<iframe id="page" width="390" height="800" src="report.html"></iframe>
<script>
document.getElementById("page").onload = event => {
  const page = event.target.contentDocument.documentElement;
  const styleOf = element => getComputedStyle(element);
  document.title = JSON.stringify({
    width: page.scrollWidth,
    images: [...page.querySelectorAll("img")].map(image => image.naturalWidth),
    font: styleOf(page).fontFamily,
    ink: styleOf(page.querySelector(".line")).stroke,
  });
};
</script>
"""


@pytest.mark.slow
def test_a_real_browser_shows_it_narrow_without_overflow_or_complaint(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    runs = [
        fixture.write_run(tmp_path, "a run with quite_a_long_name"),
        fixture.write_run(tmp_path, "info", "info_nce"),
    ]
    write_report(runs, tmp_path / "report.html")
    (tmp_path / "measure.html").write_text(MEASURE)
    log = tmp_path / "log"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
    ]
    command += [
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
    ]
    with log.open("w") as errors:
        command += ["--dump-dom", f"file://{tmp_path / 'measure.html'}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=120, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stdout
    measured = json.loads(found[1].replace("&quot;", '"'))
    assert measured["width"] <= 390
    assert measured["images"] and all(measured["images"])
    assert "serif" in measured["font"] and measured["ink"] not in ("none", "rgb(0, 0, 0)")
    assert "CONSOLE" not in log.read_text()
