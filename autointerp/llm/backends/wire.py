"""JSON over HTTP by a provider's own library: one attempt a call, failures as RequestFailed.

The libraries of OpenAI and Anthropic are made by one generator and share their names; which one it is, is given.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.backend import FinalFailure, RequestFailed, RetryableFailure
from autointerp.llm.backends.failures import Failures, is_page

IN_A_POOL = 8  # connections, of those that may be open at one time


class Spread:
    """An httpx transport that takes several pools of connections in turn. A pool looks through all of its connections
    at each request and each answer; with 64 in one that is a third of what a request costs."""

    def __init__(self, pools: Sequence[Any]) -> None:
        self._pools, self._turn = pools, itertools.cycle(pools)

    async def handle_async_request(self, request: Any) -> Any:
        return await next(self._turn).handle_async_request(request)

    async def __aenter__(self) -> Spread:
        for pool in self._pools:
            await pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


class Wire:
    """Connections to one endpoint; `failures` says what its errors mean. `timeout` is for a whole answer, however
    slowly it drips."""

    def __init__(
        self,
        library: Any,
        client: str,
        config: LLMConfig,
        base_url: str,
        key: str,
        headers: dict[str, str],
        failures: Failures,
        local: bool,
    ) -> None:
        """`library` has a class named `client`; a `local` endpoint is asked past any proxy."""
        # newer libraries stand on another httpx than older ones: take the one that their own client derives from
        base = next(each for each in library.DefaultAsyncHttpxClient.__mro__ if each.__name__ == "AsyncClient")
        httpx = importlib.import_module(base.__module__.partition(".")[0])
        many, trust_env = max(100, config.concurrency), not local
        limits = httpx.Limits(max_connections=many, max_keepalive_connections=many)
        spread: dict[str, Any] = {}
        if not (trust_env and urllib.request.getproxies()):  # through a proxy as the library does it
            context = httpx.create_ssl_context(trust_env=trust_env)
            pools = -(-config.concurrency // IN_A_POOL)
            spread["transport"] = Spread([httpx.AsyncHTTPTransport(context, limits=limits) for _ in range(pools)])
        self._library, self._timeout, self.failures = library, config.timeout, failures
        self._response: Any = httpx.Response
        self._client = getattr(library, client)(
            base_url=base_url,
            api_key=key or "none",  # the library wants one, servers of one's own do not
            default_headers=headers,
            max_retries=0,
            timeout=config.timeout,
            http_client=library.DefaultAsyncHttpxClient(
                limits=limits,
                timeout=config.timeout,
                follow_redirects=False,  # a request that was sent elsewhere would be another one
                trust_env=trust_env,
                **spread,
            ),
        )

    async def close(self) -> None:
        await self._client.close()

    async def models(self, path: str) -> list[str]:
        """The names of the models that the endpoint lists; none where it has no list."""
        library = self._library
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.get(path, cast_to=self._response, options={"follow_redirects": False})
        except (library.NotFoundError, library.BadRequestError):
            return []
        except library.APIStatusError as error:
            if error.status_code in (403, 405, 501):  # a key may ask models and not list them
                return []
            raise self._failed(error) from None
        except library.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError":
                where, why = self.failures.where, self.failures.clean(error.__cause__)
                raise AutointerpError(f"no answer at {where} ({why}): start it or set llm.base_url") from None
            raise self._failed(error) from None
        except TimeoutError:
            raise self._late() from None
        try:
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []

    async def post(self, path: str, body: dict[str, Any], most_bytes: int, *, seconds: float | None = None) -> Any:
        """The JSON that is answered to `body`, within `seconds` where that is not the config's timeout."""

        def call(client: Any) -> Any:
            return client.post(path, cast_to=self._response, body=body, options={"follow_redirects": False})

        return self._json(await self._called(call, seconds), most_bytes)

    async def get(self, path: str, most_bytes: int) -> Any:
        """The JSON that lies at `path`."""
        return self._json(await self._called(self._getting(path)), most_bytes)

    async def lines(self, path: str, seconds: float) -> list[Any]:
        """A file of one JSON a line; None for a line that is none."""
        response = await self._called(self._getting(path), seconds)
        return [_json_or_none(line) for line in response.text.split("\n") if line.strip()]

    async def upload(self, name: str, content: bytes, purpose: str, seconds: float) -> str:
        """The id of a file that is put there (OpenAI's files)."""

        def call(client: Any) -> Any:
            return client.files.create(file=(name, content), purpose=purpose)

        return str((await self._called(call, seconds)).id)

    def _getting(self, path: str) -> Callable[[Any], Awaitable[Any]]:
        return lambda client: client.get(path, cast_to=self._response, options={"follow_redirects": False})

    async def _called(self, call: Callable[[Any], Awaitable[Any]], seconds: float | None = None) -> Any:
        limit = seconds or self._timeout
        client = self._client if seconds is None else self._client.with_options(timeout=seconds)
        try:
            async with asyncio.timeout(limit):
                return await call(client)
        except self._library.APIError as error:
            raise self._failed(error) from None  # its chain holds the request and so the key
        except TimeoutError:
            raise self._late(limit) from None

    def _json(self, response: Any, most_bytes: int) -> Any:
        where, size = self.failures.where, len(response.content)
        if size > most_bytes:
            raise FinalFailure(f"{where}: an answer of {size:,} bytes, more than {most_bytes:,} are not read")
        if is_page(response.headers):
            raise RetryableFailure(f"{where}: a web page instead of an answer: something else answers there")
        try:
            data = response.json()
        except (ValueError, RecursionError):
            raise RetryableFailure(f"{where}: an answer that is no JSON") from None
        if isinstance(data, dict) and data.get("error") and not (data.get("choices") or data.get("content")):
            raise RetryableFailure(f"{where}: an error instead of an answer ({self.failures.clean(data)})")
        return data

    def _late(self, seconds: float | None = None) -> RequestFailed:
        return RetryableFailure(f"{self.failures.where}: no answer within {seconds or self._timeout:g} s")

    def _failed(self, error: Any) -> RequestFailed:
        library, failures = self._library, self.failures
        if isinstance(error, library.APITimeoutError):
            return self._late()
        if isinstance(error, library.APIConnectionError):
            return RetryableFailure(f"{failures.where}: {failures.clean(error.__cause__ or error)}")
        if not isinstance(error, library.APIStatusError):
            return RetryableFailure(f"{failures.where}: {failures.clean(error.message)}")
        body = error.body if error.body else error.message
        named = [getattr(error, name, None) for name in ("code", "type")]
        if "insufficient_quota" in named:
            body = f"{failures.clean(body)} (insufficient_quota)"
        parameter = getattr(error, "param", None)
        return failures.of_status(error.status_code, error.response.headers, body, parameter)


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
