"""The viewer's server: addresses, and what each answers. Who may ask is `guard`'s to say, what is shown `pages`'."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from autointerp.errors import AutointerpError, ConfigError
from autointerp.report import pieces
from autointerp.report.html import SHEETS
from autointerp.report.labels import write_label
from autointerp.report.viewer import pages
from autointerp.report.viewer.guard import Guard
from autointerp.report.viewer.loaded import Loaded
from autointerp.report.viewer.pages import Place
from autointerp.report.viewer.rows import Query, Viewed

log = logging.getLogger("autointerp")

_STATIC = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def app_of(run: str | Path, token: str, others: Mapping[str, Path] | None = None) -> ASGIApp:
    """The viewer of a run behind its token, its first page ready. `others`: runs to compare it with, by name."""
    viewed = Viewed(run)
    pages.ready(viewed)
    return Guard(_Viewer(viewed, dict(others or {})).app(), token)


class _Viewer:
    def __init__(self, viewed: Viewed, others: Mapping[str, Path]) -> None:
        self._viewed, self._others = viewed, others
        self._loaded = Loaded(viewed.path)
        self._files = _static_files()

    def app(self) -> Starlette:
        get: dict[str, Callable[[Request], Response]] = {
            "/": self.overview,
            "/part/{name}": self.part,
            "/features": self.features,
            "/rows": self.rows,
            "/feature": self.go,
            "/feature/{feature:int}": self.feature,
            "/judged/{feature:int}": self.judged,
            "/compare": self.compare,
            "/try": self.try_text,
            "/standing": self.standing,
            "/static/{name}": self.static,
        }
        routes = [Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()]
        routes += [
            Route("/try", self.tried, methods=["POST"]),
            Route("/label/{feature:int}", self.label, methods=["POST"]),
        ]
        handlers = {AutointerpError: self.failed, HTTPException: self.absent, Exception: _broken}
        return Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]  # of our exceptions

    def _place(self, request: Request) -> Place:
        return Place(request.scope["home"], self._viewed, self._others)

    # --- pages

    def overview(self, request: Request) -> Response:
        return HTMLResponse(pages.overview_page(self._place(request), Query.of(request.query_params)))

    def part(self, request: Request) -> Response:
        return HTMLResponse(pages.part(self._place(request), request.path_params["name"]))

    def features(self, request: Request) -> Response:
        return HTMLResponse(pages.features_page(self._place(request), Query.of(request.query_params)))

    def rows(self, request: Request) -> Response:
        start, count = (_whole(request, name) or 0 for name in ("start", "count"))
        try:
            made = pages.rows(self._place(request), Query.of(request.query_params), start, count)
        except ConfigError as error:  # a condition that is being typed is no failure of the page's
            made = {"error": str(error)}
        return JSONResponse(made)

    def go(self, request: Request) -> Response:
        number = _whole(request, "number")
        if number is None:
            raise ConfigError("a feature is a number")
        return RedirectResponse(self._place(request).feature(number), 303)

    def feature(self, request: Request) -> Response:
        windows = _whole(request, "windows") or pages.WINDOWS
        feature, query = request.path_params["feature"], Query.of(request.query_params)
        return HTMLResponse(pages.feature_page(self._place(request), feature, query, windows))

    def judged(self, request: Request) -> Response:
        return HTMLResponse(pages.judged_part(self._place(request), request.path_params["feature"]))

    def compare(self, request: Request) -> Response:
        words = (request.query_params.get(name, "") for name in ("with", "by", "scorer"))
        return HTMLResponse(pages.compare_page(self._place(request), *words))

    def try_text(self, request: Request) -> Response:
        text, feature = (request.query_params.get(name, "") for name in ("text", "feature"))
        return HTMLResponse(pages.try_page(self._place(request), self._loaded, text, feature))

    def standing(self, request: Request) -> Response:
        return JSONResponse(pages.standing(self._place(request)))

    def static(self, request: Request) -> Response:
        """One of the files that were read when the server started: no path of a request reaches the disk."""
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        return Response(file[0], media_type=file[1])

    # --- what asks for work, or writes

    async def tried(self, request: Request) -> Response:
        body = await _object(request)
        feature, text = _number(str(body.get("feature") or "")), str(body.get("text") or "")
        return HTMLResponse(await run_in_threadpool(pages.tried, self._place(request), self._loaded, text, feature))

    async def label(self, request: Request) -> Response:
        body, feature = await _object(request), request.path_params["feature"]
        texts = [text for name in ("label", "comment") if isinstance(text := body.get(name), str)]
        if len(texts) < 2:
            raise ConfigError("a label and a comment are texts")
        known = await run_in_threadpool(self._viewed.now().run.rows, "features", [feature], ["feature"])
        if not known:
            raise HTTPException(404)
        made = await run_in_threadpool(write_label, self._viewed.path, feature, *texts)
        return JSONResponse({"label": made.label, "comment": made.comment, "changed": made.changed})

    # --- failures

    def failed(self, request: Request, error: Exception) -> Response:
        """One clear line, as a page where a page was asked for."""
        status = 400 if isinstance(error, ConfigError) else 404
        return self._said(request, str(error), status)

    def absent(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return self._said(request, "there is no such page" if status == 404 else str(error), status)

    def _said(self, request: Request, message: str, status: int) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"error": message}, status)
        try:
            return HTMLResponse(pages.page(self._place(request), "message", "Not there", message=message), status)
        except AutointerpError:  # the run's folder is gone
            return PlainTextResponse(message, status)


def _broken(request: Request, error: Exception) -> Response:
    log.error("viewer: %s: %s", type(error).__name__, error)
    return JSONResponse({"error": f"{type(error).__name__}; the viewer's log has more"}, 500)


def _static_files() -> dict[str, tuple[bytes, str]]:
    """Name -> content and type of what the pages load."""
    files = {file.name: (file.read_bytes(), _TYPES[file.suffix]) for file in _STATIC.iterdir() if file.suffix in _TYPES}
    sheet = pieces.style(":root", *SHEETS).encode() + files["viewer.css"][0]
    return files | {"viewer.css": (sheet, _TYPES[".css"])}


def _whole(request: Request, name: str) -> int | None:
    return _number(request.query_params.get(name, ""))


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() and len(text) < 16 else None


async def _object(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise ConfigError("the request is not JSON") from error
    if not isinstance(body, dict):
        raise ConfigError("the request is no JSON object")
    return body
