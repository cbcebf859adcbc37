"""Backend local: a language model in this process, batched over waiting requests, shared prefixes computed once.

1. `ask` makes tokens of a request and puts it among those that wait (`packed.Job`).
2. `_drain` takes what begins alike, at most `llm.batch` at a time, to the worker thread (`local_passes`).
3. `read` makes probabilities of the answers from those of their tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.hashing import file_sha256
from autointerp.llm.backend import Choose, Complete, Fill, FinalFailure, Raw, Reply, Request, Weigh
from autointerp.llm.backends.packed import Job, Tokens, common, follows
from autointerp.llm.prices import FREE, Prices
from autointerp.records import Capability, Choices, Weight
from autointerp.registry import did_you_mean

if TYPE_CHECKING:
    from autointerp.llm.backends.local_model import LocalModel
    from autointerp.llm.backends.local_passes import Passes

IDLE_TURNS = 5  # turns of the event loop without a new request: everybody has asked


class LocalBackend:
    """An instruct model in `folder` (Hugging Face layout, with a chat template), run by this process.

    Requests that wait together are answered together: at most `config.batch` at a time, those that
    begin alike first, in one worker thread. Answers may have several tokens: their probability is
    the product along the tokens, and where one answer begins another ("1" and "10") that of the
    shorter one excludes the longer. Both come from the same forward pass.
    """

    _model: LocalModel
    _passes: Passes

    def __init__(self, folder: Path, config: LLMConfig) -> None:
        self._folder = Path(folder)
        self._config = config
        self._worker = ThreadPoolExecutor(1, "autointerp-llm")
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._drainer: asyncio.Task[None] | None = None

    # --- what is known before it is asked

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> LocalBackend:
        name = config.model.removeprefix("local:")
        folder = Path(name).expanduser()
        if folder.is_dir():
            return cls(folder, config)
        if resolve_model is None:
            raise ConfigError(f"llm.model {name!r} is no folder; a model behind an endpoint needs llm.base_url")
        return cls(resolve_model(name), config)

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        return {"model": identify_model(config.model.removeprefix("local:")), "dtype": config.dtype}

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return frozenset({"choices", "slots"})

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        return FREE

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        name = config.model.removeprefix("local:")
        folder = Path(name).expanduser()
        if name in catalogue or (folder / "config.json").is_file():
            return
        if folder.is_dir():
            raise ConfigError(f"llm.model: no language model in {folder}, it has no config.json")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
            raise ConfigError(
                f"llm.model {name!r} is neither in the catalogue nor a folder; a model behind an endpoint needs "
                f"llm.base_url{did_you_mean(name, catalogue)}"
            )

    # --- what it is

    @property
    def model(self) -> str:
        return self._config.model

    @property
    def identity(self) -> str:
        """Changes with the weights, the tokenizer, the chat template or the dtype."""
        return f"local:{self._weights}:{self._config.dtype}"

    @cached_property
    def _weights(self) -> str:
        return weights_hash(self._folder)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"choices", "slots"})

    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._load)

    def _load(self) -> None:
        passes = importlib.import_module("autointerp.llm.backends.local_passes")  # torch and transformers
        self._model = passes.LocalModel(self._folder, self._config)
        self._passes = passes.Passes(self._model, self._config.batch)

    async def probe(self) -> None:
        """It runs here: it lives."""

    async def close(self) -> None:
        for job in [*self._waiting, *self._running]:
            job.raw.cancel()  # the worker drops cancelled requests at its next step
        self._waiting.clear()
        await asyncio.to_thread(self._worker.shutdown)
        if self._drainer is not None:
            await asyncio.wait([self._drainer])
        self.__dict__.pop("_passes", None)  # the memory of the model and of the kept beginnings
        self.__dict__.pop("_model", None)

    # --- requests

    async def ask(self, request: Request) -> Raw:
        """Greedy at temperature 0, else sampled with the seed. A schema is ignored: no capability "schema"."""
        tokens = self._model.chat(request.messages)
        match request:
            case Complete():
                return await self._queued(
                    tokens,
                    reads=(len(tokens) - 1,),
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                    stop=tuple(request.stop),
                )
            case Choose():
                return await self._queued(tokens, reads=(len(tokens) - 1,), answers=self._answers(request.answers))
            case Fill():
                tokens, reads = self._slots(tokens, request)
                return await self._queued(tokens, reads=reads, answers=self._answers(request.answers))
            case Weigh():
                turn = self._model.encode(request.turn)
                if not turn:
                    raise FinalFailure("an empty text has no probability")
                reads = tuple(range(len(tokens) - 1, len(tokens) + len(turn) - 1))
                return await self._queued((*tokens, *turn[:-1]), reads=reads, targets=turn)

    def read(self, raw: Raw, request: Request) -> Reply:
        counts = {name: raw[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
        if isinstance(request, Complete):
            return Reply(text=raw["text"], truncated=raw["truncated"], **counts)
        if isinstance(request, Weigh):
            return Reply(weight=_weight(raw["logprobs"]), **counts)
        answers = [tuple(answer) for answer in raw["answers"]]
        going_on = follows(answers)
        odds = ({tuple(tokens): p for tokens, p in read} for read in raw["reads"])
        return Reply(choices=tuple(_choices(answers, each, going_on) for each in odds), **counts)

    def _slots(self, chat: Tokens, request: Fill) -> tuple[Tokens, tuple[int, ...]]:
        """The whole turn in tokens and the last one before each filler. Each piece of the turn is tokenised by
        itself, so that a slot begins where its segment ends."""
        tokens, reads, between = list(chat), [], self._model.encode(request.filler)
        for i, segment in enumerate(request.segments):
            tokens += (between if i else ()) + self._model.encode(segment)
            reads.append(len(tokens) - 1)
        return tuple(tokens), tuple(reads)

    def _answers(self, answers: Sequence[str]) -> tuple[Tokens, ...]:
        tokens = tuple(self._model.encode(answer) for answer in answers)
        if not tokens or not all(tokens) or len(set(tokens)) < len(tokens):
            raise ValueError(f"answers must be distinct and not empty, these are {list(answers)}")
        return tokens

    async def _queued(self, tokens: Tokens, *, max_tokens: int = 0, **wanted: Any) -> Raw:
        if len(tokens) + max_tokens > self._model.context:
            answer = f" and {max_tokens:,} for the answer" if max_tokens else ""
            raise FinalFailure(
                f"the prompt has {len(tokens):,} tokens{answer}, {self.model} takes {self._model.context:,}: "
                "show fewer or shorter examples"
            )
        loop = asyncio.get_running_loop()
        job = Job(tokens, raw=loop.create_future(), max_tokens=max_tokens, **wanted)
        self._waiting.append(job)
        if self._drainer is None or self._drainer.done():
            self._drainer = loop.create_task(self._drain())
        return await job.raw

    async def _drain(self) -> None:
        """Answer what waits, batch after batch, until nothing does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            seen = 0
            while seen != len(self._waiting):
                seen = len(self._waiting)
                for _ in range(IDLE_TURNS):
                    await asyncio.sleep(0)
            self._running = self._take()
            work = loop.run_in_executor(self._worker, self._passes.answer, self._running)
            (raws,) = await asyncio.gather(work, return_exceptions=True)
            for i, job in enumerate(self._running):
                if job.raw.done():
                    continue
                if isinstance(raws, BaseException):
                    job.raw.set_exception(raws)
                else:
                    job.raw.set_result(raws[i])
            self._running = []

    def _take(self) -> list[Job]:
        """The next batch: the request that waited longest and those of its kind that share most with it."""
        waiting = [job for job in self._waiting if not job.raw.cancelled()]
        if waiting:
            first = waiting[0]
            alike = sorted(
                (job for job in waiting if job.judges == first.judges),
                key=lambda job: -common(job.tokens, first.tokens),
            )
            waiting = alike[: self._passes.batch]
        self._waiting = [job for job in self._waiting if job not in waiting and not job.raw.cancelled()]
        return waiting


