"""Secrets planted in a config, in the environment and in what an endpoint says: in no file, on no page, in no log."""

from __future__ import annotations

import copy
import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import failure, serving
from planted import config, oracle
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.config import LLMConfig, parse_config
from autointerp.errors import ConfigError
from autointerp.redact import public_config, public_url, redact, secret_name, server_options

KEY = "sk-planted-0123456789abcdef"
LEAKY = """
import os
import autointerp as ai

async def score(explanation, examples, llm, *, api_token: str):
    raise ValueError(f"{api_token} and {os.environ['PLANTED_KEY']} were refused")
"""


def everything(folder: Path) -> str:
    """All that lies in files, kept answers unpacked."""
    texts = []
    for file in folder.rglob("*"):
        if file.suffix == ".sqlite":
            with sqlite3.connect(file) as db:
                texts += [
                    zlib.decompress(answer).decode() for (answer,) in db.execute("SELECT answer FROM raw_answers")
                ]
                texts += [str(row) for row in db.execute("SELECT * FROM learnt")]
        if file.is_file():
            texts.append(file.read_bytes().decode("latin-1"))
    return "\n".join(texts)


def test_no_secret_of_a_run_is_in_a_file_a_page_the_log_or_an_error(
    stories15m: Path, sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint says all that it is sent; a plug-in raises with what it was given."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLANTED_KEY", KEY)
    monkeypatch.setenv("OTHER_VARIABLE", "planted-in-a-header")
    monkeypatch.setenv("THIRD_VARIABLE", "planted-in-a-body")
    (tmp_path / "leaky_scorer.py").write_text(LEAKY)
    with serving(oracle) as endpoint:  # the password of its address takes the place of the key
        url = endpoint.url.replace("http://", "http://someone:planted-password@")
        wanted = config(stories15m, sae, url, controls=[])
        wanted["corpus"]["tokens"] = 40_000
        wanted["llm"] |= {
            "api_key_env": "PLANTED_KEY",
            "headers": {"X-Token": "$OTHER_VARIABLE", "X-Mode": "planted-literally"},
            "extra_body": {"session": {"password": "$THIRD_VARIABLE"}, "user": "planted-as-a-user"},
            "server_args": ["--hf-token", "planted-as-a-token", "--api-key=planted-as-a-key", "--port", "8000"],
            "env": {"HF_TOKEN": "planted-in-its-env"},
            "retries": 0,
        }
        wanted["scorers"] = [
            "detection",
            {"name": "leaky_scorer.score", "label": "leaky", "api_token": "planted-option"},
        ]

        def echoes(body: dict[str, Any]) -> Any:
            if "Property:" not in body["messages"][-1]["content"] or len(endpoint.requests) % 2:
                return None
            return failure(
                413, f"you sent {json.dumps(dict(endpoint.headers[-1]))} and {json.dumps(body)[:200]} {body['user']}"
            )

        endpoint.instead = echoes
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(wanted))
        run = ["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), "--verbose"]
        result = CliRunner().invoke(app, run)
    (tmp_path / "run.yaml").unlink()
    (tmp_path / "leaky_scorer.py").unlink()
    assert result.exit_code == 1, result.output
    assert "leaky" in result.stderr
    for name, text in {"files": everything(tmp_path), "output": result.output}.items():
        assert "planted-" not in text, f"{name}: {text[text.index('planted-') - 200 :][:300]}"
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["llm"]
    assert kept["headers"] == {"X-Token": "$OTHER_VARIABLE", "X-Mode": "hidden"}
    assert kept["extra_body"] == {"session": {"password": "hidden"}, "user": "hidden"}
    assert kept["server_args"] == ["--hf-token", "hidden", "--api-key=hidden", "--port", "8000"]


@pytest.mark.parametrize(
    "path",
    ["api_key_env", "model", "headers.X-Mode", "headers.X-Token", "extra_body.user", "extra_body.deep.password"],
)
def test_a_key_pasted_into_the_config_is_refused_and_not_shown(path: str) -> None:
    llm: dict[str, Any] = {"model": "m", "base_url": "https://llm.example/v1"}
    section, *rest = path.split(".")
    value: Any = "plain-password-of-someone" if rest and rest[-1] in ("X-Token", "password") else KEY
    for key in reversed(rest):
        value = {key: value}
    raw = {"name": "x", "subject": {"model": "a"}, "corpus": {"source": "b"}, "sae": {"load": "c"}}
    with pytest.raises(ConfigError, match=r"environment variable") as caught:
        parse_config({**raw, "llm": llm | {section: value}})
    assert KEY not in str(caught.value)
    assert "plain-password" not in str(caught.value)


@pytest.mark.parametrize("key", ["hf_aBcDeFgHiJkLmNoPqRsTuV", "AKIAIOSFODNN7EXAMPLE", "gsk_0123456789abcdef", KEY])
@pytest.mark.parametrize("where", ["subject", "corpus", "label", "option"])
def test_a_key_in_the_place_of_a_name_is_refused(key: str, where: str) -> None:
    raw: dict[str, Any] = {"name": "x", "subject": {"model": "a"}, "corpus": {"source": "b"}, "sae": {"load": "c"}}
    match where:
        case "subject":
            raw["subject"]["model"] = key
        case "corpus":
            raw["corpus"]["source"] = key
        case "label":
            raw["explainers"] = [{"name": "default", "label": key}]
        case _:
            raw["explainers"] = [{"name": "default", "mine": [key]}]
    with pytest.raises(ConfigError, match="looks like a key") as caught:
        parse_config(raw)
    assert key not in str(caught.value)


WHOLE: dict[str, Any] = {
    "name": "x",
    "subject": {"model": "a"},
    "corpus": {"source": "b"},
    "llm": {"model": "m", "base_url": "https://llm.example/v1", "headers": {"X-Mode": "a"}, "extra_body": {"a": ["b"]}},
    "explainers": [{"name": "default", "label": "a", "option": {"a": ["b"]}, "llm": {"model": "m"}}],
    "scorers": ["detection"],
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a config that hold no further places."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, part in items for leaf in leaves(part, (*path, key))]
    return [path]


@pytest.mark.parametrize("sae", [{"load": "c"}, {"train": {"d_sae": 8, "k": 2}}, {"neurons": {"k": 1}}])
def test_a_key_in_any_place_of_a_config_is_in_no_error_and_not_in_config_yaml(sae: dict[str, Any]) -> None:
    full = parse_config({**WHOLE, "sae": sae}).model_dump(mode="json")
    full["sae"] = {name: part for name, part in full["sae"].items() if part is not None}
    places = leaves(full)
    assert len(places) > 80
    for *path, last in places:
        for name, value in ((last, KEY), (last, [KEY]), (last, {"a": KEY}), (last, {KEY: 1}), (KEY, 1)):
            raw = copy.deepcopy(full)
            section: Any = raw
            for key in path:
                section = section[key]
            if isinstance(section, list) and name == KEY:
                continue
            section[name] = value
            try:
                text = yaml.safe_dump(public_config(parse_config(raw).model_dump(mode="json")))
            except ConfigError as error:
                text = str(error)
            assert KEY not in text, (*path, name, value)


def test_an_address_is_shown_without_what_may_be_a_secret() -> None:
    url = "https://user:pass@llm.example/v1/0123456789abcdef0123/x?key=secret-1"
    assert public_url(url).startswith("https://llm.example/v1/key-")
    assert public_url(url) != public_url(url.replace("0123", "0124"))
    assert public_url("https://llm.example/openai/deployments/gpt-4o-mini") == (
        "https://llm.example/openai/deployments/gpt-4o-mini"
    )
    assert redact("see https://a:b@llm.example/?x=1&api_key=secret-2&y=3") == (
        "see https://hidden@llm.example/?x=1&api_key=[key]&y=3"
    )


def test_of_a_servers_arguments_only_harmless_values_are_written() -> None:
    args = ["--max-model-len", "512", "--tokenizer", "a/b", "--hf-token", "x", "--odd=value-1", "--flag", "--len=5"]
    assert server_options(args) == [
        *("--max-model-len", "512", "--tokenizer", "a/b", "--hf-token", "hidden", "--odd=hidden", "--flag", "--len=5")
    ]


def test_a_key_of_the_config_that_is_new_is_hidden_until_it_has_a_rule() -> None:
    shown = public_config({**LLMConfig(model="m").model_dump(), "secret_of_tomorrow": "x", "number_of_tomorrow": 3})
    assert (shown["secret_of_tomorrow"], shown["number_of_tomorrow"]) == ("hidden", 3)


def test_a_secret_is_told_by_the_words_of_its_name() -> None:
    secrets = (
        *("key", "token", "api_key", "apikey", "accessKey", "X-Api-Key", "Authorization", "x-auth", "my_password"),
        *("DB_PASSWORD_2", "hfToken", "--hf-token", "access_tokens", "OPENAI_API_KEY_PROD", "session_cookie"),
    )  # fmt: skip
    others = (
        *("keywords", "keyWords", "key_terms", "keyboard", "author", "authors", "authority", "tokens", "max_tokens"),
        *(
            "token_stats",
            "token_budget",
            "tokenizer",
            "pad_token",
            "per_token",
            "api_key_env",
            "tokens_per_word",
            "PWD",
        ),
    )
    assert [name for name in secrets if not secret_name(name)] == []
    assert [name for name in others if secret_name(name)] == []


def test_an_option_is_written_unless_its_name_is_that_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHOR", "detection")
    options = {"keywords": ["activating"], "author": "someone else", "credentials": {"user": "planted", "id": 12345678}}
    raw = {"name": "x", "subject": {"model": "a"}, "corpus": {"source": "b"}, "sae": {"load": "c"}}
    wanted = parse_config({**raw, "explainers": [{"name": "default", **options}]})
    (kept,) = public_config(wanted.model_dump(mode="json"))["explainers"]
    assert kept["keywords"] == ["activating"]
    assert kept["author"] == "someone else"
    assert kept["credentials"] == {"user": "hidden", "id": "hidden"}
    assert redact("activating: detection, ?keywords=a&api_key=b") == "activating: detection, ?keywords=a&api_key=[key]"
