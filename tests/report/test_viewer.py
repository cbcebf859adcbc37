"""The viewer's pages and data: what a query chooses, what a page shows, what a person writes, who may ask."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import write_hostile, write_run

pytest.importorskip("starlette")
from starlette.testclient import TestClient

import autointerp as ai
from autointerp.commands.view import listening, runs_beside, view
from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.exports import Wanted, writer
from autointerp.report.folder import RunFolder
from autointerp.report.labels import FILE, LONGEST, read_labels, write_label
from autointerp.report.tables import print_table
from autointerp.report.text import visible
from autointerp.report.viewer.app import app_of
from autointerp.report.viewer.guard import new_token
from autointerp.report.viewer.rows import ContextSearch, Query, Viewed

TOKEN = "a-token"
HOME = "http://127.0.0.1:8123"
ORIGIN = {"origin": HOME, "content-type": "application/json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "beside")
    return write_run(folder / "seen", features=60)


@pytest.fixture(scope="module")
def client(run: Path) -> TestClient:
    return client_of(run)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A run that a test may write into."""
    return write_run(tmp_path / "own")


def client_of(run: Path) -> TestClient:
    return TestClient(app_of(run, TOKEN, runs_beside(run, [])), base_url=HOME, follow_redirects=False)


def page(client: TestClient, path: str, **parameters: Any) -> str:
    answer = client.get(f"/{TOKEN}{path}", params=parameters, headers={"accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return answer.text


def rows(client: TestClient, **parameters: Any) -> dict[str, Any]:
    answer = client.get(f"/{TOKEN}/rows", params={"count": 200, **parameters})
    return answer.json()


def numbers(answer: dict[str, Any]) -> list[int]:
    return [int(number) for number in re.findall(r'/feature/(\d+)[?"]', answer["rows"])]


# --- who may ask ------------------------------------------------------------------------------


def test_without_the_token_nothing_is_told(client: TestClient, run: Path):
    for path in ("/", "/features", "/another", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/", "//", "/static/viewer.js"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert TOKEN not in answer.text
        assert run.name not in answer.text
    assert client.get(f"/{TOKEN}/").status_code == 200
    assert len({new_token() for _ in range(100)}) == 100
    assert len(new_token()) >= 20


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8123", 200),
        ("localhost:9000", 200),  # a tunnel's other end
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8123", 403),
        ("127.0.0.1@evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
def test_only_names_of_the_loopback_are_served(client: TestClient, host: str, status: int):
    assert client.get(f"/{TOKEN}/standing", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": HOME}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
    ],
)
def test_other_origins_are_refused_but_a_link_may_be_followed(client: TestClient, headers: Any, status: int):
    assert client.get(f"/{TOKEN}/standing", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (ORIGIN, {"label": "x", "comment": ""}, 200),
        ({"content-type": "application/json"}, {"label": "x", "comment": ""}, 403),
        (ORIGIN | {"origin": "http://evil.example"}, {"label": "x", "comment": ""}, 403),
        (ORIGIN | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, {"label": "x", "comment": ""}, 403),
        (ORIGIN | {"content-type": "text/plain"}, {"label": "x", "comment": ""}, 415),
        (ORIGIN | {"content-type": "application/x-www-form-urlencoded"}, {"label": "x", "comment": ""}, 415),
        (ORIGIN, {"label": 3, "comment": ""}, 400),
        (ORIGIN, ["x"], 400),
        (ORIGIN, {"label": "x" * (LONGEST["label"] + 1), "comment": ""}, 400),
        (ORIGIN, {"label": "x", "comment": "y" * 200_000}, 413),
        (ORIGIN, {"label": "\ud800", "comment": ""}, 400),
    ],
)
def test_what_changes_something_is_a_post_of_json_from_here(own: Path, headers: Any, body: Any, status: int):
    answer = client_of(own).post(f"/{TOKEN}/label/3", headers=headers, content=json.dumps(body))
    assert answer.status_code == status
    assert (own / FILE).exists() == (status == 200)


def test_no_get_changes_the_folder_and_no_address_writes_but_labels(own: Path):
    client = client_of(own)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in own.iterdir()}
    paths = ["/", "/features", "/rows", "/feature/3", "/feature?number=3", "/judged/3", "/part/beside", "/part/judged"]
    for path in [
        *paths,
        "/part/cost",
        "/compare",
        "/try",
        "/try?text=a",
        "/standing",
        "/label/3",
        "/nothing",
    ]:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"):
            client.request(method, f"/{TOKEN}{path}")
    assert client.get(f"/{TOKEN}/label/3").status_code == 405
    assert client.post(f"/{TOKEN}/features", headers=ORIGIN, content="{}").status_code == 405
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in own.iterdir()} == before


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/html.py", "/static//etc/passwd",
        "/static/%2fetc%2fpasswd", "/..%2f..%2f", "/static/", "/part/..%2f..%2fconfig.yaml", "/feature/..%2f3",
        "/static/viewer.js%00", "/static/..\\viewer.js", "/../seen/config.yaml", "/judged/../../run.json",
    ],
)  # fmt: skip
def test_no_path_reaches_a_file_that_is_not_the_viewers(client: TestClient, path: str):
    answer = client.get(f"/{TOKEN}{path}")
    assert answer.status_code in (400, 404)
    assert "seed:" not in answer.text


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.text(max_size=30))
def test_no_name_of_a_run_leaves_the_list(client: TestClient, name: str):
    answer = client.get(f"/{TOKEN}/compare", params={"with": name})
    assert answer.status_code == (200 if name in ("", "beside") else 400)


