"""The stages of a run, wired: which rooms do the work, from which inputs, depending on which settings."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import Config, PluginConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.hashing import code_digest, digest, fingerprint, function_digest, module_digest
from autointerp.pipeline.assemble import assemble
from autointerp.pipeline.composites import check_stage, choose_features, constituents_among, evidence_stage
from autointerp.pipeline.dag import Job, Stage
from autointerp.pipeline.evaluate import evaluate_stage, held_out_of, trained_here
from autointerp.pipeline.explain import explain_stage, score_name, score_stage
from autointerp.pipeline.semantic import (
    SEMANTIC_PROMPTS,
    constituents_of,
    explained_by,
    pair_of,
    read_flagged,
    reads,
    semantic_judge,
    semantic_stage,
)
from autointerp.pipeline.session import Session, llm_config
from autointerp.plugins import bind_options, controls, explainers, needs_llm, scorers
from autointerp.progress import progress
from autointerp.records import Context, FeatureEvidence
from autointerp.registry import did_you_mean
from autointerp.tables import write_rows

if TYPE_CHECKING:
    from autointerp.progress import Progress
    from autointerp.sae import TrainConfig

log = logging.getLogger("autointerp")

LOGITS = 10  # tokens kept at each end of a feature's logit weights
CHECK_TOKENS = 4096  # on which a loaded SAE's L0 and explained variance are looked at


# The code that each stage's work runs, beside its function in this file.
CODE: dict[str, tuple[str, ...]] = {
    "corpus": ("subject/corpus.py", "subject/tokens.py", "catalog", "artifacts.py"),
    "activations": ("subject", "activations/dense.py", "artifacts.py"),
    "sae": ("subject", "sae", "artifacts.py"),
    "harvest": ("subject", "sae", "activations/harvest.py", "artifacts.py"),
    "select": (
        *("activations/evidence.py", "composites/labels.py"),
        *("artifacts.py", "tables.py", "pipeline/composites.py"),
    ),
    "directions": ("subject", "sae", "composites/neighbours.py", "tables.py"),
    "contexts": ("subject/tokens.py", "activations/contexts.py", "artifacts.py"),
    "composites": ("sae", "composites", "pipeline/composites.py"),
    "reencode": (
        *("subject", "sae", "composites/evidence.py", "composites/labels.py", "composites/neighbours.py"),
        "activations/contexts.py",
        *("artifacts.py", "stats", "tables.py"),
        *("pipeline/composites.py", "pipeline/union.py", "pipeline/codes.py"),
    ),
    "semantic": ("composites", "answers.py", "prompting.py", "stats", "pipeline/semantic.py"),
    "evaluate": (
        *("subject", "sae", "evaluation", "composites/geometry.py", "composites/neighbours.py", "composites/nulls.py"),
        *("artifacts.py", "stats", "tables.py", "pipeline/evaluate.py"),
    ),
    "explain": ("activations", "subject/tokens.py", "explainers", "answers.py", "prompting.py", "pipeline/explain.py"),
    "score": ("activations", "scorers", "controls", "answers.py", "prompting.py", "stats", "pipeline/explain.py"),
    "tables": ("composites/labels.py", "pipeline/assemble.py", "pipeline/features.py", "tables.py"),
}


def build_stages(config: Config, session: Session, targets: Sequence[str] = ("tables",)) -> list[Stage]:
    """The stages of `config` that `targets` need. Explainers, scorers and their options are checked here, before
    anything runs; where no target needs them, they are not looked at."""
    subject = {"model": model_identity(config.subject.model, config.subject.revision)}
    seeds = {"seed": config.seed}
    numbers = {"dtype": config.subject.dtype, "hook": config.subject.hook}
    writes = {"hook_out": config.subject.hook_out}
    stages: list[Stage] = []

    def add(
        name: str, work: Callable[..., None], section: Mapping[str, Any], *needs: str, resumable: bool = False
    ) -> None:
        function = work.func if isinstance(work, partial) else work
        code = digest([code_digest(*CODE[name.split("/")[0]]), function_digest(function)])
        stages.append(Stage(name, work, section, needs, code, resumable))

    text = {
        "seed": config.corpus.seed if config.corpus.seed is not None else config.seed,
        "text": source_identity(config.corpus.source),
    }
    add("corpus", partial(_corpus, session), config.corpus.model_dump() | text | subject)
    if config.sae.train is not None:
        trained = {"train": train_config(config).model_dump()}
        add("activations", partial(_activations, session), subject | numbers, "corpus", resumable=True)
        add("sae", partial(_train_sae, session), trained, "corpus", "activations", resumable=True)
    else:
        loaded = {"sae": source_identity(config.sae.load or ""), "format": config.sae.format}
        add("sae", partial(_load_sae, session), loaded | subject | numbers | writes, "corpus")
    stored = ["activations"] if config.sae.train is not None else []
    add("harvest", partial(_harvest, session), subject | numbers, "corpus", "sae", *stored, resumable=True)
    # Only a selection that asks for composites waits for the check, and changes with it.
    checked = ["reencode"] if config.features.select == "composites" or config.features.constituents else []
    add("select", partial(_select, session), config.features.model_dump() | seeds, "harvest", *checked)
    near = {"neighbours": config.contexts.neighbours}
    add("directions", partial(_directions, session), subject | near, "sae", "select")
    sizes = config.contexts.model_dump() | seeds
    add("contexts", partial(_contexts, session), sizes, "corpus", "harvest", "select", "directions")
    tables = ["select", "directions", "contexts"]
    if config.composites.enabled:
        union = {"union": source_identity(config.composites.union) if config.composites.union else None}
        decoder = config.composites.model_dump(exclude={"tokens", "semantic"}) | union
        add("composites", partial(check_stage, session), decoder, "sae", "harvest")
        tested = {"tokens": config.composites.tokens, "window": config.contexts.window} | seeds | union
        gathered = ("corpus", "sae", "harvest", "composites")
        add("reencode", partial(evidence_stage, session), tested | subject | numbers, *gathered)
        tables.append("reencode")
    measured = config.evaluation.model_dump() | {"held_out": trained_here(config)}
    add("evaluate", partial(evaluate_stage, session), measured | subject | numbers | writes | seeds, "corpus", "sae")
    if {stage.name for stage in stages}.issuperset(targets):
        return needed(stages, targets)
    for explainer in config.explainers:
        asked = _plugin_section(config, explainers, "explainer", explainer) | seeds
        name = f"explain/{explainer.key}"
        evidence = ["corpus", "harvest", "select", "directions", "contexts"]
        of = reads(config, explainer)
        if of is not None:
            evidence += ["reencode", f"explain/{of}"]
            asked["constituents"] = code_digest("composites", "pipeline/semantic.py")
        add(name, partial(_explain, session, explainer, of), asked, *evidence, resumable=True)
        tables.append(name)
        for scorer in config.scorers:
            judged = _plugin_section(config, scorers, "scorer", scorer) | seeds
            for control in [None, *config.controls]:
                own = {"control": _plugin_section(config, controls, "control", control) if control else None}
                work = partial(_score, session, scorer, explainer.key, control)
                name = score_name(scorer, explainer.key, control)
                add(name, work, judged | own, "contexts", f"explain/{explainer.key}", resumable=True)
                tables.append(name)
    if config.composites.semantic is not None:
        of = explained_by(config, config.composites.semantic.explainer, "composites.semantic")
        judge = {"of": of} | _llm_section(config, semantic_judge(config), SEMANTIC_PROMPTS) | seeds
        read = ("select", "reencode", f"explain/{of}")
        add("semantic", partial(semantic_stage, session, of), judge, *read, resumable=True)
        tables.append("semantic")
    shown = {kind: [p.key for p in getattr(config, kind)] for kind in ("explainers", "scorers", "controls")}
    add("tables", partial(assemble, config), shown, *tables)
    return needed(stages, targets)


def needed(stages: Sequence[Stage], targets: Sequence[str]) -> list[Stage]:
    """`targets` and all that they need, in the order of `stages`."""
    known = {stage.name: stage for stage in stages}
    wanted: set[str] = set()
    waiting = list(targets)
    while waiting:
        name = waiting.pop()
        if name not in known:
            raise ConfigError(f"this config has no stage {name!r}{did_you_mean(name, known)}")
        if name not in wanted:
            wanted.add(name)
            waiting += known[name].needs
    return [stage for stage in stages if stage.name in wanted]


# --- what the keys depend on beside the config


def model_identity(name: str, revision: str | None) -> str:
    """The pinned hash of a catalogue entry, the content of a local folder, or the hub id with its revision."""
    from autointerp.catalog import entries

    path = Path(name).expanduser()
    if name in entries():
        return f"{name}:{entries()[name].sha256}"
    if path.exists():
        return fingerprint(path)
    return f"{name}@{revision}"


def source_identity(source: str) -> str:
    """Like `model_identity`, for text and SAEs."""
    return model_identity(source, None)


def _plugin_section(config: Config, registry: Any, kind: str, plugin: PluginConfig) -> dict[str, Any]:
    """A plug-in's code, options and model. Its file's text stands for its code; so do the prompts."""
    function = registry.get(plugin.name)
    options = bind_options(kind, plugin.name, function, plugin.options, config.seed)
    section: dict[str, Any] = {"name": plugin.name, "label": plugin.key, "options": options, "code": _code(function)}
    if kind != "control" and needs_llm(function):
        section |= _llm_section(config, plugin, getattr(inspect.getmodule(function), "PROMPTS", ()))
    return section


def _llm_section(config: Config, plugin: PluginConfig, prompts: Sequence[str]) -> dict[str, Any]:
    from autointerp.prompting import prompts_hash

    llm = llm_config(config, plugin)
    served = llm.model if llm.base_url else model_identity(llm.model.removeprefix("vllm:"), None)
    how = llm.model_dump(include={"base_url", "dtype", "logprobs", "server_args"})
    return {"llm": how | {"model": served}, "prompts": prompts_hash(prompts)}


def _code(function: Callable[..., Any]) -> str:
    """A plug-in's file stands for its code."""
    try:
        return module_digest(Path(inspect.getfile(function)))
    except (OSError, TypeError):  # defined at a prompt
        return digest(repr(function))


