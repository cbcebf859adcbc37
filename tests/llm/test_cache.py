from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.errors import AutointerpError
from autointerp.llm.backend import Choose, Complete
from autointerp.llm.cache import RequestCache, canonical, request_key
from autointerp.records import Message

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
texts = st.text()
messages = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), max_size=3)


def shuffled(value: Any) -> Any:
    """The same request, as another caller may write it: keys in another order, tuples, read-only mappings."""
    if isinstance(value, dict):
        return MappingProxyType({key: shuffled(inner) for key, inner in reversed(value.items())})
    return tuple(shuffled(inner) for inner in value) if isinstance(value, list) else value


@given(st.dictionaries(st.text(), json_values, max_size=4), messages)
def test_equal_requests_have_equal_keys_however_they_are_written(schema: dict[str, Any], said: list[Message]) -> None:
    plain, other = (
        Complete(said, 9, schema=schema, stop=["a"]),
        Complete(tuple(said), 9, 0.0, 0, shuffled(schema), ("a",)),
    )
    assert request_key("id", plain) == request_key("id", other)
    assert json.loads(canonical(schema)) == schema


@given(st.lists(st.tuples(texts, st.sampled_from([Complete, Choose]), messages, texts), min_size=2, max_size=2))
def test_requests_that_differ_anywhere_have_different_keys(pair: list[Any]) -> None:
    keys = {
        request_key(who, Complete(said, 9, stop=[word]) if kind is Complete else Choose(said, [word]))
        for who, kind, said, word in pair
    }
    assert len(keys) == (1 if pair[0] == pair[1] else 2)


RAW = {"content": "Ünïcode 😀, \x00 and \ud800", "tokens": [["Yes", -0.25], ["No", float("-inf")]], "usage": None}


def test_an_answer_comes_back_as_it_was_put(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "deep" / "cache.sqlite")
    assert cache.get("k") is None
    cache.put("k", RAW, 1.5)
    cache.close()
    assert RequestCache(tmp_path / "deep" / "cache.sqlite").get("k") == (RAW, 1.5)


