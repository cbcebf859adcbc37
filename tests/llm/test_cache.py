from __future__ import annotations

import json
import signal
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
from autointerp.llm.backend import Reply
from autointerp.llm.cache import RequestCache, canonical, request_key
from autointerp.records import Choices, Message

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
def test_equal_requests_have_equal_keys_however_they_are_written(request: dict[str, Any], said: list[Message]) -> None:
    assert request_key("id", "complete", said, request) == request_key("id", "complete", tuple(said), shuffled(request))
    assert json.loads(canonical(request)) == request


@given(st.lists(st.tuples(texts, st.sampled_from(["complete", "choose"]), messages, texts), min_size=2, max_size=2))
def test_requests_that_differ_anywhere_have_different_keys(pair: list[Any]) -> None:
    keys = {request_key(identity, kind, said, {"stop": [stop]}) for identity, kind, said, stop in pair}
    assert len(keys) == (1 if pair[0] == pair[1] else 2)


REPLIES = [
    Reply(text="Ünïcode 😀 and \x00", prompt_tokens=3, completion_tokens=4, cached_tokens=2, truncated=True),
    Reply(choices=(Choices((0.25, 0.75), mass=0.5), Choices(None, mass=0.0, failure="none of them")), prompt_tokens=9),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_comes_back_as_it_was_put(tmp_path: Path, reply: Reply) -> None:
    cache = RequestCache(tmp_path / "deep" / "cache.sqlite")
    assert cache.get("k") is None
    cache.put("k", reply, 1.5)
    cache.close()
    assert RequestCache(tmp_path / "deep" / "cache.sqlite").get("k") == (reply, 1.5)


def test_what_is_known_of_an_endpoint_is_kept_apart_from_that_of_others(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    cache.memory("one")["slots"] = True
    again = RequestCache(tmp_path / "cache.sqlite")
    assert dict(again.memory("one")) == {"slots": True}
    assert dict(again.memory("two")) == {}


WRITER = """
import sys
from autointerp.llm.backend import Reply
from autointerp.llm.cache import RequestCache
cache = RequestCache(sys.argv[1])
for i in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}-{i}", Reply(text=str(i)), 0.0)
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
    assert all(cache.get(f"w-{i}") == (Reply(text=str(i)), 0.0) for i in range(last + 1))


def test_processes_and_threads_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    processes = [writer(path, f"p{n}", 30) for n in range(4)]
    cache = RequestCache(path)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: cache.put(f"t-{i}", Reply(text=str(i)), 0.0), range(100)))
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert all(cache.get(f"t-{i}") for i in range(100))
    assert all(cache.get(f"p{n}-{i}") for n in range(4) for i in range(30))


def test_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(AutointerpError, match=r"cache\.sqlite.*damaged: move it away") as caught:
        RequestCache(path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_put(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    cache.put("before", Reply(text="kept"), 0.0)
    cache._run("PRAGMA max_page_count=8")  # SQLite then says what it says on a full disk
    with pytest.raises(AutointerpError, match="make room on the disk"):
        cache.put("k", Reply(text="x" * 100_000), 0.0)
    assert cache.get("before")


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AutointerpError, match="folder"):
        RequestCache(tmp_path / "file" / "cache.sqlite")
