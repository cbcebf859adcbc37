"""Plug-ins: registries and decorators of explainers, scorers and controls, what they need, and their options.

A plug-in's options are its keyword-only arguments; the config gives them beside its name. Of a `Path` the content is
in the stage's key.

    @explainer("mine")
    async def explain(feature: FeatureEvidence, llm: LLM, *, examples: int = 20) -> Explanation: ...

    @scorer("mine")
    async def score(explanation: str, examples: Sequence[Context], llm: LLM, *, seed: int) -> Score: ...

    @control("mine")
    def pick(features: Sequence[int], explanations: Mapping[int, str], *, seed: int) -> Mapping[int, str]: ...

What a plug-in needs beside that it says at registration, ``needs={"llm", "neighbours"}``, and is given as keyword-only
arguments of those names; `llm` comes in its place and is None where it is not among them. Parameters named `seed` and
`feature` receive the run's seed and the feature's number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, get_args

from autointerp.errors import ConfigError
from autointerp.registry import Registry, did_you_mean

NOT_IN_KEYS = "a key holds the plug-in and its options"

Need = Literal[
    "llm",  # a language model; it comes in its place
    "subject",  # the Subject, at the hook that the SAE reads
    "sae",  # the SAE
    "activations",  # async: texts -> this feature's activation on each of their tokens
    "logit_effects",  # OutputEffects: tokens that the feature raises, by its product with the unembedding
    "steered",  # async: OutputEffects, texts that the subject writes while the feature is added
    "ablated",  # async: OutputEffects, tokens that become less likely where the feature is taken off
    "embedder",  # texts -> unit rows [n, d]
    "neighbours",  # of a scorer or explainer: Neighbour, nearest first; of a control: feature -> all that are near
    "constituents",  # of a flagged latent: Constituent; of a control: feature -> their numbers
    "token_table",  # every token on which the feature fires in train documents: TokenStat
    "shown",  # the feature's train windows, firing and silent
    "calibration",  # of a scorer: (truth, evidence) of its judge on train windows of other features
    "natural_rate",  # share of the windows of running text in which the feature fires
    "random_windows",  # windows of running text and in which of them the feature fires: RandomWindows
    "frequencies",  # of a control: feature -> its firings over the tokens harvested
]
NEEDS: tuple[Need, ...] = get_args(Need)
GIVEN = ("seed", "feature")  # keyword-only arguments that are filled without being asked for


def _async(target: object) -> str | None:
    return None if inspect.iscoroutinefunction(target) else "is not an async function"


def _callable(target: object) -> str | None:
    return None if callable(target) else "cannot be called"


explainers: Registry[Callable[..., Any]] = Registry(
    "explainer",
    "autointerp.explainers",
    {
        "default": "autointerp.explainers.default:explain",
        "whole_words": "autointerp.explainers.whole_words:explain",
        "token_stats": "autointerp.explainers.token_stats:explain",
        "best_of": "autointerp.explainers.best_of:explain",
        "revise": "autointerp.explainers.revise:explain",
        "self_explain": "autointerp.explainers.self_explain:explain",
        "given": "autointerp.explainers.given:explain",
        "conjunction": "autointerp.explainers.constituents:conjunction",
        "disjunction": "autointerp.explainers.constituents:disjunction",
        "constituents": "autointerp.explainers.constituents:explain",
    },
    _async,
)
scorers: Registry[Callable[..., Any]] = Registry(
    "scorer",
    "autointerp.scorers",
    {
        "detection": "autointerp.scorers.detection:score",
        "simulation": "autointerp.scorers.simulation:score",
        "fuzzing": "autointerp.scorers.fuzzing:score",
        "intruder": "autointerp.scorers.intruder:score",
        "discrimination": "autointerp.scorers.discrimination:score",
        "embedding": "autointerp.scorers.embedding:score",
        "generation": "autointerp.scorers.generation:score",
        "saebench": "autointerp.scorers.saebench:score",
        "surprisal": "autointerp.scorers.surprisal:score",
        "output_tokens": "autointerp.scorers.output_tokens:score",
        "steering": "autointerp.scorers.steering:score",
        "ablation": "autointerp.scorers.ablation:score",
        "lexical": "autointerp.scorers.lexical:score",
        "lexical_shown": "autointerp.scorers.lexical:score_shown",
        "position": "autointerp.scorers.floors:position",
        "constant": "autointerp.scorers.floors:constant",
    },
    _async,
)
controls: Registry[Callable[..., Any]] = Registry(
    "control",
    "autointerp.controls",
    {
        "other_feature": "autointerp.controls.other_feature:pick",
        "redrawn_subject": "autointerp.controls.redrawn_subject:change",
        "random_sae": "autointerp.controls.random_sae:change",
    },
    _callable,
)


def explainer(name: str, *, needs: Collection[Need] = ("llm",)) -> Callable[[Any], Any]:
    """Register an explainer; `needs` says what it is given beside the feature's evidence (see `NEEDS`).

    One that needs "constituents" explains composites alone, from their constituents' explanations by the explainer
    that its option `of` names (the config's first other one, where None); its option `pair` may ask for controls.
    """
    return _decorate(explainers, name, needs)


def scorer(
    name: str, *, needs: Collection[Need] = ("llm",), pairs: Callable[..., Any] | None = None
) -> Callable[[Any], Any]:
    """Register a scorer; `needs` says what it is given beside the explanation and the examples (see `NEEDS`).

    One that needs "calibration" says in `pairs` how its judge is asked about train windows: an async function that
    takes what the scorer takes, and `most`, and returns (truth, evidence) pairs.
    """
    if ("calibration" in needs) != (pairs is not None):
        raise ConfigError(f"scorer {name!r}: the need 'calibration' and the function `pairs` go together")
    add = _decorate(scorers, name, needs)

    def register(target: Any) -> Any:
        target.pairs = pairs
        return add(target)

    return register


def control(name: str, *, needs: Collection[Need] = (), runs_again: bool = False) -> Callable[[Any], Any]:
    """Register a control: which other explanation each feature is scored with.

    With `runs_again` it says instead how the run is made again: it takes the run's Config and returns the changed one.
    The stages that the change reaches are done once more, and their scores stand in tables of their own.
    """

    def add(target: Any) -> Any:
        target.runs_again = runs_again
        return _decorate(controls, name, needs)(target)

    return add


def runs_again(control: Callable[..., Any]) -> bool:
    """Whether a control is the run made again, and not another explanation."""
    return getattr(control, "runs_again", False)


def _decorate(registry: Registry[Any], name: str, needs: Collection[Need]) -> Callable[[Any], Any]:
    def add(target: Any) -> Any:
        unknown = sorted(set(needs) - set(NEEDS))
        if unknown:
            raise ConfigError(f"{registry.kind} {name!r} needs {unknown[0]!r}{did_you_mean(unknown[0], NEEDS)}")
        target.needs = frozenset(needs)
        return registry.register(name)(target)

    return add


def needs(plugin: Callable[..., Any]) -> frozenset[Need]:
    """What a plug-in is given; one that was never registered gets a language model."""
    return getattr(plugin, "needs", frozenset({"llm"}))


def pairs_of(plugin: Callable[..., Any]) -> Callable[..., Any]:
    """How the judge of a scorer that needs "calibration" is asked about train windows, see `scorer`."""
    return plugin.pairs  # type: ignore[attr-defined]


def given_by_keyword(plugin: Callable[..., Any]) -> set[str]:
    """Keyword-only arguments that the pipeline fills and the config may not."""
    return {name for name in _keywords(plugin) if name in GIVEN or name in needs(plugin)}


def _keywords(plugin: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(plugin, eval_str=True)
    return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def bind_options(
    kind: str, name: str, plugin: Callable[..., Any], options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Check `options` against the plug-in's keyword-only arguments and return them with `seed` where wanted."""
    from pydantic import TypeAdapter, ValidationError

    given = given_by_keyword(plugin)
    wanted = {name: p for name, p in _keywords(plugin).items() if name not in given or name == "seed"}
    bound: dict[str, Any] = {}
    for key, value in options.items():
        if key not in wanted or key == "seed":
            raise ConfigError(f"{kind} {name!r} has no option {key!r}{did_you_mean(key, set(wanted) - {'seed'})}")
        annotation = wanted[key].annotation
        try:
            bound[key] = (
                value if annotation is inspect.Parameter.empty else TypeAdapter(annotation).validate_python(value)
            )
        except ValidationError as error:
            raise ConfigError(f"{kind} {name!r}, option {key!r}: {error.errors()[0]['msg']}") from None
        if isinstance(bound[key], Path) and not bound[key].exists():
            raise ConfigError(f"{kind} {name!r}, option {key!r}: there is no file or folder {str(value)!r}")
    if "seed" in wanted:
        bound["seed"] = seed
    missing = [k for k, p in wanted.items() if p.default is p.empty and k not in bound]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs the option {missing[0]!r}")
    return bound
