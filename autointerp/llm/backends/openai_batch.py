"""Backend openai-batch: OpenAI's batch API, half the price, answers within a day; otherwise as `openai`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from autointerp.llm.backend import FinalFailure, RateLimited, RetryableFailure
from autointerp.llm.backends.batches import MOST_SAID, UPLOAD, Answer, BatchBackend, Intent, text_of
from autointerp.llm.backends.openai import OpenAIBackend
from autointerp.llm.backends.wire import Wire

_ENDPOINT = "/v1/chat/completions"
_LIMIT_PAUSE = 300.0  # seconds, where as many tokens wait at the provider as it lets wait


class OpenAIBatchBackend(BatchBackend, OpenAIBackend):
    """``openai-batch:MODEL``: requests are collected, submitted together and waited for. A run that is stopped
    meanwhile takes its batches up when it runs again. Probes are sent live."""

    alone, of = "openai-batch", "openai"

    def provider(self) -> _Provider:
        assert self._wire is not None
        return _Provider(self._wire)


class _Provider:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def submit(self, requests: Sequence[tuple[str, dict[str, Any]]], mark: str) -> str:
        lines = [
            json.dumps({"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": body}) for name, body in requests
        ]
        file = await self._wire.upload(f"autointerp-{mark}.jsonl", "\n".join(lines).encode(), "batch", UPLOAD)
        asked = {"input_file_id": file, "endpoint": _ENDPOINT, "completion_window": "24h"}
        made = await self._wire.post("/batches", asked | {"metadata": {"autointerp": mark}}, MOST_SAID)
        return text_of(made, "id")

    async def find(self, intent: Intent, known: Sequence[str]) -> str | None:
        listed = await self._wire.get("/batches?limit=100", MOST_SAID)
        entries = listed.get("data") if isinstance(listed, dict) else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and (entry.get("metadata") or {}).get("autointerp") == intent.mark:
                return text_of(entry, "id")
        return None

    async def ended(self, batch: str) -> bool:
        state = await self._wire.get(f"/batches/{batch}", MOST_SAID)
        status = text_of(state, "status")
        if status == "failed":
            raise self._refused(state)
        return status in ("completed", "expired", "cancelled")

    def _refused(self, state: dict[str, Any]) -> RateLimited | FinalFailure:
        """The batch was refused as a whole."""
        errors = (state.get("errors") or {}).get("data") or [{}]
        why = self._wire.failures.clean(errors[0].get("message") or "no reason given")
        if "limit" in str(errors[0].get("code")) and "billing" not in str(errors[0].get("code")):
            return RateLimited(f"{self._wire.failures.where}: the batch was refused: {why}", _LIMIT_PAUSE)
        return FinalFailure(f"{self._wire.failures.where}: the batch was refused: {why}", fatal=True)

    async def answers(self, batch: str) -> AsyncIterator[tuple[str, Answer]]:
        state = await self._wire.get(f"/batches/{batch}", MOST_SAID)
        for key in ("output_file_id", "error_file_id"):
            if state.get(key):
                for line in await self._wire.lines(f"/files/{state[key]}/content", UPLOAD):
                    if isinstance(line, dict) and isinstance(line.get("custom_id"), str):
                        yield line["custom_id"], self._answer(line)

    def _answer(self, line: dict[str, Any]) -> Answer:
        response, error = line.get("response"), line.get("error")
        if not isinstance(response, dict):
            why = self._wire.failures.clean(error or "no answer")
            return RetryableFailure(f"{self._wire.failures.where}: in the batch: {why}")
        status, body = response.get("status_code"), response.get("body")
        if status == 200 and isinstance(body, dict):
            return body
        inner = body.get("error") if isinstance(body, dict) else None
        parameter = inner.get("param") if isinstance(inner, dict) else None
        return self._wire.failures.of_status(status if isinstance(status, int) else 500, {}, body, parameter)
