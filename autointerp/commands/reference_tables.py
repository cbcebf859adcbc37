"""The generated page of tables: their columns, a scorer's measures, an evaluation's figures, a comparison's rows.

A column's meaning is the comment beside it in `autointerp.tables`; what has no such place is told here.
"""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from autointerp import records, stages, tables
from autointerp.commands.reference_config import comments_beside, fields_in, plain, rows_of
from autointerp.stages import tables as run_tables

FEATURES = (
    ("composite", "text", "label of the composite check: docs/composites.md"),
    ("constituents", "text", "what a flagged latent is the sum of, as in `12+407`"),
    ("status", "text", "ok, dead, too_rare or failed"),
    ("failure", "text", "why the feature has no explanation, or no score"),
)
SCORER = {
    "": "the scorer's value",
    "_low": "95 % interval of the value",
    "_high": "",
    "_n_scored": "examples that were judged",
    "_n_unscored": "examples whose judgement was lost or unreadable",
    "_corrected": "the value against its own chance: 0 at chance, 1 at best",
    "_chance": "mean value of a judge who knows nothing",
    "_yes_rate": "share of the examples to which the judge says yes",
    "_ece": "expected calibration error of the judge's probabilities",
    "_q1": "the value of the weakest quantile's firing windows beside all silent ones, an AUROC or a correlation; `_q2`"
    " and so on for the stronger ones",
    "_control": "the same score of the first control's explanations, the mean over its donors",
    "_lent_by_1": "which feature lent the control its first explanation; `_lent_by_2` and so on for the others",
}
USUAL = {  # what a column means in every table that says no more of it
    "feature": "the latent's number in its SAE",
    "explainer": "its label in the config",
    "scorer": "its label in the config",
    "control": "null for the score itself",
    "max_activation": "over the whole harvest",
    "model": "the language model that was asked",
    "prompt_tokens": "sent for it",
    "completion_tokens": "answered",
    "constituents": "their numbers in the SAE",
    "failure": "why there is no value",
    "note": "why there is no value, or what it depends on",
}
MEASURES: dict[tuple[str, ...], str] = {  # columns of scores.parquet -> what they say
    ("corrected_low", "corrected_high"): "95 % interval of `corrected`",
    ("auprc", "auroc"): "average precision, and area under the ROC curve, of the evidence for Yes",
    ("accuracy", "balanced_accuracy", "f1", "iou", "precision", "recall"): "of the answers, Yes from ½ on; null where"
    " the denominator is 0. `accuracy` of scorers that ask which is meant: the share of questions answered right",
    (
        *("accuracy_chance", "balanced_accuracy_chance", "f1_chance"),
        *("iou_chance", "precision_chance", "recall_chance"),
    ): "the mean of the same over all permutations of the labels",
    (
        *("accuracy_calibrated", "balanced_accuracy_calibrated", "f1_calibrated", "iou_calibrated"),
        *("precision_calibrated", "recall_calibrated", "yes_rate_calibrated", "ece_calibrated"),
    ): "the same with probabilities that were scaled on other features",
    ("auprc_random", "base_rate_random", "chance_random", "corrected_random"): "of all firing windows beside the silent"
    " ones drawn at random alone",
    ("auprc_near", "base_rate_near", "chance_near", "corrected_near"): "of all firing windows beside the near misses"
    " alone",
    ("auroc_q1", "recall_q1"): "of the weakest quantile's firing windows, the first beside all silent ones; `_q2` …",
    ("natural_rate",): "share of the windows of running text in which the feature fires",
    ("auprc_natural", "precision_natural", "recall_natural"): "reweighted to that share",
    ("precision_natural_calibrated", "recall_natural_calibrated"): "the same with the scaled probabilities",
    ("n_counted", "n_firing_counted"): "windows of running text that were read, and those in which the feature fires",
    ("auprc_counted", "precision_counted", "recall_counted"): "counted on these windows",
    ("n_saved",): "examples that were not asked about, by `stop_width`",
    ("pearson", "cosine"): "of simulated and true activations over all tokens",
    ("pearson_firing", "pearson_per_context"): "over the firing windows alone; the mean over windows",
    ("pearson_q1",): "over the weakest quantile's firing windows and all silent ones; `_q2` …",
    ("n_tokens", "constant"): "tokens that were simulated; 1 where the simulation is the same for all of them",
    ("sensitivity",): "of `generation`: its value",
    ("nats_firing", "nats_silent"): "of `surprisal`: nats that the explanation gives to firing and to silent windows",
    ("accuracy_of_none",): "of `saebench`: that of a judge who always says None",
}


