"""The report and the viewer in a real Chromium, wide and narrow, light and dark: what a person does in them."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from planted import HOOK, plant
from synthetic import write_hostile, write_run

from autointerp.commands.view import listening, runs_beside
from autointerp.report import write_report
from autointerp.report.labels import read_labels

uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

SIZES = [(1280, "light"), (390, "dark"), (1280, "dark"), (390, "light")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 features; 10 is a sum of 17 and 24."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "beside", features=30)
    run = write_run(folder / "seen", features=300)
    rows = pq.read_table(run / "composites.parquet").to_pylist()
    for row in rows:
        if row["feature"] == 10:
            row |= {"constituents": [17, 24], "coefficients": [0.8, 0.6]}
    pq.write_table(pa.Table.from_pylist(rows), run / "composites.parquet")
    return run


@contextmanager
def served(run: Path) -> Iterator[str]:
    from autointerp.report.viewer.app import app_of

    with listening(0) as at:
        server = uvicorn.Server(uvicorn.Config(app_of(run, "token", runs_beside(run, [])), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{at.getsockname()[1]}/token"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def home(run: Path) -> Iterator[str]:
    with served(run) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page of a browser, with what it complained about and where it asked."""

    def __init__(self, browser: Any, width: int, scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))

    def close(self, home: str) -> None:
        assert self.complaints == []
        assert [url for url in self.asked if not url.startswith((f"{home}/", "data:"))] == []
        self.context.close()


def named(size: tuple[int, str]) -> str:
    return f"{size[0]}-{size[1]}"


@pytest.fixture(params=SIZES[:2], ids=named)
def opened(request: pytest.FixtureRequest, chromium: Any, home: str) -> Iterator[Any]:
    watched = Watched(chromium, *request.param)
    yield watched.page
    watched.close(home)


def features_in_sight(page: Any) -> list[int]:
    cells = page.locator("#rows tbody tr td:first-child a")
    order = cells.evaluate_all(
        "all => all.map(a => [a.closest('tr').getBoundingClientRect().top, Number(a.textContent)])"
    )
    return [number for _, number in sorted(order)]


def settled(page: Any, count: str) -> None:
    page.wait_for_function("text => document.getElementById('count')?.textContent.startsWith(text)", arg=count)
    page.wait_for_function("() => document.getElementById('rows')?.getAttribute('aria-busy') === null")


def on_feature(page: Any, number: int) -> None:
    playwright.expect(page.get_by_role("heading", level=1)).to_contain_text(f"Feature {number} ")
    page.wait_for_load_state("load")  # what listens to keys is there


