"""Composites that are planted in a subject and its SAE, through whole runs: found, confirmed, explained as such."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from endpoint import serving
from planted import config, oracle_of, plant, plant_composites

import autointerp as ai
from autointerp.commands.plan import plan
from autointerp.commands.prompts import prompts
from autointerp.composites import evidence
from autointerp.config import parse_config
from autointerp.errors import AutointerpError, ConfigError
from autointerp.report import show

EXPLAINERS = [
    "default",
    "conjunction",
    "constituents",
    {"name": "conjunction", "label": "swapped", "pair": "swapped"},
]


def wanted(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    whole = config(folder / "model", folder / "sae", url, explainers=EXPLAINERS, scorers=["detection"], controls=[])
    return whole | {"composites": {"semantic": True}} | more  # all runs here share one store, so one harvest


@pytest.fixture(scope="module")
def planted(stories15m: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("composites")
    return folder, *plant_composites(stories15m, folder)


@pytest.fixture(scope="module")
def finished(planted, tmp_path_factory: pytest.TempPathFactory):
    folder, words, parts = planted
    with pytest.MonkeyPatch.context() as patch, serving(oracle_of(parts)) as endpoint:
        patch.setenv("AUTOINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(evidence, "PLAIN_LEAST", 3)  # of a dozen latents few are no sums
        whole = parse_config(wanted(folder, endpoint.url))
        before = plan(whole, tmp_path_factory.mktemp("planned"))
        run = ai.run(whole, out=tmp_path_factory.mktemp("run"))
        yield run, words, parts, before, whole


def test_planted_composites_are_confirmed_and_their_controls_are_not(finished) -> None:
    run, words, parts, *_ = finished
    table = run.composites.set_index("feature")
    rows = table[table["label"] == "confirmed"]
    found = {words[f]: {words[p] for p in own} for f, own in rows["constituents"].items()}
    assert found == {word: set(both) for word, both in parts.items()}
    assert (rows["reencode"] > 0.95).all()
    assert (rows[["reencode_swapped", "reencode_random"]] < 0.05).all(axis=None)
    assert (rows["tokens"] >= 100).all()
    assert (rows["mode"] == "replacing").all()
    assert (rows["lift"] == 0).all()  # its parts are silent where it fires
    assert rows["failure"].isna().all()
    assert table.loc[~table.index.isin(rows.index), "reencode"].isna().all()


def test_an_explanation_that_is_the_conjunction_entails_its_parts_alone(finished) -> None:
    run, *_ = finished
    rows = run.composites[run.composites["label"] == "confirmed"]
    assert (rows["semantic"] == 1).all()
    assert (rows[["semantic_swapped", "semantic_random"]] == 0).all(axis=None)
    assert (rows["semantic_either"] == 0).all()  # no part alone is the sum
    facts = run.info["stages"]["semantic"]["facts"]
    assert (facts["composites"], facts["judged"], facts["entailed"], facts["own"]) == (3, 3, 1.0, 1.0)
    assert (facts["either"]["judged"], facts["either"]["own"]) == (3, 0.0)
    assert facts["above_swapped"] == {
        "mean": 1.0,
        "low": None,
        "high": None,
        "wins": 3,
        "losses": 0,
        "n": 3,
        "dropped": 0,
    }


def test_g_and_h_predict_the_contexts_of_their_sum_and_another_s_parts_do_not(finished) -> None:
    run, words, parts, *_ = finished
    scores = run.scores.set_index(["explainer", "feature"])["value"]
    composites = [f for f, word in words.items() if word in parts]
    for explainer in ("conjunction", "constituents"):
        assert sorted(scores[explainer].index) == composites
        assert (scores[explainer] == 1.0).all()
    assert scores["swapped"].max() < 0.8
    said = run.explanations.set_index(["explainer", "feature"])
    for f in composites:
        assert set(re.findall(r"the word (\w+)", said.loc[("conjunction", f), "explanation"])) == set(parts[words[f]])
        assert not set(parts[words[f]]) & set(re.findall(r"\w+", said.loc[("swapped", f), "explanation"]))


def test_features_that_are_no_composites_say_so_and_are_not_scored(finished) -> None:
    run, words, parts, *_ = finished
    rows = run.explanations[run.explanations["explainer"] == "conjunction"]
    others = rows[rows["status"] == "not_composite"]
    assert len(others) == len(words) - len(parts)
    assert others["explanation"].isna().all()
    assert others["failure"].str.startswith("not a composite").all()
    assert set(run.judgements.loc[run.judgements["status"] == "failed", "explainer"]) == set()


def test_show_names_the_constituents_with_their_labels_and_contexts(finished) -> None:
    run, words, parts, *_ = finished
    feature = next(f for f, word in words.items() if word in parts)
    out = io.StringIO()
    show(run.folder, feature, out)
    text = out.getvalue()
    g, h = (f for f, word in words.items() if word in parts[words[feature]])
    for part in (
        f"feature {feature} · ok · confirmed composite {max(g, h)}+{min(g, h)}",
        f"× feature {g}: the word {words[g]}",
        f"× feature {h}: the word {words[h]}",
        "re-encode 1.00 (swapped pair .00, random pair .00) over ",
        "explanation entails them 1.00 (swapped pair .00, random pair .00)",
        "replacing",
        "co-firing contexts",
        f"« {words[feature]}»",
    ):
        assert part in text


def test_the_table_and_the_page_name_the_constituents(finished) -> None:
    run, words, parts, *_ = finished
    features = run.features.set_index("feature")
    for f, word in words.items():
        pair = features.loc[f, "constituents"]
        named = {words[int(part)] for part in pair.split("+")} if isinstance(pair, str) else set()
        assert named == set(parts.get(word, ()))
    page = (run.folder / "report.html").read_text()
    assert "How often is the explanation of a composite the conjunction" in page
    assert "confirmed" in page


def test_the_plan_counts_the_judge_before_and_nothing_after(finished) -> None:
    run, *_, before, whole = finished
    costs = {stage.name: stage.cost for stage in before.stages}
    assert "LLM calls" in costs["semantic"]
    assert "LLM calls" in costs["explain/constituents"]
    after = plan(whole, run.folder)
    assert {stage.state for stage in after.stages} == {"done"}
    assert after.llm_calls == 0


def test_the_exact_prompts_of_a_composite_can_be_seen(finished) -> None:
    run, words, parts, _, whole = finished
    feature = next(f for f, word in words.items() if word in parts)
    seen = {view.stage: view for view in prompts(whole, feature, run.folder)}
    g, h = parts[words[feature]]
    asked = seen["explain/constituents"].messages[-1].content
    assert f"the word {g}" in asked
    assert f"«{h}»" in asked
    assert f"«{words[feature]}»" in asked
    assert sum(view.stage == "semantic" for view in prompts(whole, feature, run.folder)) == 12
    other = next(f for f, word in words.items() if word not in parts)
    assert {view.stage for view in prompts(whole, other, run.folder)} == {
        "explain/default", "calibrate/detection/default", "score/detection/default"
    }  # fmt: skip


def test_no_held_out_context_reaches_an_explainer(finished) -> None:
    run, words, parts, _, whole = finished
    held_out = {"".join(row.tokens).strip() for row in run.contexts.itertuples() if row.split == "test"}
    for f, word in words.items():
        if word in parts:
            views = [view for view in prompts(whole, f, run.folder) if view.stage == "explain/constituents"]
            shown = [
                line.strip().partition(". ")[2] or line.strip() for line in views[0].messages[-1].content.split("\n")
            ]
            assert not held_out & {re.sub("[«»]", "", line) for line in shown}


def test_composites_can_be_selected_with_their_constituents(planted, finished, tmp_path: Path) -> None:
    folder, words, parts = planted
    whole = wanted(folder, "http://127.0.0.1:9/v1", explainers=["token_stats", "conjunction"], scorers=[])
    whole |= {"composites": {}, "features": {"select": "composites", "count": 1, "constituents": True}}
    run = ai.run(parse_config(whole), out=tmp_path / "run")
    table = run.features.set_index("feature")
    (chosen,) = table.index[table["selected"] == "composites"]
    assert {words[f] for f in table.index[table["selected"] == "constituent"]} == set(parts[words[chosen]])
    assert len(table) == 3

    alone = whole | {"features": {"select": "composites", "count": 1}}
    run = ai.run(parse_config(alone), out=tmp_path / "alone")
    row = run.explanations[run.explanations["explainer"] == "conjunction"].iloc[0]
    assert row["status"] == "failed"
    assert "not among the features that are explained; features.constituents selects it" in row["failure"]


def test_too_few_tokens_leave_no_figure_but_a_reason(planted, finished, tmp_path: Path) -> None:
    folder, *_ = planted
    whole = wanted(folder, "http://127.0.0.1:9/v1", explainers=["token_stats"], scorers=[])
    whole |= {"composites": {"tokens": 60}}
    run = ai.run(parse_config(whole), out=tmp_path / "run")
    rows = run.composites[run.composites["label"] == "composite"]
    assert len(rows) == 3
    assert rows["reencode"].isna().all()
    assert (rows["failure"] == "re-encode: 60 strong tokens, 100 are needed").all()


def test_a_composite_that_re_encodes_no_better_than_latents_that_are_no_sums_is_not_confirmed(
    planted, finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "nonnegative_fit", lambda projections, gram: 0 * projections + 1e9)  # all is refitted
    folder, *_ = planted
    whole = wanted(folder, "http://127.0.0.1:9/v1", explainers=["token_stats"], scorers=[])
    whole |= {"composites": {"tokens": 150}}
    run = ai.run(parse_config(whole), out=tmp_path / "run")
    rows = run.composites[run.composites["reencode"].notna()]
    assert set(rows["label"]) == {"composite"}
    assert (rows["reencode"] == 1).all()  # the figure stays, beside the reason
    reason = "not confirmed: a tenth of the latents that are no sums re-encode at 1.00 or more"
    assert (rows["failure"] == reason).all()


def test_a_run_without_composites_has_the_columns_and_no_error(planted, finished, tmp_path: Path) -> None:
    plant(planted[0] / "model", tmp_path / "sae", count=8)
    whole = config(
        planted[0] / "model", tmp_path / "sae", "http://127.0.0.1:9/v1", explainers=["token_stats", "conjunction"]
    )
    whole |= {"scorers": [], "controls": []}
    run = ai.run(parse_config(whole), out=tmp_path / "run")
    assert set(run.composites["label"]) == {"atomic"}
    assert run.composites["reencode"].isna().all()
    assert run.features["constituents"].isna().all()
    assert len(run.cofiring) == 0
    with pytest.raises(AutointerpError, match="no latent that fires 30 times is flagged as one"):
        ai.run(parse_config(whole | {"features": {"select": "composites", "min_firings": 30}}), out=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"composites": {"enabled": False}, "explainers": ["default", "conjunction"]}, "composites.enabled is false"),
        ({"composites": {"enabled": False}, "features": {"constituents": True}}, "composites.enabled is false"),
        ({"explainers": ["conjunction"], "composites": {}}, "the config has none: add default"),
        ({"explainers": ["default", {"name": "conjunction", "of": "defualt"}]}, "did you mean 'default'"),
        ({"explainers": ["default", {"name": "conjunction", "pair": "other"}]}, "option 'pair'"),
        ({"composites": {"semantic": {"explainer": "x"}}}, "composites.semantic reads the explanations of 'x'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(planted, tmp_path: Path, change, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(parse_config(json.loads(json.dumps(wanted(planted[0], "http://127.0.0.1:9/v1") | change))), tmp_path)
    assert said in str(raised.value)
