"""What the section of a stage with a plug-in holds of the language model that the plug-in asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.config import Config, PluginConfig
from autointerp.engine import asking, models
from autointerp.prompting import prompts_hash


def llm_section(config: Config, plugin: PluginConfig, prompts: Sequence[str]) -> dict[str, Any]:
    """The model that answers, with what changes its answers, and the text of the prompts."""
    llm = asking.llm_config(config, plugin)
    served = llm.model if llm.base_url else models.identity(llm.model.removeprefix("vllm:"))
    how = llm.model_dump(include={"base_url", "dtype", "logprobs", "server_args"})
    return {"llm": how | {"model": served}, "prompts": prompts_hash(prompts)}