def fits(page: Any) -> None:
    """Nothing makes the page itself scroll sideways."""
    page.wait_for_function("() => !document.querySelector('[aria-busy]')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("opened", SIZES, ids=named, indirect=True)
def test_a_walk_through_the_viewer(opened: Any, home: str, run: Path):
    page, expect = opened, playwright.expect
    page.goto(f"{home}/")
    expect(page.locator("#scores")).to_be_visible()
    expect(page.get_by_text("Means over features beside")).to_be_visible()
    fits(page)

    page.get_by_role("link", name="Features").click()
    settled(page, "300 features")
    assert features_in_sight(page)[:3] == [3, 10, 17]
    fits(page)

    page.select_option("select[name=sort]", "firings")
    page.wait_for_url("**sort=firings**")
    settled(page, "300 features")
    assert features_in_sight(page)[0] == 3 + 7 * 299
    page.fill("input[name=where]", "detection > 0.9 and firings < 1000")
    page.wait_for_url("**where=detection**")
    settled(page, "30 of 300")
    page.fill("input[name=where]", "detecton > 0.9")
    expect(page.locator("#wrong")).to_contain_text("did you mean")
    page.fill("input[name=where]", "firings < 1000")
    settled(page, "30 of 300")
    expect(page.locator("#wrong")).to_be_hidden()
    page.fill("#search", "topic 1,")
    settled(page, "1 of 300")
    assert features_in_sight(page) == [10]

    page.locator("#rows tbody tr a").first.click()
    on_feature(page, 10)
    expect(page.locator("#judgements ~ [data-part] summary").first).to_contain_text("20 judged")
    page.locator("#judgements ~ [data-part] summary").first.click()
    expect(page.locator(".judgements li").first).to_be_visible()
    fits(page)
    page.locator(".tree a", has_text="17").click()  # a constituent
    on_feature(page, 17)
    page.go_back()
    on_feature(page, 10)
    page.go_back()
    settled(page, "1 of 300")
    assert page.input_value("#search") == "topic 1,"
    assert page.input_value("input[name=where]") == "firings < 1000"

    page.get_by_role("link", name="Compare").click()
    page.wait_for_url("**/compare")
    page.wait_for_load_state("load")
    page.select_option("select[name=with]", "beside")
    expect(page.get_by_text("Scores side by side")).to_be_visible()
    expect(page.get_by_text("seen − beside").first).to_be_visible()
    fits(page)


def test_a_table_of_any_length_scrolls_and_comes_back_to_its_place(opened: Any, home: str):
    page = opened
    page.goto(f"{home}/features")
    settled(page, "300 features")
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    page.wait_for_function("() => history.state && history.state.y > 1000")
    page.wait_for_function("() => document.querySelectorAll('#rows tbody tr').length > 8")
    here = features_in_sight(page)
    assert len(here) < 60  # of 300: the others are not in the page
    assert here == sorted(here)
    link = page.locator("#rows tbody tr a").nth(len(here) // 2)
    link.click()
    playwright.expect(page.get_by_role("heading", level=1)).to_contain_text("Feature")
    page.go_back()
    settled(page, "300 features")
    page.wait_for_function("() => scrollY > 1000")
    assert set(features_in_sight(page)) & set(here)


def test_keys_do_what_the_help_says(opened: Any, home: str):
    page, expect = opened, playwright.expect
    page.goto(f"{home}/", wait_until="load")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("f")
    settled(page, "300 features")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#rows tbody tr a:focus")).to_have_text("10")
    page.keyboard.press("Enter")
    on_feature(page, 10)
    page.keyboard.press("n")
    on_feature(page, 17)
    page.keyboard.press("p")
    on_feature(page, 10)
    page.keyboard.press("u")
    settled(page, "300 features")


def test_a_label_is_written_and_stays(opened: Any, home: str, run: Path, request: pytest.FixtureRequest):
    page, label = opened, f"a fox, {request.node.name} <b>"
    page.goto(f"{home}/feature/31")
    page.keyboard.press("l")
    page.keyboard.press("Control+a")
    page.keyboard.type(label)
    page.get_by_role("button", name="Save").click()
    playwright.expect(page.locator("#label output")).to_contain_text("saved 2")
    assert read_labels(run)[31].label == label
    page.reload()
    assert page.input_value("#label input") == label
    page.goto(f"{home}/features?where=label+is+not+None")
    settled(page, "1 of 300")
    playwright.expect(page.locator(".by-hand")).to_have_text(label)


def test_a_table_that_grows_grows_in_the_open_page(chromium: Any, tmp_path: Path):
    run = write_run(tmp_path / "grows")
    standing = {"stage": "score", "number": 2, "stages_total": 3, "started": "2026-01-01", "pid": 1, "updated": 4e9}
    standing |= {"host": "elsewhere", "tables": 1.0}
    (run / "progress.json").write_text(json.dumps(standing))
    table = pq.read_table(run / "features.parquet")
    pq.write_table(table.slice(0, 5), run / "features.parquet")
    with served(run) as home:
        watched = Watched(chromium, 1280, "light")
        with watched.page.expect_response("**/standing"):
            watched.page.goto(f"{home}/features")
        settled(watched.page, "5 features")
        playwright.expect(watched.page.locator("#live")).to_contain_text("stage 2 of 3")
        pq.write_table(table, run / "features.parquet")
        settled(watched.page, "12 features")
        watched.close(home)


def test_columns_that_have_no_room_leave_and_come_back(chromium: Any, home: str):
    watched = Watched(chromium, 900, "light")
    page = watched.page
    page.goto(f"{home}/features")
    settled(page, "300 features")
    fits(page)
    assert page.locator("#rows tbody tr").first.locator("td.control:visible").count() == 0
    page.set_viewport_size({"width": 1280, "height": 844})
    playwright.expect(page.locator("#rows tbody tr").first.locator("td.control:visible")).to_have_count(2)
    watched.close(home)


def test_hostile_tokens_do_nothing(chromium: Any, tmp_path: Path):
    run = write_hostile(tmp_path / "run")
    with served(run) as home:
        watched = Watched(chromium, 1280, "light")
        page = watched.page
        page.on("dialog", lambda dialog: watched.complaints.append(dialog.message))
        for path in ("/", "/feature/10?windows=200", "/features", "/compare"):
            page.goto(f"{home}{path}")
            fits(page)
            assert page.locator("main img, main script, main iframe, main [onload]").count() == 0
        watched.close(home)
    watched = Watched(chromium, 1280, "light")
    watched.page.on("dialog", lambda dialog: watched.complaints.append(dialog.message))
    watched.page.goto(write_report(run).as_uri())
    watched.page.locator("#f10 td.wide").click()
    playwright.expect(watched.page.locator("#f10 + tr .detail")).to_be_visible()
    assert watched.complaints == []


def test_all_that_acts_has_a_name_for_a_screen_reader(opened: Any, home: str):
    page = opened
    for path in ("/", "/features", "/feature/10", "/compare", "/try"):
        page.goto(f"{home}{path}")
        fits(page)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll(ACTS)]
            .filter(e => !e.closest("[aria-hidden=true]") && e.offsetParent !== null)
            .filter(e => !(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim() || e.title))
            .map(e => e.outerHTML)""".replace("ACTS", repr("a, button, input, select, textarea, summary, svg"))
        )
        assert nameless == []
        assert page.locator("h1").count() == 1
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
        assert len(set(ids)) == len(ids)


@pytest.mark.weights
def test_a_text_is_tried_on_the_real_subject(chromium: Any, stories15m: Path, tmp_path: Path):
    words = plant(stories15m, tmp_path / "sae")
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {
        "name": "tried",
        "subject": {"model": str(stories15m), "hook": HOOK},
        "sae": {"load": str(tmp_path / "sae")},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with served(run) as home:
        watched = Watched(chromium, 1280, "light")
        page, expect = watched.page, playwright.expect
        page.goto(f"{home}/feature/10")
        late: list[Any] = []
        page.route("**/try.js", lambda route: late.append(route), times=1)
        page.get_by_role("link", name="Try a text on this feature").click(no_wait_after=True)
        page.fill("#text", f"So {words[3]} and then {words[10]} again {words[1]}")
        late[0].continue_()
        page.wait_for_load_state()
        expect(page.get_by_role("button", name="Try", exact=True)).to_be_enabled()  # what was typed too early waits
        assert page.locator("#tried").inner_text() == ""
        page.get_by_role("button", name="Try", exact=True).click()
        expect(page.locator(".fired a").first).to_have_text("10", timeout=60_000)  # the one that was asked about
        shown = page.locator("#tried > .fired")
        assert re.findall(r"\d+", " ".join(shown.locator("a").all_inner_texts())) == ["10", "3"]
        assert [text.strip() for text in shown.locator("b").all_inner_texts()] == [words[10], words[3]]
        page.locator("#tried details summary").click()
        assert words[1] in page.locator("#tried details b").first.inner_text()
        page.locator(".strip button", has_text=words[3]).click()
        expect(shown.locator("li:visible a")).to_have_text(["3"])
        expect(page).to_have_url(re.compile(r"/try\?feature=10&text=So\+"))  # it can be shared
        page.reload()
        expect(page.locator(".fired a").first).to_have_text("10", timeout=60_000)
        watched.close(home)


@pytest.mark.parametrize("size", SIZES, ids=named)
def test_the_report_sorts_filters_searches_and_opens(chromium: Any, tmp_path: Path, size: tuple[int, str]):
    file = write_report(write_run(tmp_path / "run", features=60), tmp_path / "report.html")
    watched = Watched(chromium, *size)
    page, expect = watched.page, playwright.expect
    page.goto(file.as_uri())
    visible = "#table tbody tr[id]:visible"
    assert page.locator(visible).count() == 60
    page.get_by_role("button", name="firings").click()
    assert page.locator(visible).first.get_attribute("id") == f"f{3 + 7 * 59}"
    page.fill("#search", "topic 1,")
    expect(page.locator("#count")).to_have_text("1 of 60 features")
    page.fill("#search", "sat cat")  # stands in contexts alone
    assert 0 < page.locator(visible).count() < 60
    page.fill("#search", "")
    page.select_option("#status", "dead")
    assert page.locator(visible).count() == 1
    page.select_option("#status", "")
    page.locator("#f10 td.wide").click()
    page.locator(".tree a", has_text="3").click()
    expect(page.locator("#f3 + tr .detail")).to_be_visible()
    page.go_back()
    expect(page.locator("#f10")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert watched.complaints == []
    assert watched.asked == {file.as_uri()} | {
        url for url in watched.asked if url.startswith(("data:", f"{file.as_uri()}#"))
    }