# --- the work


def _corpus(session: Session, job: Job) -> None:
    from autointerp.subject import build_corpus

    config = session.config
    seed = config.corpus.seed if config.corpus.seed is not None else config.seed
    build_corpus(config.corpus, session.subject_folder, job.folder, seed=seed)
    job.facts |= json.loads((job.folder / "corpus.json").read_text())


def _load_sae(session: Session, job: Job) -> None:
    """Check the SAE against the subject; keep what it says of itself and a hash of it, not a copy."""
    from dataclasses import asdict

    from autointerp.artifacts import Corpus
    from autointerp.sae import check_sae, require_width

    sae = session.load_sae(session.sae_spec, format=session.config.sae.format)
    subject = session.subject(sae.cfg.hook_name)
    require_width(sae, subject.d_hook, subject.hook.name)
    if session.config.subject.hook and sae.cfg.hook_name and not subject.hook.means(sae.cfg.hook_name):
        log.warning("SAE: it was trained on %s and reads %s here (subject.hook)", sae.cfg.hook_name, subject.hook)
    corpus, writes = Corpus(job.inputs["corpus"]), session.written(sae)
    outputs = _some_activations(corpus, writes, CHECK_TOKENS) if writes is not subject else None
    found = check_sae(sae, _some_activations(corpus, subject, CHECK_TOKENS), outputs)
    for warning in found.warnings:
        log.warning("SAE: %s", warning)
    (job.folder / "sae.json").write_text(
        json.dumps({"cfg": asdict(sae.cfg), "content": source_identity(session.sae_spec)}, indent=2, default=str)
    )
    job.facts |= {"l0": found.l0, "explained_variance": found.explained_variance, "warnings": list(found.warnings)}


