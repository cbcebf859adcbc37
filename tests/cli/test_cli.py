"""The command: what is printed where, and with which exit code."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from autointerp.cli import app
from autointerp.commands.plan import Plan, PlannedStage
from autointerp.commands.prompts import PromptView
from autointerp.errors import AutointerpError
from autointerp.progress import Standing
from autointerp.records import Message

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from synthetic import write_run

CONFIG = "name: tiny\nsubject: {model: m}\ncorpus: {source: s}\nsae: {load: x}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "commanded")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return str(path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_every_command_has_help_with_an_example():
    for name in [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]:
        result = call(name, "--help")
        assert result.exit_code == 0
        assert f"Example: autointerp {name}" in result.stdout
        assert "--verbose" in result.stdout


def test_table_prints_and_filters(folder: Path):
    result = call("table", folder, "--where", "detection > 0.9", "--sort", "feature", "--limit", 1)
    assert result.exit_code == 0
    assert "1 of 2 rows shown" in result.stdout
    rows = json.loads(call("table", folder, "--format", "json", "--where", "status == 'dead'").stdout)
    assert [row["feature"] for row in rows] == [59]
    assert CliRunner().invoke(app, ["table", str(folder), "--format", "parquet"]).stdout_bytes[:4] == b"PAR1"


def test_csv_cells_are_made_harmless_unless_raw_ones_are_asked_for(tmp_path: Path):
    row = {"feature": 1, "firings": 5, "explanation": "=1+1", "composite": None, "status": "ok", "failure": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "features.parquet")
    assert '"\'=1+1"' in call("table", tmp_path, "--format", "csv").stdout
    assert '"=1+1"' in call("table", tmp_path, "--format", "csv", "--raw-cells").stdout


def test_of_a_run_that_goes_on_data_is_on_stdout_and_the_note_on_stderr(tmp_path: Path):
    run = write_run(tmp_path / "unfinished", features=5, windows=1)
    pid, host = os.getpid(), socket.gethostname()
    Standing("score/detection/default", 3, 4, "2026", pid, host, time.time(), tables=1.0).write(run)
    result = call("table", run, "--format", "json")
    assert len(json.loads(result.stdout)) == 5
    assert result.stderr == ("the run goes on: stage 3 of 4, score/detection/default; these are its results so far\n")
    assert call("report", run, "--out", tmp_path / "r.html").stderr == result.stderr
    assert call("show", run, 3).stdout.splitlines()[-1] == result.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["table", "RUN", "--where", "detection >"], 2, "not an expression"),
        (["table", "RUN", "--sort", "detecton"], 2, "did you mean 'detection'?"),
        (["table", "nowhere"], 2, "no run at 'nowhere'"),
        (["show", "RUN", "4"], 1, "nearest: 3, 10, 17, 24, 31"),
        (["plan", "CONFIG", "--set", "seed"], 2, "write --set key.path=value"),
        (["plan", "CONFIG", "--set", "seed=[1"], 2, "not YAML"),
        (["plan", "CONFIG", "--set", "features.cuont=3"], 2, "did you mean 'count'?"),
        (["run", "no-such-config"], 2, "no config at 'no-such-config'"),
    ],
)
def test_what_went_wrong_is_one_line_on_stderr(folder: Path, config: str, arguments: list[str], code: int, said: str):
    result = call(*({"RUN": str(folder), "CONFIG": config}.get(a, a) for a in arguments))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("autointerp: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["tble"], ["table"], ["show", "x", "y"], ["table", "x", "--format", "xml"]])
def test_wrong_usage_is_2(arguments: list[str]):
    assert call(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (AutointerpError("the endpoint\nis gone"), 1, "autointerp: the endpoint is gone\n"),
        (KeyboardInterrupt(), 130, "autointerp: stopped; run again to go on\n"),
        (
            OSError(errno.ENOSPC, "No space left", "/x"),
            1,
            "autointerp: disk full: free space and run again (/x)\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "autointerp: Permission denied (/x)\n"),
        (ZeroDivisionError("oh"), 1, "autointerp: ZeroDivisionError: oh; run with --verbose for the traceback\n"),
    ],
)
def test_each_failure_has_its_code_and_verbose_adds_the_traceback(
    config: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("autointerp.commands.run.run", fail)
    result = call("run", config)
    assert (result.exit_code, result.stderr) == (code, said)
    verbose = call("run", config, "--verbose")
    assert verbose.exit_code == code
    assert "Traceback" in verbose.stderr


def test_no_secret_reaches_errors_tracebacks_or_the_log(config: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret-1234")

    def fail(*_: Any, **__: Any) -> None:
        logging.getLogger("autointerp.llm").debug("header sk-very-secret-1234")
        raise AutointerpError("the endpoint refused sk-very-secret-1234")

    monkeypatch.setattr("autointerp.commands.run.run", fail)
    for arguments in (["run", config], ["run", config, "--verbose"]):
        result = call(*arguments)
        assert "sk-very" not in result.output
        assert "[SOME_API_KEY]" in result.stderr


def test_run_logs_to_stderr_and_ends_with_table_and_report(config: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def run(config: str, *, set: dict[str, Any], out: str | None, retry_failed: bool) -> SimpleNamespace:
        asked.append((set, out))
        logging.getLogger("autointerp").info("harvest: 5 tokens")
        return SimpleNamespace(folder=folder, total_failures=[])

    monkeypatch.setattr("autointerp.commands.run.run", run)
    result = call("run", config, "--set", "features.ids=[1, 2]", "--set", "name=x", "--out", "there")
    assert asked == [({"features.ids": [1, 2], "name": "x"}, "there")]
    assert result.stderr == "harvest: 5 tokens\n"
    assert result.stdout.splitlines()[0].startswith("feature")
    assert result.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    call("run", config)
    assert logging.getLogger("autointerp").handlers == []


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"]])
def test_plan_says_what_is_to_do_and_what_it_costs(config: str, monkeypatch: pytest.MonkeyPatch, command: list[str]):
    stages = [
        PlannedStage("corpus", "done", None),
        PlannedStage("explain/x", "stale", "llm.model changed", 1200, 34000, 560, "at most", None, 75.0, False, 3e7),
    ]
    made = Plan(stages, ["no key is set"])
    monkeypatch.setattr("autointerp.commands.plan.plan", lambda config, out, **more: made)
    result = call(*command, config)
    assert result.exit_code == 2, "something is wrong with the config"
    assert result.stdout.splitlines() == [
        "stage      state  cost                                                            time            disk"
        "     why",
        "corpus     done",
        "explain/x  stale  at most 1,200 LLM calls, 34,000 prompt and ≤ 560 answer tokens  1m15s, guessed"
        "  0.03 GB  llm.model changed",
        "",
        "to do",
        "LLM calls      at most 1,200",
        "prompt tokens  at most 34,000",
        "answer tokens  at most 560",
        "money          the price is not known: set llm.price_in and llm.price_out",
        "time           about 1m15s, a rough guess: its speed was not measured here",
        "disk           about 0.03 GB",
        "wrong: no key is set",
    ]


def test_prompts_are_printed_as_they_would_be_sent(config: str, monkeypatch: pytest.MonkeyPatch):
    view = PromptView("explain", 3, "default", [Message("system", "Be\nbrief."), Message("user", "«x»")], 12)
    monkeypatch.setattr(
        "autointerp.commands.prompts.prompts", lambda config, feature, out: iter([view] * (feature or 0))
    )
    result = call("prompts", config, "--feature", 2)
    one = "── explain · feature 3 · default · 12 tokens\n[system]\nBe\nbrief.\n\n[user]\n«x»\n\n"
    assert result.stdout == one * 2 + "2 prompts, 24 tokens\n"


def test_models_lists_the_catalogue_and_names_no_folder_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    row = {"name": "m", "kind": "model", "cached": True, "size": 112_000_000, "licence": "MIT"}
    rows = [
        row | {"sources": ["hub:a/b"], "path": str(tmp_path)},
        row | {"name": "n", "cached": False, "sources": [], "path": ""},
        row | {"name": "s", "kind": "text", "size": 0, "sources": [], "path": str(tmp_path / "never made")},
    ]
    monkeypatch.setattr("autointerp.catalog.models_table", lambda: rows)
    assert call("models").stdout.splitlines() == [
        "name  kind   cached  size    licence",
        "m     model  yes     112 MB  MIT",
        "    from hub:a/b",
        f"    in   {tmp_path}",
        "n     model  no      112 MB  MIT",
        "s     text   yes     –       MIT",
    ]


def test_report_writes_one_file_and_prints_its_path(folder: Path, tmp_path: Path):
    result = call("report", folder, "--out", tmp_path / "r.html")
    assert result.stdout == f"{tmp_path / 'r.html'}\n"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


@dataclass
class Done:
    code: int
    out: str
    err: str


def spawn(script: str) -> Done:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_reader_that_leaves_early_is_no_failure(folder: Path):
    assert spawn(f"{sys.executable} -m autointerp show {folder} 10 | true") == Done(0, "", "")
    assert spawn(f"{sys.executable} -m autointerp table {folder} | true") == Done(0, "", "")


def test_help_and_table_import_nothing_heavy(folder: Path):
    heavy = "{'torch', 'transformers', 'transformer_lens', 'datasets', 'pandas', 'sklearn', 'openai', 'jinja2'}"
    code = (
        "import sys; from autointerp.cli import app\n"
        "for arguments in (['--help'], ['table', '--help'], ['table', sys.argv[1]]):\n"
        "    app(arguments, standalone_mode=False)\n"
        f"    print('heavy:', sorted({heavy} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("heavy: []") == 3, done.stderr
