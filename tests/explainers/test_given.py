"""Explanations from a file: each form is read, what cannot be is told with its place, the content is in the key."""

import asyncio
import csv
import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.config import load_config, parse_config
from autointerp.errors import ConfigError
from autointerp.explainers import given as module
from autointerp.explainers.given import explain, read_explanations
from autointerp.plugins import explainers
from autointerp.records import FeatureEvidence
from autointerp.stages.plugin_section import plugin_section
from autointerp.tables import write_rows

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)
TEXTS = st.dictionaries(st.integers(0, 10**6), TEXT.filter(lambda t: any(c.isalnum() for c in t)), max_size=6)


def texts(path, only=None):
    return {feature: [each.text for each in some] for feature, some in read_explanations(path, only).items()}


def evidence(feature=3):
    return FeatureEvidence(feature, 1, 0.1, 1.0, (), (), ())


def as_csv(path, rows, header=("feature", "explanation"), delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


def as_lines(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def as_delphi(folder, rows):
    folder.mkdir(exist_ok=True)
    for feature, text in rows.items():
        (folder / f"layers.5_latent{feature}.txt").write_bytes(json.dumps(text, ensure_ascii=False).encode())


@settings(max_examples=25, deadline=None)
@given(TEXTS)
def test_every_form_says_the_same(tmp_path_factory, written):
    folder = tmp_path_factory.mktemp("given")
    as_csv(folder / "a.csv", written.items())
    as_csv(folder / "a.tsv", written.items(), delimiter="\t")
    rows = [{"index": str(f), "description": t, "modelId": "m", "embedding": [0.1]} for f, t in written.items()]
    as_lines(folder / "a.jsonl.gz", rows)
    as_delphi(folder / "delphi", written)
    own = [{"feature": f, "explainer": "default", "explanation": t} for f, t in written.items()]
    write_rows(folder / "explanations.parquet", "explanations", own)
    wanted = {feature: [" ".join(text.split())] for feature, text in written.items()}
    for name in ("a.csv", "a.tsv", "a.jsonl.gz", "explanations.parquet"):
        assert texts(folder / name) == wanted, name
    if written:
        assert texts(folder / "delphi") == wanted


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["a.csv", "a.jsonl", "a.jsonl.gz", "a.parquet", "l_latent3.txt"]))
def test_what_is_broken_is_told_in_one_line_or_read(tmp_path_factory, content, name):
    folder = tmp_path_factory.mktemp("broken")
    (folder / name).write_bytes(content)
    told = None
    try:
        read = read_explanations(folder)
    except ConfigError as error:
        read, told = {}, str(error)
    assert all(isinstance(feature, int) for feature in read)
    assert told is None or (name in told and "\n" not in told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("feature,explanation\nx,dogs\n", "line 2: the feature 'x' is no whole number"),
        ("latent,words\n1,dogs\n", "no column explanation or description among latent, words"),
        ("feature,explanation\n1,dogs,cats\n", "line 2: it has not as many columns"),
    ],
)
def test_a_wrong_table_is_told_with_its_place(tmp_path, content, told):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ConfigError, match=told):
        read_explanations(tmp_path / "a.csv")


async def test_the_batches_of_an_export_are_read_together_and_chosen_among(tmp_path):
    row = {"modelId": "gpt2-small", "layer": "6-res-jb", "index": "3", "typeName": "np_max-act"}
    as_lines(tmp_path / "batch-0.jsonl.gz", [row | {"description": "dogs", "explanationModelName": "a"}])
    as_lines(tmp_path / "batch-1.jsonl.gz", [row | {"description": "cats", "explanationModelName": "b"}])
    assert "2 explanations of it" in (await explain(evidence(), None, path=tmp_path)).failure
    assert (await explain(evidence(), None, path=tmp_path, only={"explanationModelName": "b"})).text == "cats"
    with pytest.raises(ConfigError, match="no row has model"):
        await explain(evidence(), None, path=tmp_path, only={"model": "b"})


async def test_a_text_that_is_there_twice_is_one_explanation(tmp_path):
    as_csv(tmp_path / "a.csv", [(3, "dogs and cats"), (3, "dogs  and cats "), (4, "dogs"), (4, "cats")])
    assert (await explain(evidence(3), None, path=tmp_path)).text == "dogs and cats"
    assert "2 explanations of it" in (await explain(evidence(4), None, path=tmp_path)).failure


async def test_what_is_missing_empty_or_unparsed_is_a_failure_with_its_reason(tmp_path):
    as_delphi(tmp_path, {3: "Explanation could not be parsed.", 4: " "})
    assert "could not be parsed" in (await explain(evidence(3), None, path=tmp_path)).failure
    assert "is empty" in (await explain(evidence(4), None, path=tmp_path)).failure
    assert "no explanation of it" in (await explain(evidence(5), None, path=tmp_path)).failure


async def test_a_file_that_changes_is_read_again_and_changes_the_key(tmp_path):
    file = tmp_path / "mine.csv"
    (tmp_path / "run.yaml").write_text(
        "{name: r, subject: {model: m}, corpus: {source: s}, sae: {load: x}, scorers: [], controls: [],"
        " explainers: [{name: given, path: mine.csv}]}"
    )

    def key():
        config = load_config(tmp_path / "run.yaml")
        return plugin_section(config, explainers, config.explainers[0])

    as_csv(file, [(3, "dogs")])
    before, first = key(), await explain(evidence(), None, path=file)
    assert key() == before
    as_csv(file, [(3, "cats")])
    assert key() != before
    assert (first.text, (await explain(evidence(), None, path=file)).text) == ("dogs", "cats")
    assert str(tmp_path) not in json.dumps(before)


def test_a_folder_is_looked_through_once_a_run_and_again_in_the_next(tmp_path, monkeypatch):
    as_delphi(tmp_path, dict.fromkeys(range(40), "dogs"))
    looked, list_files = [], module._files
    monkeypatch.setattr(module, "_files", lambda path: looked.append(path) or list_files(path))

    async def run():
        return [(await explain(evidence(feature), None, path=tmp_path)).text for feature in range(40)]

    assert set(asyncio.run(run())) == {"dogs"}
    assert len(looked) < 4
    changed = tmp_path / "layers.5_latent3.txt"
    as_delphi(tmp_path, {3: "cats"})
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 10**9))
    assert asyncio.run(run())[2:5] == ["dogs", "cats", "dogs"]


def test_a_path_that_is_not_there_is_told_before_the_run(tmp_path):
    config = parse_config(
        {
            "name": "r", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "x"}, "scorers": [],
            "explainers": [{"name": "given", "path": str(tmp_path / "none.csv")}],
        }
    )  # fmt: skip
    with pytest.raises(ConfigError, match="there is no file or folder"):
        plugin_section(config, explainers, config.explainers[0])
