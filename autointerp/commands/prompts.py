"""``autointerp prompts``: the exact prompts that a run would send, with token counts; nothing is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from autointerp.config import Config, LLMConfig, PluginConfig
from autointerp.engine.dag import Dag
from autointerp.engine.session import Session, llm_config
from autointerp.errors import AutointerpError
from autointerp.pipeline.composites import PAIRS
from autointerp.pipeline.semantic import (
    Flagged,
    constituents_of,
    explained_by,
    pair_of,
    read_flagged,
    reads,
    semantic_judge,
)
from autointerp.plugins import bind_options, explainers, needs_llm, scorers
from autointerp.records import Capability, Choices, Completion, Context, FeatureEvidence, Message
from autointerp.registry import Registry

UNWRITTEN = "(the explanation, once it is written)"


@dataclass(frozen=True)
class PromptView:
    stage: str
    feature: int
    title: str
    messages: list[Message]
    tokens: (
        int  # of the prompt; counted with the model's tokenizer where it is at hand, else a quarter of the characters
    )


@dataclass
class Recorder:
    """An LLM that answers nothing and keeps every prompt."""

    model: str
    capabilities: frozenset[Capability]
    asked: list[tuple[str, list[Message], int]] = field(default_factory=list)  # kind, messages, most answer tokens

    async def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 256, attempt: int = 0, **_: Any
    ) -> Completion:
        if attempt == 0:
            self.asked.append(("complete", list(messages), max_tokens))
        return Completion(None, failure="not sent")

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Choices:
        self.asked.append(("choose", list(messages), 1))
        return Choices(None, failure="not sent")

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Sequence[Choices]:
        turn = Message("assistant", filler.join(segments) + filler)
        self.asked.append(("fill", [*messages, turn], 0))
        return [Choices(None, failure="not sent") for _ in segments]


def expected_capabilities(config: LLMConfig) -> frozenset[Capability]:
    """What the model can do, as far as the config tells without asking it."""
    if config.base_url is None:
        return frozenset({"choices", "slots"})
    return frozenset({"choices"}) if config.logprobs else frozenset()


Asked = list[tuple[str, list[Message], int]]  # as `Recorder.asked`


def record_explain(config: Config, plugin: PluginConfig, evidence: FeatureEvidence) -> Asked:
    """The requests an explainer makes for one feature."""
    return _record(config, "explainer", explainers, plugin, lambda explain: partial(explain, evidence))


def record_score(config: Config, plugin: PluginConfig, explanation: str, examples: Sequence[Context]) -> Asked:
    """The requests a scorer makes for one explanation."""
    return _record(config, "scorer", scorers, plugin, lambda score: partial(score, explanation, examples))


def _record(
    config: Config, kind: str, registry: Registry[Any], plugin: PluginConfig, given: Callable[..., Any]
) -> Asked:
    function = registry.get(plugin.name)
    if not needs_llm(function):
        return []
    llm = llm_config(config, plugin)
    recorder = Recorder(llm.model, expected_capabilities(llm))
    options = bind_options(kind, plugin.name, function, plugin.options, config.seed)
    asyncio.run(given(function)(recorder, **options))
    return recorder.asked


def record_entails(config: Config, pairs: Sequence[tuple[str, str]]) -> Asked:
    """The requests by which a judge compares explanations (of a composite, of a constituent), each way."""
    from autointerp.composites.semantics import entails

    llm = llm_config(config, semantic_judge(config))
    recorder = Recorder(llm.model, expected_capabilities(llm))

    async def ask() -> None:
        for whole, part in pairs:
            await entails(whole, part, recorder)
            await entails(part, whole, recorder)

    asyncio.run(ask())
    return recorder.asked


def token_counter(config: LLMConfig) -> Callable[[Sequence[Message]], int]:
    """Tokens of a prompt: by the model's own tokenizer where its files are here, else characters / 4."""
    tokenizer = None
    if config.base_url is None:
        from autointerp.catalog import cached_folder

        folder = cached_folder(config.model)
        if folder is not None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)

    def count(messages: Sequence[Message]) -> int:
        if tokenizer is None:
            return sum(len(m.content) // 4 + 4 for m in messages)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))

    return count


def prompts(config: Config, feature: int | None = None, out: Path | None = None) -> Iterator[PromptView]:
    """The prompts for one feature (the first that has contexts, when none is named). Needs the contexts stage done."""
    from autointerp.commands.run import run_folder, store
    from autointerp.pipeline.stages import build_stages, evidence_of, held_out, selected

    with Session(config, run_folder(config, out) / "usage.jsonl") as session:
        dag = Dag(build_stages(config, session), store())
        standings = dag.standings()
        needed = ("corpus", "harvest", "select", "directions", "contexts")
        missing = [name for name in needed if standings[name].manifest is None]
        if missing:
            raise AutointerpError(
                f"prompts are made from a run's contexts, and {missing[0]!r} has not run: start `autointerp run` first"
            )
        inputs = {name: dag.store.folder(name, standings[name].key or "") for name in needed}
        ready = [row["feature"] for row in selected(inputs["select"]) if row["status"] == "ok"]
        wanted = ready[0] if feature is None else feature
        if wanted not in ready:
            raise AutointerpError(f"feature {wanted} is not in this run; it has {', '.join(map(str, ready[:10]))} …")
        evidence = evidence_of(session, inputs)([wanted])[wanted]
        examples = held_out(inputs["contexts"] / "contexts.parquet")([wanted])[wanted]
        for explainer in config.explainers:
            count = _counter(config, explainer)
            of = reads(config, explainer)
            if of is not None:
                flagged = _flagged(config, dag, standings, inputs, of)
                if flagged is None or wanted not in flagged.parts["own"]:
                    continue
                parts = constituents_of(flagged, pair_of(config, explainer), inputs["contexts"] / "contexts.parquet")
                written = [replace(part, explanation=part.explanation or UNWRITTEN) for part in parts(wanted)]
                evidence = replace(evidence, constituents=tuple(written))
            yield from _views(f"explain/{explainer.key}", wanted, record_explain(config, explainer, evidence), count)
            text = _written(dag, standings, explainer.key, wanted) or UNWRITTEN
            for scorer in config.scorers:
                count = _counter(config, scorer)
                asked = record_score(config, scorer, text, examples)
                yield from _views(f"score/{scorer.key}/{explainer.key}", wanted, asked, count)
        if config.composites.semantic is not None:
            judge = semantic_judge(config)
            of = explained_by(config, config.composites.semantic.explainer, "composites.semantic")
            flagged = _flagged(config, dag, standings, inputs, of)
            parts = [] if flagged is None else [p for pair in PAIRS for p in flagged.parts[pair].get(wanted, [])]
            texts = {} if flagged is None else flagged.texts
            pairs = [(texts.get(wanted, UNWRITTEN), texts.get(part, UNWRITTEN)) for part in parts]
            yield from _views("semantic", wanted, record_entails(config, pairs), _counter(config, judge))


def _flagged(
    config: Config, dag: Dag, standings: Mapping[str, Any], inputs: Mapping[str, Path], of: str
) -> Flagged | None:
    """The composites as far as they are known; None before the check has run."""
    if standings["reencode"].manifest is None:
        return None
    known = ["reencode", *([f"explain/{of}"] if standings[f"explain/{of}"].manifest else [])]
    folders = {name: dag.store.folder(name, standings[name].key) for name in known}
    return read_flagged({**inputs, **folders}, of if len(known) > 1 else None, config.seed)


def _counter(config: Config, plugin: PluginConfig) -> Callable[[Sequence[Message]], int]:
    return token_counter(plugin.llm or config.llm) if (plugin.llm or config.llm) else len  # type: ignore[arg-type]


def _views(stage: str, feature: int, asked: Asked, count: Callable[[Sequence[Message]], int]) -> Iterator[PromptView]:
    for number, (kind, messages, _) in enumerate(asked, start=1):
        yield PromptView(stage, feature, f"{kind} {number} of {len(asked)}", messages, count(messages))


def _written(dag: Dag, standings: Mapping[str, Any], explainer: str, feature: int) -> str | None:
    standing = standings[f"explain/{explainer}"]
    if standing.manifest is None:
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(dag.store.folder(standing.stage.name, standing.key) / "explanations.parquet")
    return next((row["explanation"] for row in table.to_pylist() if row["feature"] == feature), None)