def test_what_is_known_of_an_endpoint_is_kept_apart_from_that_of_others(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    cache.memory("one")["slots"] = True
    again = RequestCache(tmp_path / "cache.sqlite")
    assert dict(again.memory("one")) == {"slots": True}
    assert dict(again.memory("two")) == {}


WRITER = """
import sys
from autointerp.llm.cache import RequestCache
cache = RequestCache(sys.argv[1])
for i in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}-{i}", {"text": str(i)}, 0.0)
    print(i, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_no_answer_that_was_put(tmp_path: Path) -> None:
    process = writer(tmp_path / "cache.sqlite", "w", 10**6)
    assert process.stdout
    for line in process.stdout:
        if int(line) >= 50:
            break
    process.send_signal(signal.SIGKILL)
    last = max([50, *map(int, process.stdout.read().split("\n")[:-1])])
    process.wait()
    cache = RequestCache(tmp_path / "cache.sqlite")
    assert all(cache.get(f"w-{i}") == ({"text": str(i)}, 0.0) for i in range(last + 1))


def test_processes_and_threads_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    processes = [writer(path, f"p{n}", 30) for n in range(4)]
    cache = RequestCache(path)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: cache.put(f"t-{i}", {"text": str(i)}, 0.0), range(100)))
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert all(cache.get(f"t-{i}") for i in range(100))
    assert all(cache.get(f"p{n}-{i}") for n in range(4) for i in range(30))


def test_a_file_that_is_no_database_is_set_aside_with_one_line(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    cache = RequestCache(path)
    cache.put("k", RAW, 0.0)
    assert cache.get("k") == (RAW, 0.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "damaged" in caplog.text
    (aside,) = tmp_path.glob("cache.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"no database")


def test_a_row_whose_bytes_changed_is_not_there(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "cache.sqlite"
    cache = RequestCache(path)
    for key in ("a", "b", "c", "d"):
        cache.put(key, {"text": key}, 0.5)
    cache.memory("one")["top_logprobs"] = 20
    with sqlite3.connect(path) as db:
        db.execute("UPDATE raw_answers SET answer = (SELECT answer FROM raw_answers WHERE key = 'b') WHERE key = 'a'")
        db.execute("UPDATE raw_answers SET answer = substr(answer, 2) WHERE key = 'b'")
        db.execute("UPDATE raw_answers SET seconds = 'x' WHERE key = 'c'")
        db.execute("UPDATE learnt SET value = '5'")
    assert [cache.get(key) for key in ("a", "b", "c")] == [None] * 3
    assert cache.get("d") == ({"text": "d"}, 0.5)
    assert dict(cache.memory("one")) == {}
    assert caplog.text.count("asked for again") == 3
    cache.put("a", {"text": "new"}, 0.5)
    assert cache.get("a") == ({"text": "new"}, 0.5)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "cache.sqlite"
    cache = RequestCache(path)
    for i in range(60):
        cache.put(f"{i:064}", answer(i), 0.5)
        cache.memory("one")[str(i)] = i
    cache._run("PRAGMA wal_checkpoint(TRUNCATE)")
    cache.close()
    return path


def answer(i: int) -> dict[str, Any]:
    return {"content": str(random.Random(i).randbytes(10 if i % 7 else 4000))}


def test_a_flipped_byte_anywhere_never_changes_an_answer(filled: Path, tmp_path: Path) -> None:
    whole, draw = filled.read_bytes(), random.Random(1)
    for turn in range(200):
        folder = tmp_path / str(turn)
        folder.mkdir()
        place = draw.randrange(100) if turn % 4 == 0 else draw.randrange(len(whole))  # the header too
        damaged = bytearray(whole)
        damaged[place] ^= draw.randrange(1, 256)
        (folder / "cache.sqlite").write_bytes(damaged)
        cache = RequestCache(folder / "cache.sqlite")
        kept = [cache.get(f"{i:064}") for i in range(60)]
        assert all(got is None or got == (answer(i), 0.5) for i, got in enumerate(kept)), place
        assert all(value == int(name) for name, value in cache.memory("one").items()), place
        for i in range(60, 70):
            cache.put(f"{i:064}", answer(i), 0.5)
            assert cache.get(f"{i:064}") in (None, (answer(i), 0.5)), place
        cache.close()
        shutil.rmtree(folder)


def test_two_that_share_a_damaged_file_go_on_with_one_new_one(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    one, two = RequestCache(path), RequestCache(path)
    one._set_aside(sqlite3.DatabaseError("malformed"))
    one.put("k", RAW, 0.0)
    two._set_aside(sqlite3.DatabaseError("malformed"))  # it sees the damage later, and that the file is another
    assert two.get("k") == (RAW, 0.0)
    assert len([*tmp_path.glob("cache.sqlite.damaged-*[0-9]")]) == 1


def test_an_older_table_of_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, reply TEXT, seconds REAL) WITHOUT ROWID")
        db.execute("INSERT INTO answers VALUES ('k', '{}', 1.0)")
    cache = RequestCache(path)
    assert cache.get("k") is None
    assert cache._run("SELECT * FROM answers") == [("k", "{}", 1.0)]


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_put(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    cache.put("before", {"text": "kept"}, 0.0)
    cache._run("PRAGMA max_page_count=8")  # SQLite then says what it says on a full disk
    with pytest.raises(AutointerpError, match="make room on the disk"):
        cache.put("k", {"text": str(random.Random(0).randbytes(100_000))}, 0.0)
    assert cache.get("before")


QUOTA = """
import resource, sys
from autointerp.errors import AutointerpError
from autointerp.llm.cache import RequestCache
cache = RequestCache(sys.argv[1])
cache.put("before", {"text": "kept"}, 0.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    for i in range(100):
        cache.put(str(i), {"text": str(i) * 4000}, 0.0)
        cache.put(f"more {i}", {"text": repr([hash((i, j)) for j in range(200)])}, 0.0)
except AutointerpError as error:
    print(error)
"""


def test_a_quota_that_is_used_up_is_no_damage_and_keeps_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    said = subprocess.run([sys.executable, "-c", QUOTA, str(path)], capture_output=True, text=True, check=True)
    assert "disk I/O error; see to the disk, or the quota" in said.stdout
    assert not [*tmp_path.glob("*damaged*")]
    assert RequestCache(path).get("before") == ({"text": "kept"}, 0.0)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AutointerpError, match="folder"):
        RequestCache(tmp_path / "file" / "cache.sqlite")
