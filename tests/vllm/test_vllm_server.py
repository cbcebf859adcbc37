"""Starting and ending a server, with a small script in vLLM's place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm import guard
from autointerp.llm.backends.vllm import VllmBackend


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package `vllm` whose server is the given source."""

    def install(source: str) -> None:
        folder = tmp_path / "vllm" / "entrypoints" / "openai"
        folder.mkdir(parents=True)
        (folder / "api_server.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    monkeypatch.delenv("AUTOINTERP_VLLM_PYTHON", raising=False)
    return install


def test_server_that_dies_is_one_error_with_its_last_lines(fake_vllm):
    fake_vllm("print('loading'); raise SystemExit('no kernel for this CPU')")
    backend = VllmBackend(LLMConfig(model="vllm:some/model"))
    with pytest.raises(AutointerpError, match=r"'some/model' ended with code 1.*\n.*loading\n.*no kernel") as caught:
        asyncio.run(backend.start())
    asyncio.run(backend.close())
    kept = str(caught.value).split("its log is ")[1].split(",")[0]
    assert "no kernel" in Path(kept).read_text()
    Path(kept).unlink()


async def test_python_without_vllm_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho no\n")
    bare.chmod(0o755)
    monkeypatch.setenv("AUTOINTERP_VLLM_PYTHON", str(bare))
    with pytest.raises(AutointerpError, match=r"pip install 'autointerp-sae\[vllm\]'"):
        await VllmBackend(LLMConfig(model="vllm:some/model")).start()
    monkeypatch.setenv("AUTOINTERP_VLLM_PYTHON", str(tmp_path / "absent"))
    with pytest.raises(AutointerpError, match="AUTOINTERP_VLLM_PYTHON: cannot run"):
        await VllmBackend(LLMConfig(model="vllm:some/model")).start()


async def test_close_while_starting_ends_the_server(fake_vllm, tmp_path: Path):
    pid_file = tmp_path / "pid"
    fake_vllm(f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()) + '!')\ntime.sleep(600)")
    backend = VllmBackend(LLMConfig(model="vllm:some/model"))
    starting = asyncio.create_task(backend.start())
    pid = await asyncio.to_thread(_written_pid, pid_file)
    starting.cancel()
    await asyncio.wait([starting])
    await backend.close()
    assert _gone(pid)


SERVER = """
import http.server, json, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.path == "/health" or self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
        body = json.dumps({"data": [{"id": "some/model"}]}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


async def test_server_is_asked_with_a_key_of_its_own_that_no_process_list_shows(fake_vllm):
    fake_vllm(SERVER)
    backends = [VllmBackend(LLMConfig(model="vllm:some/model")) for _ in range(2)]
    for backend in backends:  # nothing is left to find out, so that the list of models is all that is asked
        backend.memory = {"top_logprobs": 0, "slots": False, "schema": False}
    backend, other = backends
    try:
        await backend.start()
        key = backend._api_key or ""
        assert len(key) > 20
        assert key != other._api_key
        assert backend._server is not None
        assert key not in " ".join(map(str, backend._server.args))
    finally:
        await backend.close()


@pytest.mark.parametrize("args", [["--api-key", "theirs"], ["--seed", "1", "--api-key=theirs"]])
def test_a_key_among_the_servers_arguments_is_used(args: list[str]):
    assert VllmBackend(LLMConfig(model="vllm:some/model", server_args=args))._api_key == "theirs"


def test_identity_says_nothing_of_the_port():
    config = LLMConfig(model="vllm:some/model", server_args=["--max-model-len", "512"])
    one, two = VllmBackend(config), VllmBackend(config)
    one.base_url = "http://127.0.0.1:4711/v1"
    assert one.identity == two.identity
    assert one.identity != VllmBackend(LLMConfig(model="vllm:some/model")).identity
    assert one.model == "some/model"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_command_and_its_children_end_when_we_are_killed(tmp_path: Path, end: signal.Signals):
    pid_file = tmp_path / "pid"
    # a server that ignores nothing, with a worker of its own, started by a process that is then killed
    server = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pid_file)!r}, 'w').write(f'{{worker.pid}}!')\n"
        "time.sleep(600)"
    )
    starter = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {guard.__file__!r}, sys.executable, '-c', {server!r}],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)"
    )
    us = subprocess.Popen([sys.executable, "-c", starter])
    worker = _written_pid(pid_file)
    us.send_signal(end)
    us.wait()
    assert _gone(worker)


def test_guard_hands_on_the_exit_code():
    command = [sys.executable, guard.__file__, sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait() == 7


def _written_pid(file: Path) -> int:
    return int(_until(lambda: file.read_text()[:-1] if file.exists() and file.read_text().endswith("!") else None))


def _gone(pid: int) -> bool:
    def ended() -> str | None:
        try:
            os.kill(pid, 0)
            stat = Path(f"/proc/{pid}/stat")
            return "zombie" if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z" else None
        except (ProcessLookupError, FileNotFoundError):
            return "gone"

    return bool(_until(ended))


def _until(what):
    """Poll for at most a minute: how long a process takes to start or to end is not ours to say."""
    import time

    for _ in range(1200):
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing happened within a minute")