OF_LATENTS = (  # rows of evaluation.parquet that `evaluation.figures` does not define
    ("`dead_fraction`", "share of the latents that never fire"),
    ("`dense_fraction`, `frequent_fraction`", "share that fires on more than a tenth, or a hundredth, of the tokens"),
    ("`dense_firings`, `frequent_firings`", "share of all firings that are theirs"),
    ("`l0_on_bos`", "latents that fire on a BOS token"),
    ("`mmcs`", "mean over the latents of the highest cosine with another; `mmcs_…` of a null, with random directions"),
    ("`interference_rms`, `interference_random`", "root mean square of the cosines of any two; of random directions"),
    ("`interference_capacity`", "latents that may be active at one time before they drown each other"),
)


def tables_page() -> str:
    kept = [*dict.fromkeys([*stages.TABLES, "usage"])]
    beside = _column_comments()
    parts = [
        "# Tables\n\nA run's folder holds these Parquet tables; `pandas.read_parquet` reads each. A missing value is"
        " null, with the reason in `failure`. Types: text, whole (64-bit), real and float (64 and 32 bits), yes or no;"
        " `[x]` is a list of x."
    ]
    for name in kept + [name for name in tables.COLUMNS if name not in kept]:
        columns = [[f"`{column}`", kind, beside[name].get(column, "")] for column, kind in _columns_of(name).items()]
        parts.append(f"## {name}" + ("" if name in kept else f"\n\n{_ELSEWHERE[name]}"))
        if name == "features":
            parts.append("A row for each feature, with the first explainer's text and each scorer's columns.")
            columns = _feature_columns(beside)
        elif name == "scores":
            parts.append(
                "A row for each feature, explainer, scorer and control. Rows of a control say in `lent_by_1`,"
                " `lent_by_2` … (real) which features lent their explanations; of several that say the same, the first."
            )
        elif name.startswith("control_"):
            own = name.removeprefix("control_")
            text = (
                f"The rows of controls that run the pipeline again: the columns of `{own}`, and `control` always there."
            )
            parts.append(f"{text} Their features are others than the run's.")
        elif name.startswith("union_"):
            parts.append(_OF_UNION[name])
        elif name == "composites":
            parts.append(_composites_columns())
        parts += [rows_of(["column", "type", "meaning"], columns)] if columns else []
        if name == "scores":
            parts.append(_measures())
        elif name == "evaluation":
            parts += [f"```text\n{_figures()}\n```", rows_of(["of latents and directions", "meaning"], OF_LATENTS)]
    return "\n\n".join([*parts, _comparison()])


_ELSEWHERE = {
    "selection": "Kept in the store of artifacts.",
    "evaluation": "In the folder of `autointerp evaluate`: a row for each figure.",
    "evaluation_positions": "Beside it: the same figures by position in the context, a column each. `evaluation_bands`"
    " has them by bands of positions, `evaluation_features` a row for each latent, `evaluation_cosines` the highest"
    " cosines.",
}
_OF_UNION = {
    "union_features": "Latents of the union dictionary (`composites.union`) that are constituents of composites, a row"
    " for each and explainer: the columns of `selection` and `explanations`. Only with `features.constituents`.",
    "union_contexts": "The windows of text that they were explained by: the columns of `contexts`.",
}


def _measures() -> str:
    """The columns of scores.parquet that depend on the scorer."""
    rows = ([", ".join(f"`{name}`" for name in names), meaning] for names, meaning in MEASURES.items())
    return (
        "Behind these stand the scorers' further measures, all real. A scorer leaves those null that it does not have."
        " `autointerp table` knows each as `SCORER_MEASURE` (`detection_f1`).\n\n"
    ) + rows_of(["measure", "meaning"], rows)


