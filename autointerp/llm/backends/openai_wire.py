"""HTTP to an OpenAI-compatible endpoint by the `openai` package: one attempt a call, failures as RequestFailed."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import openai

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.backend import FinalFailure, RequestFailed, RetryableFailure
from autointerp.llm.backends.openai_failures import Failures, is_page

# openai 3 stands on another httpx than openai 2: take the one that its own client derives from
_BASE = next(each for each in openai.DefaultAsyncHttpxClient.__mro__ if each.__name__ == "AsyncClient")
_httpx: Any = importlib.import_module(_BASE.__module__.partition(".")[0])


class Wire:
    """Connections to one endpoint. `timeout` is for a whole answer, however slowly it drips."""

    def __init__(
        self, config: LLMConfig, base_url: str, key: str, headers: dict[str, str], failures: Failures, local: bool
    ) -> None:
        many = max(100, config.concurrency)
        self._timeout = config.timeout
        self._failures = failures
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",  # the library wants one, servers of one's own do not
            default_headers=headers,
            max_retries=0,
            timeout=config.timeout,
            http_client=openai.DefaultAsyncHttpxClient(
                limits=_httpx.Limits(max_connections=many, max_keepalive_connections=many),
                timeout=config.timeout,
                follow_redirects=False,  # a request that was sent elsewhere would be another one
                trust_env=not local,  # a proxy for the outside world is none for this machine
            ),
        )

    async def close(self) -> None:
        await self._client.close()

    async def models(self) -> list[str]:
        """The names of the models that the endpoint lists; none where it has no list."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.get(
                    "/models", cast_to=_httpx.Response, options={"follow_redirects": False}
                )
        except (openai.NotFoundError, openai.BadRequestError):
            return []
        except openai.APIStatusError as error:
            if error.status_code in (405, 501):
                return []
            raise self._failed(error) from None
        except openai.APIConnectionError as error:
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

    async def post(self, body: dict[str, Any], most_bytes: int) -> Any:
        """The JSON that chat completions answer to `body`."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.post(
                    "/chat/completions", cast_to=_httpx.Response, body=body, options={"follow_redirects": False}
                )
        except openai.APIError as error:
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
        if isinstance(data, dict) and not data.get("choices") and data.get("error"):
            raise RetryableFailure(f"{where}: an answer without choices ({self._failures.clean(data)})")
        return data

    def _late(self) -> RequestFailed:
        return RetryableFailure(f"{self._failures.where}: no answer within {self._timeout:g} s")

    def _failed(self, error: openai.APIError) -> RequestFailed:
        failures = self._failures
        if isinstance(error, openai.APITimeoutError):
            return self._late()
        if isinstance(error, openai.APIConnectionError):
            return RetryableFailure(f"{failures.where}: {failures.clean(error.__cause__ or error)}")
        if not isinstance(error, openai.APIStatusError):
            return RetryableFailure(f"{failures.where}: {failures.clean(error.message)}")
        body = error.body if error.body else error.message
        code = " ".join(str(each) for each in (error.code, error.type) if each == "insufficient_quota")
        if code:
            body = f"{failures.clean(body)} ({code})"
        return failures.of_status(error.status_code, error.response.headers, body, error.param)
