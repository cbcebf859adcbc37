"""``autointerp view``: serve a run to a browser of this machine, until Ctrl-C."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.folder import find_run

HOST = "127.0.0.1"


def view(run: str | Path, others: Sequence[str | Path] = (), *, port: int = 0, browser: bool = True) -> None:
    """Serve `run` at an address with a new token, which is printed first; `browser` opens it there.

    `others`, and the runs that lie beside it, can be compared with it. Port 0 is a free one.

    Raises:
        ConfigError: no such run.
        AutointerpError: the port is taken, or the extra ``view`` is not installed.
    """
    folder = find_run(run)
    try:
        import uvicorn

        from autointerp.report.viewer.app import app_of
        from autointerp.report.viewer.guard import new_token
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise AutointerpError("the viewer needs two packages more: pip install 'autointerp-sae[view]'") from error
    token = new_token()
    app = app_of(folder, token, runs_beside(folder, others))
    with listening(port) as at:
        at.listen()  # who reads the address may ask at once
        address = f"http://{HOST}:{at.getsockname()[1]}/{token}/"
        print(address, flush=True)
        if browser:
            webbrowser.open(address)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[at])


def listening(port: int) -> socket.socket:
    """A socket of the loopback alone."""
    at = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        at.bind((HOST, port))
    except (OSError, OverflowError) as error:
        at.close()
        raise AutointerpError(f"port {port} cannot be had ({error}): name another with --port") from error
    return at


def runs_beside(run: Path, named: Sequence[str | Path]) -> dict[str, Path]:
    """By name the runs that are named, then those in the folder that `run` lies in."""
    own = run.resolve()
    known: dict[str, Path] = {}
    for folder in map(find_run, named):
        if folder.resolve() == own:
            raise ConfigError("one run is named twice: compare it with another, or name it once")
        known[_free(folder.resolve().name, known)] = folder.resolve()
    for file in sorted(own.parent.glob("*/features.parquet")):
        folder = file.parent.resolve()
        if folder != own and folder not in known.values():
            known[_free(folder.name, known)] = folder
    return known


def _free(name: str, known: dict[str, Path]) -> str:
    return name if name not in known else next(n for i in range(2, 10_000) if (n := f"{name} ({i})") not in known)