def _figures() -> str:
    """What is told of the figures of an evaluation, in the text below their list."""
    from autointerp.evaluation import figures

    body = ast.parse(inspect.getsource(figures)).body
    place = next(i for i, n in enumerate(body) if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "FIGURES")
    return plain(ast.literal_eval(typing.cast(ast.Expr, body[place + 1]).value))


def _comparison() -> str:
    """The columns of a comparison, which is in no file."""
    from autointerp.report import compare

    def columns(tree: ast.AST) -> dict[str, ast.AST]:
        body: list[Any] = tree.body  # type: ignore[attr-defined]
        declared = next(n for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "COLUMNS")
        mapping: Any = declared.value
        return {key.value: value for key, value in zip(mapping.keys, mapping.values)}

    beside = comments_beside(inspect.getsource(compare), columns)
    types = {"string": "text", "bool": "yes or no", "int64": "whole", "float64": "real"}
    rows = ([f"`{name}`", types[kind], beside[name]] for name, kind in compare.COLUMNS.items())
    text = "## compare\n\nIn no file: what `run.compare(…)` returns and `autointerp compare RUN --format csv` prints."
    return f"{text}\n\n" + rows_of(["column", "type", "meaning"], rows)


def _columns_of(table: str) -> Mapping[str, str]:
    if table != "contexts":
        return tables.COLUMNS.get(table, {})
    from autointerp.activations.contexts import _schema

    types = {"int32": "whole", "string": "text", "list<element: string>": "[text]", "list<item: string>": "[text]"}
    return {field.name: types.get(str(field.type), "[float]") for field in _schema()}


def _column_comments() -> dict[str, dict[str, str]]:
    source = inspect.getsource(tables)

    def columns(tree: ast.AST) -> dict[str, ast.AST]:
        body: list[Any] = tree.body  # type: ignore[attr-defined]
        declared = next(n for n in body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "COLUMNS")
        mapping: Any = declared.value
        entries = zip(mapping.keys, mapping.values)
        return {f"{t.value}.{c.value}": v for t, cols in entries for c, v in zip(cols.keys, cols.values)}

    comments = comments_beside(source, columns)
    contexts = comments_beside(inspect.getsource(records.Context), fields_in)
    own = {
        table: {name: comments[f"{table}.{name}"] or USUAL.get(name, "") for name in columns}
        for table, columns in tables.COLUMNS.items()
    }
    return own | {
        "contexts": contexts,
        **{name: {} for name in stages.TABLES if name not in tables.COLUMNS and name != "contexts"},
    }


def _feature_columns(beside: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    import pandas as pd

    first = [
        [f"`{name}`", kind, beside["selection"].get(name, "")]
        for name, kind in tables.COLUMNS["selection"].items()
        if name not in ("status", "failure")
    ]
    first += [["`explanation`", "text", "the first explainer's"], ["`explainer`", "text", "its label"]]
    known = [*tables.COLUMNS["scores"], "auroc_q1", "lent_by_1"]
    rows = pd.DataFrame([dict.fromkeys(known, 0.0) | {"scorer": "SCORER", "control": each} for each in (None, "x")])
    wide = [name for name in run_tables._wide(rows, "SCORER").columns if name != "feature"]
    scorer = [[f"`{name}`", "whole" if "_n_" in name else "real", SCORER[name.removeprefix("SCORER")]] for name in wide]
    return first + scorer + [[f"`{name}`", kind, meaning] for name, kind, meaning in FEATURES]


def _composites_columns() -> str:
    """The paragraph of `find_composites` on its columns, as it stands there."""
    from autointerp.composites import find_composites

    text = inspect.getdoc(find_composites) or ""
    text = text[text.index("Returns a row") : text.index("Raises")]
    return f"As `autointerp.find_composites` returns it:\n\n```text\n{text.rstrip()}\n```\n\n" + (
        "In a run the columns of the evidence follow, each beside its controls `_swapped` and `_random`:"
        " [composites.md](../composites.md#evidence)."
    )
