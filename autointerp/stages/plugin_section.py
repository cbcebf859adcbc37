"""What a stage's key holds of a plug-in: its options, its language model, its prompts, and what else it is given.

The plug-in's code counts by its own import closure (`Use.plugins`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autointerp.config import Config, PluginConfig
from autointerp.engine.asking import llm_config
from autointerp.engine.models import EMBEDDER, identity
from autointerp.hashing import fingerprint
from autointerp.llm.registry import backend_of
from autointerp.llm.registry import identity as llm_identity
from autointerp.plugins import bind_options, needs
from autointerp.prompting import prompts_hash
from autointerp.registry import Registry


def plugin_section(config: Config, registry: Registry[Callable[..., Any]], plugin: PluginConfig) -> dict[str, Any]:
    """Raises ConfigError for an unknown plug-in, an unknown or a missing option."""
    function = registry.get(plugin.name)
    options = bind_options(registry.kind, plugin.name, function, plugin.options, config.seed)
    held = {name: fingerprint(value) if isinstance(value, Path) else value for name, value in options.items()}
    section: dict[str, Any] = {"name": plugin.name, "label": plugin.key, "options": held}
    wanted = needs(function)
    if "llm" in wanted:
        section |= llm_section(config, plugin, getattr(inspect.getmodule(function), "PROMPTS", ()))
    if "embedder" in wanted:
        section["embedder"] = identity(EMBEDDER)
    if {"steered", "ablated"} & wanted:  # done where the SAE's output belongs, which no file below says
        section["hook_out"] = config.subject.hook_out
    return section


def llm_section(config: Config, plugin: PluginConfig, prompts: Sequence[str]) -> dict[str, Any]:
    return {"llm": llm_identity(llm_config(config, plugin), identity), "prompts": prompts_hash(prompts)}


def code_of(config: Config, plugin: PluginConfig, function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """What counts as a plug-in's code: its function, and the backend of its language model."""
    return (function, backend_of(llm_config(config, plugin))) if "llm" in needs(function) else (function,)