def _some_activations(corpus: Any, subject: Any, tokens: int) -> Any:
    """[n, d] activations of the first rows of the corpus, BOS left out as in the harvest."""
    import torch

    skip = int(corpus.info.bos_id is not None)
    found, count = [], 0
    for index in range(corpus.info.n_rows):
        row = torch.from_numpy(corpus.row(index).astype("int64"))
        found.append(subject.activations(row[None])[0, skip:])
        count += len(found[-1])
        if count >= tokens:
            break
    return torch.cat(found)


def _activations(session: Session, job: Job) -> None:
    from autointerp.activations.dense import harvest_dense
    from autointerp.artifacts import Corpus

    corpus = Corpus(job.inputs["corpus"])
    subject = session.subject(None)
    with progress("activations", corpus.info.n_tokens, "tokens") as bar:
        harvest_dense(
            corpus,
            subject.activations,
            subject.d_hook,
            job.folder,
            batch_tokens=session.config.subject.batch_tokens,
            device=session.device,
            bar=bar,
        )


def _train_sae(session: Session, job: Job) -> None:
    import numpy as np

    from autointerp.sae import ArraySource, train_sae

    config = session.config
    data = np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r")
    source, held_out = ArraySource(data).hold_out(held_out_of(len(data)))
    subject = session.subject(None)
    train_sae(
        source,
        train_config(config),
        job.folder,
        held_out=held_out.float(),
        hook_name=subject.hook.name,
        model_name=config.subject.model,
        context_size=config.corpus.context,
        prepend_bos=json.loads((job.inputs["corpus"] / "corpus.json").read_text())["bos_id"] is not None,
        device=session.device,
    )
    job.facts |= json.loads((job.folder / "train.json").read_text())["figures"]