def _choices(
    answers: Sequence[Tokens], odds: Mapping[Tokens, float], going_on: Mapping[Tokens, Sequence[int]]
) -> Choices:
    """`odds`: probability that the turn goes on with these tokens. An answer is said when no longer one is."""
    if not all(0 <= p <= 1.001 for p in odds.values()):  # nan too
        return Choices(None, failure="the model's probabilities are no numbers from 0 to 1: try llm.dtype float32")
    shares = [odds[a] - sum(odds[(*a, token)] for token in going_on.get(a, ())) for a in answers]
    shares = [max(p, 0.0) for p in shares]
    mass = sum(shares)
    if mass <= 0:
        return Choices(None, mass=0.0, failure="the model gave none of the answers any probability")
    return Choices(tuple(p / mass for p in shares), mass=mass)


def _weight(logprobs: Sequence[float]) -> Weight:
    if not all(-1e6 < p <= 1e-3 for p in logprobs):  # nan too
        return Weight(None, failure="the model's probabilities are no numbers from 0 to 1: try llm.dtype float32")
    return Weight(min(sum(logprobs), 0.0), len(logprobs))


def weights_hash(folder: Path) -> str:
    """Sixteen hex digits of what the answers depend on."""
    digest = hashlib.sha256()
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for file in (folder / name for name in names):
        digest.update(file.read_bytes() if file.is_file() else b"-")
    mark = folder / "catalog.json"
    if mark.is_file():  # the catalogue has checked the weights against these
        digest.update(json.dumps(json.loads(mark.read_text()).get("sha256"), sort_keys=True).encode())
        return digest.hexdigest()[:16]
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {file_sha256(file)}".encode())
    return digest.hexdigest()[:16]
