"""``autointerp doctor``: everything that can be known wrong with a config, told at once, before anything is paid for.

1. What the config and the files say (`commands.checks`).
2. The stages' declarations: each use can be made, and its requests for an imagined feature fit the model.
3. With `probe`, one short request to each endpoint that the part to do asks.

`run` begins with it, unless everything is done. `plan` says what it finds and sends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from autointerp import tracking
from autointerp.commands import checks, rehearsal
from autointerp.commands.checks import Check, checked
from autointerp.commands.folder import run_folder
from autointerp.commands.imagined import imagine
from autointerp.commands.known import Known
from autointerp.config import Config, LLMConfig, PluginConfig
from autointerp.engine import asking
from autointerp.engine.dag import Dag, Node, Standing
from autointerp.engine.estimate import UNWRITTEN, Asks
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.engine.stage import Use
from autointerp.errors import AutointerpError, ConfigError, Problems
from autointerp.llm import registry
from autointerp.stages import STAGES, nodes, stage_of, uses
from autointerp.subject.describe import described_model

ALL = ("tables",)


def doctor(config: Config, out: str | Path | None = None, *, probe: bool = True) -> list[Check]:
    """Every check of a config. With `probe` each endpoint gets one short request."""
    with Session(config, run_folder(config, out) / "usage.jsonl") as session:
        return examine(config, session, probe=probe)


def checked_nodes(config: Config, session: Session, targets: Sequence[str] = ALL) -> list[Node]:
    """The nodes that a run of `targets` goes through. Raises what is wrong, all of it (see `raise_for`).

    Where everything is done nothing is looked at, and nothing is sent.
    """
    try:
        made = nodes(config, session, targets)
    except ConfigError:
        raise_for(examine(config, session, targets, probe=True))
        raise
    standings = Dag(made, open_store(), retry_failed=session.retry_failed).standings()
    if any(standing.state != "done" for standing in standings.values()):
        raise_for(examine(config, session, targets, standings, probe=True))
    return made


def raise_for(seen: Sequence[Check]) -> None:
    """Raise what is wrong: ConfigError or AutointerpError for one thing, Problems for several."""
    wrong = [check for check in seen if check.wrong]
    lines = list(dict.fromkeys(check.text for check in wrong))
    code = max((check.exit_code for check in wrong), default=0)
    if len(lines) > 1:
        raise Problems(lines, code)
    if lines:
        raise (ConfigError if code == ConfigError.exit_code else AutointerpError)(lines[0])


def examine(
    config: Config,
    session: Session,
    targets: Sequence[str] = ALL,
    standings: Mapping[str, Standing] | None = None,
    *,
    probe: bool = False,
    deep: bool = True,
) -> list[Check]:
    """The checks of the part of a config that `targets` need, and of which `standings` say that it is to do.

    `deep`: with those that import torch.
    """
    whole = "tables" in targets
    seen = [*checks.check_subject(config), *checks.check_corpus(config), *checks.check_sae(config, deep=deep)]
    if config.tracking is not None:
        seen.append(checks.checked("tracking", partial(tracking.check, config.tracking)))
    if whole:
        seen += [*checks.check_features(config), *checks.check_plugins(config), *checks.check_models_named(config)]
        seen += _stages(config, {check.text for check in seen if check.wrong})
    try:
        used = uses(config, targets)
    except ConfigError:
        return [*seen, *_models(config, None)] if whole else seen  # told by one of the above
    to_do = {name for name in used if standings is None or standings[name].state != "done"}
    asked = {name: asks for name in to_do if (asks := _asks(config, used[name])) is not None}
    models = _models(config, [asks.llm for asks in asked.values()])
    seen += models
    if probe and not any(check.wrong for check in models):
        seen += _probes(session, asked)
    sizes: list[tuple[str, float]] = []
    if not any(check.wrong for check in seen):
        known = Known(config, session, used, {}, UNWRITTEN)
        seen += _prompts(config, session, used, asked)
        sizes += _bytes(config, known, used, to_do)
        seen.append(checks.check_disk(sizes))
    kept = [(name, size) for name, size in sizes if not stage_of(name).remade]
    return [*seen, *checks.check_mirror(kept, probe=probe)]


def _stages(config: Config, told: Collection[str]) -> Iterator[Check]:
    """Each stage's own look at the config; what was told by another check is not told again."""
    for stage in STAGES:
        check = checked(f"stage {stage.kind}", lambda stage=stage: ", ".join(stage.named(config)))
        if check.wrong and check.text not in told and not check.text.endswith(asking.MISSING):
            told = {*told, check.text}
            yield check


def _asks(config: Config, use: Use) -> Asks | None:
    declared = stage_of(use.name).asks
    return declared(use.config(config), use) if declared else None


def _models(config: Config, wanted: Sequence[LLMConfig] | None) -> list[Check]:
    """Each language model that is asked, by its backend; `wanted` None: as far as the plug-ins can be read."""
    if wanted is None:
        wanted = [llm for _, llm in checks.models_asked(config) if llm is not None]
    distinct = {llm.model_dump_json(): llm for llm in wanted}
    return list({check: None for llm in distinct.values() for check in checks.check_model(llm)})


def _probes(session: Session, asked: Mapping[str, Asks]) -> Iterator[Check]:
    """One short request to each endpoint. A model that runs here is not loaded for it."""
    distinct = {asks.llm.model_dump_json(): asks.llm for asks in asked.values()}
    for llm in distinct.values():
        if not registry.is_served_here(llm):
            yield checked(f"endpoint of {llm.model}", lambda llm=llm: _probe(session, llm))


def _probe(session: Session, llm: LLMConfig) -> str:
    client = asking.client(session, PluginConfig(name="probe", llm=llm))
    session.wait(client.probe())
    return f"answers; can do: {', '.join(sorted(client.capabilities)) or 'text alone'}"


def _prompts(config: Config, session: Session, used: Mapping[str, Use], asked: Mapping[str, Asks]) -> Iterator[Check]:
    """Requests for an imagined feature: the plug-in makes them with its options, and they fit the model's context."""
    known = Known(config, session, used, {}, UNWRITTEN)
    for name, asks in asked.items():
        if getattr(used[name].given, "control", None) is None:
            yield checked(f"prompts of {name}", lambda name=name, asks=asks: _fit(known, session, used[name], asks))


def _fit(known: Known, session: Session, use: Use, asks: Asks) -> str:
    sample = known.with_texts(imagine(known.config, asks.about, UNWRITTEN))
    requests = rehearsal.rehearse(session, use, sample, asks.llm)
    folder = rehearsal.own_folder(asks.llm)
    limit = described_model(folder).context if folder is not None else None
    if not requests or limit is None:
        return f"{len(requests)} requests"
    count = rehearsal.counter(asks.llm)
    longest = max(count(request.messages) + (asks.llm.answer_tokens or request.most) for request in requests)
    if longest > limit:
        raise ConfigError(
            f"{use.name}: a prompt and its answer have about {longest:,.0f} tokens, and {asks.llm.model} reads"
            f" {limit:,}: lower contexts.window, or show fewer examples at a time"
        )
    return f"at most {longest:,.0f} of {limit:,} tokens"


def _bytes(
    config: Config, known: Known, used: Mapping[str, Use], to_do: Collection[str]
) -> Iterator[tuple[str, float]]:
    for name in to_do:
        amount = stage_of(name).amount
        if amount is not None:
            yield name, amount(used[name].config(config), used[name], known.sizes).bytes
