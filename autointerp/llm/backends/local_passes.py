"""Batching in process: prompts with a shared prefix in one pass, completions side by side; out-of-memory handled."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from autointerp.errors import AutointerpError
from autointerp.llm.backend import Raw
from autointerp.llm.backends.local_model import LocalModel
from autointerp.llm.backends.packed import Job, Packed, PrefixCache, Tokens, common, follows, pack

log = logging.getLogger("autointerp")

PREFIX_BYTES = 1 << 29  # of kept keys and values; 28 kB a token for a 1.5B model
WORTH_A_PASS = 64  # tokens that may be computed again to spare a pass of its own
WORTH_KEEPING = 16  # tokens by which a shared beginning must exceed what is kept


@dataclass
class _Row:
    """One completion under way."""

    job: Job
    random: random.Random
    tokens: list[int] = field(default_factory=list)
    text: str | None = None  # set when it has ended
    truncated: bool = False


class Passes:
    """Answers jobs of one kind together. `batch` is what goes at a time; it falls where the memory does not do."""

    def __init__(self, model: LocalModel, batch: int) -> None:
        self.batch = batch
        self._model = model
        self._prefixes: PrefixCache[list[tuple[torch.Tensor, torch.Tensor]]] = PrefixCache(PREFIX_BYTES)

    def answer(self, jobs: list[Job]) -> list[Raw]:
        """Raw answers to `jobs`, all of one kind, in two halves where the memory does not do for all."""
        if not jobs:
            return []
        try:
            return self.run(jobs)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        self._prefixes.clear()
        half = (len(jobs) + 1) // 2
        self.batch = half
        log.warning("out of memory with %d requests at once: going on with %d", len(jobs), half)
        try:
            return self.run(jobs[:half]) + (self.run(jobs[half:]) if jobs[half:] else [])
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            raise AutointerpError(
                f"out of memory with {half} requests to {self._model.name}: lower llm.batch, or take a smaller model"
            ) from error

    def run(self, jobs: list[Job]) -> list[Raw]:
        self._model.exact = jobs[0].judges  # sampling does not need it
        with torch.inference_mode():
            raws = self._read(jobs) if jobs[0].judges else self._generate(jobs)
        return [raws[job] for job in jobs]

    def _passes(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """Jobs sorted by their tokens, in groups of about as many new tokens as one pass should have.

        A pass goes on from what all of its jobs share. A job whose own beginning is kept to a later
        point is better off alone, unless the difference is small.
        """
        group: list[Job] = []
        nodes = cost = 0
        for job in sorted(jobs, key=lambda job: job.tokens):
            alone = len(job.tokens) - self._start([job])
            if group:
                joined = nodes + len(job.tokens) - common(group[-1].tokens, job.tokens)
                together = joined - self._start([*group, job])
                if together <= min(self._model.pass_tokens, cost + alone + WORTH_A_PASS):
                    group.append(job)
                    nodes, cost = joined, together
                    continue
                yield group
                alone = len(job.tokens) - self._start([job])  # that pass may have kept something for it
            group, nodes, cost = [job], len(job.tokens), alone
        yield group

    def _start(self, jobs: Sequence[Job]) -> int:
        """How many tokens of `jobs`, sorted, one pass over them need not compute."""
        trunk = common(jobs[0].tokens, jobs[-1].tokens)
        return self._prefixes.match(jobs[0].tokens[: min(trunk, *(min(job.reads) for job in jobs))])[0]

    def _prefill(self, jobs: list[Job]) -> tuple[Packed, torch.Tensor, dict[int, int], Any]:
        """One pass over `jobs`, sorted by tokens: (tree, logits [R, vocab], node -> its row in them, cache)."""
        trunk = common(jobs[0].tokens, jobs[-1].tokens)
        base, known = self._prefixes.match(jobs[0].tokens[: min(trunk, *(min(job.reads) for job in jobs))])
        packed = pack([job.tokens for job in jobs], base, [_continuations(job) for job in jobs])
        wanted = {int(path[read - base]) for job, path in zip(jobs, packed.paths) for read in job.reads}
        nodes = sorted(wanted.union(*(branches.values() for branches in packed.branches)))
        logits, cache = self._model.forward(packed, nodes, known)
        for job, fresh in zip(jobs, packed.fresh):
            job.cached = len(job.tokens) - fresh
        if trunk >= base + WORTH_KEEPING:
            kept = [(layer.keys[:, :, :trunk].clone(), layer.values[:, :, :trunk].clone()) for layer in cache.layers]
            self._prefixes.put(jobs[0].tokens[:trunk], kept, sum(k.nbytes + v.nbytes for k, v in kept))
        return packed, logits, {node: row for row, node in enumerate(nodes)}, cache

    def _read(self, jobs: list[Job]) -> dict[Job, Raw]:
        """Answer probabilities at each read of each job, by the chain rule along the answers' tokens; of a turn that
        is weighed the log probability of each of its tokens."""
        raws: dict[Job, Raw] = {}
        for group in self._passes(jobs):
            packed, logits, rows, _ = self._prefill(group)
            # in blocks: a float copy of many rows of a vocabulary of 150,000 would be large
            norms = torch.cat([block.float().logsumexp(-1) for block in logits.split(64)])
            for job, path, branches in zip(group, packed.paths, packed.branches):
                if job.targets:
                    at = [rows[int(path[read - packed.base])] for read in job.reads]
                    raws[job] = {"logprobs": (logits[at, job.targets].float() - norms[at]).tolist()} | _counts(job, 1)
                    continue
                going_on = follows(job.answers)
                kept: list[list[Any]] = []
                for read in job.reads:
                    odds: dict[Tokens, float] = {}
                    for prefix, tokens in going_on.items():  # a prefix comes before what extends it
                        row = rows[branches[read, prefix] if prefix else int(path[read - packed.base])]
                        probabilities = (logits[row, tokens].float() - norms[row]).exp().tolist()
                        reach = odds[prefix] if prefix else 1.0
                        odds |= {(*prefix, token): reach * p for token, p in zip(tokens, probabilities)}
                    kept.append([[list(tokens), p] for tokens, p in odds.items()])
                answers = [list(answer) for answer in job.answers]
                raws[job] = {"answers": answers, "reads": kept} | _counts(job, 1)
        return raws

    def _generate(self, jobs: list[Job]) -> dict[Job, Raw]:
        """Complete `jobs` side by side; a row that has ended leaves the batch."""
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

    def _decode_rows(self, rows: list[_Row], logits: torch.Tensor, cache: Any, width: int, room: int) -> dict[Job, Raw]:
        """Token after token. A row's prompt is at the buffer's left, its answer from `width` on."""
        device = logits.device
        everyone, lengths = rows, torch.tensor([len(row.job.tokens) for row in rows], device=device)
        columns = torch.arange(room, device=device)[None]
        for step in range(room - width):
            for row, token in zip(rows, _pick(logits, rows)):
                self._advance(row, token)
            going = [i for i, row in enumerate(rows) if row.text is None and not row.job.raw.cancelled()]
            if not going:
                break
            if len(going) <= 0.75 * len(rows):  # copying the rest costs about as much as one step
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                rows, lengths = [rows[i] for i in going], lengths[keep]
            positions = torch.where(columns < width, columns, lengths[:, None] + columns - width)
            seen = ((columns < lengths[:, None]) | (columns >= width))[:, : width + step + 1]
            at = lengths[:, None] + step
            logits = self._model.network(
                input_ids=torch.tensor([[row.tokens[-1]] for row in rows], device=device),
                position_ids=at,
                attention_mask=self._model.masks(seen[:, None], at, positions[:, : width + step + 1]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return {
            row.job: {"text": row.text, "truncated": row.truncated} | _counts(row.job, len(row.tokens))
            for row in everyone
        }

    def _advance(self, row: _Row, token: int) -> None:
        """Add `token`, and end the row at the end of its turn, at a stop string or at its limit."""
        if row.text is not None:
            return
        row.tokens.append(token)
        if token in self._model.ends:
            row.text = self._model.decode(row.tokens[:-1])
            return
        full = len(row.tokens) >= row.job.max_tokens
        if not row.job.stop and not full:
            return
        text = self._model.decode(row.tokens)
        cuts = [place for place in (text.find(stop) for stop in row.job.stop) if place >= 0]
        if cuts:
            row.text = text[: min(cuts)]
        elif full:
            row.text, row.truncated = text, True


def _continuations(job: Job) -> list[tuple[int, Tokens]]:
    """What must be tried after each read: the proper beginnings of the answers, shorter ones first."""
    beginnings = sorted({answer[:k] for answer in job.answers for k in range(1, len(answer))}, key=len)
    return [(read, beginning) for read in sorted(set(job.reads)) for beginning in beginnings]


def _counts(job: Job, answer_tokens: int) -> Raw:
    return {
        "prompt_tokens": len(job.tokens),
        "completion_tokens": answer_tokens,
        "cached_tokens": job.cached,
    }


def _pick(logits: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
    """The next token of each row from logits [rows, vocab]; a row's draws depend on its own seed only."""
    tokens = logits.argmax(-1).tolist()
    for i, row in enumerate(rows):
        if row.job.temperature > 0:
            ladder = (logits[i].double() / row.job.temperature).softmax(-1).cumsum(-1)
            draw = torch.tensor(row.random.random(), dtype=ladder.dtype, device=ladder.device) * ladder[-1]
            tokens[i] = min(int(torch.searchsorted(ladder, draw, right=True)), len(ladder) - 1)
    return tokens


def _row_cache(buffers: list[tuple[torch.Tensor, torch.Tensor]], used: int) -> Any:
    """A cache over buffers [rows, heads, room, d] a layer that writes in place, where transformers' copies."""

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


def _out_of_memory(error: BaseException) -> bool:
    # torch has a class of its own for CUDA only; its CPU allocator raises RuntimeError with these words
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
