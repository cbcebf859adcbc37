"""A language model in this process: transformers, batched over waiting requests, shared beginnings computed once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.hashing import file_sha256
from autointerp.llm.backend import FinalFailure, Reply
from autointerp.llm.backends.packed import Packed, PrefixCache, Tokens, common, pack
from autointerp.records import Capability, Choices, Message

if TYPE_CHECKING:
    import torch

log = logging.getLogger("autointerp")

PREFIX_BYTES = 1 << 29  # of kept keys and values; 28 kB a token for a 1.5B model
WORTH_A_PASS = 64  # tokens that may be computed again to spare a pass of its own
WORTH_KEEPING = 16  # tokens by which a shared beginning must exceed what is kept
PASS_TOKENS = {"cpu": 1024, "cuda": 8192}  # new tokens in one pass: enough to keep the device busy
IDLE_TURNS = 5  # turns of the event loop without a new request: everybody has asked


@dataclass(eq=False)
class _Job:
    """A request in tokens. `reads`: positions after which the next-token distribution is wanted."""

    tokens: Tokens
    reads: tuple[int, ...]
    reply: asyncio.Future[Reply]
    answers: tuple[Tokens, ...] = ()  # of choose and fill; complete has none
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    cached: int = 0

    @property
    def kind(self) -> bool:
        return bool(self.answers)


@dataclass
class _Row:
    """One completion under way."""

    job: _Job
    random: random.Random
    tokens: list[int] = field(default_factory=list)
    text: str | None = None  # set when it has ended
    truncated: bool = False


class LocalBackend:
    """An instruct model in `folder` (Hugging Face layout, with a chat template), run by this process.

    Requests that wait together are answered together: at most `config.batch` at a time, those that
    begin alike first, in one worker thread. Answers may have several tokens: their probability is
    the product along the tokens, and where one answer begins another ("1" and "10") that of the
    shorter one excludes the longer. Both come from the same forward pass.
    """

    def __init__(self, folder: Path, config: LLMConfig) -> None:
        self._folder = Path(folder)
        self._config = config
        self._batch = config.batch
        self._worker = ThreadPoolExecutor(1, "autointerp-llm")
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []
        self._drainer: asyncio.Task[None] | None = None
        self._tokenizer_lock = threading.Lock()  # tokenizers are asked by the event loop and by the worker
        self._prefixes: PrefixCache[list[tuple[torch.Tensor, torch.Tensor]]] = PrefixCache(PREFIX_BYTES)
        self._model: Any = None

    # --- what it is ---------------------------------------------------------------------------

    @property
    def model(self) -> str:
        return self._config.model

    @property
    def identity(self) -> str:
        """Changes with the weights, the tokenizer, the chat template or the dtype."""
        return f"local:{self._weights}:{self._config.dtype}"

    @cached_property
    def _weights(self) -> str:
        return _fingerprint(self._folder)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"choices", "slots"})

    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, self._load)

    async def close(self) -> None:
        for job in [*self._waiting, *self._running]:
            job.reply.cancel()  # the worker drops cancelled requests at its next step
        self._waiting.clear()
        await asyncio.to_thread(self._worker.shutdown)
        if self._drainer is not None:
            await asyncio.wait([self._drainer])
        self._prefixes.clear()
        self._model = None

    # --- requests -----------------------------------------------------------------------------

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        schema: Mapping[str, object] | None,
        stop: Sequence[str],
    ) -> Reply:
        """Greedy at temperature 0, else sampled with `seed`. `schema` is ignored: no capability "schema"."""
        tokens = self._chat(messages)
        return await self._ask(
            tokens,
            reads=(len(tokens) - 1,),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop=tuple(stop),
        )

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Reply:
        tokens = self._chat(messages)
        return await self._ask(tokens, reads=(len(tokens) - 1,), answers=self._answers(answers))

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Reply:
        """Each piece of the turn is tokenised by itself, so that a slot begins where its segment ends."""
        tokens, reads, between = list(self._chat(messages)), [], self._encode(filler)
        for i, segment in enumerate(segments):
            tokens += (between if i else ()) + self._encode(segment)
            reads.append(len(tokens) - 1)
        return await self._ask(tuple(tokens), reads=tuple(reads), answers=self._answers(answers))

    async def _ask(self, tokens: Tokens, *, max_tokens: int = 0, **wanted: Any) -> Reply:
        if len(tokens) + max_tokens > self._context:
            answer = f" and {max_tokens:,} for the answer" if max_tokens else ""
            raise FinalFailure(
                f"the prompt has {len(tokens):,} tokens{answer}, {self.model} takes {self._context:,}: "
                "show fewer or shorter examples"
            )
        loop = asyncio.get_running_loop()
        job = _Job(tokens, reply=loop.create_future(), max_tokens=max_tokens, **wanted)
        self._waiting.append(job)
        if self._drainer is None or self._drainer.done():
            self._drainer = loop.create_task(self._drain())
        return await job.reply

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
            work = loop.run_in_executor(self._worker, self._answer, self._running)
            (replies,) = await asyncio.gather(work, return_exceptions=True)
            for i, job in enumerate(self._running):
                if job.reply.done():
                    continue
                if isinstance(replies, BaseException):
                    job.reply.set_exception(replies)
                else:
                    job.reply.set_result(replies[i])
            self._running = []

    def _take(self) -> list[_Job]:
        """The next batch: the request that waited longest and those of its kind that share most with it."""
        waiting = [job for job in self._waiting if not job.reply.cancelled()]
        if waiting:
            first = waiting[0]
            alike = sorted(
                (job for job in waiting if job.kind == first.kind), key=lambda job: -common(job.tokens, first.tokens)
            )
            waiting = alike[: self._batch]
        self._waiting = [job for job in self._waiting if job not in waiting and not job.reply.cancelled()]
        return waiting

    # --- text and tokens ----------------------------------------------------------------------

    def _encode(self, text: str) -> Tokens:
        with self._tokenizer_lock:
            return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _decode(self, tokens: Sequence[int]) -> str:
        with self._tokenizer_lock:
            return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _chat(self, messages: Sequence[Message]) -> Tokens:
        from jinja2 import TemplateError

        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._encode(self._render(chat))
        except TemplateError:
            if len(chat) < 2 or chat[0]["role"] != "system":
                raise
        # a template without a system role: its text goes before the user's
        first = {"role": chat[1]["role"], "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
        return self._encode(self._render([first, *chat[2:]]))

    def _render(self, chat: list[dict[str, str]]) -> str:
        # A template that prints today's date would change every prompt every day, and one that opens
        # a thinking block would put the answer out of reach of `choose`; others ignore these names.
        return self._tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string="01 Jan 2025"
        )

    def _answers(self, answers: Sequence[str]) -> tuple[Tokens, ...]:
        tokens = tuple(self._encode(answer) for answer in answers)
        if not tokens or not all(tokens) or len(set(tokens)) < len(tokens):
            raise ValueError(f"answers must be distinct and not empty, these are {list(answers)}")
        return tokens

    # --- the worker thread --------------------------------------------------------------------

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = self._config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if not (self._folder / "config.json").is_file():
            raise AutointerpError(f"no language model in {self._folder}: it has no config.json")
        log.info("loading %s (%s, %s)", self.model, self._config.dtype, device)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
            model: Any = AutoModelForCausalLM.from_pretrained(self._folder, dtype=getattr(torch, self._config.dtype))
            self._model = model.eval().to(device)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise AutointerpError(f"cannot load the language model in {self._folder}: {_line(error)}") from error
        if self._tokenizer.chat_template is None:
            raise AutointerpError(f"{self.model} has no chat template: take an instruct model")
        text = self._model.config.get_text_config(decoder=True)
        self._context = int(getattr(text, "max_position_embeddings", 0) or 1 << 30)
        self._layer_types = set(getattr(text, "layer_types", None) or ())
        self._window = getattr(text, "sliding_window", None)
        ends = self._model.generation_config.eos_token_id
        self._ends = {self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._exact = False
        if self._config.dtype != "float32":
            self._model.get_output_embeddings().register_forward_hook(self._float_logits)
        self._pass_tokens = PASS_TOKENS.get(self._model.device.type, PASS_TOKENS["cuda"])
        self._check()

    def _float_logits(self, head: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Logits in float32: bfloat16 ones near 20 come in steps of 1/8, which are ties among judgements."""
        import torch

        if not self._exact:
            return None
        hidden = args[0].float()
        logits = torch.cat([hidden @ rows.float().T for rows in head.weight.split(16384)], dim=-1)
        return logits if head.bias is None else logits + head.bias

    def _check(self) -> None:
        """Tokens in a tree give what they give in a row, or this architecture cannot be packed."""
        import torch

        tokens = self._encode("A tree has leaves. The sky is blue, and water is wet.")[:24]
        half = len(tokens) // 2
        prompts = [tokens, tokens[:half] + tokens[: len(tokens) - half]]
        packed = pack(prompts, 0, [(), ()])
        with torch.inference_mode():
            logits, _ = self._forward(packed, [int(path[-1]) for path in packed.paths], None)
            for got, prompt in zip(logits, prompts):
                plain = self._model(torch.tensor([prompt], device=self._model.device), logits_to_keep=1).logits[0, -1]
                apart = (got.float().softmax(-1) - plain.float().softmax(-1)).abs().sum().item()
                if not apart < (1e-3 if logits.dtype == torch.float32 else 0.1):
                    raise AutointerpError(
                        f"{self.model} ({self._model.config.model_type}) cannot be run in-process: serve it with vLLM"
                    )

    def _answer(self, jobs: list[_Job]) -> list[Reply]:
        """Reply to `jobs`, all of one kind, in two halves where the memory does not do for all."""
        if not jobs:
            return []
        try:
            return self._run(jobs)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        self._prefixes.clear()
        half = (len(jobs) + 1) // 2
        self._batch = half
        log.warning("out of memory with %d requests at once: going on with %d", len(jobs), half)
        try:
            return self._run(jobs[:half]) + (self._run(jobs[half:]) if jobs[half:] else [])
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            raise AutointerpError(
                f"out of memory with {half} requests to {self.model}: lower llm.batch, or take a smaller model"
            ) from error

    def _run(self, jobs: list[_Job]) -> list[Reply]:
        import torch

        self._exact = jobs[0].kind  # sampling does not need it
        with torch.inference_mode():
            replies = self._read(jobs) if jobs[0].kind else self._generate(jobs)
        return [replies[job] for job in jobs]

    def _passes(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Jobs sorted by their tokens, in groups of about as many new tokens as one pass should have.

        A pass goes on from what all of its jobs share. A job whose own beginning is kept to a later
        point is better off alone, unless the difference is small.
        """
        group: list[_Job] = []
        nodes = cost = 0
        for job in sorted(jobs, key=lambda job: job.tokens):
            alone = len(job.tokens) - self._start([job])
            if group:
                joined = nodes + len(job.tokens) - common(group[-1].tokens, job.tokens)
                together = joined - self._start([*group, job])
                if together <= min(self._pass_tokens, cost + alone + WORTH_A_PASS):
                    group.append(job)
                    nodes, cost = joined, together
                    continue
                yield group
                alone = len(job.tokens) - self._start([job])  # that pass may have kept something for it
            group, nodes, cost = [job], len(job.tokens), alone
        yield group

    def _start(self, jobs: Sequence[_Job]) -> int:
        """How many tokens of `jobs`, sorted, one pass over them need not compute."""
        trunk = common(jobs[0].tokens, jobs[-1].tokens)
        return self._prefixes.match(jobs[0].tokens[: min(trunk, *(min(job.reads) for job in jobs))])[0]

    def _prefill(self, jobs: list[_Job]) -> tuple[Packed, torch.Tensor, dict[int, int], Any]:
        """One pass over `jobs`, sorted by tokens: (tree, logits [R, vocab], node -> its row in them, cache)."""
        trunk = common(jobs[0].tokens, jobs[-1].tokens)
        base, known = self._prefixes.match(jobs[0].tokens[: min(trunk, *(min(job.reads) for job in jobs))])
        packed = pack([job.tokens for job in jobs], base, [_continuations(job) for job in jobs])
        wanted = {int(path[read - base]) for job, path in zip(jobs, packed.paths) for read in job.reads}
        nodes = sorted(wanted.union(*(branches.values() for branches in packed.branches)))
        logits, cache = self._forward(packed, nodes, known)
        for job, fresh in zip(jobs, packed.fresh):
            job.cached = len(job.tokens) - fresh
        if trunk >= base + WORTH_KEEPING:
            kept = [(layer.keys[:, :, :trunk].clone(), layer.values[:, :, :trunk].clone()) for layer in cache.layers]
            self._prefixes.put(jobs[0].tokens[:trunk], kept, sum(k.nbytes + v.nbytes for k, v in kept))
        return packed, logits, {node: row for row, node in enumerate(nodes)}, cache

    def _forward(
        self, packed: Packed, nodes: Sequence[int], known: list[tuple[torch.Tensor, torch.Tensor]] | None
    ) -> tuple[torch.Tensor, Any]:
        """Logits [len(nodes), vocab] and the cache [1, heads, base + Q, d] a layer."""
        import numpy as np
        import torch
        from transformers import DynamicCache

        base, device = packed.base, self._model.device
        at = torch.from_numpy(packed.positions).to(device)[None]
        before = torch.from_numpy(np.concatenate([np.arange(base), packed.positions])).to(device)[None]
        out = self._model(
            input_ids=torch.from_numpy(packed.tokens).to(device)[None],
            position_ids=at,
            attention_mask=self._masks(torch.from_numpy(packed.mask).to(device)[None], at, before),
            past_key_values=DynamicCache([(k[:, :, :base], v[:, :, :base]) for k, v in known or ()]),
            use_cache=True,
            logits_to_keep=torch.tensor(nodes, device=device),
        )
        return out.logits[0], out.past_key_values

    def _masks(self, mask: torch.Tensor, at: torch.Tensor, before: torch.Tensor) -> Any:
        """The model's masks for bool [B, Q, K], query positions [B, Q] and key positions [B, K]."""
        near = mask if self._window is None else mask & (at[:, :, None] - before[:, None, :] < self._window)
        if len(self._layer_types) > 1:
            return {"full_attention": mask[:, None], "sliding_attention": near[:, None]}
        return (mask if self._layer_types == {"full_attention"} else near)[:, None]

    def _read(self, jobs: list[_Job]) -> dict[_Job, Reply]:
        """Answer probabilities at each read of each job, by the chain rule along the answers' tokens."""
        import torch

        replies: dict[_Job, Reply] = {}
        for group in self._passes(jobs):
            packed, logits, rows, _ = self._prefill(group)
            # in blocks: a float copy of many rows of a vocabulary of 150,000 would be large
            norms = torch.cat([block.float().logsumexp(-1) for block in logits.split(64)])
            for job, path, branches in zip(group, packed.paths, packed.branches):
                after = sorted({answer[:k] for answer in job.answers for k in range(len(answer))})
                follows = {p: sorted({a[len(p)] for a in job.answers if a != p and a[: len(p)] == p}) for p in after}
                choices: list[Choices] = []
                for read in job.reads:
                    odds: dict[Tokens, float] = {}
                    for prefix in after:  # sorted: a prefix comes before what extends it
                        row = rows[branches[read, prefix] if prefix else int(path[read - packed.base])]
                        probabilities = (logits[row, follows[prefix]].float() - norms[row]).exp().tolist()
                        reach = odds[prefix] if prefix else 1.0
                        odds |= {(*prefix, token): reach * p for token, p in zip(follows[prefix], probabilities)}
                    choices.append(_choices(job.answers, odds, follows))
                replies[job] = Reply(
                    choices=tuple(choices), prompt_tokens=len(job.tokens), completion_tokens=1, cached_tokens=job.cached
                )
        return replies

    def _generate(self, jobs: list[_Job]) -> dict[_Job, Reply]:
        """Complete `jobs` side by side; a row that has ended leaves the batch."""
        import torch

        width = max(len(job.tokens) for job in jobs)
        room = width + max(job.max_tokens for job in jobs)
        rows: list[_Row] = []
        buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        first: list[torch.Tensor] = []
        for group in self._passes(jobs):
            packed, logits, at, cache = self._prefill(group)
            # zeros, not empty: a masked place still meets its value in a product
            buffers = buffers or [
                tuple(x.new_zeros(len(jobs), x.shape[1], room, x.shape[3]) for x in (layer.keys, layer.values))
                for layer in cache.layers
            ]
            for job, path in zip(group, packed.paths):
                index = torch.cat([torch.arange(packed.base), packed.base + torch.from_numpy(path)]).to(logits.device)
                for (keys, values), layer in zip(buffers, cache.layers):
                    keys[len(rows), :, : len(index)] = layer.keys[0, :, index]
                    values[len(rows), :, : len(index)] = layer.values[0, :, index]
                first.append(logits[at[int(path[-1])]])
                rows.append(_Row(job, random.Random(job.seed)))
        return self._decode_rows(rows, torch.stack(first), _row_cache(buffers, width), width, room)

    def _decode_rows(
        self, rows: list[_Row], logits: torch.Tensor, cache: Any, width: int, room: int
    ) -> dict[_Job, Reply]:
        """Token after token. A row's prompt is at the buffer's left, its answer from `width` on."""
        import torch

        device = logits.device
        everyone, lengths = rows, torch.tensor([len(row.job.tokens) for row in rows], device=device)
        columns = torch.arange(room, device=device)[None]
        for step in range(room - width):
            for row, token in zip(rows, _pick(logits, rows)):
                self._advance(row, token)
            going = [i for i, row in enumerate(rows) if row.text is None and not row.job.reply.cancelled()]
            if not going:
                break
            if len(going) <= 0.75 * len(rows):  # copying the rest costs about as much as one step
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                rows, lengths = [rows[i] for i in going], lengths[keep]
            positions = torch.where(columns < width, columns, lengths[:, None] + columns - width)
            seen = ((columns < lengths[:, None]) | (columns >= width))[:, : width + step + 1]
            at = lengths[:, None] + step
            logits = self._model(
                input_ids=torch.tensor([[row.tokens[-1]] for row in rows], device=device),
                position_ids=at,
                attention_mask=self._masks(seen[:, None], at, positions[:, : width + step + 1]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return {
            row.job: Reply(
                text=row.text,
                prompt_tokens=len(row.job.tokens),
                completion_tokens=len(row.tokens),
                cached_tokens=row.job.cached,
                truncated=row.truncated,
            )
            for row in everyone
        }

    def _advance(self, row: _Row, token: int) -> None:
        """Add `token`, and end the row at the end of its turn, at a stop string or at its limit."""
        if row.text is not None:
            return
        row.tokens.append(token)
        if token in self._ends:
            row.text = self._decode(row.tokens[:-1])
            return
        full = len(row.tokens) >= row.job.max_tokens
        if not row.job.stop and not full:
            return
        text = self._decode(row.tokens)
        cuts = [place for place in (text.find(stop) for stop in row.job.stop) if place >= 0]
        if cuts:
            row.text = text[: min(cuts)]
        elif full:
            row.text, row.truncated = text, True


def _continuations(job: _Job) -> list[tuple[int, Tokens]]:
    """What must be tried after each read: the proper beginnings of the answers, shorter ones first."""
    beginnings = sorted({answer[:k] for answer in job.answers for k in range(1, len(answer))}, key=len)
    return [(read, beginning) for read in sorted(set(job.reads)) for beginning in beginnings]


def _choices(
    answers: Sequence[Tokens], odds: Mapping[Tokens, float], follows: Mapping[Tokens, Sequence[int]]
) -> Choices:
    """`odds`: probability that the turn goes on with these tokens. An answer is said when no longer one is."""
    said = [odds[a] - sum(odds[(*a, token)] for token in follows.get(a, ())) for a in answers]
    said = [max(p, 0.0) for p in said]
    mass = sum(said)
    if mass <= 0:
        return Choices(None, mass=0.0, failure="the model gave none of the answers any probability")
    return Choices(tuple(p / mass for p in said), mass=mass)


def _pick(logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
    """The next token of each row from logits [rows, vocab]; a row's draws depend on its own seed only."""
    import torch

    tokens = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.job.temperature > 0:
            ladder = (logits[i].double() / row.job.temperature).softmax(-1).cumsum(-1)
            draw = torch.tensor(row.random.random(), dtype=ladder.dtype, device=ladder.device) * ladder[-1]
            tokens[i] = min(int(torch.searchsorted(ladder, draw, right=True)), len(ladder) - 1)
    return tokens


def _row_cache(buffers: list[tuple[torch.Tensor, torch.Tensor]], used: int) -> Any:
    """A cache over buffers [rows, heads, room, d] a layer that writes in place, where transformers' copies."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Layer(DynamicLayer):
        keys: torch.Tensor
        values: torch.Tensor

        def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__()
            self.lazy_initialization(keys, values)
            self.keys, self.values, self.used = keys, values, used

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            self.keys[:, :, self.used] = key_states[:, :, 0]
            self.values[:, :, self.used] = value_states[:, :, 0]
            self.used += 1
            return self.keys[:, :, : self.used], self.values[:, :, : self.used]

        def get_seq_length(self) -> int:
            return self.used

    return Cache(layers=[Layer(keys, values) for keys, values in buffers])


def _fingerprint(folder: Path) -> str:
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


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class of its own for CUDA only; its CPU allocator raises RuntimeError with these words
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
