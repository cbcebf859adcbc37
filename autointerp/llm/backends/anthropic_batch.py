"""Backend anthropic-batch: Anthropic's message batches, half the price, answers within a day; else as `anthropic`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

from autointerp.llm.backend import RetryableFailure
from autointerp.llm.backends.anthropic import AnthropicBackend
from autointerp.llm.backends.batches import MOST_SAID, UPLOAD, Answer, BatchBackend, Intent, text_of
from autointerp.llm.backends.wire import Wire

_PLACE = "/v1/messages/batches"
_SLACK = 60.0  # seconds by which two clocks may differ
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicBatchBackend(BatchBackend, AnthropicBackend):
    """``anthropic-batch:MODEL``: requests are collected, submitted together and waited for. A run that is stopped
    meanwhile takes its batches up when it runs again. Probes are sent live."""

    alone, of = "anthropic-batch", "anthropic"

    def provider(self) -> _Provider:
        assert self._wire is not None
        return _Provider(self._wire)


class _Provider:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def submit(self, requests: Sequence[tuple[str, dict[str, Any]]], mark: str) -> str:
        body = {"requests": [{"custom_id": name, "params": params} for name, params in requests]}
        return text_of(await self._wire.post(_PLACE, body, MOST_SAID, seconds=UPLOAD), "id")

    async def find(self, intent: Intent, known: Sequence[str]) -> str | None:
        """These batches carry no mark: the one of as many requests that was made since, and that nobody knows."""
        listed = await self._wire.get(f"{_PLACE}?limit=100", MOST_SAID)
        entries = listed.get("data") if isinstance(listed, dict) else None
        for entry in reversed(entries if isinstance(entries, list) else []):  # the newest come first
            counts = (entry.get("request_counts") or {}) if isinstance(entry, dict) else {}
            as_many = sum(n for n in counts.values() if isinstance(n, int)) == intent.count
            if as_many and entry.get("id") not in known and _seconds(entry) >= intent.created - _SLACK:
                return text_of(entry, "id")
        return None

    async def ended(self, batch: str) -> bool:
        return text_of(await self._wire.get(f"{_PLACE}/{batch}", MOST_SAID), "processing_status") == "ended"

    async def answers(self, batch: str) -> AsyncIterator[tuple[str, Answer]]:
        for line in await self._wire.lines(f"{_PLACE}/{batch}/results", UPLOAD):
            if isinstance(line, dict) and isinstance(line.get("custom_id"), str):
                result = line.get("result")
                yield line["custom_id"], self._answer(result if isinstance(result, dict) else {})

    def _answer(self, result: dict[str, Any]) -> Answer:
        kind, message = result.get("type"), result.get("message")
        if kind == "succeeded" and isinstance(message, dict):
            return message
        where = self._wire.failures.where
        if kind != "errored":
            return RetryableFailure(f"{where}: in the batch: {kind or 'no answer'}")
        outer = result.get("error")
        error = outer.get("error") if isinstance(outer, dict) and isinstance(outer.get("error"), dict) else outer
        status = _STATUS.get(str(error.get("type")) if isinstance(error, dict) else "", 500)
        return self._wire.failures.of_status(status, {}, {"error": error}, None)


def _seconds(entry: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(entry.get("created_at")).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
