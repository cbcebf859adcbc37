"""Composites whose constituents only the union dictionary holds, in a whole run: tested, explained, judged, shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint import serving
from planted import config, oracle_of, plant_composites, split_in_two

import autointerp as ai
from autointerp.commands.plan import plan
from autointerp.composites import causal, evidence
from autointerp.config import parse_config
from autointerp.engine import models
from autointerp.report import show

EXPLAINERS = ["default", "conjunction", "constituents"]


def wanted(folder: Path, url: str, **more: Any) -> dict[str, Any]:
    whole = config(folder / "model", folder / "narrow", url, explainers=EXPLAINERS, scorers=["detection"], controls=[])
    features = {"select": "all", "min_firings": 30, "constituents": True}
    asked = {"union": str(folder / "wide"), "semantic": {"search": True}, "causal": {"tokens": 8}}
    return whole | {"features": features, "composites": asked} | more


def embedder_of(parts: dict[str, tuple[str, ...]]) -> Any:
    """An embedder to which a composite's text is near those of its constituents."""

    def embed(texts: list[str]) -> np.ndarray:
        words = [text.split()[-1] for text in texts]
        rows = np.array([[word in (own, *parts.get(own, ())) for word in words] for own in words], float)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return lambda session: embed


@pytest.fixture(scope="module")
def finished(stories15m: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("union")
    words, parts = plant_composites(stories15m, folder, count=18)
    lent = {row: words[latent] for row, latent in split_in_two(folder).items()}
    with pytest.MonkeyPatch.context() as patch, serving(oracle_of(parts)) as endpoint:
        patch.setenv("AUTOINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(causal, "BEFORE", 24)  # tokens before the one that is changed; a pass costs a fifth
        patch.setattr(evidence, "PLAIN_LEAST", 3)  # of a dozen latents few are no sums
        patch.setattr(models, "embedder", embedder_of(parts))
        whole = parse_config(wanted(folder, endpoint.url))
        before = plan(whole, tmp_path_factory.mktemp("planned"))
        run = ai.run(whole, out=tmp_path_factory.mktemp("run"))
        yield run, list(parts), parts, lent, before, whole, folder


def test_constituents_of_the_union_are_tested_as_own_ones_are(finished) -> None:
    run, composites, parts, lent, *_ = finished
    table = run.composites.set_index("feature")
    rows = table[table["label"] == "confirmed"]
    found = {composites[f]: {lent[p] for p in own} for f, own in rows["union_constituents"].items()}
    assert found == {word: set(both) for word, both in parts.items()}
    assert (rows["constituents"].map(len) == 0).all()
    assert (rows["reencode"] > 0.95).all()
    assert (rows[["reencode_swapped", "reencode_random"]] < 0.05).all(axis=None)
    assert (rows["union_swapped"].map(len) == 2).all()
    assert rows["failure"].isna().all()
    facts = run.info["stages"]["reencode"]["facts"]["union"]
    assert facts["n"] == 3
    assert facts["no_sums"]["n"] >= 3


def test_copies_within_the_union_are_one_and_neither_an_own_row_nor_a_dead_one_is_lent(finished) -> None:
    run, _, _, lent, *_ = finished
    named = {part for parts in run.composites["union_constituents"] for part in parts}
    own = len(run.composites) - 3  # rows that both have
    copies = [sorted(row for row, word in lent.items() if word == each) for each in {lent[row] for row in named}]
    assert named
    assert named == {living for _, living, _ in copies}  # of each word the first row is dead
    assert min(named) >= own


def test_effects_of_constituents_of_the_union_stand_beside_the_composite_s(finished) -> None:
    run, *_ = finished
    rows = run.composites[run.composites["label"] == "confirmed"]
    assert (rows["causal_together"] > 0.9).all()
    assert rows[["causal", "causal_swapped", "causal_turned"]].notna().all(axis=None)
    tried = run.causal[run.causal["feature"] == rows["feature"].iloc[0]]
    lent = {f"union {part}" for part in rows["union_constituents"].iloc[0]}
    arms = {"clean", "together", "added", "swapped", "swapped together", "turned", *lent}
    assert {how: set(own["arm"]) for how, own in tried.groupby("how")} == {"ablated": arms, "steered": arms}
    assert tried["output"].between(-1.001, 1.001).all()


def test_the_explanations_that_its_own_entails_are_its_constituents(finished) -> None:
    run, composites, *_ = finished
    rows = run.semantic.set_index("pair")
    assert (rows.loc["own", "agree"] == 1).all()
    assert (rows.loc["swapped", "agree"] == 0).all()
    assert all(name.startswith("union ") for names in rows.loc["own", "by_concept"] for name in names)
    assert run.info["stages"]["semantic"]["facts"]["search"]["own"] == 1.0
    assert len(rows.loc["own"]) == len(composites)


def test_they_are_explained_and_the_judge_compares_them_with_the_composite(finished) -> None:
    run, composites, parts, lent, *_ = finished
    rows = run.union_features
    texts = dict(zip(rows["feature"], rows["explanation"]))
    assert len(texts) == 6
    assert all(text == f"the word {lent[row]}" for row, text in texts.items())
    judged = run.composites.set_index("feature").loc[range(len(composites))]
    assert (judged["semantic"] == 1).all()
    assert (judged[["semantic_swapped", "semantic_random"]] == 0).all(axis=None)
    said = run.explanations.set_index(["explainer", "feature"])["explanation"]
    scores = run.scores.set_index(["explainer", "feature"])["value"]
    for f, word in enumerate(composites):
        assert all(f"the word {part}" in said["conjunction", f] for part in parts[word])
        assert scores["constituents", f] == 1.0


def test_show_and_the_page_name_them_with_what_they_say(finished) -> None:
    run, composites, parts, lent, *_ = finished
    out = io.StringIO()
    show(run.folder, 0, out)
    for row, word in lent.items():
        if word in parts[composites[0]] and f"union {row}" in out.getvalue():
            assert f"× union {row}: the word {word}" in out.getvalue()
    assert out.getvalue().count("× union") == 2
    page = (run.folder / "report.html").read_text()
    assert "with constituents of the union SAE" in page
    assert all(f"the word {word}" in page for word in parts[composites[0]])


def test_the_plan_counts_their_explanations(finished) -> None:
    run, *_, before, whole, _ = finished
    costs = {stage.name: stage.cost for stage in before.stages}
    assert "LLM calls" in costs["union:explain/default"]
    assert {stage.state for stage in plan(whole, run.folder).stages} == {"done"}


def test_without_their_explanations_the_reason_is_said(finished, tmp_path: Path) -> None:
    folder = finished[-1]
    whole = wanted(folder, "http://127.0.0.1:9/v1", explainers=["token_stats", "conjunction"], scorers=[])
    whole |= {"features": {"select": "all", "min_firings": 30}, "composites": {"union": str(folder / "wide")}}
    run = ai.run(parse_config(whole), out=tmp_path / "run")
    row = run.explanations[run.explanations["explainer"] == "conjunction"].set_index("feature").loc[0]
    assert row["status"] == "failed"
    assert row["failure"].startswith("constituent union ")
    assert "features.constituents selects it" in row["failure"]
