"""A mirror: what one machine made another takes, whole and checked, and a mirror that fails costs one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.engine import mirror as mirrors
from autointerp.engine import remote
from autointerp.engine.dag import Dag, Done, Node
from autointerp.engine.mirror import Mirror
from autointerp.engine.mirrored import MirroredStore
from autointerp.engine.remote import Remote, Unreachable
from autointerp.errors import ConfigError


class Machine:
    """A cache folder and a process of its own, with a DAG of three stages that says which of them it worked."""

    def __init__(self, root: Path, url: str) -> None:
        self.store = MirroredStore(root / "store", Mirror(url))
        self.worked: list[str] = []

    def dag(self, heat: int = 200, flour: str = "wheat") -> Dag:
        def stage(name: str, section: Mapping[str, object], *needs: str, remade: bool = False) -> Node:
            def work(folder: Path, inputs: Mapping[str, Path]) -> Done:
                self.worked.append(name)
                read = "".join((path / "out.txt").read_text() for path in inputs.values())
                (folder / "parts").mkdir()
                (folder / "parts" / "empty").touch()
                (folder / "out.txt").write_text(f"{read} {name} {json.dumps(section)}")
                return Done(facts={"nan": float("nan")})

            return Node(name, work, section, needs, remade=remade)

        return Dag(
            [
                stage("grain", {"flour": flour}, remade=True),
                stage("dough/rye", {"water": 1}, "grain"),
                stage("bread", {"heat": heat}, "dough/rye"),
            ],
            self.store,
        )

    def bread(self, heat: int = 200) -> str:
        dag = self.dag(heat)
        return (self.store.folder("bread", dag.run()["bread"].key) / "out.txt").read_text()

    def here(self) -> list[str]:
        return sorted(path.parent.parent.name for path in self.store.root.glob("*/*/manifest.json"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST", 0.0)
    monkeypatch.setattr(remote, "LONGEST", 0.0)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3, where moto and s3fs are installed."""
    server = pytest.importorskip("moto.server", reason="speaks S3 where moto, flask, flask-cors and s3fs are installed")
    s3fs = pytest.importorskip("s3fs")
    serving = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    serving.start()
    host, port = serving.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()
    serving.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        yield f"memory://{uuid4().hex}"
        MemoryFileSystem.store.clear()
    elif request.param == "file":
        yield (tmp_path / "mirror").as_uri()
    else:
        yield f"{request.getfixturevalue('s3')}/{uuid4().hex}"


def blobs(url: str, stage: str) -> list[str]:
    """The files of a stage's artifacts in the mirror, those with content."""
    files, root = fsspec.url_to_fs(url)
    files.invalidate_cache()
    found = files.find(f"{root}/{stage}", detail=True)
    return [path for path, about in found.items() if not path.endswith("manifest.json") and about["size"]]


def changed(url: str, path: str, content: bytes | None) -> None:
    files, _ = fsspec.url_to_fs(url)
    files.rm_file(path) if content is None else files.pipe_file(path, content)


def test_another_machine_computes_nothing_and_fetches_what_is_read_alone(url: str, tmp_path: Path) -> None:
    first, second = Machine(tmp_path / "1", url), Machine(tmp_path / "2", url)
    baked = first.bread()
    assert second.bread() == baked
    assert second.worked == []
    assert second.here() == ["bread"]
    third = Machine(tmp_path / "3", url)
    third.bread(heat=100)
    assert third.worked == ["bread"]
    assert third.here() == ["bread", "dough__rye"]


def test_a_standing_is_done_by_the_manifest_in_the_mirror_alone(url: str, tmp_path: Path) -> None:
    Machine(tmp_path / "1", url).bread()
    second = Machine(tmp_path / "2", url)
    dag = second.dag()
    standings = dag.standings()
    assert {standing.state for standing in standings.values()} == {"done"}
    assert second.here() == []
    assert dag.here(standings) == {}


def test_files_that_are_quicker_made_again_do_not_go_over(url: str, tmp_path: Path) -> None:
    Machine(tmp_path / "1", url).bread()
    assert blobs(url, "grain") == []
    assert len(blobs(url, "dough__rye")) == 1
    second = Machine(tmp_path / "2", url)
    node = second.dag().nodes["dough/rye"]
    changed(url, blobs(url, "dough__rye")[0], None)  # so that the dough is made again, and needs its grain
    second.bread(heat=100)
    assert node.name in second.worked
    assert second.worked == ["grain", "dough/rye", "bread"]


