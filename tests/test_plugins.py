"""Plug-ins: found by name, path or decorator, their options checked before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autointerp as ai
from autointerp.engine.estimate import Sample, stand_ins
from autointerp.errors import ConfigError
from autointerp.plugins import bind_options, explainers, needs, scorers
from autointerp.records import TokenStat
from autointerp.registry import Registry


async def explain(feature: ai.FeatureEvidence, llm: ai.LLM, *, examples: int = 5, seed: int) -> ai.Explanation:
    return ai.Explanation("x")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    text = "import autointerp as ai\nasync def mine(feature, llm): return ai.Explanation('mine')\nplain = 3\n"
    (tmp_path / "someones_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "someones_plugin"
    sys.modules.pop("someones_plugin", None)


@pytest.mark.parametrize("path", ["{}.mine", "{}:mine"])
def test_a_dotted_path_is_a_plugin(module: str, path: str) -> None:
    assert explainers.get(path.format(module)).__name__ == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("defualt", "did you mean 'default'?"),
        ("no_such_package.thing", "needs the module 'no_such_package'"),
        ("{}.missing", "has no 'missing'"),
        ("{}.plain", "is not an async function"),
    ],
)
def test_a_plugin_that_cannot_be_is_one_line(module: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explainers.get(name.format(module))
    assert said in str(caught.value)


def test_options_are_the_keyword_only_arguments_with_their_types() -> None:
    assert bind_options("explainer", "x", explain, {"examples": 3}, seed=9) == {"examples": 3, "seed": 9}
    with pytest.raises(ConfigError, match="did you mean 'examples'"):
        bind_options("explainer", "x", explain, {"exampels": 3}, seed=9)
    with pytest.raises(ConfigError, match="option 'examples'"):
        bind_options("explainer", "x", explain, {"examples": "many"}, seed=9)
    with pytest.raises(ConfigError, match="no option 'seed'"):
        bind_options("explainer", "x", explain, {"seed": 3}, seed=9)


def test_the_decorator_registers_and_a_second_owner_of_the_name_is_refused() -> None:
    async def one(feature, llm): ...

    async def other(feature, llm): ...

    ai.explainer("of a test", needs=())(one)
    assert explainers.get("of a test") is one
    assert not needs(one)
    with pytest.raises(ConfigError, match="registered twice"):
        ai.explainer("of a test")(other)


def test_entry_points_are_read_when_a_name_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("theirs", "autointerp.explainers.token_stats:explain", "some.group")
    monkeypatch.setattr("autointerp.registry.entry_points", lambda group: [point] if group == "some.group" else [])
    registry: Registry = Registry("explainer", "some.group")
    assert registry.names() == ["theirs"]
    assert registry.get("theirs").__name__ == "explain"


def test_everything_built_in_can_be_imported() -> None:
    for registry in (explainers, scorers):
        for name in [n for n in registry.names() if " " not in n]:
            assert callable(registry.get(name))


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"module 'broken_plugin' cannot be imported \(ZeroDivisionError"):
        explainers.get("broken_plugin.mine")


async def test_a_plugin_that_returns_nothing_fails_with_the_reason() -> None:
    from autointerp.engine.guard import guarded

    async def forgets() -> None: ...

    answer = await guarded(forgets, ai.Explanation, lambda why: ai.Explanation(None, failure=why))
    assert answer.failure == "the plug-in returned None, no Explanation"


async def test_what_a_rehearsal_gives_a_plugin_is_of_the_form_that_a_run_gives() -> None:
    window = ai.Context(3, 0, "train", "activating", 0, 0, 0, ("a", " dog"), (0.0, 1.0))
    stat = TokenStat(" dog", 3, 4, 1.0)
    sample = Sample(ai.FeatureEvidence(3, 1, 0.1, 1.0, (window,), (), (), (stat,)), [])
    given = stand_ins(["activations", "shown", "token_table"], sample)
    assert await given["activations"](["a dog", "b"]) == [(0.0, 0.0), (0.0,)]
    assert (given["shown"], given["token_table"]) == ((window,), (stat,))
