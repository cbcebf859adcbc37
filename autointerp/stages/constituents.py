"""Whose explanations of a composite's constituents an explainer or judge reads, and which constituents."""

from __future__ import annotations

import inspect

from autointerp.composites.evidence import Pair
from autointerp.config import Config, PluginConfig
from autointerp.engine.estimate import Population
from autointerp.errors import ConfigError
from autointerp.plugins import bind_options, explainers, needs
from autointerp.registry import did_you_mean


def explained_by(config: Config, named: str | None, who: str) -> str:
    """The key of the explainer whose explanations `who` reads: `named`, or the first that reads none itself."""
    first_hand = [p.key for p in config.explainers if "constituents" not in needs(explainers.get(p.name))]
    if not first_hand:
        raise ConfigError(f"{who} reads the explanations of another explainer, and the config has none: add default")
    if named is None:
        return first_hand[0]
    if named not in first_hand:
        raise ConfigError(
            f"{who} reads the explanations of {named!r}, which is no explainer of the config that explains single"
            f" features{did_you_mean(named, first_hand)}"
        )
    return named


def reads(config: Config, explainer: PluginConfig) -> str | None:
    """Whose explanations of the constituents an explainer is shown; None for one that asks for none."""
    if "constituents" not in needs(explainers.get(explainer.name)):
        return None
    if not config.composites.enabled:
        raise ConfigError(f"explainer {explainer.key!r} explains composites, and composites.enabled is false")
    return explained_by(config, explainer.options.get("of"), f"explainer {explainer.key!r}")


def about(config: Config, explainer: str) -> Population:
    """Whether the explainer of this key explains every feature, or composites alone."""
    plugin = next(plugin for plugin in config.explainers if plugin.key == explainer)
    return "features" if reads(config, plugin) is None else "composites"


def pair_of(config: Config, explainer: PluginConfig) -> Pair:
    """Whose constituents: the plug-in's option `pair`, its own default where the config has none."""
    plugin = explainers.get(explainer.name)
    default = inspect.signature(plugin).parameters["pair"].default
    return bind_options("explainer", explainer.name, plugin, explainer.options, config.seed).get("pair", default)
