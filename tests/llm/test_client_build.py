from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from endpoint import serving

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.llm import Client, open_llm
from autointerp.records import Message


def opened(folder: Path, **config: Any) -> Client:
    parsed = LLMConfig.model_validate(config)
    return open_llm(parsed, cache=folder / "cache.sqlite", journal=folder / "usage.jsonl", seed=0)


async def test_a_base_url_is_asked_over_http(tmp_path: Path) -> None:
    with serving() as endpoint:
        async with opened(tmp_path, model="test-model", base_url=endpoint.url) as llm:
            assert (await llm.complete([Message("user", "q")])).text == "Yes"
            assert "choices" in llm.capabilities


def test_a_model_that_is_nowhere_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'no-such-folder' is no folder.*llm\.base_url"):
        opened(tmp_path, model="no-such-folder")


async def test_what_goes_wrong_in_starting_is_one_error_and_leaves_the_files_closed(tmp_path: Path) -> None:
    with serving(key="sk-right") as endpoint, pytest.raises(AutointerpError, match="HTTP 401") as caught:
        async with opened(tmp_path, model="test-model", base_url=endpoint.url, api_key_env="UNSET_KEY"):
            pass
    assert caught.value.exit_code == 1
    (tmp_path / "cache.sqlite").rename(tmp_path / "moved.sqlite")