def _harvest(session: Session, job: Job) -> None:
    import numpy as np

    from autointerp.activations.harvest import harvest
    from autointerp.artifacts import Corpus

    sae = session.open_sae(job.inputs["sae"])
    corpus = Corpus(job.inputs["corpus"])
    if "activations" in job.inputs:  # what the SAE was trained on: the subject need not run again
        hook, source = sae.cfg.hook_name or "", np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r")
    else:
        subject = session.subject(sae.cfg.hook_name)
        hook, source = subject.hook.name, subject.activations
    with progress("harvest", corpus.info.n_tokens, "tokens") as bar:
        harvest(
            corpus,
            source,
            sae.encode_sparse,
            sae.cfg.d_sae,
            job.folder,
            hook=hook,
            skip_bos=corpus.info.bos_id is not None,
            batch_tokens=session.config.subject.batch_tokens,
            device=session.device,
            bar=bar,
        )


def _select(session: Session, job: Job) -> None:
    import pandas as pd

    from autointerp.activations.evidence import firing_table, select_features
    from autointerp.artifacts import Firings

    firings, least = Firings(job.inputs["harvest"]), session.config.features.min_firings
    config = session.config.features
    table = firing_table(firings, least)
    composites = None
    if "reencode" in job.inputs:
        composites = pd.read_parquet(job.inputs["reencode"] / "composites.parquet")
    if composites is not None and config.select == "composites" and config.ids is None:
        chosen = choose_features(table, composites, config, session.config.seed)
    else:
        chosen = select_features(table, config, session.config.seed)
    how = dict.fromkeys(chosen, "ids" if config.ids is not None else config.select)
    if composites is not None and config.constituents:
        how = dict.fromkeys(constituents_among(chosen, composites), "constituent") | how
    why = {
        "ok": None,
        "dead": f"never fires on {firings.info.n_tokens:,} tokens",
        "too_rare": f"fires on fewer than {least} of {firings.info.n_tokens:,} tokens",
    }
    rows = [
        row | {"selected": how[row["feature"]], "failure": why[row["status"]]}
        for row in table.iloc[sorted(how)].to_dict("records")
    ]
    write_rows(job.folder / "selection.parquet", "selection", rows)
    job.facts |= {"selected": len(rows), "latents": table["status"].value_counts().to_dict()}
    if not any(row["status"] == "ok" for row in rows):
        raise AutointerpError(
            f"none of the {len(rows)} selected features fires on {least} tokens: raise corpus.tokens or lower"
            " features.min_firings"
        )


def selected(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "selection.parquet").to_pylist()


def _ok(folder: Path) -> list[int]:
    return [row["feature"] for row in selected(folder) if row["status"] == "ok"]


def _directions(session: Session, job: Job) -> None:
    """Each selected feature's nearest features by decoder cosine, and the tokens its direction raises and lowers."""
    from autointerp.composites import top_neighbours

    sae = session.open_sae(job.inputs["sae"])
    features = _ok(job.inputs["select"])
    wanted = min(session.config.contexts.neighbours, sae.cfg.d_sae - 1)
    near, cosine = top_neighbours(sae.W_dec, wanted, queries=features)
    write_rows(
        job.folder / "neighbours.parquet",
        "neighbours",
        [
            {"feature": f, "rank": rank, "neighbour": int(near[i][rank]), "cosine": float(cosine[i][rank])}
            for i, f in enumerate(features)
            for rank in range(wanted)
            if near[i][rank] >= 0
        ],
    )
    subject = session.subject(sae.cfg.hook_name)
    vocabulary = subject.vocab_strings()
    rows: list[dict[str, Any]] = []
    for start in range(0, len(features), 64):
        some = features[start : start + 64]
        weights = subject.logit_weights(sae.W_dec[some])
        if weights is None:  # the hook does not write into the residual stream
            break
        for direction, sign in (("up", 1), ("down", -1)):
            top = (sign * weights).topk(LOGITS, dim=-1)
            for feature, ids, values in zip(some, top.indices.tolist(), top.values.tolist()):
                rows += [
                    {
                        "feature": feature,
                        "direction": direction,
                        "rank": rank,
                        "token": vocabulary[token],
                        "weight": sign * value,
                    }
                    for rank, (token, value) in enumerate(zip(ids, values))
                ]
    write_rows(job.folder / "logits.parquet", "logits", rows)