def test_every_answer_forbids_other_hosts_and_scripts_that_are_not_files(client: TestClient):
    for path in (f"/{TOKEN}/", f"/{TOKEN}/standing", f"/{TOKEN}/static/viewer.js", f"/{TOKEN}/none", "/"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert client.get(path).headers["referrer-policy"] == "no-referrer"


def test_the_socket_is_of_the_loopback_and_a_taken_port_is_one_line():
    with listening(0) as at:
        host, port = at.getsockname()
        assert host == "127.0.0.1"
        at.listen()
        with pytest.raises(AutointerpError, match=f"port {port} cannot be had"):
            listening(port)


def test_the_command_prints_an_address_that_answers_and_ends_with_ctrl_c(run: Path):
    command = [sys.executable, "-m", "autointerp", "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", address)
        with urllib.request.urlopen(address) as answer:
            assert "Histogram of detection" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_without_the_extra_the_command_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(AutointerpError, match=r"pip install 'autointerp-sae\[view\]'"):
        view(run, browser=False)


# --- what a query chooses ---------------------------------------------------------------------


def test_rows_are_those_of_the_table_command_in_its_order(client: TestClient, run: Path, capsys: Any):
    for condition, sort in (
        ("detection > 0.8", ""),
        ("status == 'ok'", "-firings"),
        ("", "detection_f1"),
        ("", "-feature"),
    ):
        answer = rows(client, where=condition, sort=sort)
        print_table(run, condition=condition or None, sort_by=sort or None, format="json")
        expected = [row["feature"] for row in json.loads(capsys.readouterr().out)]
        assert numbers(answer) == expected
        assert answer["total"] == len(expected)


def test_a_condition_that_is_none_is_told_and_chooses_nothing(client: TestClient):
    answer = rows(client, where="detecton > 0.8")
    assert "did you mean" in answer["error"]
    assert "rows" not in answer
    assert "not an expression" in rows(client, where="detection >")["error"]
    assert "no column" in rows(client, sort="nothing")["error"]


def test_a_part_of_the_rows_is_a_part_of_the_whole(client: TestClient):
    whole = numbers(rows(client, sort="firings"))
    assert numbers(rows(client, sort="firings", start=20, count=7)) == whole[20:27]
    assert numbers(rows(client, sort="firings", start=10_000)) == []


def test_search_finds_words_of_any_explainer_numbers_and_texts(client: TestClient, run: Path):
    fox = {row["feature"] for row in RunFolder(run).rows("explanations") if "fox" in (row["explanation"] or "")}
    assert set(numbers(rows(client, search="FOX"))) == fox
    assert 38 in numbers(rows(client, search="tokens 5"))  # the other explainer's words
    assert 10 in numbers(rows(client, search="10"))
    contexts = RunFolder(run).rows("contexts")
    with_words = {row["feature"] for row in contexts if "🦊 cat" in "".join(row["tokens"])}
    assert with_words
    assert not numbers(rows(client, search="🦊 cat"))
    answer = rows(client, search="🦊 cat", texts=1)
    assert set(numbers(answer)) == with_words
    assert answer["scanned"] == 1


def test_a_search_of_contexts_goes_on_where_it_was(tmp_path: Path):
    file = tmp_path / "contexts.parquet"
    table = pa.table(
        {"feature": list(range(40)), "tokens": [["a ", "Needle" if i % 4 == 0 else "hay"] for i in range(40)]}
    )
    pq.write_table(table, file, row_group_size=10)
    search, seen = ContextSearch(file, "a needle"), []
    while search.share < 1:
        search.advance(0.0)
        seen.append(len(search.features))
    assert seen == [3, 5, 8, 10]
    assert search.features == set(range(0, 40, 4))


def test_a_search_that_is_not_over_says_so_and_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot, query = Viewed(run).now(), Query(search="cat", texts=True)
    monkeypatch.setattr(ContextSearch, "advance", lambda self, seconds: setattr(self, "share", 0.5))
    assert snapshot.chosen(query).scanned == 0.5
    monkeypatch.undo()
    again = snapshot.chosen(query)
    assert again.scanned == 1
    assert len(again.places)


def test_tables_that_grow_are_read_anew(own: Path):
    client = client_of(own)
    before = rows(client)
    table = pq.read_table(own / "features.parquet")
    pq.write_table(table.slice(0, 5), own / "features.parquet")
    after = rows(client)
    assert (before["total"], after["total"]) == (12, 5)
    assert before["mark"] != after["mark"]


def test_a_run_that_goes_on_says_so_on_every_page(own: Path):
    standing = {"stage": "score/detection/default", "number": 12, "stages_total": 16, "started": "2026-01-01", "pid": 1,
                "host": "elsewhere", "updated": 4e9, "done": 3, "total": 12, "tables": 1.0}  # fmt: skip
    (own / "progress.json").write_text(json.dumps(standing))
    client = client_of(own)
    assert "stage 12 of 16" in client.get(f"/{TOKEN}/standing").json()["line"]
    assert "stage 12 of 16" in page(client, "/features")
    (own / "progress.json").unlink()
    assert client.get(f"/{TOKEN}/standing").json()["line"] is None


# --- pages ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see: elements, text, what would run or be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


PATHS = (
    "/",
    "/features",
    "/feature/3",
    "/feature/10",
    "/judged/10",
    "/compare",
    "/try",
    "/part/beside",
    "/part/judged",
)


@pytest.mark.parametrize("path", PATHS)
def test_pages_fetch_nothing_from_elsewhere_and_run_no_inline_script(client: TestClient, path: str):
    for tag, attributes in Page(page(client, path)).elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes
        for name in ("href", "src", "action", "data-part", "data-to"):
            target = attributes.get(name) or ""
            assert re.match(rf"^($|/{TOKEN}(/|$)|#|\?|data:,$)", target), (tag, target)
        if tag == "script":
            assert attributes["src"] == f"/{TOKEN}/static/viewer.js"


def test_the_overview_has_scores_beside_controls_and_ceilings(client: TestClient):
    text = page(client, "/")
    for part in ("Histogram of detection", "lexical", "control", "by quantile", "corpus", "1m01s"):
        assert part in text
    assert "told the wrong" in page(client, "/part/beside")
    assert "activating, quantile 3" in page(client, "/part/judged")
    assert "prompt tokens" in page(client, "/part/cost")
    assert "token_stats" in page(client, "/", explainer="token_stats")


def test_a_feature_has_all_that_is_known_of_it(own: Path):
    pq.write_table(pa.table({"feature": [10], "highest": [5.0], "counts": [[90, 9, 1, 0]]}), own / "histograms.parquet")
    text = page(client_of(own), "/feature/10", where="detection > 0.5", windows=50)
    for part in ("quantile 3 of 3", "8 of 8", "near misses", "neighbours by decoder cosine", "logits up", "tokens 1"):
        assert part in text
    assert "0 to 1.25: 90 firings" in text
    assert ".80 × " in text
    assert 'rel="next"' in text
    judged = page(client_of(own), "/judged/10")
    assert "other feature: " in judged
    assert judged.count('class="right"') + judged.count('class="wrong"') + judged.count('class="failed"') == 20


def test_next_and_previous_follow_the_list_that_one_came_from(client: TestClient):
    order = numbers(rows(client, sort="-firings", where="detection > 0.7"))
    text = page(client, f"/feature/{order[3]}", sort="-firings", where="detection > 0.7")
    links = {a["rel"]: a["href"] for tag, a in Page(text).elements if tag == "a" and a.get("rel")}
    assert re.search(rf"/feature/{order[2]}\?", links["prev"] or "")
    assert re.search(rf"/feature/{order[4]}\?", links["next"] or "")
    assert "sort=-firings" in (links["up"] or "")


def test_a_feature_that_is_not_there_is_a_page_that_names_the_nearest(client: TestClient):
    answer = client.get(f"/{TOKEN}/feature/11", headers={"accept": "text/html"})
    assert answer.status_code == 404
    assert "nearest: " in answer.text
    assert client.get(f"/{TOKEN}/feature", params={"number": "10"}).headers["location"] == f"/{TOKEN}/feature/10"
    assert client.get(f"/{TOKEN}/feature", params={"number": "x"}).status_code == 400


def test_composites_open_into_trees_that_end(own: Path):
    table = pq.read_table(own / "composites.parquet").to_pylist()
    parts = {10: [17, 24], 17: [10, 31], 24: [38]}
    for row in table:
        row["constituents"] = parts.get(row["feature"], [])
        row["coefficients"] = [0.5] * len(row["constituents"])
    pq.write_table(pa.Table.from_pylist(table), own / "composites.parquet")
    text = page(client_of(own), "/feature/10")
    tree = text.split('<ul class="tree">', 1)[1].split("composite check", 1)[0]
    assert tree.count("<li>") >= 5
    assert tree.index(">17<") < tree.index(">31<")


def test_a_run_is_compared_whatever_its_name(tmp_path: Path) -> None:
    name = "two  blanks & <more>"
    write_run(tmp_path / name)
    client = client_of(write_run(tmp_path / "own"))
    assert '<option value="two  blanks &amp; &lt;more&gt;">' in page(client, "/compare")
    assert "Scores side by side" in page(client, "/compare", **{"with": name})


def test_two_runs_stand_side_by_side(client: TestClient):
    text = page(client, "/compare", **{"with": "beside"})
    assert "seen − beside" in text
    assert "explanation there" in text
    assert text.count('class="chart"') == 4
    assert "control other feature" in page(client, "/compare")
    assert client.get(f"/{TOKEN}/compare", params={"by": "nothing"}).status_code == 400


def test_runs_beside_are_those_of_its_folder_and_those_named(run: Path, own: Path):
    assert runs_beside(run, []) == {"beside": run.parent / "beside"}
    assert runs_beside(run, [own]) == {"own": own, "beside": run.parent / "beside"}
    with pytest.raises(ConfigError, match="named twice"):
        runs_beside(run, [run])


def test_a_text_without_a_subject_is_one_clear_line(own: Path):
    client = client_of(own)

    def tried(text: str) -> tuple[int, str]:
        answer = client.post(f"/{TOKEN}/try", headers=ORIGIN, content=json.dumps({"text": text}))
        return answer.status_code, answer.json()["error"]

    assert tried("  ") == (400, "type a text first")
    assert tried("x" * 5_000)[0] == 400
    (own / "config.yaml").unlink()
    status, message = tried("The cat sat.")
    assert status == 404
    assert "config.yaml" in message


# --- what a person writes ---------------------------------------------------------------------


def test_a_label_is_kept_shown_found_and_exported(own: Path, tmp_path: Path):
    client = client_of(own)
    body = {"label": " foxes  in \n rain", "comment": "mostly <b>foxes</b>"}
    answer = client.post(f"/{TOKEN}/label/10", headers=ORIGIN, content=json.dumps(body))
    assert answer.json()["label"] == "foxes in rain"
    assert "foxes in rain" in page(client, "/feature/10")
    assert "mostly &lt;b&gt;foxes" in page(client, "/feature/10")
    assert numbers(rows(client, search="foxes in")) == [10]
    assert numbers(rows(client, where="label is not None")) == [10]
    assert ai.open_run(own).labels.to_dict("records")[0]["label"] == "foxes in rain"
    wanted = Wanted(source="3-set")
    for name in ("neuronpedia", "circuit-tracer", "hub"):
        writer(name)(RunFolder(own), tmp_path / name, wanted)
    assert json.loads((tmp_path / "circuit-tracer" / "labels.json").read_text())["3_10"] == "foxes in rain"
    assert (tmp_path / "hub" / "data" / FILE).read_bytes() == (own / FILE).read_bytes()


def test_an_empty_label_is_taken_away_and_others_stay(own: Path):
    write_label(own, 10, "a", "")
    write_label(own, 3, "", "b")
    assert list(read_labels(own)) == [3, 10]
    write_label(own, 10, "", "  ")
    assert list(read_labels(own)) == [3]
    assert (
        client_of(own).post(f"/{TOKEN}/label/4", headers=ORIGIN, content='{"label": "x", "comment": ""}').status_code
        == 404
    )  # no such feature
    assert list(read_labels(own)) == [3]


def test_a_damaged_file_of_labels_is_named_with_its_line(own: Path):
    write_label(own, 3, "a", "")
    client = client_of(own)
    with open(own / FILE, "a") as file:
        file.write("{torn\n")
    with pytest.raises(AutointerpError, match="line 2"):
        read_labels(own)
    answer = client.post(f"/{TOKEN}/label/3", headers=ORIGIN, content='{"label": "b", "comment": ""}')
    assert answer.status_code == 404
    assert "line 2" in answer.json()["error"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(label=st.text(max_size=60), comment=st.text(max_size=200))
def test_any_text_comes_back_as_it_was_written(own: Path, label: str, comment: str):
    try:
        made = write_label(own, 3, label, comment)
    except ConfigError:
        assert re.search("[\0\ud800-\udfff]", label + comment)
        return
    assert read_labels(own).get(3, made) == made
    assert made.label == " ".join(label.split())
    assert made.comment == comment.strip()


# --- texts that would like to be more ---------------------------------------------------------


ELEMENTS = """a article b body br button caption circle code details dialog div dd dl dt form g h1 h2 h3 h4 head html i
input kbd label li link main meta nav noscript ol option output p path rect script section select small span summary svg
table tbody td text textarea th thead title tr ul"""


@pytest.fixture(scope="module")
def deceitful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hostile(tmp_path_factory.mktemp("hostile") / "run")


def test_hostile_tokens_are_shown_as_text(deceitful: Path):
    client = client_of(deceitful)
    ours = set(ELEMENTS.split())
    texts = [page(client, path, windows=200) for path in PATHS] + [rows(client)["rows"]]
    for text in texts:
        elements = Page(text).elements
        assert {tag for tag, _ in elements} <= ours
        for _, attributes in elements:
            assert not [name for name in attributes if name.startswith("on")]
            assert not (attributes.get("href") or "").startswith("javascript")
        assert not re.search("[\x00\x1b\x7f\x85\u2028\u202e\u2066\u200f\u061c]", text)
    shown = "".join(
        Page(page(client, "/feature/3", windows=200)).text + Page(page(client, "/feature/10", windows=200)).text
    )
    windows = [row for row in RunFolder(deceitful).rows("contexts", [3, 10]) if row["kind"] != "random"]
    tokens = {token for row in windows for token in row["tokens"]}
    assert len(tokens) > 500
    assert [token for token in tokens if visible(token) not in shown] == []
