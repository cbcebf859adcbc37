"""Exports against the schemas of the tools that read them, and by their own code where it is installed.

The peers' packages pin other versions of what we use, so that they are read from a folder of their own:

    pip install --no-deps --target DIR neuronpedia==1.2.1 circuit-tracer==0.5.0 sae-bench==0.6.0 eai-delphi==0.1.3 \\
        plotly orjson narwhals scikit-learn
    PYTHONPATH=DIR python -m pytest tests/report/test_exports.py
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import types
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from synthetic import FAILURE, HOSTILE, write_run

from autointerp.commands.export import export
from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.exports import NAMES, neuronpedia
from autointerp.report.html import write_report
from autointerp.report.text import named

SOURCE = "8-res-16k"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose detection is also there as fuzzing and, as a whole number of right answers, as saebench."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "exported")
    config = yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").exists() else {}
    config |= {
        "name": "exported",
        "subject": {"model": "openai-community/gpt2", "hook": "blocks.8.hook_resid_pre", "dtype": "float32"},
        "corpus": {"source": "/somewhere/private/text.jsonl", "tokens": 10_000, "context": 128},
        "sae": {"load": "/somewhere/private/sae"},
        "llm": {"model": "vllm:/somewhere/private/qwen"},
        "scorers": [{"name": "detection"}, {"name": "simulation"}, {"name": "saebench"}],
        "explainers": [{"name": "default"}, {"name": "token_stats"}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = pq.read_table(folder / "explanations.parquet")
    said = [row | {"model": "/somewhere/private/qwen"} for row in rows.to_pylist()]
    pq.write_table(type(rows).from_pylist(said, rows.schema), folder / "explanations.parquet")
    for table in ("scores", "judgements"):
        rows = pq.read_table(folder / f"{table}.parquet")
        made = rows.to_pylist()
        for copy in ("fuzzing", "saebench"):
            made += [row | {"scorer": copy} for row in rows.to_pylist() if row["scorer"] == "detection"]
        pq.write_table(type(rows).from_pylist(made, rows.schema), folder / f"{table}.parquet")
    return folder


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports")
    for name in NAMES:
        export(run, name, out=out / name, source=SOURCE)
    return out


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_two_exports_have_the_same_bytes(run: Path, made: Path, tmp_path: Path, name: str) -> None:
    export(run, name, out=tmp_path / "again", source=SOURCE)
    first = {file.relative_to(made / name): file.read_bytes() for file in (made / name).rglob("*") if file.is_file()}
    again = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert first == again
    assert first


# --- neuronpedia ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bulk(made: Path) -> Path:
    return made / "neuronpedia" / "v1" / "gpt2" / SOURCE


def test_bulk_rows_have_the_same_keys_and_ids_of_their_own(bulk: Path) -> None:
    for table in ("features", "activations", "explanations", "scores"):
        rows = lines(bulk / table / "batch-0.jsonl.gz")
        assert rows
        assert {tuple(row) for row in rows} == {tuple(rows[0])}
        if table != "features":
            assert len({row["id"] for row in rows}) == len(rows)
    heads = {
        name: json.loads((bulk / f"{name}.jsonl").read_text()) for name in ("release", "model", "sourceset", "source")
    }
    assert heads["source"]["id"] == SOURCE
    assert heads["sourceset"]["name"] == heads["source"]["setName"] == "res-16k"
    assert heads["source"]["modelId"] == heads["model"]["id"] == "gpt2"


def test_bulk_rows_say_what_the_run_says(run: Path, bulk: Path) -> None:
    features = {row["feature"]: row for row in pq.read_table(run / "features.parquet").to_pylist()}
    told = {int(row["index"]): row for row in lines(bulk / "features" / "batch-0.jsonl.gz")}
    assert told.keys() == features.keys()
    explained = lines(bulk / "explanations" / "batch-0.jsonl.gz")
    assert {row["description"] for row in explained} >= {HOSTILE}
    for row in lines(bulk / "activations" / "batch-0.jsonl.gz"):
        assert len(row["tokens"]) == len(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        assert row["binMin"] <= row["maxValue"] <= row["binMax"]
        assert 0 < row["binContains"] <= 1
    ids = {row["id"] for row in explained}
    scores = lines(bulk / "scores" / "batch-0.jsonl.gz")
    assert {row["explanationScoreTypeName"] for row in scores} >= {"eleuther_recall", "eleuther_fuzz", "recall_alt"}
    details = [detail for row in scores for detail in json.loads(row["jsonDetails"])]
    assert all(row["explanationId"] in ids for row in scores)
    for detail in details:
        assert (detail["prediction"] is None) == (detail["correct"] is None)  # what was not judged is not wrong
    assert any(detail["prediction"] is None for detail in details)


def test_a_judgement_is_exported_with_the_window_that_was_judged_and_no_verdict_that_nobody_gave() -> None:
    windows = {4: {"tokens": ["The", " cat"], "activations": [0.0, 1.5]}}
    judged = {"example": 4, "kind": "random", "quantile": None, "truth": 0.0, "prediction": 1.0, "probability": None}
    for text, tokens in ((None, ["The", " cat"]), ("The «cat»", ["The", " cat"]), ("of the judge's own", [])):
        made = neuronpedia.detail(judged | {"text": text}, windows)
        assert (made["str_tokens"], made["text"]) == (tokens, text or "The cat")
        assert (made["prediction"], made["correct"]) == (True, False)
    ranked = neuronpedia.detail(judged | {"prediction": 0.37}, windows, answers=False)
    assert (ranked["prediction"], ranked["correct"]) == (None, None)


def test_neuronpedias_client_reads_the_rows_and_would_send_the_same_body(made: Path, bulk: Path, monkeypatch) -> None:
    pytest.importorskip("neuronpedia")
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_explanation import Explanation
    from neuronpedia.np_feature import Feature, Logit
    from neuronpedia.np_source import Source
    from neuronpedia.requests.feature_request import FeatureRequest
    from neuronpedia.types.autointerp.score.fuzz_detection import NPScoreClassifierOutput

    for row in lines(bulk / "activations" / "batch-0.jsonl.gz"):
        assert Activation.from_np_db_json({**row, "source": row["layer"]}).values == row["values"]
    for row in lines(bulk / "explanations" / "batch-0.jsonl.gz"):
        assert Explanation.from_np_db_json({**row, "source": row["layer"]}).text == row["description"]
    for row in lines(bulk / "scores" / "batch-0.jsonl.gz"):
        for detail in json.loads(row["jsonDetails"]):
            NPScoreClassifierOutput(**detail)
    body = json.loads((made / "neuronpedia" / "upload" / "batch-0.json").read_text())
    features = [
        Feature(
            "gpt2", SOURCE, row["index"], row["density"],
            [Logit(**logit) for logit in row["topLogits"]], [Logit(**logit) for logit in row["bottomLogits"]],
            [Explanation("gpt2", SOURCE, row["index"], *explanation.values()) for explanation in row["explanations"]],
            [Activation("gpt2", SOURCE, row["index"], **activation) for activation in row["activations"]],
        )
        for row in body["features"]
    ]  # fmt: skip
    sent = []
    monkeypatch.setattr(FeatureRequest, "__init__", lambda self, api_key=None: None)
    monkeypatch.setattr(FeatureRequest, "send_request", lambda self, **what: sent.append(what["json"]))
    Source(SOURCE, "gpt2", "res-16k").upload_batch(features)
    assert sent == [body]


# --- circuit-tracer ---------------------------------------------------------------------------


def test_a_feature_of_an_attribution_graph_has_its_examples(run: Path, made: Path) -> None:
    folder = made / "circuit-tracer"
    feature = json.loads((folder / "features" / SOURCE / "10.json").read_text())
    assert set(feature) == {
        *("transcoder_id", "index", "examples_quantiles", "top_logits", "bottom_logits", "act_min", "act_max"),
        *("quantile_values", "histogram", "activation_frequency"),
    }
    names = [quantile["quantile_name"] for quantile in feature["examples_quantiles"]]
    assert names == ["Top activations", "Quantile 3 of 3", "Quantile 2 of 3", "Quantile 1 of 3"]
    for quantile in feature["examples_quantiles"]:
        for example in quantile["examples"]:
            acts = example["tokens_acts_list"]
            assert len(acts) == len(example["tokens"])
            assert acts[example["train_token_ind"]] == max(acts)
    assert sum(feature["histogram"]) == sum(len(q["examples"]) for q in feature["examples_quantiles"][1:])
    labels = json.loads((folder / "labels.json").read_text())
    assert labels["8_3"] == HOSTILE


def test_circuit_tracers_model_reads_every_feature(made: Path) -> None:
    pytest.importorskip("circuit_tracer")
    models = loaded("circuit_tracer", "frontend/feature_models.py")
    for file in (made / "circuit-tracer" / "features" / SOURCE).iterdir():
        assert models.Model.model_validate_json(file.read_text()).index == int(file.stem)


def loaded(package: str, file: str) -> types.ModuleType:
    """One file of a package without its ``__init__``, which imports what is not installed here."""
    folder = importlib.util.find_spec(package)
    assert folder is not None
    assert folder.submodule_search_locations
    spec = importlib.util.spec_from_file_location(
        f"peer_{Path(file).stem}", Path(folder.submodule_search_locations[0]) / file
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# --- delphi -----------------------------------------------------------------------------------


def test_delphis_files_hold_each_explanation_and_each_judged_example(made: Path) -> None:
    folder = made / "delphi"
    assert json.loads((folder / "explanations" / f"{SOURCE}_latent3.txt").read_text()) == HOSTILE
    other = json.loads((folder / "token_stats" / "explanations" / f"{SOURCE}_latent10.txt").read_text())
    assert other == "tokens 1"
    examples = json.loads((folder / "scores" / "detection" / f"{SOURCE}_latent10.txt").read_text())
    assert {type(example["activating"]) for example in examples} == {bool}
    assert {example["distance"] for example in examples} == {-1, 1, 2, 3}
    assert (folder / "scores" / "fuzz" / f"{SOURCE}_latent10.txt").is_file()


def test_delphis_analysis_gives_our_confusion(run: Path, made: Path) -> None:
    pytest.importorskip("delphi")
    pytest.importorskip("plotly")
    analysis = loaded("delphi", "log/result_analysis.py")
    frame, _ = analysis.load_data(made / "delphi" / "scores", [SOURCE])
    ours = [
        row for row in pq.read_table(run / "judgements.parquet").to_pylist()
        if row["scorer"] == "detection" and row["control"] is None
    ]  # fmt: skip
    theirs = frame[frame["score_type"] == "detection"]
    assert len(theirs) == len(ours)
    confusion = analysis.compute_confusion(theirs)
    judged = [(row["truth"], row["prediction"]) for row in ours if row["prediction"] is not None]
    assert confusion["true_positives"] == sum(truth == prediction == 1 for truth, prediction in judged)
    assert confusion["false_positives"] == sum((truth, prediction) == (0, 1) for truth, prediction in judged)
    assert confusion["total_examples"] == len(judged)


# --- saebench ---------------------------------------------------------------------------------


def test_the_saebench_result_is_the_mean_over_features_with_a_value(run: Path, made: Path) -> None:
    result = json.loads((made / "saebench" / "autointerp_eval_results.json").read_text())
    wanted = {"scorer": "saebench", "explainer": "default", "control": None}
    rows = [row for row in pq.read_table(run / "scores.parquet").to_pylist() if wanted.items() <= row.items()]
    values = [row["value"] for row in rows if row["value"] is not None]
    assert result["eval_result_metrics"]["autointerp"]["autointerp_score"] == pytest.approx(sum(values) / len(values))
    assert len(result["eval_result_unstructured"]) == len(values) == result["eval_config"]["n_latents"]
    assert "private" not in json.dumps(result)


def test_saebenchs_own_class_takes_the_result(made: Path) -> None:
    pytest.importorskip("sae_bench")
    from pydantic import TypeAdapter
    from sae_bench.evals.autointerp.eval_output import AutoInterpEvalOutput

    text = (made / "saebench" / "autointerp_eval_results.json").read_text()
    result = TypeAdapter(AutoInterpEvalOutput).validate_json(text)
    assert 0 < result.eval_result_metrics.autointerp.autointerp_score < 1


def test_a_run_without_saebenchs_scorer_has_no_such_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "plain")
    with pytest.raises(ConfigError, match="add it to scorers"):
        export(folder, "saebench", out=tmp_path / "out")


# --- hub --------------------------------------------------------------------------------------


def test_the_card_has_figures_controls_and_no_path_of_this_machine(made: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(made / "hub" / "README.md")
    assert card.data.base_model == "openai-community/gpt2"
    assert {c["config_name"] for c in card.data.configs} >= {"features", "scores", "judgements", "contexts"}
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert any(line.startswith("| default | detection |") for line in rows)
    assert any(line.startswith("| token\\_stats | simulation |") for line in rows)
    assert all(line.count(" | ") == 6 for line in rows)
    assert "detection (vllm:qwen)" in card.text


def test_nothing_that_is_sent_on_names_a_folder_of_this_machine(run: Path, made: Path, tmp_path: Path) -> None:
    report = write_report(run, tmp_path / "report.html")
    for file in [report, *(file for file in made.rglob("*.*") if file.is_file())]:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert b"private" not in content, file
    told = pq.read_table(made / "hub" / "data" / "explanations.parquet")
    assert told.schema == pq.read_schema(run / "explanations.parquet")
    assert set(told["model"].to_pylist()) == {"qwen"}
    names = ("org/model", "local:org/model", "s3://bucket/text", "stories15m", "~/text.jsonl", "../up/sae", None)
    assert [named(name) for name in names] == [*names[:4], "text.jsonl", "sae", None]


def test_the_hubs_own_library_loads_each_table_of_the_folder(run: Path, made: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    head = yaml.safe_load((made / "hub" / "README.md").read_text().split("---")[1])
    for config in head["configs"]:
        file = made / "hub" / config["data_files"]
        loaded = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path))["train"]
        assert len(loaded) == pq.read_metadata(run / file.name).num_rows


def test_a_push_without_a_token_is_refused_before_anything_is_written(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        export(run, "hub", out=tmp_path / "out", push="me/mine")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--to hub"):
        export(run, "delphi", out=tmp_path / "out", push="me/mine")


def test_a_push_sends_the_folder_and_a_refusal_is_one_line(run: Path, tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    sent = []

    class Hub:
        def __init__(self, token: str) -> None:
            assert token == "secret-of-mine"

        def create_repo(self, repository: str, **how: object) -> None:
            sent.append((repository, how["repo_type"]))

        def upload_folder(self, **what: object) -> None:
            sent.append(what["folder_path"])
            if len(sent) > 2:
                raise OSError("403 Forbidden\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    export(run, "hub", out=tmp_path / "one", push="me/mine")
    assert sent == [("me/mine", "dataset"), tmp_path / "one"]
    with pytest.raises(AutointerpError, match=r"403 Forbidden$"):
        export(run, "hub", out=tmp_path / "two", push="me/mine")
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"secret-of-mine" in f.read_bytes()]


def test_a_push_without_a_network_is_one_line(run: Path, tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    class Away:
        def __init__(self, token: str) -> None: ...

        def create_repo(self, repository: str, **how: object) -> None:
            raise HTTPError("[Errno 111] Connection refused")

    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    monkeypatch.setattr(huggingface_hub, "HfApi", Away)
    with pytest.raises(AutointerpError, match=r"is written, and the hub did not take it: .*refused$"):
        export(run, "hub", out=tmp_path / "out", push="me/mine")


# --- all of them ------------------------------------------------------------------------------


def test_an_unknown_export_a_full_folder_and_an_unknown_layer_are_one_line_each(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'neuronpedia'"):
        export(run, "neuronpeda")
    (tmp_path / "mine").write_text("text")
    with pytest.raises(ConfigError, match="not empty"):
        export(run, "delphi", out=tmp_path)
    plain = write_run(tmp_path / "plain")
    for told, wanted in (({}, "--model"), ({"model": "gpt2"}, "--source")):
        (plain / "config.yaml").unlink(missing_ok=True)
        with pytest.raises(ConfigError, match=wanted):
            export(plain, "neuronpedia", out=tmp_path / "out", **told)


def test_in_the_runs_own_folder_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "own")
    first = export(folder, "delphi", source="hook")
    (first / "stale.txt").write_text("of an earlier run")
    assert export(folder, "delphi", source="hook") == first == folder / "exports" / "delphi"
    assert not (first / "stale.txt").exists()


def test_what_could_not_be_scored_is_no_zero_anywhere(made: Path, bulk: Path) -> None:
    assert all(row["value"] is not None for row in lines(bulk / "scores" / "batch-0.jsonl.gz"))
    assert FAILURE not in (made / "saebench" / "autointerp_eval_results.json").read_text()
