"""The HTML report: whole, self-contained, and deaf to what tokens and explanations would like it to run."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import write_run

from autointerp.errors import ConfigError
from autointerp.report import RunFolder, write_report
from autointerp.report.where import sort


class Page(HTMLParser):
    """Elements, attributes and text as a browser would find them."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = write_report(write_run(tmp_path_factory.mktemp("runs") / "reported"))
    assert path.name == "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_every_element_is_closed_and_every_feature_has_a_row(page: Page):
    assert page.open == []
    rows = [a["id"] for tag, a in page.elements if tag == "tr" and "id" in a]
    assert rows == [f"f{3 + 7 * i}" for i in range(12)]


def test_nothing_is_fetched_and_only_the_named_script_may_run(page: Page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset"):
            assert re.match(r"^(#f\d+|data:,)$", attributes.get(name) or "#f0"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)


def test_hostile_text_is_only_text(page: Page):
    text = "".join(page.text)
    assert "<script>alert('x')</script> & \"quotes\" — names⏎of" in text
    assert "</template>" in text
    assert "synthetic <run>" in text
    assert {tag for tag, _ in page.elements} >= {"template", "b"}
    assert sum(tag == "script" for tag, _ in page.elements) == 1


def test_the_head_says_what_was_run_and_the_notes_how_far_to_trust_it(page: Page):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for part in (
        "stories15m",
        "blocks.3.hook_resid_post",
        "detection (judge), simulation (tiny)",
        "0123456789ab with uncommitted changes",
        "detection: 24 of 180 examples (13.3%) could not be scored",
        "on average .50 of the scored examples are positive",
        "told the wrong explanation",
        "paired difference",
        "the judge gave no readable answer to any example",
        "at most 4 windows",
    ):
        assert part in text


def test_the_head_names_no_model_for_a_scorer_that_asks_none_though_the_run_sent_no_request(tmp_path: Path):
    """All stages of a run may have been done before: it has no requests then."""
    run = write_run(tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("{name: simulation}]", "{name: simulation}, {name: lexical}]"))
    usage = pq.read_table(run / "usage.parquet")
    pq.write_table(usage.slice(0, 0), run / "usage.parquet")
    assert "detection (judge), simulation (tiny), lexical<" in write_report(run).read_text()


def test_a_folder_where_a_file_belongs_is_told_and_a_new_folder_is_made(tmp_path: Path):
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a folder: name a file"):
        write_report(run, tmp_path)
    assert write_report(run, str(tmp_path / "new" / "page.html")).is_file()


def test_a_page_of_many_features_stays_small_and_says_what_it_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path / "many", features=60, windows=2)
    monkeypatch.setattr("autointerp.report.html.PAGES", 50)
    monkeypatch.setattr("autointerp.report.html._MOST_TOKENS", 6_000)
    text = write_report(run, tmp_path / "page.html").read_text()
    assert "at most 1 windows" in text
    assert (
        "50 of 60 features are on this page: 20 with the highest detection, 15 with the lowest detection, and 15"
        in text
    )
    assert "10 are left out" in text
    assert text.count("<template id=") <= 50
    ranked = sort(RunFolder(run).features, "detection")["feature"].to_pylist()
    shown = [int(feature) for feature in re.findall(r'<tr id="f(\d+)"', text)]
    assert shown[:20] == ranked[:20]
    assert set(ranked[41:56]) <= set(shown), "the worst of the 56 that have a value"
    assert "60 features" in text


def test_a_run_of_features_alone_has_a_report(tmp_path: Path):
    row = {"feature": 1, "firings": 5, "explanation": "x", "composite": None, "status": "ok", "failure": None}
    row |= {"explainer": "default", "frequency": 0.1, "max_activation": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "features.parquet")
    assert "No control was run" in write_report(tmp_path).read_text()


def test_a_full_disk_leaves_the_old_report_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path / "full", features=5, windows=1)
    before = write_report(run).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert [p.name for p in run.glob(".*")] == []
