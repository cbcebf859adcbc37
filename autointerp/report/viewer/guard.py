"""Who may talk to the viewer: this machine, who knows the token in the address, and no other page of the browser.

1. `Host` names the loopback, so that a foreign name that was made to point here (DNS rebinding) reaches nothing. Its
   port is free, for a tunnel has another.
2. The first part of the path is the token. Everything else is "not found", and a comparison takes the same time.
3. A request that another origin made is refused. To follow a link from elsewhere is not: then the browser navigates.
4. What changes something is a POST of JSON from the viewer's own origin; GET and HEAD change nothing.
5. Every answer says that it may load nothing from elsewhere, run no script but the viewer's files, and be in no frame.
"""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST = 1 << 17  # bytes of a request's body
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}


def new_token() -> str:
    """128 random bits, in characters that a path may have."""
    return secrets.token_urlsafe(16)


class Guard:
    """ASGI: `app` behind the token. The app sees paths without it, and its own address in the scope as ``home``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page of ours opens a socket
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, guarded)
            return
        home = f"/{self._token}"
        inside = dict(scope) | {"path": scope["path"][len(home) :] or "/", "home": home}
        await self._app(inside, _limited(receive), guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and text; None where the request may pass."""
        headers, method = Headers(scope=scope), scope["method"]
        host = headers.get("host", "")
        if _name(host) not in LOOPBACK:
            return 403, "this address is not served here"
        token = scope["path"].split("/", 2)[1] if scope["path"].startswith("/") else ""
        if not secrets.compare_digest(token.encode("utf-8", "surrogatepass"), self._token.encode()):
            return 404, "not found: the address that `autointerp view` printed has a token in it"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "GET and POST only"
        if _foreign(headers, host, method):
            return 403, "other origins are not served"
        if method == "POST":
            if headers.get("origin") is None:
                return 403, "a POST names its origin"
            if headers.get("content-type", "").split(";")[0].strip() != "application/json":
                return 415, "a POST is JSON"
            if not headers.get("content-length", "").isdigit() or int(headers["content-length"]) > LARGEST:
                return 413, "too long"
        return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _foreign(headers: Headers, host: str, method: str) -> bool:
    """Whether a page of another origin made the request; to follow a link to here is no such request."""
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return True
    site = headers.get("sec-fetch-site", "none")
    follows = method == "GET" and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == (
        "navigate",
        "document",
    )
    return site not in ("none", "same-origin") and not follows


def _limited(receive: Receive) -> Receive:
    """Ends a body that is longer than it said."""
    had = 0

    async def read() -> Message:
        nonlocal had
        message: dict[str, Any] = dict(await receive())
        had += len(message.get("body", b""))
        if had > LARGEST:
            return {"type": "http.disconnect"}
        return message

    return read
