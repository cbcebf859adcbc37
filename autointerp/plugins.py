"""The kinds of plug-in, their registries and decorators, and how their options are checked.

A plug-in's options are its keyword-only arguments; the config gives them beside its name.

    @explainer("mine")
    async def explain(feature: FeatureEvidence, llm: LLM, *, examples: int = 20) -> Explanation: ...

    @scorer("mine")
    async def score(explanation: str, examples: Sequence[Context], llm: LLM, *, seed: int) -> Score: ...

    @control("mine")
    def pick(features: Sequence[int], explanations: Mapping[int, str], *, seed: int) -> Mapping[int, str]: ...

`llm` is None where the plug-in says ``needs_llm=False`` at registration. A parameter named `seed`
receives the run's seed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from autointerp.errors import ConfigError
from autointerp.registry import Registry, did_you_mean


def _async(target: object) -> str | None:
    return None if inspect.iscoroutinefunction(target) else "is not an async function"


def _callable(target: object) -> str | None:
    return None if callable(target) else "cannot be called"


explainers: Registry[Callable[..., Any]] = Registry(
    "explainer",
    "autointerp.explainers",
    {
        "default": "autointerp.explainers.default:explain",
        "token_stats": "autointerp.explainers.token_stats:explain",
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
    {"other_feature": "autointerp.controls.other_feature:pick"},
    _callable,
)


def explainer(name: str, *, needs_llm: bool = True, needs_constituents: bool = False) -> Callable[[Any], Any]:
    """`needs_constituents`: it explains composites alone, from their constituents' explanations by the explainer
    that its option `of` names (the config's first other one, where None); its option `pair` may ask for controls."""

    def add(target: Any) -> Any:
        target.needs_constituents = needs_constituents
        return _decorate(explainers, name, needs_llm)(target)

    return add


def scorer(name: str, *, needs_llm: bool = True) -> Callable[[Any], Any]:
    return _decorate(scorers, name, needs_llm)


def control(name: str) -> Callable[[Any], Any]:
    return _decorate(controls, name, False)


def _decorate(registry: Registry[Any], name: str, needs_llm: bool) -> Callable[[Any], Any]:
    def add(target: Any) -> Any:
        target.needs_llm = needs_llm
        return registry.register(name)(target)

    return add


def needs_llm(plugin: Callable[..., Any]) -> bool:
    return getattr(plugin, "needs_llm", True)


def needs_constituents(plugin: Callable[..., Any]) -> bool:
    return getattr(plugin, "needs_constituents", False)


def bind_options(
    kind: str, name: str, plugin: Callable[..., Any], options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Check `options` against the plug-in's keyword-only arguments and return them with `seed` where wanted."""
    from pydantic import TypeAdapter, ValidationError

    signature = inspect.signature(plugin, eval_str=True)
    wanted = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
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
    if "seed" in wanted:
        bound["seed"] = seed
    missing = [k for k, p in wanted.items() if p.default is p.empty and k not in bound]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs the option {missing[0]!r}")
    return bound