def _contexts(session: Session, job: Job) -> None:
    import pyarrow.parquet as pq

    from autointerp.activations.contexts import sample_contexts, write_contexts
    from autointerp.artifacts import Corpus, Firings

    features = _ok(job.inputs["select"])
    near: dict[int, list[int]] = {feature: [] for feature in features}
    for row in pq.read_table(job.inputs["directions"] / "neighbours.parquet").to_pylist():
        near[row["feature"]].append(row["neighbour"])
    corpus = Corpus(job.inputs["corpus"])
    with progress("contexts", len(features), "features") as bar:
        contexts = sample_contexts(
            corpus,
            Firings(job.inputs["harvest"]),
            features,
            near,
            _token_strings(session),
            session.config.contexts,
            session.config.seed,
        )
        write_contexts(_counting(contexts, bar), job.folder / "contexts.parquet")


def _counting(contexts: Iterator[Context], bar: Progress) -> Iterator[Context]:
    last = None
    for context in contexts:
        if context.feature != last:
            last = context.feature
            bar.advance()
        yield context


def _token_strings(session: Session) -> Callable[[Sequence[int]], list[str]]:
    from autointerp.subject import token_strings

    return token_strings(session.subject_folder)


def _explain(session: Session, plugin: PluginConfig, of: str | None, job: Job) -> None:
    features, read = _ok(job.inputs["select"]), evidence_of(session, job.inputs)
    if of is None:
        explain_stage(session, job, plugin, features, read)
        return
    flagged = read_flagged(job.inputs, of, session.config.seed)
    skipped = {feature: why for feature in features if (why := flagged.why_not(feature))}
    parts = constituents_of(flagged, pair_of(session.config, plugin), job.inputs["contexts"] / "contexts.parquet")

    def with_parts(some: Sequence[int]) -> dict[int, FeatureEvidence]:
        return {f: replace(seen, constituents=parts(f)) for f, seen in read(some).items()}

    explain_stage(session, job, plugin, [f for f in features if f not in skipped], with_parts, skipped)


def evidence_of(session: Session, inputs: Mapping[str, Path]) -> Callable[[Sequence[int]], dict[int, FeatureEvidence]]:
    """What an explainer may see of each feature: contexts of the train split, token statistics, logit weights."""
    import pyarrow.parquet as pq

    from autointerp.activations.contexts import read_contexts
    from autointerp.activations.evidence import evidence
    from autointerp.artifacts import Corpus, Firings

    corpus, firings = Corpus(inputs["corpus"]), Firings(inputs["harvest"])
    strings = _token_strings(session)
    weights: dict[str, dict[int, list[tuple[str, float]]]] = {"up": {}, "down": {}}
    for row in pq.read_table(inputs["directions"] / "logits.parquet").to_pylist():
        weights[row["direction"]].setdefault(row["feature"], []).append((row["token"], row["weight"]))

    def read(features: Sequence[int]) -> dict[int, FeatureEvidence]:
        contexts = read_contexts(inputs["contexts"] / "contexts.parquet", features)
        found = evidence(
            {feature: contexts.get(feature, []) for feature in features},
            firings,
            corpus,
            strings,
            test_share=session.config.contexts.test_share,
            seed=session.config.seed,
            logits_up=weights["up"],
            logits_down=weights["down"],
        )
        return {one.feature: one for one in found}

    return read


def _score(session: Session, scorer: PluginConfig, explainer: str, control: PluginConfig | None, job: Job) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(job.inputs[f"explain/{explainer}"] / "explanations.parquet").to_pylist()
    rows = [row for row in rows if row["status"] != "not_composite"]
    score_stage(
        session,
        job,
        scorer,
        explainer,
        control,
        {row["feature"]: row["explanation"] for row in rows},
        {row["feature"]: row["failure"] for row in rows},
        held_out(job.inputs["contexts"] / "contexts.parquet"),
    )


def held_out(path: Path) -> Callable[[Sequence[int]], dict[int, list[Context]]]:
    """The contexts of the test split of each feature."""
    from autointerp.activations.contexts import read_contexts

    def read(features: Sequence[int]) -> dict[int, list[Context]]:
        contexts = read_contexts(path, features)
        return {feature: [c for c in contexts.get(feature, []) if c.split == "test"] for feature in features}

    return read


def train_config(config: Config) -> TrainConfig:
    """`sae.train` checked: unknown keys and values that cannot be are errors before anything runs."""
    from pydantic import ValidationError

    from autointerp.config import problem
    from autointerp.sae import TrainConfig

    if config.subject.hook is None:
        raise ConfigError("subject.hook is missing: an SAE that the run trains needs to know what to read")
    try:
        return TrainConfig.model_validate({"seed": config.seed, **(config.sae.train or {})})
    except ValidationError as error:
        raise ConfigError("; ".join(problem(e, TrainConfig, "sae.train.") for e in error.errors())) from None
