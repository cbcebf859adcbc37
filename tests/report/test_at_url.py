"""A run's folder at a URL: read from there, and sent there whole, by what changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from filelock import FileLock
from fsspec.implementations.memory import MemoryFileSystem
from synthetic import write_run
from typer.testing import CliRunner

import autointerp as ai
from autointerp.cli import app
from autointerp.engine.remote import Remote, Unreachable
from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.at_url import STATE, copy_of, fetched, kept_at_url


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where no results/ has runs that an error would name
    return tmp_path / "cache"


@pytest.fixture
def url() -> Iterator[str]:
    yield f"memory://{uuid4().hex}/runs/mine"
    MemoryFileSystem.store.clear()


def upload(folder: Path, url: str) -> None:
    remote = Remote(url)
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(path, str(path.relative_to(folder)))


def writes(out: str, **files: str | None) -> None:
    """A command that writes `files` into its folder, and removes those that are None."""

    @kept_at_url
    def command(*, out: str) -> None:
        for name, text in files.items():
            file = copy_of(out) / name.replace("__", ".")
            file.unlink() if text is None else file.write_text(text)

    command(out=out)


def at(url: str) -> dict[str, str]:
    files, root = fsspec.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): files.cat_file(path).decode() for path in files.find(root)}


def test_a_run_at_a_url_is_read_as_one_in_a_folder(url: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "commanded")
    upload(folder, url)
    assert ai.open_run(url).features.equals(ai.open_run(folder).features)
    local, remote = (CliRunner().invoke(app, ["table", str(run)]) for run in (folder, url))
    assert remote.exit_code == 0
    assert remote.stdout == local.stdout
    compared = CliRunner().invoke(app, ["compare", url, str(folder)])
    assert compared.exit_code == 0, compared.output
    assert "mine" in compared.stdout


def test_a_url_without_a_run_is_one_line(url: str, cache: Path) -> None:
    result = CliRunner().invoke(app, ["table", url])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"autointerp: no run at {url!r}"]
    result = CliRunner().invoke(app, ["table", "s33://bucket/run"])
    assert result.exit_code == 2
    assert "no URL that fsspec opens" in result.stderr
    assert not (cache / "runs").exists()


def test_what_changed_at_the_url_is_fetched_and_nothing_else(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writes(url, features="1", scores="2", old="3")
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "other"))
    folder = fetched(url)
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {"features", "scores", "old"}
    Remote(url).write("scores", b"new")
    Remote(url).remove("old")
    asked: list[str] = []
    get = Remote.get
    monkeypatch.setattr(Remote, "get", lambda self, name, file: (asked.append(name), get(self, name, file))[1])
    assert (fetched(url) / "scores").read_text() == "new"
    assert asked == ["scores"]
    assert not (folder / "old").exists()
    assert (folder / "features").read_text() == "1"


def test_a_later_run_sends_what_it_changed_and_removes_what_it_removed(url: str) -> None:
    writes(url, features="1", progress__json="2", usage__jsonl="a")
    Remote(url).write("notes.txt", b"mine")
    writes(url, features="3", progress__json=None, _hidden="5", **{".lock": "6"})
    assert at(url) == {"features": "3", "usage.jsonl": "a", "notes.txt": "mine", "_hidden": "5"}


def test_another_machine_goes_on_from_what_is_there_readers_need_no_journal(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes(url, usage__jsonl="a", features="1")
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "other"))
    assert not (fetched(url) / "usage.jsonl").exists()
    assert (fetched(url, journal=True) / "usage.jsonl").read_text() == "a"


def test_a_command_that_fails_sends_what_there_is(url: str) -> None:
    @kept_at_url
    def command(*, out: str) -> None:
        (copy_of(out) / "features").write_text("so far")
        raise AutointerpError("the endpoint is down")

    with pytest.raises(AutointerpError, match="endpoint is down"):
        command(out=url)
    assert at(url) == {"features": "so far"}


def test_what_a_killed_run_left_here_is_not_overwritten_by_what_is_older_there(url: str) -> None:
    writes(url, usage__jsonl="a")
    (copy_of(url) / "usage.jsonl").write_text("ab")  # of a run that never came to its end
    assert (fetched(url, journal=True) / "usage.jsonl").read_text() == "ab"
    writes(url, features="1")
    assert at(url) == {"usage.jsonl": "ab", "features": "1"}


def test_a_copy_in_which_a_run_works_is_left_alone(url: str) -> None:
    writes(url, features="1")
    Remote(url).write("features", b"2")
    with FileLock(copy_of(url) / ".lock"):
        (copy_of(url) / "features").write_text("newest")
        assert (fetched(url) / "features").read_text() == "newest"
    assert (fetched(url) / "features").read_text() == "2"


def test_a_command_that_finds_another_at_work_sends_nothing_of_its_files(url: str) -> None:
    @kept_at_url
    def command(*, out: str) -> None:
        raise AutointerpError("another process is running")

    copy_of(url).mkdir(parents=True)
    with FileLock(copy_of(url) / ".lock"):
        (copy_of(url) / "features").write_text("half")
        with pytest.raises(AutointerpError, match="another process"):
            command(out=url)
    assert at(url) == {}


def test_a_url_that_cannot_be_written_is_told_before_the_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Remote, name: str, content: bytes) -> None:
        raise Unreachable("access is refused")

    monkeypatch.setattr(Remote, "write", refused)
    with pytest.raises(AutointerpError, match=r"--out memory://.* cannot be written: access is refused"):
        writes(url, features="1")
    assert at(url) == {}


def test_results_that_could_not_be_sent_lie_here_and_go_with_the_next_run(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Remote, file: Path, name: str) -> None:
        raise Unreachable("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", refused)
        with pytest.raises(AutointerpError, match="the results lie in"):
            writes(url, features="1")
    writes(url)
    assert at(url) == {"features": "1"}


def test_names_that_lead_elsewhere_are_not_fetched(url: str, tmp_path: Path) -> None:
    writes(url, features="1")
    Remote(url).write("..%2f", b"x")
    folder = fetched(url)
    assert json.loads((folder / STATE).read_text()).keys() == {"features"}


def test_urls_are_told_apart_and_named_as_they_end() -> None:
    assert copy_of("s3://bucket/runs/mine") == copy_of("s3://bucket/runs/mine/")
    assert copy_of("s3://bucket/runs/mine") != copy_of("s3://other/runs/mine")
    assert copy_of("s3://bucket/runs/mine").name == "mine"
    with pytest.raises(ConfigError):
        fetched("s33://bucket/runs/mine")


@pytest.mark.parametrize(
    "url", ["s3://bucket/runs/..", "s3://me:wordword@bucket", "https://host/run?token=wordword", "s3://[", "memory://"]
)
def test_a_copy_lies_in_a_folder_of_its_own_whose_name_holds_no_secret(url: str, cache: Path) -> None:
    copy = copy_of(url)
    assert copy.resolve().parent.parent == (cache / "runs").resolve()
    assert copy.name == "run"


def test_a_relative_folder_is_another_in_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = copy_of("file://mine")
    assert here == copy_of((tmp_path / "x" / ".." / "mine").as_uri())
    monkeypatch.chdir(tmp_path.parent)
    assert copy_of("file://mine") == copy_of((tmp_path.parent / "mine").as_uri()) != here


def test_a_run_whose_url_was_emptied_is_sent_whole_again(url: str, caplog: pytest.LogCaptureFixture) -> None:
    writes(url, features="1", scores="2")
    for name in ("features", "scores"):
        Remote(url).remove(name)
    writes(url, features="3")
    assert at(url) == {"features": "3", "scores": "2"}
    assert [message for message in caplog.messages if "holds nothing any more" in message]


def test_a_file_in_the_place_of_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AutointerpError, match="it is a file, and no folder"):
        fetched((tmp_path / "file").as_uri())


def test_an_error_about_a_url_holds_no_password() -> None:
    with pytest.raises(ConfigError, match="memory://hidden@nowhere/run"):
        ai.open_run("memory://me:word@nowhere/run")
