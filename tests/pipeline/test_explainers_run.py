"""A whole run with the explainers that build on others, on neighbours, on the subject and on a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from endpoint import serving
from planted import config, oracle, plant

import autointerp as ai
from autointerp.config import parse_config

EXPLAINERS = [
    {"name": "whole_words", "neighbours": 2, "label": "contrasting"},
    "best_of",
    "revise",
    {"name": "self_explain", "tokens": 4, "scales": [1, 2], "others": 1},
]


@pytest.fixture(scope="module")
def finished(stories15m: Path, tmp_path_factory: pytest.TempPathFactory):
    folder, asked = tmp_path_factory.mktemp("planted"), []
    words = plant(stories15m, folder, 8)
    file = folder / "theirs.jsonl"
    file.write_text("".join(json.dumps({"index": f, "description": f"the word {w}"}) + "\n" for f, w in words.items()))
    missing = max(words)
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))

    def answer(messages, body):
        asked.append(messages[-1]["content"])
        return oracle(messages, body)

    with pytest.MonkeyPatch.context() as patch, serving(answer) as endpoint:
        patch.setenv("AUTOINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        explainers = [*EXPLAINERS, {"name": "given", "path": str(file)}]
        more = {"explainers": explainers, "scorers": ["detection"], "controls": []}
        wanted = config(stories15m, folder, endpoint.url, **more)
        wanted["features"] |= {"select": "first", "count": 8}
        yield ai.run(parse_config(wanted), out=tmp_path_factory.mktemp("run")), words, missing, asked


def test_explainers_that_ask_an_oracle_name_the_word(finished) -> None:
    run, words, *_ = finished
    texts = run.explanations.pivot(index="feature", columns="explainer", values="explanation")
    for explainer in ("contrasting", "best_of", "revise"):
        assert texts[explainer].to_dict() == {feature: f"the word {word}" for feature, word in words.items()}


def test_neighbours_that_were_asked_for_are_shown_and_no_feature_s_own_word_is_theirs(finished) -> None:
    _, words, _, asked = finished
    shown = [text for text in asked if "Marked by other units" in text]
    assert len(shown) == len(words)
    for text in shown:
        near, own = text.split("Marked by other units")[1].split("Excerpts:")
        assert near.count("\n- ") >= 2
        word = own.split("«")[1].split("»")[0]
        assert f"«{word}»" not in near


def test_explanations_of_a_file_are_scored_and_a_missing_one_says_so(finished) -> None:
    run, _, missing, _ = finished
    rows = run.explanations[run.explanations["explainer"] == "given"].set_index("feature")
    assert rows.loc[missing, "failure"] == "theirs.jsonl has no explanation of it"
    scores = run.scores[run.scores["explainer"] == "given"].set_index("feature")["value"]
    assert (scores.drop(missing) == 1.0).all()
    assert scores.isna()[missing]


def test_the_subject_says_something_of_every_feature_or_why_not(finished) -> None:
    run, *_ = finished
    rows = run.explanations[run.explanations["explainer"] == "self_explain"]
    assert len(rows) == 8
    assert (rows["explanation"].notna() | rows["failure"].notna()).all()
    assert rows["raw"].dropna().str.contains("nats a token").all()
