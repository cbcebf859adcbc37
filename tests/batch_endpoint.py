"""The endpoint of tests with OpenAI's and Anthropic's batch APIs beside what it answers live."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from endpoint import Answer, Endpoint, as_messages, failure, yes
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class BatchEndpoint(Endpoint):
    """`looks`: how often a batch is looked at before it has ended. `instead` counts for each request of a batch too.

    `requests` holds the bodies that were answered in batches as well; `lose_submissions` answers so many of them with
    HTTP 503 although the batch is made, `lose_lists` so many questions for the list of batches.
    """

    def __init__(self, answer: Answer = yes, *, looks: int = 2, **options: Any) -> None:
        super().__init__(answer, **options)
        self.looks = looks
        self.lose_submissions = self.lose_lists = 0
        self.in_batches = 0
        self.batches: dict[str, dict[str, Any]] = {}
        self._files: dict[str, str] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files/{file}/content", self._content),
            Route("/v1/batches", self._batches, methods=["GET", "POST"]),
            Route("/v1/batches/{batch}", self._batch),
            Route("/v1/messages/batches", self._batches, methods=["GET", "POST"]),
            Route("/v1/messages/batches/{batch}", self._batch),
            Route("/v1/messages/batches/{batch}/results", self._results),
            *super().routes(),
        ]

    async def _upload(self, request: Request) -> Response:
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        parts = (await request.body()).split(b"--" + boundary)
        content = next(part.partition(b"\r\n\r\n")[2] for part in parts if b"filename=" in part)
        name = f"file-{len(self._files)}"
        self._files[name] = content.removesuffix(b"\r\n").decode()
        return JSONResponse({"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "x",
                             "purpose": "batch", "status": "processed"})  # fmt: skip

    async def _content(self, request: Request) -> Response:
        return Response(self._files[request.path_params["file"]], media_type="application/jsonl")

    async def _batches(self, request: Request) -> Response:
        anthropic = "messages" in request.url.path
        if request.method == "GET":
            if self.lose_lists:
                self.lose_lists -= 1
                return failure(503, "try again")
            return JSONResponse({"data": [self._shown(batch) for batch in reversed(self.batches.values())]})
        body = json.loads(await request.body())
        if anthropic:
            asked = [(each["custom_id"], each["params"]) for each in body["requests"]]
        else:
            lines = [json.loads(line) for line in self._files[body["input_file_id"]].splitlines()]
            asked = [(line["custom_id"], line["body"]) for line in lines]
        name = f"batch_{len(self.batches)}"
        batch = {"id": name, "anthropic": anthropic, "asked": asked, "looked": 0, "metadata": body.get("metadata")}
        self.batches[name] = batch | {"created": datetime.now(UTC).isoformat()}
        self._tell()
        if self.lose_submissions:
            self.lose_submissions -= 1
            return failure(503, "try again")
        return JSONResponse(self._shown(self.batches[name]))

    def _shown(self, batch: dict[str, Any]) -> dict[str, Any]:
        ended = batch["looked"] > self.looks
        if batch["anthropic"]:
            counts = {"processing": len(batch["asked"]), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
            status = "ended" if ended else "in_progress"
            return {"id": batch["id"], "type": "message_batch", "created_at": batch["created"],
                    "processing_status": status, "request_counts": counts}  # fmt: skip
        shown = {"id": batch["id"], "object": "batch", "status": "completed" if ended else "in_progress"}
        files = {"output_file_id": batch.get("file"), "error_file_id": None} if ended else {}
        return shown | files | {"metadata": batch["metadata"]}

    async def _batch(self, request: Request) -> Response:
        batch = self.batches.get(request.path_params["batch"])
        if batch is None:
            return failure(404, "no such batch")
        batch["looked"] += 1
        self._tell()
        if batch["looked"] > self.looks and "file" not in batch:
            batch["file"] = f"file-{len(self._files)}"
            self._files[batch["file"]] = ""
            lines = await asyncio.gather(*(self._line(batch, name, body) for name, body in batch["asked"]))
            self._files[batch["file"]] = "\n".join(map(json.dumps, lines))
        return JSONResponse(self._shown(batch))

    async def _results(self, request: Request) -> Response:
        batch = self.batches[request.path_params["batch"]]
        return Response(self._files[batch["file"]], media_type="application/x-jsonl")

    async def _line(self, batch: dict[str, Any], name: str, body: dict[str, Any]) -> dict[str, Any]:
        given = self.instead(body) or self._refusal(body)
        if given is not None:
            status, answered = given.status_code, json.loads(bytes(given.body))
            if batch["anthropic"]:
                return {"custom_id": name, "result": {"type": "errored", "error": {"type": "error", **answered}}}
            return {"custom_id": name, "response": {"status_code": status, "body": answered}, "error": None}
        self.requests.append(body)
        self.in_batches += 1
        said = self.answer(body["messages"], body)
        said = await said if inspect.isawaitable(said) else said
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        reply = self._reply(body, said, digest, False)
        if self._log:
            self._log.write(json.dumps({"hash": digest, "probe": False}).encode() + b"\n")
        if batch["anthropic"]:
            return {"custom_id": name, "result": {"type": "succeeded", "message": as_messages(reply)}}
        return {"custom_id": name, "response": {"status_code": 200, "body": reply}, "error": None}


@contextmanager
def serving_batches(answer: Answer = yes, **options: Any) -> Iterator[BatchEndpoint]:
    endpoint = BatchEndpoint(answer, **options)
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()