@pytest.mark.parametrize(
    "torn", ["no manifest", "half a manifest", "a file is gone", "a file is cut", "a byte flipped"]
)
def test_a_torn_or_damaged_artifact_is_not_taken_and_is_made_whole_by_who_makes_it(
    url: str, torn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    baked = Machine(tmp_path / "1", url).bread()
    files, root = fsspec.url_to_fs(url)
    (manifest,) = (path for path in files.find(f"{root}/bread") if path.endswith("manifest.json"))
    (blob,) = blobs(url, "bread")
    whole = files.cat_file(blob)
    {
        "no manifest": lambda: changed(url, manifest, None),
        "half a manifest": lambda: changed(url, manifest, files.cat_file(manifest)[:100]),
        "a file is gone": lambda: changed(url, blob, None),
        "a file is cut": lambda: changed(url, blob, whole[:-1]),
        "a byte flipped": lambda: changed(url, blob, bytes([whole[0] ^ 1]) + whole[1:]),
    }[torn]()
    second = Machine(tmp_path / "2", url)
    assert second.bread() == baked
    assert second.worked == ["bread"]
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == (0 if torn == "no manifest" else 1), lines
    assert files.cat_file(blob) == whole
    third = Machine(tmp_path / "3", url)
    assert third.bread() == baked
    assert third.worked == []


@pytest.mark.parametrize("file", ["out.txt", "manifest.json"])
def test_what_is_lost_here_comes_from_the_mirror(url: str, file: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "1", url)
    baked = machine.bread()
    dough = next(machine.store.root.glob("dough__rye/*/out.txt")).parent
    (dough / file).unlink()
    again = Machine(tmp_path / "1", url)
    again.bread(heat=100)
    assert again.worked == ["bread"]
    assert again.bread() == baked
    assert (dough / "manifest.json").exists()


def test_a_manifest_that_names_files_elsewhere_is_not_taken(url: str, tmp_path: Path) -> None:
    first = Machine(tmp_path / "1", url)
    made = first.dag().run()["bread"]
    for name in ("../../../outside", "/outside"):
        second = Machine(tmp_path / "2", url)
        with pytest.raises(mirrors.Unfit, match="elsewhere"):
            second.store._mirror.fetch(f"bread/{made.key}", {name: "0" * 64}, tmp_path / "2")
    assert not (tmp_path / "outside").exists()


class Failing(MemoryFileSystem):
    """A file system that does not answer, or refuses."""

    protocol = "failing"
    cachable = False
    raises: ClassVar[Mapping[str, Exception]] = {}
    asked: ClassVar[list[str]] = []

    def _maybe(self, what: str) -> None:
        type(self).asked.append(what)
        if (error := self.raises.get(what)) is not None:
            raise error

    def cat_file(self, path, *args, **more):  # type: ignore[no-untyped-def]
        self._maybe("read")
        return super().cat_file(path, *args, **more)

    def get_file(self, *args, **more):  # type: ignore[no-untyped-def]
        self._maybe("get")
        return super().get_file(*args, **more)

    def put_file(self, *args, **more):  # type: ignore[no-untyped-def]
        self._maybe("written")
        return super().put_file(*args, **more)

    def pipe_file(self, *args, **more):  # type: ignore[no-untyped-def]
        self._maybe("written")
        return super().pipe_file(*args, **more)


@pytest.fixture
def failing() -> Iterator[str]:
    fsspec.register_implementation("failing", Failing, clobber=True)
    Failing.raises, Failing.asked = {}, []
    yield f"failing://{uuid4().hex}"
    MemoryFileSystem.store.clear()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_a_mirror_that_is_down_costs_a_line_and_a_few_tries(
    failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Failing.raises = dict.fromkeys(("read", "written"), ConnectionError("no route to host"))
    machine = Machine(tmp_path / "1", failing)
    assert machine.bread()
    assert machine.worked == ["grain", "dough/rye", "bread"]
    told = warnings(caplog)
    assert told[0].endswith("cannot be read (no route to host): the run goes on without it")
    assert told[1:] == ["3 artifacts are not in the mirror: a later run sends them"]
    assert Failing.asked == ["read"] * remote.ATTEMPTS

    Failing.raises = {}
    again = Machine(tmp_path / "1", failing)
    again.bread()
    assert again.worked == []
    other = Machine(tmp_path / "2", failing)
    other.bread()
    assert other.worked == [], "the later run has sent what was made"


def test_a_short_failure_is_tried_again(failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = iter([True, True])

    class Recovering(dict):  # type: ignore[type-arg]
        def get(self, what: str, default: object = None) -> object:
            return TimeoutError("slow down") if what == "written" and next(times, False) else None

    Failing.raises = Recovering()
    Machine(tmp_path / "1", failing).bread()
    assert not warnings(caplog)
    other = Machine(tmp_path / "2", failing)
    other.bread()
    assert other.worked == []


def test_a_mirror_that_may_be_read_alone_is_read(
    failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(tmp_path / "1", failing).bread()
    Failing.raises = {"written": PermissionError("Forbidden")}
    Failing.asked = []
    second = Machine(tmp_path / "2", failing)
    second.bread(heat=100)
    assert second.worked == ["bread"]
    assert Failing.asked.count("written") == 1, "who is refused does not insist"
    told = warnings(caplog)
    assert len(told) == 2
    assert "access is refused: Forbidden" in told[0]
    assert told[1] == "1 artifacts are not in the mirror: a later run sends them"


def test_a_mirror_that_breaks_off_in_a_fetch_has_the_stage_made_here(
    failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    baked = Machine(tmp_path / "1", failing).bread()
    Failing.raises = {"get": ConnectionError("reset")}
    second = Machine(tmp_path / "2", failing)
    assert second.bread() == baked
    assert second.worked[-1] == "bread"


def test_what_is_nowhere_is_looked_for_once_in_a_while(failing: str) -> None:
    clock = [0.0]
    mirror = Mirror(failing, now=lambda: clock[0])
    for _ in range(3):
        assert mirror.look("bread/1") is None
    assert Failing.asked == ["read"]
    Remote(failing).write("bread/1/manifest.json", b"{}")
    clock[0] += mirrors.HOLDS
    assert mirror.look("bread/1") == b"{}"


def test_a_mirror_that_failed_is_asked_again_after_a_rest(failing: str) -> None:
    clock = [0.0]
    mirror = Mirror(failing, now=lambda: clock[0])
    Remote(failing).write("bread/1/manifest.json", b"{}")
    Failing.raises = {"read": ConnectionError("down")}
    assert mirror.look("bread/1") is None
    Failing.raises = {}
    clock[0] += mirrors.REST
    assert mirror.look("bread/1") == b"{}"


def test_a_url_without_a_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("nowhere", "no_such_module.Files", clobber=True, errtxt="Install nowherefs")
    monkeypatch.setenv("AUTOINTERP_MIRROR", "nowhere://bucket")
    with pytest.raises(ConfigError, match=r"AUTOINTERP_MIRROR: nowhere://bucket needs a driver.*Install nowherefs"):
        mirrors.mirror()
    monkeypatch.setenv("AUTOINTERP_MIRROR", "s33://bucket")
    with pytest.raises(ConfigError, match="AUTOINTERP_MIRROR: s33://bucket is no URL that fsspec opens"):
        mirrors.mirror()


def test_a_full_disk_here_is_no_failure_of_the_mirror(failing: str, tmp_path: Path) -> None:
    Remote(failing).write("a", b"x")
    Failing.raises = {"get": OSError(28, "No space left on device")}
    with pytest.raises(OSError, match="No space left") as caught:
        Remote(failing).get("a", tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")
    Failing.raises = {"written": OSError(28, "No space left on device")}
    (tmp_path / "b").write_bytes(b"x")
    with pytest.raises(Unreachable, match="No space left"):
        Remote(failing).put(tmp_path / "b", "b")


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=8
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.binary(max_size=40), max_size=6)


@given(TREES)
@settings(max_examples=40)
def test_any_tree_of_files_comes_back_as_it_was(tree: dict[str, bytes]) -> None:
    import tempfile

    taken = {path for name in tree for path in _folders(name)}
    tree = {
        name: content
        for name, content in tree.items()
        if name not in taken
        and not {".", ".."} & {*name.split("/")}
        and name.split("/")[-1] != "manifest.json"
        and not name.endswith(".tmp")
    }
    with tempfile.TemporaryDirectory() as root:
        url = (Path(root) / "mirror").as_uri()
        first = MirroredStore(Path(root) / "1", Mirror(url))
        with first.sharing():
            with first.writing("stage", "key", resumable=False) as folder:
                for name, content in tree.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content)
                made = first.complete("stage", "key", 1.0, 0, {"a": [1, None]})
            first.share(made, made=True)
        second = MirroredStore(Path(root) / "2", Mirror(url))
        found = second.find("stage", "key")
        assert found is not None
        assert found == made
        assert second.bring(found)
        assert MirroredStore(Path(root) / "2", Mirror(url)).verify(found) is None
        here = second.folder("stage", "key")
        read = {str(p.relative_to(here)): p.read_bytes() for p in here.rglob("*") if p.is_file()}
        del read["manifest.json"]
        assert read == tree


def _folders(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from autointerp.engine.mirror import Mirror
from autointerp.engine.mirrored import MirroredStore
from autointerp.engine.remote import Remote

root, url, what = sys.argv[1:]
store = MirroredStore(Path(root) / "store", Mirror(url))
if what == "make":
    put, number = Remote.put, iter(range(9))

    def killed(self, file, name):
        put(self, file, name)
        if next(number) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Remote.put = killed
    with store.sharing():
        with store.writing("stage", "key", resumable=False) as folder:
            for number_ in range(9):
                (folder / f"{number_}").write_text(f"file {number_}" * 1000)
            made = store.complete("stage", "key", 1.0, 0, {})
        store.share(made, made=True)
else:
    manifest = store.find("stage", "key")
    print("none" if manifest is None else f"{store.bring(manifest)} {store.verify(manifest)}")
"""


def process(root: Path, url: str, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(root), url, what]
    return subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_who_is_killed_while_sending_leaves_nothing_to_take_and_goes_on_later(tmp_path: Path) -> None:
    url = (tmp_path / "mirror").as_uri()
    making = process(tmp_path / "1", url, "make")
    making.communicate()
    assert making.returncode == -signal.SIGKILL
    there = Remote(url).listed("stage/key")
    assert len(there) >= 3
    taking = process(tmp_path / "2", url, "take")
    assert taking.communicate()[0].strip() == "none"

    later = MirroredStore(tmp_path / "1" / "store", Mirror(url))
    with later.sharing():
        made = later.find("stage", "key")
        assert made is not None
        later.share(made)
    there, whole = (  # what was half there when it was killed lies beside
        {name: about for name, about in listed.items() if name[0] != "."}
        for listed in (there, Remote(url).listed("stage/key"))
    )
    assert len(whole) == 10
    assert {name for name in there if whole[name].mark == there[name].mark} == {*there}, "nothing went over twice"
    assert process(tmp_path / "2", url, "take").communicate()[0].strip() == "True None"


def test_processes_that_fetch_the_same_artifact_at_once_both_have_it(tmp_path: Path) -> None:
    url = (tmp_path / "mirror").as_uri()
    first = MirroredStore(tmp_path / "1" / "store", Mirror(url))
    with first.sharing():
        with first.writing("stage", "key", resumable=False) as folder:
            for number in range(30):
                (folder / f"{number}").write_text(f"file {number}" * 1000)
            made = first.complete("stage", "key", 1.0, 0, {})
        first.share(made, made=True)
    taking = [process(tmp_path / "2", url, "take") for _ in range(2)]
    assert [each.communicate()[0].strip() for each in taking] == ["True None"] * 2
    left = [path.name for path in (tmp_path / "2" / "store" / "stage").iterdir()]
    assert sorted(left) == ["key", "key.lock"]


def test_a_store_does_not_mirror_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path))
    for place in (str(tmp_path / "store"), (tmp_path / "store").as_uri() + "/", f"file://{tmp_path}/x/../store/mirror"):
        monkeypatch.setenv("AUTOINTERP_MIRROR", place)
        with pytest.raises(ConfigError, match=r"AUTOINTERP_MIRROR: .* lies in the store that it is to mirror"):
            mirrors.mirror()
    monkeypatch.setenv("AUTOINTERP_MIRROR", f" {tmp_path}/mirror ")
    named = mirrors.mirror()
    assert named is not None
    assert named.remote.local == tmp_path / "mirror"
    monkeypatch.setenv("AUTOINTERP_MIRROR", " ")
    assert mirrors.mirror() is None


def test_a_mirror_whose_driver_connects_when_it_begins_is_told_once_where_it_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AUTOINTERP_MIRROR", "ftp://me:wordword@127.0.0.1:9/mirror")
    for _ in range(2):
        assert mirrors.mirror() is not None
    (told,) = caplog.messages
    assert told.startswith("the mirror ftp://hidden@127.0.0.1:9/mirror cannot be read (Connection refused)")
