"""Stages: what is done, what is stale and why, and what a kill leaves."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from autointerp.engine.dag import Dag, Done, Node
from autointerp.engine.executor import Shard, is_done, record
from autointerp.engine.store import Store
from autointerp.errors import AutointerpError
from autointerp.hashing import fingerprint


@dataclass
class Job:
    folder: Path
    inputs: Mapping[str, Path]
    to_retry: int = 0


def node(
    name: str, work: Callable[[Job], None], section: dict, needs: tuple[str, ...] = (), code: str = "", **more
) -> Node:
    def run(folder: Path, inputs: Mapping[str, Path]) -> Done:
        job = Job(folder, inputs)
        work(job)
        return Done(job.to_retry)

    return Node(name, run, section, needs, code, **more)


class Kitchen:
    """A DAG of two stages that counts how often each ran."""

    def __init__(self, root: Path) -> None:
        self.store, self.ran = Store(root), []

    def dag(self, flour: str = "wheat", oven: int = 200, code: str = "v1") -> Dag:
        def dough(job: Job) -> None:
            self.ran.append("dough")
            (job.folder / "dough.txt").write_text(flour.lower())

        def bread(job: Job) -> None:
            self.ran.append("bread")
            (job.folder / "bread.txt").write_text((job.inputs["dough"] / "dough.txt").read_text() + str(oven))

        return Dag(
            [
                node("bread", bread, {"oven": oven}, ("dough",), code),
                node("dough", dough, {"flour": flour}),
            ],
            self.store,
        )


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path / "store")


def test_stages_run_in_order_of_need_and_only_once(kitchen: Kitchen) -> None:
    kitchen.dag().run()
    kitchen.dag().run()
    assert kitchen.ran == ["dough", "bread"]


def test_a_changed_section_runs_that_stage_and_what_depends_on_it(kitchen: Kitchen) -> None:
    kitchen.dag().run()
    kitchen.dag(oven=180).run()
    assert kitchen.ran == ["dough", "bread", "bread"]
    kitchen.dag(flour="rye").run()
    assert kitchen.ran[3:] == ["dough", "bread"]


def test_a_stage_that_writes_the_same_bytes_again_stales_nothing(kitchen: Kitchen) -> None:
    kitchen.dag(flour="wheat").run()
    kitchen.dag(flour="WHEAT").run()
    assert kitchen.ran == ["dough", "bread", "dough"]


def test_other_code_runs_the_stage_again(kitchen: Kitchen) -> None:
    kitchen.dag().run()
    kitchen.dag(code="v2").run()
    assert kitchen.ran == ["dough", "bread", "bread"]


def test_going_back_to_an_earlier_config_finds_its_artifacts(kitchen: Kitchen) -> None:
    kitchen.dag(oven=200).run()
    kitchen.dag(oven=180).run()
    kitchen.dag(oven=200).run()
    assert kitchen.ran == ["dough", "bread", "bread"]


def test_a_standing_says_what_must_run_and_why(kitchen: Kitchen) -> None:
    standings = kitchen.dag().standings()
    assert [s.state for s in standings.values()] == ["to do", "to do"]
    assert standings["bread"].why == "after dough"
    kitchen.dag().run()
    previous = {name: s.key or "" for name, s in kitchen.dag().standings().items()}
    after = kitchen.dag(oven=1).standings(previous)
    assert after["dough"].state == "done"
    assert after["bread"].state == "stale"


def test_items_that_may_succeed_later_make_the_stage_run_again(tmp_path: Path) -> None:
    left = [2, 0]

    def work(job: Job) -> None:
        job.to_retry = left.pop(0)
        (job.folder / "rows.txt").write_text(f"{job.to_retry} missing")

    dag = Dag([node("ask", work, {})], Store(tmp_path))
    dag.run()
    assert dag.standings()["ask"].state == "retry"
    dag.run()
    assert dag.standings()["ask"].state == "done"
    assert left == []


def test_a_stage_whose_name_is_longer_than_a_file_s_has_a_folder_of_its_own(tmp_path: Path) -> None:
    long = [f"score/{'說' * 150}/{'b' * 149}{last}" for last in "xy"]
    done = Dag([node(name, lambda job: (job.folder / "a").write_text("1"), {}) for name in long], Store(tmp_path)).run()
    assert sorted(done) == sorted(long)
    assert len(list(tmp_path.iterdir())) == 2


def test_files_in_the_log_folder_are_kept_but_stale_nothing(tmp_path: Path) -> None:
    times = iter(["1 s", "2 s"])

    def noisy(job: Job) -> None:
        (job.folder / "log").mkdir()
        (job.folder / "log" / "time.txt").write_text(next(times))
        (job.folder / "out.txt").write_text("same")

    store = Store(tmp_path)
    first = Dag([node("a", noisy, {"v": 1})], store).run()["a"]
    second = Dag([node("a", noisy, {"v": 2})], store).run()["a"]
    assert first.content == second.content
    assert (store.folder("a", second.key) / "log" / "time.txt").read_text() == "2 s"


def test_an_unfinished_stage_is_not_done_and_a_resumable_one_finds_its_files(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def work(job: Job) -> None:
        seen.append(sorted(p.name for p in job.folder.iterdir()))
        (job.folder / f"shard-{len(seen)}").write_text("x")
        if len(seen) < 2:
            raise AutointerpError("the disk is full")

    store = Store(tmp_path)
    dag = Dag([node("harvest", work, {}, resumable=True)], store)
    with pytest.raises(AutointerpError):
        dag.run()
    assert dag.standings()["harvest"].state == "to do"
    dag.run()
    assert seen == [[], ["shard-1"]]
    assert dag.standings()["harvest"].state == "done"


def test_a_stage_that_cannot_resume_begins_in_an_empty_folder(tmp_path: Path) -> None:
    attempts: list[list[str]] = []

    def work(job: Job) -> None:
        attempts.append([p.name for p in job.folder.iterdir()])
        (job.folder / "half").write_text("x")
        if len(attempts) < 2:
            raise AutointerpError("stop")

    dag = Dag([node("a", work, {})], Store(tmp_path))
    with pytest.raises(AutointerpError):
        dag.run()
    dag.run()
    assert attempts == [[], []]


def test_a_process_killed_in_a_stage_leaves_nothing_that_counts_as_done(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from autointerp.engine.dag import Dag, Node
        from autointerp.engine.store import Store
        def work(folder, inputs):
            (folder / "out.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        Dag([Node("a", work, {})], Store(Path(sys.argv[1]))).run()
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL

    def whole(job: Job) -> None:
        (job.folder / "out.txt").write_text("whole")

    dag = Dag([node("a", whole, {})], Store(tmp_path))
    assert dag.standings()["a"].state == "to do"
    manifest = dag.run()["a"]
    assert (dag.store.folder("a", manifest.key) / "out.txt").read_text() == "whole"


def damaged(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
@pytest.mark.parametrize("file", ["dough.txt", "manifest.json"])
def test_a_damaged_input_is_set_aside_and_made_again_before_it_is_read(
    kitchen: Kitchen, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "autointerp")
    manifest = kitchen.dag().run()["dough"]
    damaged(kitchen.store.folder("dough", manifest.key) / file, how)
    kitchen.store = Store(kitchen.store.root)  # another process: nothing is remembered as whole
    dag = kitchen.dag(oven=180)
    made = dag.run()
    bread = dag.store.folder("bread", made["bread"].key) / "bread.txt"
    assert bread.read_text() == "wheat180"
    assert kitchen.ran == ["dough", "bread", "dough", "bread"]
    if (file, how) != ("manifest.json", "gone"):
        assert [r.message for r in caplog.records if "made again" in r.message]


def test_a_damaged_artifact_that_nothing_reads_stales_nothing(kitchen: Kitchen) -> None:
    manifest = kitchen.dag().run()["dough"]
    damaged(kitchen.store.folder("dough", manifest.key) / "dough.txt", "flipped")
    kitchen.store = Store(kitchen.store.root)
    kitchen.dag().run()
    assert kitchen.ran == ["dough", "bread"]


def test_a_disk_that_loses_data_again_and_again_is_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def work(job: Job) -> None:
        (job.folder / "out.txt").write_text("x")

    dag = Dag([node("a", work, {}), node("b", work, {}, ("a",))], store)
    store.verify = lambda manifest: "out.txt has changed"  # type: ignore[method-assign]
    with pytest.raises(AutointerpError, match="loses data"):
        dag.run()


def test_a_standing_names_the_parts_of_the_key_that_changed(kitchen: Kitchen) -> None:
    kitchen.dag().run()
    previous = {name: s.key or "" for name, s in kitchen.dag().standings().items()}
    after = kitchen.dag(oven=1, code="v2").standings(previous)
    assert after["bread"].why == "changed: code of this stage, config oven"


def test_a_fingerprint_sees_a_changed_byte_anywhere_and_a_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    big, small = tmp_path / "m" / "a.bin", tmp_path / "m" / "b.json"
    big.parent.mkdir()
    big.write_bytes(bytes(20 << 20))
    small.write_text("{}")
    found = [fingerprint(big.parent), fingerprint(big.parent)]
    assert found[0] == found[1]
    with open(big, "r+b") as file:
        file.seek(10 << 20)
        file.write(b"x")
    found.append(fingerprint(big.parent))
    small.rename(small.with_name("c.json"))
    found.append(fingerprint(big.parent))
    assert len(set(found)) == 3


def test_a_hash_is_remembered_until_the_size_or_the_time_of_a_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    found = []
    for text, time in (("{}", 1), ("[]", 1), ("[]", 2), ("[0]", 2)):
        file.write_text(text)
        os.utime(file, (time, time))
        found.append(fingerprint(file))
    assert found[0] == found[1]
    assert len(set(found)) == 3
    file.write_text("[1]")
    found.append(fingerprint(file))
    file.write_text("[2]")  # within what a file system may call the same time
    assert fingerprint(file) != found[-1]


def test_what_a_killed_writer_left_is_no_part_of_an_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = []
    for key, torn in (("a", False), ("b", True)):
        with store.writing("stage", key, resumable=True) as folder:
            (folder / "table").write_text("rows")
            if torn:
                (folder / ".table.123.tmp").write_text("ro")
            made.append(store.complete("stage", key, 0.0, 0, {}))
    assert made[0].content == made[1].content
    assert set(made[1].files) == {"table"}


def test_only_what_was_written_is_left_for_the_next_attempt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing("stage", "done-by-another", resumable=True):
        pass
    with store.writing("stage", "half", resumable=True) as folder:
        (folder / "rows").write_text("1")
    assert [path.name for path in (tmp_path / "stage").glob("*.partial")] == ["half.partial"]


def test_a_kill_while_a_finished_stage_is_hashed_costs_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[int] = []

    def work(job: Job) -> None:
        for shard in (Shard(0, (0, 10)), Shard(1, (10, 20))):
            if not is_done(job.folder, shard):
                worked.append(shard.number)
                path = job.folder / f"shard-{shard.number}"
                path.write_text("firings")
                record(job.folder, shard, [path], {})

    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    dag = Dag([node("harvest", work, {}, resumable=True)], Store(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("autointerp.engine.store.read_sha256", killed)
        with pytest.raises(KeyboardInterrupt):
            dag.run()
    made = dag.run()["harvest"]
    assert worked == [0, 1]
    folder = dag.store.folder("harvest", made.key)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "shard-0", "shard-1"]
    assert set(made.files) == {"shard-0", "shard-1"}


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_between_the_manifest_and_the_renaming_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumable: bool, earlier: bool
) -> None:
    """`earlier`: an artifact with something to retry is there, and was put away already."""
    ran: list[int] = []

    def run(folder: Path, inputs: Mapping[str, Path]) -> Done:
        ran.append(len(ran))
        (folder / "rows").write_text(f"made {ran[-1]}")
        return Done(to_retry=int(earlier and len(ran) == 1))

    def killed(made: Path, final: Path) -> None:
        if final.exists():
            final.rename(final.with_name("old"))
        raise KeyboardInterrupt

    dag = Dag([Node("score", run, {}, resumable=resumable)], Store(tmp_path))
    if earlier:
        assert dag.run()["score"].to_retry == 1
    before = len(ran)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_place", staticmethod(killed))
        with pytest.raises(KeyboardInterrupt):
            dag.run()
    made = dag.run()["score"]
    assert len(ran) == before + 1
    assert (dag.store.folder("score", made.key) / "rows").read_text() == f"made {before}"


def test_a_torn_artifact_whose_manifest_is_whole_is_made_again(tmp_path: Path) -> None:
    """The machine lost power between the manifest and the renaming: the file system had not written all."""
    store = Store(tmp_path)
    with store.writing("stage", "key", resumable=False) as folder:
        (folder / "rows").write_text("rows")
        store.complete("stage", "key", 0.0, 0, {})
    store.folder("stage", "key").rename(folder)
    (folder / "rows").write_text("")
    with store.writing("stage", "key", resumable=False) as folder:
        assert not any(folder.iterdir())
    assert store.find("stage", "key") is None


def test_an_artifact_that_another_process_replaces_meanwhile_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, texts = Store(tmp_path), []
    for rows in ("one", "one and two"):
        with store.writing("stage", "key", resumable=True) as folder:
            (folder / "rows").write_text(rows)
            store.complete("stage", "key", 0.0, 0, {})
        texts.append((store.folder("stage", "key") / "manifest.json").read_bytes())
    reads = iter([texts[0], texts[1], texts[1]])
    monkeypatch.setattr("autointerp.engine.store._read", lambda folder: next(reads))
    found = store.find("stage", "key")
    assert found is not None
    assert found.sizes == {"rows": len("one and two")}


def test_who_waits_for_another_process_says_so(tmp_path: Path) -> None:
    store, waits = Store(tmp_path), threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "another process makes it" in record.getMessage():
                waits.set()

    def wait() -> None:
        with store.writing("harvest", "key", resumable=True):
            pass

    log, heard = logging.getLogger("autointerp"), Heard()
    before = log.level
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    try:
        with store.writing("harvest", "key", resumable=True):
            waiting = threading.Thread(target=wait)
            waiting.start()
            assert waits.wait(30)
        waiting.join(30)
        assert not waiting.is_alive()
    finally:
        log.removeHandler(heard)
        log.setLevel(before)


@pytest.mark.parametrize("left", [0, 1])
def test_what_another_process_puts_in_an_input_s_place_is_read_under_its_own_key(tmp_path: Path, left: int) -> None:
    """Two runs share an explanation of which something failed: the second asks again while the first goes on."""
    answers = iter([("one answer", 2), ("more answers", left)])

    def explain(folder: Path, inputs: Mapping[str, Path]) -> Done:
        text, to_retry = next(answers)
        (folder / "explanations").write_text(text)
        return Done(to_retry)

    def select(job: Job) -> None:
        (job.folder / "features").write_text("1 2 3")
        Dag([explaining], Store(tmp_path)).run()

    def score(job: Job) -> None:
        (job.folder / "scores").write_text((job.inputs["explain"] / "explanations").read_text())

    explaining = Node("explain", explain, {})
    scoring = [explaining, node("select", select, {}, ("explain",)), node("score", score, {}, ("explain", "select"))]
    dag = Dag(scoring, Store(tmp_path))
    made = dag.run()
    assert (dag.store.folder("score", made["score"].key) / "scores").read_text() == "more answers"
    standings = dag.standings()
    assert standings["explain"].manifest == made["explain"]
    assert made["score"].parts["input explain"] == made["explain"].content
    assert standings["explain"].state == ("retry" if left else "done")


def test_what_another_process_replaced_is_hashed_before_it_is_read(tmp_path: Path) -> None:
    ours, theirs = Store(tmp_path), Store(tmp_path)
    for store in (ours, theirs):
        with store.writing("explain", "key", resumable=True) as folder:
            (folder / "rows").write_text(f"rows {store is ours}")
            store.complete("explain", "key", 0.0, 1, {})
    (theirs.folder("explain", "key") / "rows").write_text("rows fAlse")
    there = ours.find("explain", "key")
    assert there is not None
    assert ours.verify(there) == "rows has changed"
