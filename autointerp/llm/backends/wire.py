"""JSON over HTTP by a provider's own library: one attempt a call, failures as RequestFailed.

The libraries of OpenAI and Anthropic are made by one generator and share their names; which one it is, is given.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.backend import FinalFailure, RequestFailed, RetryableFailure
from autointerp.llm.backends.failures import Failures, is_page


class Wire:
    """Connections to one endpoint. `timeout` is for a whole answer, however slowly it drips."""

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
        many = max(100, config.concurrency)
        self._library, self._timeout, self._failures = library, config.timeout, failures
        self._response: Any = httpx.Response
        self._client = getattr(library, client)(
            base_url=base_url,
            api_key=key or "none",  # the library wants one, servers of one's own do not
            default_headers=headers,
            max_retries=0,
            timeout=config.timeout,
            http_client=library.DefaultAsyncHttpxClient(
                limits=httpx.Limits(max_connections=many, max_keepalive_connections=many),
                timeout=config.timeout,
                follow_redirects=False,  # a request that was sent elsewhere would be another one
                trust_env=not local,
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
            if error.status_code in (405, 501):
                return []
            raise self._failed(error) from None
        except library.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError":
                where, why = self._failures.where, self._failures.clean(error.__cause__)
                raise AutointerpError(f"no answer at {where} ({why}): start it or set llm.base_url") from None
            raise self._failed(error) from None
        except TimeoutError:
            raise self._late() from None
        try:
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []

    async def post(self, path: str, body: dict[str, Any], most_bytes: int) -> Any:
        """The JSON that is answered to `body`."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(
                    path, cast_to=self._response, body=body, options={"follow_redirects": False}
                )
        except self._library.APIError as error:
            raise self._failed(error) from None  # its chain holds the request and so the key
        except TimeoutError:
            raise self._late() from None
        where, size = self._failures.where, len(response.content)
        if size > most_bytes:
            raise FinalFailure(f"{where}: an answer of {size:,} bytes, more than {most_bytes:,} are not read")
        if is_page(response.headers):
            raise RetryableFailure(f"{where}: a web page instead of an answer: something else answers there")
        try:
            data = response.json()
        except (ValueError, RecursionError):
            raise RetryableFailure(f"{where}: an answer that is no JSON") from None
        if isinstance(data, dict) and data.get("error") and not (data.get("choices") or data.get("content")):
            raise RetryableFailure(f"{where}: an error instead of an answer ({self._failures.clean(data)})")
        return data

    def _late(self) -> RequestFailed:
        return RetryableFailure(f"{self._failures.where}: no answer within {self._timeout:g} s")

    def _failed(self, error: Any) -> RequestFailed:
        library, failures = self._library, self._failures
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
